"""The memory bricks against slow loops."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from clara.config import CompressionConfig
from clara.model.network import _right_padded
from clara.model.spans import Spans, _text_positions, additive
from clara.model.table import _READ_SHARE, _WHITENING, MemoryTable

WIDTH = 5


def masks(lengths: list[int], *, left: bool, extra: int = 0) -> Tensor:
    """A mask bool [B, S] with texts of these lengths, padded on one side."""
    size = max(lengths) + extra
    rows = [([False] * (size - n) + [True] * n) if left else ([True] * n + [False] * (size - n)) for n in lengths]
    return torch.tensor(rows, dtype=torch.bool).reshape(len(lengths), size)


def slow_span(length: int, n: int, i: int) -> tuple[int, int]:
    """First token of span i, and one past its last."""
    start = (i * length) // n
    return start, max(((i + 1) * length) // n, start + 1)


def ramp(*shape: int) -> Tensor:
    return torch.linspace(-2, 3, torch.Size(shape).numel()).reshape(shape).sin()


batches = st.lists(st.integers(0, 40), min_size=1, max_size=4)


@given(lengths=batches, n=st.integers(1, 64), left=st.booleans(), extra=st.integers(0, 3))
def test_spans_equal_a_loop_and_cover_the_text(lengths: list[int], n: int, *, left: bool, extra: int) -> None:
    mask = masks(lengths, left=left, extra=extra)
    spans = Spans.equal(mask, n)
    assert spans.member.shape == (len(lengths), n, mask.shape[1])
    for row, length in enumerate(lengths):
        offset = mask.shape[1] - length if left else 0
        covered = set()
        for i in range(n):
            start, end = slow_span(length, n, i)
            wanted = {offset + t for t in range(start, end) if t < length}
            found = set(spans.member[row, i].nonzero().flatten().tolist())
            assert found == wanted
            assert (len(found) >= 1) == (length >= 1)
            weights = spans.weights[row, i]
            assert float(weights.sum()) == pytest.approx(1.0 if length else 0.0)
            assert all(float(weights[t]) == pytest.approx(1 / len(wanted)) for t in wanted)
            assert float(spans.centre[row, i]) == (start + end - 1) / 2
            covered |= found
        assert covered == {offset + t for t in range(length)}


def slow_merge(information: list[float], n: int) -> list[tuple[int, int]]:
    """Spans (first token, one past the last) from one a token, the two poorest neighbours merged at a time."""
    spans = [(t, t + 1) for t in range(len(information))]
    while len(spans) > n:
        sums = [sum(information[a:d]) for (a, _), (_, d) in pairwise(spans)]
        poorest = sums.index(min(sums))
        spans[poorest : poorest + 2] = [(spans[poorest][0], spans[poorest + 1][1])]
    return spans


@given(lengths=batches, n=st.integers(1, 24), seed=st.integers(0, 99))
def test_spans_of_information_equal_a_loop(lengths: list[int], n: int, seed: int) -> None:
    mask = masks(lengths, left=False, extra=1)
    values = torch.randint(1, 20, mask.shape, generator=torch.Generator().manual_seed(seed)).float()
    spans, equal = Spans.by_information(values, mask, n), Spans.equal(mask, n)
    for row, length in enumerate(lengths):
        if length <= n:
            assert torch.equal(spans.member[row], equal.member[row])
            assert torch.equal(spans.weights[row], equal.weights[row])
            assert torch.equal(spans.centre[row], equal.centre[row])
            continue
        wanted = slow_merge(values[row, :length].tolist(), n)
        for i, (start, end) in enumerate(wanted):
            assert spans.member[row, i].nonzero().flatten().tolist() == list(range(start, end))
            assert spans.weights[row, i, start:end].tolist() == pytest.approx([1 / (end - start)] * (end - start))
            assert float(spans.centre[row, i]) == (start + end - 1) / 2


def test_counted_tokens_cut_spans_a_rare_one_for_itself() -> None:
    table = MemoryTable(CompressionConfig(window_tokens=8, rates=(4,), spans="information"), WIDTH, 4)
    assert table.information is not None
    table.count([[0, 0, 0, 0, 0, 0, 1]], 4)
    assert table.information.tolist() == pytest.approx([math.log(11 / c) for c in (7, 2, 1, 1)])
    ids = torch.tensor([[0, 0, 0, 0, 0, 2]])
    spans = table.spans(ids, torch.ones_like(ids).bool(), rate=4)
    assert spans.member[0].long().tolist() == [[1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 1]]


@given(lengths=batches, left=st.booleans())
def test_text_positions_count_the_text_alone(lengths: list[int], *, left: bool) -> None:
    mask = masks(lengths, left=left, extra=2)
    for row, length in enumerate(lengths):
        assert _text_positions(mask)[row][mask[row]].tolist() == list(range(length))
    assert (_text_positions(mask) >= 0).all()


@pytest.mark.parametrize("left", [False, True])
def test_pool_is_the_mean_of_each_span(left: bool) -> None:  # noqa: FBT001 - pytest passes it
    lengths, n = [7, 3, 12], 4
    mask = masks(lengths, left=left)
    values = ramp(3, mask.shape[1], WIDTH)
    pooled = Spans.equal(mask, n).pool(values)
    for row, length in enumerate(lengths):
        text = values[row][mask[row]]
        for i in range(n):
            start, end = slow_span(length, n, i)
            torch.testing.assert_close(pooled[row, i], text[start:end].mean(dim=0))
    assert Spans.equal(mask, n).pool(values.bfloat16()).dtype == torch.bfloat16


@given(lengths=batches, n=st.integers(1, 64), left=st.booleans())
def test_memory_positions(lengths: list[int], n: int, *, left: bool) -> None:
    mask = masks(lengths, left=left)
    spans = Spans.equal(mask, n)
    appended, spread = (spans.positions(mask, kind) for kind in ("appended", "spread"))
    for row, length in enumerate(lengths):
        assert appended[row].tolist() == [length + i for i in range(n)]
        middles = [sum(slow_span(length, n, i)) - 1 for i in range(n)]
        assert spread[row].tolist() == [middle // 2 for middle in middles]
        assert length == 0 or int(spread[row].max()) < length


def slow_attention(mask: Tensor, n: int, attention: str) -> Tensor:
    """``Spans.attention``, one pair at a time."""
    b, s = mask.shape
    allowed = torch.zeros(b, 1, n, s + n, dtype=torch.bool)
    for row in range(b):
        places = mask[row].nonzero().flatten().tolist()
        for i in range(n):
            start, end = slow_span(len(places), n, i)
            for k in range(s):
                allowed[row, 0, i, k] = k in (places if attention == "full" else places[start:end])
            for k in range(n):
                allowed[row, 0, i, s + k] = k == i or (attention == "full" and k < i)
    return allowed


@pytest.mark.parametrize("attention", ["full", "span"])
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("n", [1, 3, 8])
def test_attention_equals_a_loop(attention: str, left: bool, n: int) -> None:  # noqa: FBT001 - pytest passes it
    mask = masks([6, 1, 9, 4], left=left, extra=1)
    found = Spans.equal(mask, n).attention(mask, attention)[:, None]
    assert torch.equal(found, slow_attention(mask, n, attention))


@given(lengths=batches, left=st.booleans(), extra=st.integers(0, 3))
def test_right_padding_moves_the_text_and_nothing_else(lengths: list[int], *, left: bool, extra: int) -> None:
    mask = masks(lengths, left=left, extra=extra)
    ids = torch.arange(mask.numel()).reshape(mask.shape)
    moved, moved_mask = _right_padded(ids, mask)
    assert torch.equal(moved_mask, masks(lengths, left=False, extra=extra))
    for row, length in enumerate(lengths):
        assert moved[row, :length].tolist() == ids[row][mask[row]].tolist()


def test_additive_mask() -> None:
    numbers = additive(torch.tensor([[True, False]]), torch.bfloat16)
    assert numbers.dtype == torch.bfloat16
    assert numbers.tolist() == [[0.0, torch.finfo(torch.bfloat16).min]]


def table(**settings: object) -> MemoryTable:
    config = CompressionConfig.model_validate({"window_tokens": 64, "rates": (4, 16), **settings})
    return MemoryTable(config, WIDTH)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("rate", [4, 16])
def test_calibrated_memories_have_mean_and_spread_of_embeddings(residual: bool, rate: int) -> None:  # noqa: FBT001
    made = table(gain=True, residual=residual, read_out="mean_pool")
    embeddings, read, rest = 0.1 * ramp(50, WIDTH) + 0.7, 30 * ramp(40, WIDTH).cos() - 5, 3 * ramp(40, WIDTH)
    made.calibrate(embeddings, read, rest, rate=rate)
    memory = made.assemble(read[None], rest[None], rate=rate)[0].detach()
    torch.testing.assert_close(memory.mean(dim=0), embeddings.mean(dim=0), atol=1e-4, rtol=1e-4)
    spread = embeddings.std(dim=0)
    if residual:
        silent, bare = torch.zeros_like(read), torch.zeros_like(rest)
        only_rest = made.assemble(silent[None], rest[None], rate=rate)[0].detach().std(dim=0)
        only_read = made.assemble(read[None], bare[None], rate=rate)[0].detach().std(dim=0)
        torch.testing.assert_close(only_rest, spread, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(only_read, _READ_SHARE * spread, atol=1e-4, rtol=1e-4)
    else:
        torch.testing.assert_close(memory.std(dim=0), spread, atol=1e-4, rtol=1e-4)


def test_calibrating_one_rate_leaves_the_other() -> None:
    made = table(gain=True, residual=True)
    made.calibrate(ramp(50, WIDTH), ramp(40, WIDTH), ramp(40, WIDTH), rate=16)
    assert made.gain is not None
    assert made.bias is not None
    assert made.gain[0].tolist() == [1.0] * WIDTH
    assert made.bias[0].tolist() == [0.0] * WIDTH
    assert (made.gain[1] != 1).all()


def test_without_gain_the_memory_is_the_read_out_and_the_residual() -> None:
    read, rest = ramp(2, 3, WIDTH), ramp(2, 3, WIDTH).cos()
    assert torch.equal(table().assemble(read, rest, rate=4), read)
    assert torch.equal(table(residual=True).assemble(read, rest, rate=4), read + rest)
    assert dict(table(read_out="mean_pool").named_parameters()) == {}


@pytest.mark.parametrize(("pooled", "share"), [(False, 1.0), (True, 0.1)])
def test_fresh_memory_tokens_have_the_size_of_embeddings(pooled: bool, share: float) -> None:  # noqa: FBT001
    config = CompressionConfig(window_tokens=256, rates=(16, 4), pooled_input=pooled)
    made, again = MemoryTable(config, 64), MemoryTable(config, 64)
    embeddings = 3 * ramp(50, 64)
    made.initialise(embeddings, seed=1)
    again.initialise(embeddings, seed=1)
    assert made.tokens is not None
    assert again.tokens is not None
    assert made.tokens.shape == (64, 64), "rows for the smallest rate"
    rms = float(embeddings.pow(2).mean().sqrt())
    assert float(made.tokens.detach().pow(2).mean().sqrt()) == pytest.approx(share * rms, rel=0.05)
    assert torch.equal(made.tokens, again.tokens)


def test_a_projected_question_is_its_mean_at_every_memory_token() -> None:
    made = table(gain=True, residual=True)
    made.project_queries(projected=True)
    assert made.query_projection is not None
    assert made.query_centre is not None
    with torch.no_grad():
        made.query_projection.copy_(ramp(2, WIDTH, WIDTH).sin())
        made.query_centre.copy_(ramp(2, WIDTH))
    read, rest = ramp(2, 3, WIDTH), ramp(2, 3, WIDTH).cos()
    found = made.assemble(read, rest, rate=16, query=True)
    passage = made.assemble(read, rest, rate=16)
    for i in range(2):
        mean = sum(passage[i, j] for j in range(3)) / 3 - made.query_centre[1]
        wanted = torch.stack([sum(row[k] * mean[k] for k in range(WIDTH)) for row in made.query_projection[1]])
        for j in range(3):
            torch.testing.assert_close(found[i, j], wanted, rtol=1e-4, atol=1e-4)
    made.project_queries(projected=False)
    assert torch.equal(made.assemble(read, rest, rate=16, query=True), passage)


def unit(sample: Tensor) -> npt.NDArray[np.float64]:
    """Covariance with a mean eigenvalue of one."""
    covariance = np.cov(sample.double().numpy().T, ddof=0)
    return np.asarray(covariance * len(covariance) / np.trace(covariance))


def test_whitening_equals_numpy_and_finds_what_cosine_misses() -> None:
    width, asked_of = 32, 20
    rng = np.random.default_rng(0)
    common = rng.standard_normal(width)  # what passages differ in most, and which says nothing
    topics = rng.standard_normal((400, width))
    documents = torch.from_numpy(topics + 2 * rng.standard_normal((400, 1)) * common).float()
    noise = 0.3 * rng.standard_normal((asked_of, width)) + 4 * rng.standard_normal((asked_of, 1)) * common
    questions = torch.from_numpy(topics[:asked_of] + noise).float()
    made = MemoryTable(CompressionConfig(rates=(4, 16)), width)
    made.project_queries(projected=True)
    made.whiten_queries(documents, questions, rate=4)
    assert made.query_projection is not None
    assert made.query_centre is not None
    wanted = np.linalg.inv(unit(documents) + unit(questions) + _WHITENING * np.eye(width))
    np.testing.assert_allclose(made.query_projection[0].detach().numpy(), wanted, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(made.query_centre[0].detach(), questions.mean(dim=0))
    assert torch.equal(made.query_projection[1], torch.eye(width)), "the other rate is as it was"

    def found(queries: Tensor) -> float:
        scores = functional.normalize(queries, dim=-1) @ functional.normalize(documents, dim=-1).T
        return float((scores.argmax(dim=1) == torch.arange(asked_of)).float().mean())

    projected = made.assemble(questions[:, None], torch.zeros(asked_of, 1, width), rate=4, query=True)
    assert found(questions) < 0.5, "what is loud in the question decides"
    assert found(projected[:, 0].detach()) > 0.7


@pytest.mark.parametrize("length", [3, 7, 29])
def test_a_question_weighs_by_the_squared_information_of_its_tokens(length: int) -> None:
    n, vocabulary = 8, 40
    made = MemoryTable(CompressionConfig(window_tokens=32, rates=(4,), spans="information"), WIDTH)
    made.count([[3] * 900 + [5] * 90 + [7] * 9], vocabulary)
    ids = torch.tensor([[3, 5, 7][i * i % 3] + (i % 2) for i in range(length)])[None]
    mask = torch.ones_like(ids).bool()
    assert made.question_weights(ids, mask, rate=4) is None, "only late interaction weighs token by token"
    made.project_queries(projected=True, late=True)
    assert made.information is not None
    member = made.spans(ids, mask, rate=4).member[0]
    wanted = torch.zeros(n)
    for token in range(length):
        readers = [i for i in range(n) if member[i, token]]
        for i in readers:
            wanted[i] += float(made.information[ids[0, token]]) ** 2 / len(readers)
    padded = functional.pad(ids, (0, 4)), functional.pad(mask, (0, 4))
    for one in ((ids, mask), padded):
        found = made.question_weights(*one, rate=4)
        assert found is not None
        torch.testing.assert_close(found[0], wanted / wanted.mean(), rtol=1e-5, atol=1e-6)
    equal = MemoryTable(CompressionConfig(window_tokens=32, rates=(4,)), WIDTH)
    equal.project_queries(projected=True, late=True)
    assert equal.question_weights(ids, mask, rate=4) is None, "without counts nothing is known of tokens"

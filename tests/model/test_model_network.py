"""Memories do not depend on padding, and equal those of one plain pass; losses and splice equal loops."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from clara.config import CompressionConfig
from clara.model.create import Loaded
from clara.model.decoder import Role, splice
from clara.model.losses import contrastive, memory_mse, token_cross_entropy
from clara.model.network import Network, encode
from clara.model.table import MemoryTable

LENGTHS = (17, 64, 1, 3, 40)
WINDOW, RATE = 64, 16

Make = Callable[[CompressionConfig], Loaded]


def configs() -> list[CompressionConfig]:
    """Every read-out with every option that changes what is computed."""
    tokens = itertools.product(("appended", "spread"), ("full", "span"), (False, True), (False, True))
    made = [
        {"read_out": "memory_tokens", "positions": p, "attention": a, "residual": r, "pooled_input": i}
        for p, a, r, i in tokens
    ]
    made += [{"read_out": "mean_pool", "residual": r} for r in (False, True)]
    made += [{"read_out": kind, "residual": True, "gain": True} for kind in ("memory_tokens", "mean_pool")]
    return [CompressionConfig.model_validate({"window_tokens": WINDOW, "rates": (4, RATE), **m}) for m in made]


@pytest.fixture(scope="module")
def loaded(make_network: Make) -> Loaded:
    return make_network(CompressionConfig(window_tokens=WINDOW, rates=(4, RATE)))


def network_with(loaded: Loaded, config: CompressionConfig) -> Network:
    """The same backbone and adapters with another read-out."""
    adapters = loaded.network.adapters
    table = MemoryTable(config, loaded.manifest.hidden_size)
    table.initialise(adapters.bare().get_input_embeddings().weight)
    return Network(adapters, table).eval()


def texts() -> list[list[int]]:
    return [[(7 * i + 11 * length) % 590 + 2 for i in range(length)] for length in LENGTHS]


def padded(rows: list[list[int]], *, left: bool, filler: int, extra: int = 2) -> tuple[Tensor, Tensor]:
    size = max(map(len, rows)) + extra
    ids = torch.full((len(rows), size), filler)
    mask = torch.zeros(len(rows), size, dtype=torch.bool)
    for i, row in enumerate(rows):
        place = slice(size - len(row), size) if left else slice(0, len(row))
        ids[i, place] = torch.tensor(row)
        mask[i, place] = True
    return ids, mask


@pytest.mark.parametrize("config", configs(), ids=lambda c: f"{c.read_out}-{c.positions}-{c.attention}")
@torch.no_grad()
def test_padding_does_not_change_a_memory(config: CompressionConfig, loaded: Loaded) -> None:
    network = network_with(loaded, config)
    for rate in config.rates:
        alone = [
            network.encode("compressor", torch.tensor([row]), torch.ones(1, len(row), dtype=torch.bool), rate=rate)
            for row in texts()
        ]
        assert float((alone[0].memory - alone[1].memory).abs().max()) > 0.01, "texts give different memories"
        for left, filler in ((False, 0), (False, 99), (True, 5)):
            ids, mask = padded(texts(), left=left, filler=filler)
            batch = network.encode("compressor", ids, mask, rate=rate)
            assert batch.memory.shape == (len(LENGTHS), WINDOW // rate, loaded.manifest.hidden_size)
            for i, single in enumerate(alone):
                assert float((batch.memory[i] - single.memory[0]).abs().max()) < 1e-4
                mean = batch.read_out.text_mean[i] - single.read_out.text_mean[0]
                assert float(mean.abs().max()) < 1e-4


def one_pass(network: Network, row: list[int], rate: int) -> Tensor:
    """The memory of one text by clara.md section 1: one pass over text and memory tokens, a mask built by loops."""
    config, model = network.table.config, network.adapters.bare()
    s, n = len(row), config.memory_tokens(rate)
    spans = [(i * s // n, max((i + 1) * s // n, i * s // n + 1)) for i in range(n)]
    embeds: Tensor = model.get_input_embeddings()(torch.tensor(row))
    means = torch.stack([embeds[a:b].mean(dim=0) for a, b in spans])
    inputs, places = embeds, list(range(s))
    if network.table.tokens is not None:
        slots = network.table.tokens[:n] + (means if config.pooled_input else 0)
        inputs = torch.cat([embeds, slots])
        places += [(a + b - 1) // 2 for a, b in spans] if config.positions == "spread" else list(range(s, s + n))
    size = len(inputs)
    mask = torch.full((1, 1, size, size), torch.finfo(torch.float32).min)
    for q, k in itertools.product(range(size), range(size)):
        sees = k <= q
        if q >= s and config.attention == "span":
            sees = k == q or (k < s and spans[q - s][0] <= k < spans[q - s][1])
        if sees:
            mask[0, 0, q, k] = 0
    with network.adapters.use("compressor"):
        hidden = model.get_decoder()(
            inputs_embeds=inputs[None], attention_mask=mask, position_ids=torch.tensor([places]), use_cache=False
        ).last_hidden_state[0]
    read = torch.stack([hidden[a:b].mean(dim=0) for a, b in spans]) if network.table.tokens is None else hidden[s:]
    return network.table.assemble(read[None], means[None], rate=rate)[0]


@pytest.mark.parametrize("config", configs(), ids=lambda c: f"{c.read_out}-{c.positions}-{c.attention}")
@torch.no_grad()
def test_a_memory_equals_one_plain_pass(config: CompressionConfig, loaded: Loaded) -> None:
    network = network_with(loaded, config)
    ids, mask = padded(texts(), left=False, filler=0)
    batch = network.encode("compressor", ids, mask, rate=RATE).memory
    for i, row in enumerate(texts()):
        assert float((batch[i] - one_pass(network, row, RATE)).abs().max()) < 1e-4


@pytest.mark.parametrize("read_out", ["memory_tokens", "mean_pool"])
def test_gradients_equal_those_of_one_plain_pass(read_out: str, loaded: Loaded) -> None:
    config = CompressionConfig.model_validate({"window_tokens": WINDOW, "rates": (RATE,), "read_out": read_out})
    network = network_with(loaded, config)
    row = texts()[0]
    parameters = [*network.adapters.parameters_of("compressor"), *network.table.parameters()]
    for parameter in parameters:
        parameter.requires_grad = True
    ids, mask = padded([row], left=False, filler=0)
    fast = network.encode("compressor", ids, mask, rate=RATE).memory
    slow = one_pass(network, row, RATE)
    weights = torch.linspace(-1, 1, slow.numel()).reshape(slow.shape)
    found = torch.autograd.grad((fast[0] * weights).sum(), parameters, allow_unused=True)
    wanted = torch.autograd.grad((slow * weights).sum(), parameters, allow_unused=True)
    assert sum(g is not None and bool(g.abs().sum() > 0) for g in wanted) >= len(parameters) - 2
    for left, right in zip(found, wanted, strict=True):
        if right is not None:
            torch.testing.assert_close(left, right, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_an_unserved_rate_is_refused(loaded: Loaded) -> None:
    network = loaded.network
    with pytest.raises(Exception, match="serves the rates 4x, 16x, not 8x"):
        encode(
            network.adapters.bare(),
            network.table,
            torch.tensor([[1, 2]]),
            torch.ones(1, 2, dtype=torch.bool),
            rate=8,
        )


def test_splice_equals_a_loop() -> None:
    embeds = torch.linspace(0, 1, 3 * 5 * 2).reshape(3, 5, 2).requires_grad_()
    slots = torch.tensor([[0, 1, 1, 0, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 1]], dtype=torch.bool)
    memories = torch.linspace(5, 9, 4 * 2).reshape(4, 2).requires_grad_()
    found = splice(embeds, slots, memories)
    wanted = embeds.detach().clone()
    following = iter(memories.detach())
    for b, place in itertools.product(range(3), range(5)):
        if slots[b, place]:
            wanted[b, place] = next(following)
    assert torch.equal(found.detach(), wanted)
    of_memories, of_embeds = torch.autograd.grad(found.sum(), [memories, embeds])
    assert torch.equal(of_memories, torch.ones(4, 2))
    assert torch.equal(of_embeds, (~slots).float()[:, :, None].expand(-1, -1, 2))
    assert float(embeds.detach()[0, 1, 0]) < 1, "the input is left as it was"


def test_splice_takes_the_dtype_of_the_prompt() -> None:
    embeds = torch.zeros(1, 3, 2, dtype=torch.bfloat16)
    assert splice(embeds, torch.tensor([[True, False, False]]), torch.ones(1, 2)).dtype == torch.bfloat16


def slow_cross_entropy(row: list[float], label: int) -> float:
    return math.log(sum(math.exp(v) for v in row)) - row[label]


def test_token_cross_entropy_equals_a_loop() -> None:
    logits = torch.linspace(-3, 4, 5 * 7).sin().reshape(5, 7)
    labels, weights = torch.tensor([0, 6, 3, 3, 1]), torch.tensor([1.0, 0.5, 2.0, 0.0, 1.0])
    each = [slow_cross_entropy(row, label) for row, label in zip(logits.tolist(), labels.tolist(), strict=True)]
    wanted = sum(e * w for e, w in zip(each, weights.tolist(), strict=True)) / 4.5
    assert float(token_cross_entropy(logits, labels, weights)) == pytest.approx(wanted, rel=1e-5)
    assert float(token_cross_entropy(logits, labels, torch.zeros(5))) == 0.0


def test_memory_mse_equals_a_loop() -> None:
    text, memory = torch.linspace(0, 2, 6).reshape(2, 3), torch.linspace(3, 1, 6).reshape(2, 3)
    pairs = zip(text.flatten().tolist(), memory.flatten().tolist(), strict=True)
    assert float(memory_mse(text, memory)) == pytest.approx(sum((a - b) ** 2 for a, b in pairs) / 6, rel=1e-5)


def test_contrastive_equals_a_loop() -> None:
    scores = torch.linspace(-0.5, 0.9, 8).cos().reshape(2, 4)
    positives = torch.tensor([[True, False, True, False], [False, False, False, True]])
    wanted = 0.0
    for row, right in zip(scores.tolist(), positives.tolist(), strict=True):
        powers = [math.exp(s / 0.1) for s in row]
        wanted -= math.log(sum(p for p, r in zip(powers, right, strict=True) if r) / sum(powers)) / 2
    assert float(contrastive(scores, positives, temperature=0.1)) == pytest.approx(wanted, rel=1e-5)


@torch.no_grad()
def test_a_question_is_weighted_a_passage_is_not(make_network: Callable[[CompressionConfig], Loaded]) -> None:
    network = make_network(CompressionConfig(window_tokens=64, rates=(4,), spans="information")).network
    network.table.project_queries(projected=True, late=True)
    ids, mask = torch.arange(20)[None], torch.ones(1, 20).bool()
    weights = network.table.question_weights(ids, mask, rate=4)
    assert weights is not None
    assert float(weights.std()) > 0.01
    roles: tuple[tuple[Role, bool], ...] = (("query_reasoner", True), ("compressor", False))
    for role, query in roles:
        found = network.encode(role, ids, mask, rate=4)
        plain = network.table.assemble(found.read_out.read, found.read_out.residual, rate=4, query=query)
        torch.testing.assert_close(found.memory, plain * weights[:, :, None] if query else plain)

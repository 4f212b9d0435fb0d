"""The projection that is fitted to labelled pairs: light memories, and what the fit finds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from clara.config import CompressionConfig
from clara.errors import TrainingError
from clara.model.create import Loaded
from clara.train.projection import LightMemories, Pairs, fit_projection, light_memories

WIDTH = 24
TEXTS = ("The tower is 330 metres high.", "Bees dance. " * 40, "x")


@pytest.mark.parametrize("rate", [4, 16])
def test_light_memories_are_whole_ones_without_the_read_out(
    make_network: Callable[[CompressionConfig], Loaded], rate: int
) -> None:
    config = CompressionConfig(window_tokens=64, rates=(4, 16), residual=True, gain=True, pooled_input=True)
    loaded = make_network(config)
    network, prompter, shift = loaded.network, loaded.prompter(), torch.randn(loaded.manifest.hidden_size)
    found = light_memories(loaded, TEXTS, shift, rate=rate)
    for i, text in enumerate(TEXTS):
        ids = torch.tensor([prompter.plain(text)[:64]])
        with torch.no_grad():
            parts = network.encode("compressor", ids, torch.ones_like(ids).bool(), rate=rate).read_out
            whole = network.table.assemble(0 * parts.read, parts.residual, rate=rate)[0] + shift
        torch.testing.assert_close(found.means[i], whole.mean(dim=0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.norms[i] ** 2, whole.square().sum() / len(whole), rtol=1e-4, atol=1e-5)


def drawn(count: int, mixing: Tensor, generator: torch.Generator) -> Pairs:
    """Passages of random topics; a question is its passage's topic, mixed as questions mix it, and noise."""
    topics = torch.randn(count, WIDTH, generator=generator)
    questions = topics @ mixing.T + 0.3 * torch.randn(count, WIDTH, generator=generator)
    return Pairs(questions, LightMemories(topics, torch.full((count,), 2.0)), torch.arange(count))


def found(matrix: Tensor, pairs: Pairs) -> float:
    scores = pairs.questions @ matrix.T @ pairs.documents.means.T
    return float((scores.argmax(dim=1) == pairs.answered_by).float().mean())


def test_fit_undoes_how_questions_differ_from_passages() -> None:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(WIDTH, WIDTH, generator=generator) / WIDTH**0.5
    train, test = drawn(2048, mixing, generator), drawn(200, mixing, generator)
    start = torch.eye(WIDTH)
    fitted = fit_projection(start, train, epochs=30, batch_size=256)
    assert found(start, test) < 0.2
    assert found(fitted, test) > 0.8
    assert torch.equal(fitted, fit_projection(start, train, epochs=30, batch_size=256)), "same seed, same matrix"
    assert torch.equal(start, torch.eye(WIDTH)), "the start is left as it was"


def test_questions_of_one_passage_are_no_negatives_of_each_other() -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = drawn(64, torch.eye(WIDTH), generator)
    alone = Pairs(pairs.questions, pairs.documents, torch.zeros(64, dtype=torch.int64))
    start = torch.eye(WIDTH)
    fitted = fit_projection(start, alone, epochs=3, batch_size=32)
    torch.testing.assert_close(fitted / fitted.norm(), start / start.norm(), msg="nothing is wrong, nothing moves")


def test_too_few_pairs_are_refused() -> None:
    pairs = drawn(8, torch.eye(WIDTH), torch.Generator().manual_seed(0))
    with pytest.raises(TrainingError, match="batch_size is 16, there are 8 pairs"):
        fit_projection(torch.eye(WIDTH), pairs, epochs=1, batch_size=16)

"""DRO: its formulas against slow versions, a run from end to end, and the system that reads it."""

from __future__ import annotations

import itertools
import json
import math
import runpy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from system_cases import ASKS, replies, settings

from clara.config import Settings, check, read_toml
from clara.data import DataRecord, MultiHop
from clara.errors import CheckpointError, ConfigError, TrainingError
from clara.evaluate.dro import load_selector
from clara.evaluate.systems import SYSTEMS
from clara.model import ClaraModel
from clara.model.backbone import BaseModel, load_base
from clara.model.reader import TextReader
from clara.prompts import passage_text
from clara.records import GenerationRequest

ROOT = Path(__file__).parents[2]
EXAMPLE = runpy.run_path(str(ROOT / "examples" / "train_dro.py"))
DroConfig: type[Settings] = EXAMPLE["DroConfig"]
draw_choices, log_probability = EXAMPLE["draw_choices"], EXAMPLE["log_probability"]
importance_weights, selector_loss = EXAMPLE["importance_weights"], EXAMPLE["selector_loss"]
train_dro: Callable[..., Path] = EXAMPLE["train_dro"]
SCORES = [1.5, -0.5, 0.3, 0.9, -2.0]


def slow_log_probability(scores: list[float], choice: tuple[int, ...]) -> float:
    """Draw one after the other, each in proportion to exp(score) among those left."""
    left, total = list(range(len(scores))), 0.0
    for index in choice:
        total += scores[index] - math.log(sum(math.exp(scores[other]) for other in left))
        left.remove(index)
    return total


def test_choices_have_plackett_luce_probabilities() -> None:
    every = list(itertools.permutations(range(5), 3))
    found = log_probability(torch.tensor(SCORES), torch.tensor(every))
    np.testing.assert_allclose(found, [slow_log_probability(SCORES, choice) for choice in every], atol=1e-5)
    assert float(found.exp().sum()) == pytest.approx(1.0, abs=1e-5)
    drawn = draw_choices(torch.tensor(SCORES), 3, 40_000, torch.Generator().manual_seed(0))
    counts = torch.tensor([(drawn == torch.tensor(choice)).all(dim=1).float().mean() for choice in every])
    np.testing.assert_allclose(counts, found.exp(), atol=0.006)


def test_importance_weights_are_the_posterior_over_the_proposal() -> None:
    answer, now, then = [-3.0, -1.0, -2.0], [-0.5, -2.0, -1.0], [-1.5, -1.0, -1.0]
    raw = [math.exp(a) * math.exp(n) / math.exp(t) for a, n, t in zip(answer, now, then, strict=True)]
    found = importance_weights(torch.tensor(answer), torch.tensor(now), torch.tensor(then))
    np.testing.assert_allclose(found, np.array(raw) / sum(raw), rtol=1e-5)


def test_the_selector_learns_which_passages_make_the_answer_likely() -> None:
    """A reader that answers from passages 2 and 4 only: both end up first, though no label says so."""
    scores = torch.zeros(6, requires_grad=True)
    optimiser = torch.optim.Adam([scores], lr=0.1)
    generator = torch.Generator().manual_seed(3)
    for _ in range(150):
        choices = draw_choices(scores, 2, 4, generator)
        then = log_probability(scores.detach(), choices)
        for _ in range(2):
            answer = torch.tensor([-4.0 + 2.0 * len({2, 4} & set(row)) for row in choices.tolist()])
            now = log_probability(scores, choices)
            loss = selector_loss(importance_weights(answer, now, then), now)
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
    assert set(scores.topk(2).indices.tolist()) == {2, 4}
    assert scores[[2, 4]].min() > scores[[0, 1, 3, 5]].max() + 1


RECORDS: list[DataRecord] = [
    MultiHop(id=ask.id, source="s", question=ask.question, answers=(answer,), docs=ask.docs, gold=(0,))
    for ask, answer in zip(ASKS, ("Marta Kroll", "rye", "259"), strict=True)
]


@pytest.fixture
def config(tiny_base: Path) -> Settings:
    """A run of four steps."""
    values: dict[str, Any] = {
        "base": str(tiny_base),
        "lora": {"rank": 4, "alpha": 8, "dropout": 0.0},
        "steps": 4,
        "batch_size": 2,
        "samples": 3,
        "k": 2,
        "candidates": 4,
        "passage_tokens": 48,
        "learning_rate": 0.01,
        "dtype": "fp32",
    }
    return DroConfig.model_validate(values)


@pytest.fixture
def base(tiny_base: Path) -> Callable[[], BaseModel]:
    """Loads ``tiny_base`` anew, as adapters are put into it."""
    return lambda: load_base(str(tiny_base), tiny_base, dtype=torch.float32)


def test_a_run_tunes_both_and_its_folder_is_a_system(
    config: Settings, base: Callable[[], BaseModel], tiny_model: ClaraModel, tmp_path: Path
) -> None:
    folder = train_dro(RECORDS, config, tmp_path / "run", cache=tmp_path)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2, 3, 4]
    assert all(1 <= line["effective"] <= 3 and 0 <= line["gold"] <= 1 for line in log)
    again = train_dro(RECORDS, config, tmp_path / "again", cache=tmp_path)
    assert (tmp_path / "again" / "log.jsonl").read_text() == (tmp_path / "run" / "log.jsonl").read_text()
    selector = load_selector(again / "selector", base())
    assert float(selector.head.abs().max()) > 0
    adapters = selector.decoder.adapters.parameters_of("query_reasoner")
    assert max(float(p.abs().max()) for p in adapters[1::2]) > 0  # LoRA's B starts at zero

    run = settings(tiny_model, tmp_path, options={"dro": folder})
    system = SYSTEMS["dro"](run)
    reader = TextReader.load(folder / "reader", cache=tmp_path)
    for ask, reply in zip(ASKS, replies(system), strict=True):
        texts = [passage_text(doc.title, doc.text) for doc in ask.docs]
        alone = torch.cat([selector.scores(ask.question, [text]) for text in texts])
        together = selector.scores(ask.question, texts)
        torch.testing.assert_close(alone, together, atol=1e-4, rtol=1e-4)
        assert reply.ranking is not None
        # The system's own copy is in the machine's natural precision.
        ranked = [float(alone[index]) for index in reply.ranking]
        assert all(first >= second - 0.02 for first, second in itertools.pairwise(ranked))
        request = GenerationRequest(ask.question, texts=tuple(texts[index] for index in reply.used))
        assert reply.text == reader.generate_many([request], max_new_tokens=6)[0].text
    other = train_dro(RECORDS, config.model_copy(update={"seed": 1}), tmp_path / "other", cache=tmp_path)
    assert SYSTEMS["dro"](replace(run, options={"dro": other})).fingerprint != system.fingerprint


def test_what_dro_cannot_use_is_said(config: Settings, tiny_model: ClaraModel, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="questions with at least 7 passages"):
        train_dro(RECORDS, config.model_copy(update={"k": 6, "candidates": 9}), tmp_path, cache=tmp_path)
    with pytest.raises(ConfigError, match="nothing to choose 3 from"):
        check(DroConfig, {"k": 3, "candidates": 3}, source="test")
    with pytest.raises(ConfigError, match="needs --option dro=DIR"):
        SYSTEMS["dro"](settings(tiny_model, tmp_path))
    with pytest.raises(CheckpointError, match=r"has no reader\.json"):
        SYSTEMS["dro"](settings(tiny_model, tmp_path, options={"dro": tmp_path}))


@pytest.mark.parametrize("name", ["dro-smollm2-135m", "dro-smollm2-135m-cpu"])
def test_the_recipes_are_configurations(name: str) -> None:
    check(DroConfig, read_toml(ROOT / "recipes" / f"{name}.toml"), source="recipe")

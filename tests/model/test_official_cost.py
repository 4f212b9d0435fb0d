"""What a model in Apple's format costs: which tokens the backbone reads, counted where they go in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from official_folders import WINDOW, content
from torch import nn

from clara.bench import bench_candidates
from clara.model import ClaraModel, default_cache
from clara.pipeline import Clara

MEMORIES, MARKERS = 4, 3
WIDEST_LAYER = 500
"""Of the tiny base's layers; only its LM head is wider."""
BASE = "smollm2-135m-b179c9523d0e"


@dataclass
class Counts:
    """Rows and positions that went into backbones, and positions of LM heads."""

    shapes: list[tuple[int, int]] = field(default_factory=list)
    head: int = 0

    @property
    def positions(self) -> int:
        return sum(rows * length for rows, length in self.shapes)


@contextmanager
def counting() -> Iterator[Counts]:
    """Count calls of any causal LM's decoder and head, whichever copy of the weights runs."""
    counts = Counts()

    def after(module: nn.Module, args: Any, kwargs: dict[str, Any], _out: Any) -> None:  # noqa: ANN401 - anything
        if type(module).__name__ == "LlamaModel":
            given = kwargs.get("inputs_embeds")
            given = kwargs["input_ids"] if given is None else given
            counts.shapes.append((given.shape[0], given.shape[1]))
        elif isinstance(module, nn.Linear) and module.out_features > WIDEST_LAYER:
            counts.head += args[0].shape[:-1].numel()

    handle = nn.modules.module.register_module_forward_hook(after, with_kwargs=True)
    try:
        yield counts
    finally:
        handle.remove()


@pytest.fixture(scope="module")
def model(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> ClaraModel:
    folder = content(tiny_base).write(tmp_path_factory.mktemp("official") / "made")
    return ClaraModel.load(folder, base=str(tiny_base), dtype="fp32")


def test_a_passage_is_read_without_padding_and_without_the_lm_head(model: ClaraModel) -> None:
    """The official code pads every document to the window and asks for logits of every position."""
    texts = ["Rain.", "Rain fell.", "The keeper wrote.", "The keeper wrote three letters in the tower."]
    lengths = [model.token_count(text) + MARKERS for text in texts]
    assert max(lengths) < WINDOW + MARKERS, "none fills the window"
    with counting() as counts:
        for text in texts:
            model.compress([text])
    assert counts.positions == sum(lengths) + MEMORIES * len(texts)
    assert counts.head == 0
    with counting() as counts:
        model.compress(texts)
    assert counts.positions <= (max(lengths) + MEMORIES) * len(texts), "padded to the longest, not to the window"
    assert counts.head == 0


def test_a_passage_is_read_once(model: ClaraModel, tmp_path: Path) -> None:
    """Indexed once, asked often: a question reads itself and the memories, no passage."""
    (tmp_path / "docs").mkdir()
    for name in ("one", "two", "three"):
        (tmp_path / "docs" / f"{name}.txt").write_text(f"Keeper {name} wrote {name} letters.")
    with Clara.open(tmp_path / "store", model=model) as rag:
        with counting() as counts:
            report = rag.add([tmp_path / "docs"])
        assert report.passages == 3
        assert sum(rows for rows, length in counts.shapes if length > MEMORIES) == 3
        with counting() as counts:
            assert rag.add([tmp_path / "docs"]).unchanged == 3
        assert counts.shapes == []
        question = "Who wrote two letters?"
        with counting() as counts:
            answer = rag.ask(question, 2, max_new_tokens=1)
        query = model.token_count(question) + MARKERS + MEMORIES
        assert counts.positions == query + answer.tokens.prompt
        assert counts.head <= 1, "one position of the prompt is scored, not all"


@pytest.mark.slow
@pytest.mark.skipif(not (default_cache() / BASE).exists(), reason="the embedded base model is not here (make setup)")
def test_indexed_candidates_are_five_times_faster(tmp_path: Path) -> None:
    """SmolLM2-135M, whole windows of 256 tokens, 16 memory tokens each, 20 candidates: the issue's own bound."""
    base = default_cache() / BASE
    made = content(base, dtype=torch.bfloat16, doc_max_length=256, compr_rate=16, lora_r=16, generation_top_k=5)
    model = ClaraModel.load(made.write(tmp_path / "official"), base=str(base))
    texts = ["The keeper of the lighthouse wrote three letters to the harbour. " * 19] * 20
    assert 200 < model.token_count(texts[0]) <= 256
    speed = bench_candidates(model, ["Who wrote letters?"], [texts], k=model.default_k)
    assert (speed.k, speed.rate, speed.candidates) == (5, 16, 20)
    assert speed.ratio > 5

"""``clara bench store`` on memories made here: a small store is filled, searched, and compared with an exact search."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from clara.evaluate.bench_store import StoreBench, _measure, _texts_like
from clara.index import LanceStore, StoreModel

MODEL = StoreModel("c" * 64, "tiny", 16, 4, 32, "mean")


def plan(*, late: bool, codec: str = "fp16") -> StoreBench:
    rng = np.random.default_rng(0)
    values = (rng.standard_normal((60, 1, 32)) + rng.standard_normal((60, 4, 32)) + 2).astype(np.float32)
    asked = rng.standard_normal((8, 4, 32)).astype(np.float32)
    asked = asked if late else np.repeat(asked[:, :1], 4, axis=1)
    centre = values.mean(axis=(0, 1)) if late else None
    texts = [f"Copper tower {number} stands in karst." for number in range(60)]
    questions = [f"copper {number}" for number in range(8)]
    return StoreBench(MODEL, codec, 500, texts, values, questions, asked, centre)


@pytest.mark.parametrize("late", [True, False])
def test_a_store_is_filled_and_measured(late: bool, tmp_path: Path) -> None:  # noqa: FBT001 - a parameter
    speed = _measure(plan(late=late), tmp_path / "store")
    assert json.loads(json.dumps(asdict(speed))).keys() == {
        *("passages", "bytes_per_passage", "add_seconds", "index_seconds", "rss_bytes"),
        *("latent_ms", "text_ms", "hybrid_ms", "recall_at_10"),
    }
    assert (speed.passages, speed.recall_at_10) == (500, 1.0)
    assert speed.latent_ms.p50 <= speed.latent_ms.p95
    assert min(speed.bytes_per_passage, speed.add_seconds, speed.index_seconds, speed.rss_bytes) > 0
    with LanceStore.open(tmp_path / "store", MODEL) as store:
        assert (store.count(), len(store.documents()), store.unfinished()) == (500, 50, set())
        real = next(row for row in store.rows() if row.passage.text == "Copper tower 59 stands in karst.")
        np.testing.assert_array_equal(real.memory.values, plan(late=late).values[59].astype(np.float16))
        drawn = np.stack([row.memory.values for row in store.get(sorted(store.passage_ids("/corpus/0000003.txt")))])
    assert abs(float(drawn.mean()) - 2) < 1, "as the real ones are"


def test_smaller_codecs_take_fewer_bytes(tmp_path: Path) -> None:
    sizes = [
        _measure(replace(plan(late=True), codec=codec), tmp_path / codec).bytes_per_passage
        for codec in ("fp16", "residual")
    ]
    assert sizes[1] < sizes[0] - 100


def test_drawn_texts_hold_words_as_often_as_more_real_ones() -> None:
    """Few texts stand for many: words fall as Zipf's law has it, and come again where they came."""
    rng = np.random.default_rng(0)
    ranks = np.minimum((1 - rng.random((8000, 40))) ** -1.5, 1e9).astype(int)
    real = [
        " ".join(f"v{rank}" for rank in np.repeat(line, often))
        for line, often in zip(ranks, rng.geometric(0.65, ranks.shape), strict=True)
    ]
    few = real[::100]
    drawn = _texts_like(few, rng)(len(real))
    asked = {word for text in few for word in text.split()} - {"v1", "v2", "v3"}
    holding, holding_real = (Counter(word for text in texts for word in set(text.split())) for texts in (drawn, real))
    held, held_real = (sum(each[word] for word in asked) for each in (holding, holding_real))
    assert held == pytest.approx(held_real, rel=0.2), "drawn by their shares of the few: 2.5 times as many"
    assert 0.5 < len(holding) / len(holding_real) < 2
    assert np.mean([len(text.split()) for text in drawn]) == pytest.approx(62, rel=0.05)

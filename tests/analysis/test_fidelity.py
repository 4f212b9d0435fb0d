"""Fidelity measures against slow versions, and a whole run of a model that can be checked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from bag_model import BagModel
from clara.analysis.fidelity import _bert_score, _entities_of, _kept_entities, _rouge_scorer, measure_fidelity
from clara.errors import ModelError, RecordError
from clara.records import FloatArray

TEXT = "Skerry Light stands on Brannoch. The tower was built in 1868 by Moira Calder, who also built Tarn Bridge."


def slow_rouge(reference: list[str], candidate: list[str]) -> tuple[float, float]:
    """ROUGE-1 and ROUGE-L of word lists from their definitions."""
    pool, shared = list(reference), 0
    for word in candidate:
        if word in pool:
            pool.remove(word)
            shared += 1
    longest = [[0] * (len(candidate) + 1) for _ in range(len(reference) + 1)]
    for i, a in enumerate(reference, start=1):
        for j, b in enumerate(candidate, start=1):
            longest[i][j] = longest[i - 1][j - 1] + 1 if a == b else max(longest[i - 1][j], longest[i][j - 1])
    total = len(reference) + len(candidate)
    return 2 * shared / total, 2 * longest[-1][-1] / total


@pytest.mark.parametrize(
    "restated",
    [
        "the tower was built in 1868",
        "in 1868 was the tower",
        "calder calder light",
        "nothing shared here",
        TEXT.lower(),
    ],
)
def test_rouge_is_that_of_the_definition(restated: str) -> None:
    # Words that stemming leaves alone, so that the definition can be applied to them as they stand.
    reference = "skerri light tower 1868 in was calder the on"
    assert _rouge_scorer()(reference, restated.replace("skerry", "skerri")) == pytest.approx(
        slow_rouge(reference.split(), stemless(restated.replace("skerry", "skerri"))), abs=1e-9
    )


def stemless(text: str) -> list[str]:
    kept = "".join(character if character.isalnum() else " " for character in text)
    return kept.split()


def test_entities_by_rule() -> None:
    assert _entities_of(TEXT) == {"skerry light", "brannoch", "1868", "moira calder", "tarn bridge"} - {
        "skerry light"
    } | {"light"}
    assert _entities_of("The light. It shone.") == frozenset()
    assert _entities_of("In Ullmere, Brannoch and Holm met 3.5 times. Ullmere won.") == {
        "ullmere",
        "brannoch",
        "holm",
        "3.5",
    }
    assert _kept_entities(TEXT, "moira calder built it in 1868 on brannoch") == pytest.approx(3 / 5)
    assert _kept_entities("no names here", "x") is None


def test_bert_score_is_that_of_the_definition() -> None:
    rng = np.random.default_rng(0)
    left, right = (rng.normal(size=(n, 5)).astype(np.float32) for n in (4, 6))

    def cosine(a: FloatArray, b: FloatArray) -> float:
        return float(sum(x * y for x, y in zip(a, b, strict=True)) / (sum(a**2) ** 0.5 * sum(b**2) ** 0.5))

    precision = sum(max(cosine(a, b) for b in right) for a in left) / 4
    recall = sum(max(cosine(a, b) for a in left) for b in right) / 6
    assert _bert_score(left, right) == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-6)
    assert _bert_score(left, left) == pytest.approx(1.0, abs=1e-6)
    assert _bert_score(left[:0], right) == 0.0


def test_a_model_that_says_what_it_read() -> None:
    passages = [("a", "Moira Calder built Tarn Bridge."), ("b", "herring salted barrels beech wood.")]
    found = measure_fidelity(BagModel(), passages, rate=8, vectors=vectors)
    assert (found.n, found.errors, found.rate) == (2, 0, 8)
    assert found.rouge1 == found.rouge_l == pytest.approx(1.0)
    assert found.entities == pytest.approx(1.0)
    assert found.bert_score == pytest.approx(1.0)
    broken = BagModel()
    broken.broken = frozenset({"herring"})
    part = measure_fidelity(broken, passages)
    assert (part.n, part.errors, part.rows[1].rouge1) == (1, 1, None)
    broken.broken = frozenset({"e"})
    with pytest.raises(ModelError, match="none of 2"):
        measure_fidelity(broken, passages)
    with pytest.raises(RecordError, match="at least one passage"):
        measure_fidelity(broken, [])


def vectors(texts: object) -> list[FloatArray]:
    assert isinstance(texts, list)
    return [np.ones((len(text.split()), 3), dtype=np.float32) for text in texts]

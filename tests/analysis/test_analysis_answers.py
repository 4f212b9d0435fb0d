"""Robustness and faithfulness: prompts and shares by hand, then whole with the bag-of-words model."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bag_model import BagModel
from clara.analysis.answers import (
    FaithfulnessSettings,
    RobustnessSettings,
    _faith_row,
    _poisoned_copy,
    _ranked_prompts,
    _static_prompts,
    _wrong_answer,
    faithfulness,
    robustness,
)
from clara.analysis.harness import Asker, distractors
from clara.data import DocText, MultiHop, read_records
from clara.errors import ConfigError
from clara.evaluate.cache import Failure
from clara.evaluate.plots import DRAW_ANALYSIS
from clara.metrics import normalize_answer, score_answer

FIXTURES = Path(__file__).parents[1] / "data" / "fixtures"
RECORDS = read_records(FIXTURES / "multi_hop.jsonl").multi_hop
WITH_GOLD = [record for record in RECORDS if record.gold]
PNG = b"\x89PNG\r\n\x1a\n"


def hand(question: str, answer: str, *texts: str, gold: tuple[int, ...] = (0,)) -> MultiHop:
    docs = tuple(DocText(f"T{i}", text) for i, text in enumerate(texts))
    return MultiHop(question, "hand", question, (answer,), docs, gold)


def test_a_poisoned_copy_replaces_whole_answers() -> None:
    doc = DocText("T", "Ann met Anna. ANN's house; Ann Lee left.")
    assert _poisoned_copy(doc, ("Ann", "Ann Lee"), r"\1 Bo") == DocText(
        "T", r"\1 Bo met Anna. \1 Bo's house; \1 Bo left."
    )
    assert _poisoned_copy(doc, ("Lea",), "Bo") is None


def test_wrong_answers_stand_for_their_kind_and_share_no_word() -> None:
    made = [hand(str(i), answer, "x") for i, answer in enumerate(["1913", "Ann Lee", "The Ann", "in 1913", "2001"])]
    assert [_wrong_answer(made, place) for place in range(5)] == ["2001", None, None, "2001", "1913"]


def test_orders_poisons_and_distractors_of_one_question() -> None:
    question = hand("q", "Ann", "By Ann.", "b", "c", "d", gold=(0,))
    settings = RobustnessSettings(counts=(0, 2, 9), around=2)
    unusable: Counter[str] = Counter()
    trials = _static_prompts(question, "Bo", settings, np.random.default_rng(0), unusable)
    shown = {
        (t.kind, t.condition): ["".join(doc.text for doc in t.docs[i : i + 1]) for i in range(len(t.docs))]
        for t in trials
    }
    b, c = shown["order", "gold first"][1:]
    assert shown["order", "gold first"] == ["By Ann.", b, c]
    assert shown["order", "gold in the middle"] == [b, "By Ann.", c]
    assert shown["order", "gold last"] == [b, c, "By Ann."]
    assert sorted(shown["order", "shuffled"]) == sorted(["By Ann.", b, c])
    assert shown["poison", "none"] == ["By Ann.", b, c]
    assert shown["poison", "added first"] == ["By Bo.", "By Ann.", b, c]
    assert shown["poison", "added last"] == ["By Ann.", b, c, "By Bo."]
    assert shown["poison", "instead of gold"] == ["By Bo.", b, c]
    assert shown["distractors", "0"] == ["By Ann."]
    assert sorted(shown["distractors", "2"]) == sorted(["By Ann.", b, c])
    assert ("distractors", "9") not in shown, "there are only three"
    assert {t.wrong for t in trials if t.kind == "poison"} == {"Bo"}
    assert not unusable
    silent = replace(question, answers=("Eve",))
    assert not [
        t for t in _static_prompts(silent, "Bo", settings, np.random.default_rng(0), unusable) if t.kind == "poison"
    ]
    _static_prompts(question, None, settings, np.random.default_rng(0), unusable)
    assert dict(unusable) == {
        "questions for poison: no gold passage holds an answer literally": 1,
        "questions for poison: no other question has a wrong answer of the same kind": 1,
    }


def test_ranked_prompts_know_their_recall() -> None:
    question = hand("q", "Ann", "a", "b", "c", gold=(0, 2))
    trials = _ranked_prompts(question, (1, 2, 0), (1, 2, 3, 4))
    assert [(t.condition, t.recall, [d.text for d in t.docs]) for t in trials] == [
        ("1", 0.0, ["b"]),
        ("2", 0.5, ["b", "c"]),
        ("3", 1.0, ["b", "c", "a"]),
    ]


def test_robustness_of_a_model_that_can_be_followed(tmp_path: Path) -> None:
    settings = RobustnessSettings(rate=8, ks=(1, 3), counts=(0, 1), around=2, batch_size=3)
    report = robustness(BagModel(), RECORDS, settings)
    names = [(row.kind, row.condition) for row in report.conditions]
    assert names[:2] == [("k", "1"), ("k", "3")]
    assert [name for kind, name in names if kind == "poison"] == [
        "none",
        "added first",
        "added last",
        "instead of gold",
    ]
    assert report.unusable["questions without a gold document"] == 1
    for kind in ("k", "order", "distractors"):
        assert {row.n for row in report.conditions if row.kind == kind} == {len(WITH_GOLD)}
    assert {row.errors for row in report.conditions} == {0}
    first, last = report.of("k")
    assert first.recall < last.recall
    gold_only = robustness(BagModel(), RECORDS, RobustnessSettings(rate=8, vary=("order",), around=0)).conditions[0]
    scores = []
    for record in WITH_GOLD:
        answer = Asker(BagModel(), rate=8).answers(record.question, [[record.docs[i] for i in sorted(record.gold)]])[0]
        assert not isinstance(answer, Failure)
        scores.append(score_answer(answer.text, record.answers).f1)
    assert gold_only.f1 == pytest.approx(sum(scores) / len(scores))
    poison = {row.condition: row for row in report.of("poison")}
    assert poison["instead of gold"].f1 < poison["none"].f1
    swapped, clean = poison["instead of gold"].wrong_f1, poison["none"].wrong_f1
    assert swapped is not None
    assert clean is not None
    assert swapped > clean, "a model that reads its passages repeats what they say"
    assert robustness(BagModel(), RECORDS, settings) == report, "one seed, one table"
    DRAW_ANALYSIS["robustness"]([("bag", report)], tmp_path / "r.png")
    assert (tmp_path / "r.png").read_bytes().startswith(PNG)
    only = robustness(BagModel(), RECORDS, RobustnessSettings(vary=("order",)))
    assert {row.kind for row in only.conditions} == {"order"}


def test_an_error_stays_with_its_prompt_and_is_counted() -> None:
    model = BagModel()
    broken = WITH_GOLD[0].docs[WITH_GOLD[0].gold[0]]
    model.broken = frozenset({broken.text})
    settings = RobustnessSettings(vary=("k", "distractors"), ks=(1, 2), counts=(0,), limit=3)
    report = robustness(model, RECORDS, settings)
    failed = {(row.kind, row.condition): row.errors for row in report.conditions}
    assert failed["distractors", "0"] >= 1
    assert failed["k", "1"] >= 1
    assert all(row.n + row.errors == 3 for row in report.conditions)
    assert sum(report.errors.values()) == sum(failed.values())
    assert all(reason.startswith("RuntimeError: out of memory at ") for reason in report.errors)
    with pytest.raises(ConfigError):
        robustness(BagModel(), RECORDS, RobustnessSettings(rate=7))


def test_a_document_is_compressed_once_a_question() -> None:
    model = BagModel()
    question = WITH_GOLD[0]
    asker = Asker(model, rate=8, batch_size=4)
    asker.ranking(question.question, question.docs)
    asker.answers(question.question, [question.docs[:2], question.docs[1:4], []])
    assert max(Counter(model.compressed).values()) == 1
    assert len(model.requests) == 3
    assert [len(request.memories) for request in model.requests] == [3, 2, 0], "the longest first"
    drawn = distractors(question, 2, np.random.default_rng(3))
    assert len(set(drawn)) == 2
    assert not {question.docs[i] for i in question.gold} & set(drawn)


@pytest.mark.parametrize(
    ("prediction", "found", "by_chance", "missing"),
    [
        ("Moira Calder", 1.0, 0.0, ()),
        ("the Calder of Rome", 2 / 3, 1 / 3, ("rome",)),  # calder, of and rome; articles do not count
        ("1829", 0.0, 0.0, ("1829",)),  # "1829-1901" is one token of the normal form
        ("Calder Calder Bo", 2 / 3, 0.0, ("bo",)),
    ],
)
def test_faith_by_hand(prediction: str, found: float, by_chance: float, missing: tuple[str, ...]) -> None:
    question = hand("q", "Calder", "x")
    cited = [DocText("Moira Calder", "Moira Calder (1829-1901), an engineer of Ullmere.")]
    row = _faith_row(question, prediction, cited, [DocText("", "The end of all.")])
    assert row.found == pytest.approx(found)
    assert row.by_chance == pytest.approx(by_chance)
    assert row.missing == missing


def test_faithfulness_of_a_model_that_copies(tmp_path: Path) -> None:
    report = faithfulness(BagModel(), RECORDS, FaithfulnessSettings(rate=8))
    assert report.n == len(WITH_GOLD)
    assert report.by_chance < report.found
    for record, row in zip(WITH_GOLD, report.rows, strict=True):
        text = normalize_answer(" ".join(f"{record.docs[i].title} {record.docs[i].text}" for i in record.gold)).split()
        tokens = normalize_answer(row.prediction).split()
        assert row.found == pytest.approx(sum(token in text for token in tokens) / len(tokens))
    DRAW_ANALYSIS["faithfulness"]([("bag", report)], tmp_path / "f.png")
    assert (tmp_path / "f.png").read_bytes().startswith(PNG)
    silent = hand("What does T0 do?", "x", "It is.")  # the model answers with what the question does not hold: nothing
    counted = faithfulness(BagModel(), [*WITH_GOLD[:1], silent], FaithfulnessSettings())
    assert (counted.n, counted.errors) == (1, {"answers without a word": 1})

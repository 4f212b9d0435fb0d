"""Candidates are the record's own passages and the nearest others; BM25 equals its formula, ties and all."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from train_cases import made, passages, questions

from clara.data import DataRecord, DocText, MultiHop, PassageQA, QAPair
from clara.data.neighbours import _B, _K1, Neighbours, WordIndex, key_of
from clara.errors import TrainingError
from clara.train.data import Surroundings, divide
from clara.train.examples import CandidateExample, candidate_example


def slow_bm25(question: str, texts: list[str]) -> list[float]:
    """The formula, word by word."""
    split = [text.lower().split() for text in texts]
    mean = sum(map(len, split)) / len(split)
    scores = []
    for words in split:
        counts, total = Counter(words), 0.0
        for word in set(question.lower().split()):
            n = sum(word in other for other in split)
            idf = math.log(1 + (len(split) - n + 0.5) / (n + 0.5))
            length = _K1 * (1 - _B + _B * len(words) / mean)
            total += idf * counts[word] * (_K1 + 1) / (counts[word] + length)
        scores.append(total)
    return scores


WORDS = st.lists(st.sampled_from(["bee", "tower", "iron", "is", "river", "Is"]), min_size=1, max_size=9).map(" ".join)


@given(texts=st.lists(WORDS, min_size=1, max_size=8), question=WORDS)
def test_bm25_equals_its_formula(texts: list[str], question: str) -> None:
    index = WordIndex(texts)
    wanted = slow_bm25(question, texts)
    np.testing.assert_allclose(index.scores(question), wanted, rtol=1e-5, atol=1e-6)
    ranked = index.ranked(question).tolist()
    shared = [i for i, text in enumerate(texts) if set(text.lower().split()) & set(question.lower().split())]
    assert sorted(ranked) == shared
    scores = index.scores(question)
    assert ranked == sorted(ranked, key=lambda i: (-scores[i], i)), "best first, then the earlier text"


def record(number: int, topic: str, docs: int = 3) -> MultiHop:
    return MultiHop(
        id=f"r{number}",
        source="m",
        question=f"Where is the {topic} of {number}?",
        answers=("in Mainz", "Mainz"),
        docs=tuple(DocText(f"{topic} {number} {d}", f"The {topic} {number} {d} stands alone.") for d in range(docs)),
        gold=(1,),
    )


RECORDS: list[DataRecord] = [
    *(record(i, topic) for i, topic in enumerate(("tower", "tower", "river"))),
    PassageQA("p0", "p", "Towers", "A tower is in Mainz.", (QAPair("What is the tower?", ("high",)),)),
    PassageQA("p1", "p", "Rivers", "A river flows.", (QAPair("What flows?", ("a river",)), QAPair("Where?", ("x",)))),
]


def candidate(
    asked: DataRecord, count: int, seed: int = 0, *, labelled: bool = False, near: Neighbours | None = None
) -> CandidateExample | None:
    rng = np.random.default_rng(seed)
    return candidate_example(asked, rng, near or Neighbours(RECORDS), count=count, labelled=labelled)


def test_own_passages_come_first_and_the_nearest_fill_up() -> None:
    made = candidate(RECORDS[0], 6)
    assert made is not None
    own = {f"tower 0 {d}\nThe tower 0 {d} stands alone." for d in range(3)}
    assert own <= set(made.candidates)
    assert len(set(made.candidates)) == 6
    others = set(made.candidates) - own
    assert sum("tower" in text.lower() for text in others) == 2, "two towers of the other record, one passage"
    assert [made.candidates[i] for i in made.positives] == ["tower 0 1\nThe tower 0 1 stands alone."]
    assert (made.question, made.reply) == ("Where is the tower of 0?", "in Mainz")


def test_a_passage_that_holds_the_answer_is_no_negative() -> None:
    free, told = candidate(RECORDS[0], 9), candidate(RECORDS[0], 9, labelled=True)
    assert free is not None
    assert told is not None
    holder = "Towers\nA tower is in Mainz."
    assert holder in free.candidates
    assert holder not in told.candidates
    assert len(told.candidates) == 9


def test_few_candidates_keep_the_gold_ones_and_places_are_random() -> None:
    made = [candidate(RECORDS[2], 2, seed, labelled=True) for seed in range(12)]
    assert all(m is not None and len(m.candidates) == 2 and len(m.positives) == 1 for m in made)
    assert {m.positives for m in made if m is not None} == {(0,), (1,)}
    assert made == [candidate(RECORDS[2], 2, seed, labelled=True) for seed in range(12)]
    asked = {m.question for s in range(9) if (m := candidate(RECORDS[4], 2, s, labelled=True)) is not None}
    assert asked == {"What flows?", "Where?"}, "any pair of a passage"


def test_equal_texts_count_once() -> None:
    twins = [
        *RECORDS,
        PassageQA("p2", "p", "TOWERS", "a tower  is in mainz.", (QAPair("What is the tower?", ("high",)),)),
    ]
    found = candidate(RECORDS[3], 9, near=Neighbours(twins))
    assert found is not None
    assert len({key_of(text) for text in found.candidates}) == 9
    stage = made("end-to-end", Path("base"), start="x", candidates=12)
    with pytest.raises(TrainingError, match="candidates is 12, the records of this run hold 11 different passages"):
        stage.neighbours(twins, [])


def test_only_drawn_records_give_candidates() -> None:
    values = {"start": "x", "steps": 1, "batch_size": 2, "accumulation": 1, "held_out": 1, "candidates": 3}
    stage = made("retriever", Path("base"), **values)
    data = divide([*questions(30), *passages(10), record(1, "tower")], stage)
    assert data.rejected == {"PassageQA record without a question has no use in stage retriever": 2}
    around = Surroundings(data)
    assert stage.example(record(1, "tower"), np.random.default_rng(0), around) is not None
    pool = stage.example(record(2, "river", docs=2), np.random.default_rng(0), around)
    assert isinstance(pool, CandidateExample)
    assert len(pool.candidates) == 3


def test_a_record_without_gold_is_not_for_the_retriever() -> None:
    bare = MultiHop("b", "m", "Where?", ("there",), (DocText("", "One text."),), ())
    values = {"start": "x", "steps": 1, "held_out": 0, "candidates": 2}
    retriever, end_to_end = (made(name, Path("base"), **values) for name in ("retriever", "end-to-end"))
    rejected = divide([bare, *questions(4)], retriever).rejected
    assert rejected == {"MultiHop record without a gold document has no use in stage retriever": 1}
    assert divide([bare, *questions(4)], end_to_end).rejected == {}

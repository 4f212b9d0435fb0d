"""What counts as a right answer, how a bed is read and checked, and a run over a tiny one with a real store."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from clara.errors import InputError, RecordError
from clara.evaluate.bed import SYSTEMS, judge, read_bed, run_bed, score_bed
from clara.model import ClaraModel

Question = dict[str, object]
TOWER: Question = {
    "id": "towers-01",
    "question": "How tall is the tower in Paris?",
    "answers": ["330 metres"],
    "evidence": {"document": "paris.txt", "text": "The tower in Paris is 330 metres tall."},
    "half": "tuning",
}
NEVER: Question = {
    "id": "towers-02",
    "question": "Who painted the tower?",
    "answers": [],
    "evidence": None,
    "half": "reporting",
}


@pytest.mark.parametrize(
    ("answer", "answers", "verdict"),
    [
        ("330 metres", ["330 metres"], "right"),
        ("It is 330 metres tall.", ["330 metres"], "right"),
        ("3300 metres", ["330 metres"], "wrong"),
        ("metres: 330", ["330 metres"], "wrong"),
        ("one two three four five six seven eight nine ten 330 metres", ["330 metres"], "right"),
        ("one two three four five six seven eight nine ten eleven 330 metres", ["330 metres"], "wrong"),
        ("the 20th", ["ten", "20th"], "right"),
        ("Yes, it may.", ["yes"], "right"),
        ("It says no more.", ["no"], "wrong"),
        ("None", ["None"], "right"),
        ("None", ["5"], "abstained"),
        ("The context does not say.", ["5"], "abstained"),
        ("“Dublin Julian Day”", ["Dublin Julian Day"], "right"),
        ("42", [], "wrong"),
        ("", [], "abstained"),
    ],
)
def test_an_answer_is_judged_by_the_tokens_of_an_accepted_form(answer: str, answers: list[str], verdict: str) -> None:
    assert judge(answer, answers) == verdict


def test_an_answer_that_its_system_marks_as_none_is_an_abstention_whatever_it_says() -> None:
    assert judge("330 metres", ["330 metres"], answered=False) == "abstained"
    assert judge("42", [], answered=False) == "abstained"


@pytest.fixture
def make_bed(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Writes a bed of one collection with these questions; returns its folder and that of the documents."""

    def make(*questions: Question) -> tuple[Path, Path]:
        bed, documents = tmp_path / "bed", tmp_path / "documents"
        (bed / "questions").mkdir(parents=True)
        lines = [json.dumps(question) + "\n" for question in questions]
        (bed / "questions" / "towers.jsonl").write_text("".join(lines))
        (documents / "towers").mkdir(parents=True)
        (documents / "towers" / "paris.txt").write_text("The tower in Paris\nis 330 metres tall. It is made of iron.")
        (documents / "towers" / "tokyo.txt").write_text("The tower in Tokyo is red and 332.9 metres tall.")
        return bed, documents

    return make


def test_evidence_is_found_however_its_reader_marks_items(make_bed: Callable[..., tuple[Path, Path]]) -> None:
    text = "- The tower in Paris * is 330 metres tall."
    bed, documents = make_bed({**TOWER, "evidence": {"document": "paris.txt", "text": text}})
    (documents / "towers" / "paris.txt").write_text("Towers\n- The tower in Paris\n  - is 330 metres tall.")
    ((_, place),) = read_bed(bed, documents)[0].questions
    assert place is not None
    assert (place.start, place.end) == (9, 49), "runs of blanks are one"


def test_evidence_is_found_across_line_breaks_and_halves_are_kept_apart(
    make_bed: Callable[..., tuple[Path, Path]],
) -> None:
    bed, documents = make_bed(TOWER, NEVER)
    (collection,) = read_bed(bed, documents)
    (_, place), (_, nowhere) = collection.questions
    assert place is not None
    assert (place.start, place.end) == (0, 37)
    assert nowhere is None
    assert [question.id for question, _ in read_bed(bed, documents, half="reporting")[0].questions] == ["towers-02"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evidence": {"document": "paris.txt", "text": "330 metres in London"}}, "stands 0 times in paris.txt"),
        ({"evidence": {"document": "paris.txt", "text": "is"}, "answers": ["is"]}, "stands 3 times in paris.txt"),
        ({"answers": ["331 metres"]}, "'331 metres' is not in its evidence"),
        ({"evidence": None}, "answers and evidence go together"),
        ({"colour": "red"}, "colour"),
        ({"half": "third"}, "half"),
        ({"id": "towers-02"}, "towers-02 occurs 2 times"),
    ],
)
def test_a_faulty_question_is_named(
    make_bed: Callable[..., tuple[Path, Path]], changes: dict[str, object], message: str
) -> None:
    bed, documents = make_bed({**TOWER, **changes}, NEVER)
    with pytest.raises(RecordError, match=message):
        read_bed(bed, documents)


def test_what_is_not_there_is_said_with_the_remedy(make_bed: Callable[..., tuple[Path, Path]], tmp_path: Path) -> None:
    bed, documents = make_bed(TOWER)
    with pytest.raises(InputError, match="no test bed"):
        read_bed(documents, documents)
    with pytest.raises(InputError, match=r"no documents of towers .*fetch\.py"):
        read_bed(bed, tmp_path)


def test_a_run_asks_every_system_and_finds_the_evidence(
    make_bed: Callable[..., tuple[Path, Path]], tiny_model: ClaraModel, tmp_path: Path
) -> None:
    collections = read_bed(*make_bed(TOWER, NEVER))
    told: list[str] = []
    rows = list(
        run_bed(collections, tiny_model, tmp_path / "stores", on_progress=lambda *step: told.append(str(step[2])))
    )
    assert [(row.system, row.id) for row in rows] == [(name, name_id) for name in SYSTEMS for name_id in IDS]
    assert told[0] == "indexing towers"
    by_words = next(row for row in rows if row.system == "bm25-plain" and row.answers)
    assert by_words.found == 1
    assert by_words.hits[0]["evidence"] is True
    assert by_words.hits[1]["evidence"] is False
    closed = next(row for row in rows if row.system == "closed-book")
    assert closed.hits == ()
    assert 0 < closed.prompt_tokens < by_words.prompt_tokens
    scores = {(score.system, score.collection): score for score in score_bed(rows)}
    assert scores["bm25-plain", "total"].found == (1, 1, 1)
    assert scores["closed-book", "total"].found is None
    for score in scores.values():
        assert (score.answerable, score.unanswerable) == (1, 1)
        assert score.right + score.wrong + score.abstained == 1
    long = "It is said to be tall, taller than all that stood before it, namely 330 metres, by those who know it well."
    answered = next(row for row in rows if row.answers)
    asked = [replace(answered, answer=text, verdict=judge(text, answered.answers)) for text in (long, "331 metres")]
    (score, _) = score_bed(asked[:1])
    assert (score.right, score.anywhere) == (0, 1)
    (score, _) = score_bed(asked[1:])
    assert (score.right, score.anywhere) == (0, 0)


IDS = ("towers-01", "towers-02")


def test_a_misspelt_system_is_refused_before_anything_is_indexed(
    make_bed: Callable[..., tuple[Path, Path]], tiny_model: ClaraModel, tmp_path: Path
) -> None:
    collections = read_bed(*make_bed(TOWER))
    with pytest.raises(InputError, match="no such system: deflaut; there are default"):
        run_bed(collections, tiny_model, tmp_path / "stores", ["deflaut"])
    assert not (tmp_path / "stores").exists()

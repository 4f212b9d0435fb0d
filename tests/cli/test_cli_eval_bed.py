"""eval --bed: from a folder of questions and one of documents to a table."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from calling import Clara

from clara.samples import sample_folder

pytest_plugins = ["cli_fixtures"]

ANSWERABLE = {
    "id": "places-01",
    "question": "How tall is the Eiffel Tower?",
    "answers": ["330 metres"],
    "evidence": {"document": "eiffel-tower.md", "text": "The tower is 330 metres tall"},
    "half": "reporting",
}
UNANSWERABLE: dict[str, object] = {
    "id": "places-02",
    "question": "Who was the second architect?",
    "answers": [],
    "evidence": None,
}


@pytest.fixture
def bed(tmp_path: Path) -> tuple[object, ...]:
    """The options that lead to a bed of one collection."""
    (tmp_path / "docs" / "places").mkdir(parents=True)
    shutil.copy(sample_folder() / "eiffel-tower.md", tmp_path / "docs" / "places")
    (tmp_path / "bed" / "questions").mkdir(parents=True)
    lines = (ANSWERABLE, {**UNANSWERABLE, "half": "reporting"}, {**UNANSWERABLE, "id": "places-03", "half": "tuning"})
    (tmp_path / "bed" / "questions" / "places.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return ("eval", "--bed", "--data", tmp_path / "bed", "--bed-docs", tmp_path / "docs")


def test_a_bed_is_asked_and_its_answers_are_kept(
    clara: Clara, bed: tuple[object, ...], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    systems = ("bm25-plain", "default")
    options = [word for name in systems for word in ("--bed-system", name)]
    value = clara(*bed, *options, "--model", tiny_checkpoint, "--out", out, "--json").json()
    assert value["half"] == "reporting"
    assert value == json.loads((out / "bed.json").read_text())
    by_words = value["scores"][1]
    assert (by_words["system"], by_words["collection"]) == ("bm25-plain", "total")
    assert (by_words["answerable"], by_words["unanswerable"], by_words["found"]) == (1, 1, [1, 1, 1])
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    assert [(row["system"], row["id"]) for row in rows] == [
        ("bm25-plain", "places-01"),
        ("bm25-plain", "places-02"),
        ("default", "places-01"),
        ("default", "places-02"),
    ]


def test_a_bed_s_table_has_a_line_a_collection(clara: Clara, bed: tuple[object, ...], tiny_checkpoint: Path) -> None:
    called = clara(*bed, "--bed-system", "closed-book", "--half", "all", "--model", tiny_checkpoint)
    assert called.code == 0, called.err
    assert [line.split()[:2] for line in called.out.splitlines()[1:3]] == [
        ["closed-book", "places"],
        ["closed-book", "total"],
    ]


def test_options_of_other_measures_are_refused_and_so_are_a_bed_s_without_it(
    clara: Clara, bed: tuple[object, ...]
) -> None:
    called = clara(*bed, "--k", 3)
    assert called.code == 2
    assert "--k has no meaning with --bed" in called.err
    alone = clara("eval", "--half", "all")
    assert alone.code == 2
    assert "--half has no meaning for a single model" in alone.err

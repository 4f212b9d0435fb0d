"""Records without a language model: answers stand where they are said to, questions do not give them away."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clara import prompts
from clara.cli import main
from clara.data import MultiHop, PassageQA, read_records
from clara.synth.automatic import _GAP, _SOURCE_NONE, AutomaticSettings, automatic_records
from clara.synth.drafts import SourcePassage

TEXTS = (
    "The option --timeout sets how long a request may take. It is 30 seconds unless http.timeout says otherwise.",
    "To keep a cache, give --cache-dir a folder such as /var/lib/pump. The variable PUMP_CACHE does the same thing.",
    "Plain words stand here, and nothing that could be asked for stands among any of them at all.",
    "The pump was built by Larkspur Works in the town of Graz. Its pressure must not be above 8.5 bar while it runs.",
    "A call of read_all reads 128 records at once. It was made for the Kestrel Controller, which is slow.",
    "When readAll is called by the server, exactly 64 records are read at once, which the manual explains below.",
)
PASSAGES = tuple(
    SourcePassage(f"p{i}", "manual.md", "Pumps", text, "one" if i < 3 else "two") for i, text in enumerate(TEXTS)
)


def gap_of(question: str) -> str:
    return question.split('"')[1]


def test_each_kind_is_asked_for_word_for_word() -> None:
    made = automatic_records(PASSAGES, AutomaticSettings(gaps=8, follow=1, several=0))
    answers: dict[str, set[str]] = {}
    for record in made.records:
        assert isinstance(record, PassageQA)
        for pair in record.pairs:
            [answer] = pair.answers
            assert answer in record.text
            if _GAP not in pair.question:
                assert pair.question.startswith("What follows")
                assert gap_of(pair.question) in record.text
                continue
            words = gap_of(pair.question)
            assert answer not in words, "the question does not say it"
            before, after = (part.replace("'", '"') for part in words.split(_GAP))
            assert before + answer + after in record.text.replace("'", '"')
            answers.setdefault(pair.question.split()[1], set()).add(answer)
    assert answers["option"] == {"--timeout", "--cache-dir"}
    assert answers["identifier"] >= {"http.timeout", "/var/lib/pump", "PUMP_CACHE", "read_all", "readAll"}
    assert answers["number"] == {"30", "8.5", "128", "64"}
    assert answers["name"] >= {"Larkspur Works", "Graz", "Kestrel Controller"}
    assert made.tasks["follow"] == 6
    assert made.without == 0


def test_a_passage_without_a_task_is_counted() -> None:
    made = automatic_records(PASSAGES[2:3], AutomaticSettings(follow=0))
    assert (made.records, made.without) == ((), 1)


def test_no_other_passage_holds_the_answer_and_some_questions_have_none() -> None:
    made = automatic_records(PASSAGES * 1, AutomaticSettings(several=1, unanswered=0.5, documents=4))
    several = [record for record in made.records if isinstance(record, MultiHop)]
    single = {pair.question: pair for r in made.records if isinstance(r, PassageQA) for pair in r.pairs}
    assert {record.answerable for record in several} == {True, False}
    for record in several:
        answer = single[record.question].answers[0]
        holding = [i for i, doc in enumerate(record.docs) if answer in doc.text]
        assert len({doc.text for doc in record.docs}) == len(record.docs) <= 4
        assert (record.source == _SOURCE_NONE) == (not record.answerable) == (record.gold == ())
        if record.answerable:
            assert list(record.gold) == holding
            assert record.answers == (answer,)
        else:
            assert record.answers == (prompts.NO_ANSWER,)
            assert holding == []


def test_neighbours_in_the_document_come_first() -> None:
    settings = AutomaticSettings(several=1, unanswered=0, documents=3)
    record = next(r for r in automatic_records(PASSAGES, settings).records if r.id == "auto-p3-several")
    assert isinstance(record, MultiHop)
    beside = {doc.text for i, doc in enumerate(record.docs) if i not in record.gold}
    assert TEXTS[4] in beside, "the next of its document"
    assert len(beside) == 2
    assert TEXTS[2] not in beside, "the passage before is another document's, and shares no word"


def test_the_same_passages_give_the_same_records() -> None:
    settings = AutomaticSettings(several=1)
    assert automatic_records(PASSAGES, settings) == automatic_records(PASSAGES, settings)
    assert automatic_records(PASSAGES, settings) != automatic_records(PASSAGES, settings.model_copy(update={"seed": 1}))


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "docs").mkdir()
    for i, text in enumerate(TEXTS):
        (tmp_path / "docs" / f"{i}.md").write_text(f"# Part {i}\n\n{text}\n", encoding="utf-8")
    out, config = tmp_path / "records.jsonl", tmp_path / "settings.toml"
    config.write_text("several = 1.0\nmin_passage_words = 5\n", encoding="utf-8")
    command = ["synth", str(tmp_path / "docs"), "--automatic", "--out", str(out), "--config", str(config)]
    assert main([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    records = read_records(out).records
    assert report["records"] == len(records) > len(TEXTS)
    assert report["tasks"]["option"] == 2
    first = out.read_bytes()
    assert main(command) == 0
    assert "records written to" in capsys.readouterr().out
    assert out.read_bytes() == first
    assert main([*command, "--llm", "http://localhost:1/v1", "--rounds", "2"]) == 2
    assert "--llm, --rounds" in capsys.readouterr().err

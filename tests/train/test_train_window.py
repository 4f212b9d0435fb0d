"""Training records end where the compressor's window does, and nothing is asked that stands further on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from train_cases import made, passages, questions

from clara.cli import main
from clara.data import DocText, MultiHop, PassageQA, QAPair
from clara.model.backbone import load_tokenizer
from clara.model.prompting import Prompter
from clara.prompts import passage_text
from clara.train.data import within_window

WORDS = "The tower is made of iron and of wood . " * 12
LONG = PassageQA(
    "p",
    "p",
    "Tower",
    f"It is 330 metres high. {WORDS}It was built by Gustave Eiffel.",
    (QAPair("How high?", ("330 metres",)), QAPair("Who built it?", ("Gustave Eiffel",)), QAPair("Is it?", ("yes",))),
    paraphrase="Gustave Eiffel built a tower.",
    complex_pairs=(QAPair("Who, of what?", ("Gustave Eiffel", "iron")),),
)


def test_a_long_passage_keeps_what_stands_within_the_window(tiny_base: Path, tmp_path: Path) -> None:
    (record,) = (cut := within_window([LONG], made("scp", tiny_base).window(), tmp_path)).records
    assert isinstance(record, PassageQA)
    assert [pair.question for pair in record.all_pairs] == ["How high?", "Is it?", "Who, of what?"]
    assert record.paraphrase is None
    assert LONG.text.startswith(record.text)
    prompter = Prompter(load_tokenizer(str(tiny_base), tmp_path))
    assert passage_text(record.title, record.text) == prompter.cut(passage_text(LONG.title, LONG.text), 64)
    assert cut.left_out == {
        "text beyond the window of 64 tokens": 1,
        "question whose answer stands beyond the window of 64 tokens": 1,
        "paraphrase of a text longer than the window of 64 tokens": 1,
    }


def test_short_records_stay_and_a_question_without_its_answer_goes(tiny_base: Path, tmp_path: Path) -> None:
    short = [*passages(6), *questions(3)]
    docs = (DocText("Tower", LONG.text), DocText("Bees", "Bees dance."))
    kept, lost = (MultiHop("x", "m", "Who?", (answer,), docs, (0, 1)) for answer in ("Bees", "Gustave Eiffel"))
    cut = within_window([*short, kept, lost], made("scp", tiny_base).window(), tmp_path)
    assert cut.records[:-1] == short
    last = cut.records[-1]
    assert isinstance(last, MultiHop)
    assert last == replace(kept, docs=last.docs)
    assert last.docs[1] == docs[1]
    assert cut.left_out["question whose answer stands beyond the window of 64 tokens"] == 1


def test_the_command_says_what_is_not_used(tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And stage scp takes passages that nothing is asked about."""
    data, recipe = tmp_path / "data.jsonl", tmp_path / "recipe.toml"
    plain = [{"id": str(i), "source": "s", "title": "T", "text": f"Tower {i}. {WORDS}"} for i in range(6)]
    data.write_text("".join(json.dumps(line) + "\n" for line in plain))
    recipe.write_text(
        f'base = "{tiny_base}"\nsteps = 1\nbatch_size = 2\nheld_out = 0\n'
        "[compression]\nwindow_tokens = 64\nrates = [4]\n"
    )
    options = ["--data", str(data), "--config", str(recipe), "--cache", str(tmp_path), "--json"]
    assert main(["train", "scp", "--out", str(tmp_path / "run"), *options]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["rejected"] == {"text beyond the window of 64 tokens": 6}
    assert "not used: 6 x text beyond the window of 64 tokens" in printed.err
    assert "6 x text beyond the window" in (tmp_path / "run" / "checkpoint" / "README.md").read_text()
    assert main(["train", "instruct", "--out", str(tmp_path / "other"), *options]) != 0

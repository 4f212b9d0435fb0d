"""train and eval: from records to a checkpoint, and from a checkpoint to scores."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from calling import Clara, on_a_terminal

from clara.train import run

pytest_plugins = ["cli_fixtures"]

FIXTURES = Path(__file__).parents[1] / "data" / "fixtures"
PASSAGES, QUESTIONS = FIXTURES / "passage_qa.jsonl", FIXTURES / "multi_hop.jsonl"
EVAL_KEYS = [
    *("n", "em", "f1", "cover_em", "recall_at_5", "errors"),
    *("ci95", "context", "rate", "model", "data_sha256"),
]


@pytest.fixture
def recipe(tiny_base: Path, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(
        f'base = "{tiny_base}"\nsteps = 2\nbatch_size = 2\nheld_out = 1\nevaluate_every = 1\ndtype = "fp32"\n'
        "[compression]\nwindow_tokens = 128\nrates = [4]\n[lora]\nrank = 2\nalpha = 4\n"
    )
    return path


def test_train_writes_a_checkpoint_that_answers(clara: Clara, recipe: Path, tmp_path: Path) -> None:
    spoiled = tmp_path / "spoiled.jsonl"
    spoiled.write_text(PASSAGES.read_text() + "not JSON\n")
    out = tmp_path / "run"
    command = ("train", "scp", "--data", PASSAGES, spoiled, "--out", out, "--config", recipe)
    called = clara(*command, "--json")
    report = called.json()
    assert report["checkpoint"] == str(out / "checkpoint")
    assert (report["steps"], report["records"], report["rejected"]) == (2, 12, {"bad JSON": 1})
    assert report["cross_entropy"] > 0
    assert report["held_out"] > 0
    lines = called.err.splitlines()
    assert lines[:2] == ["passage_qa.jsonl: 6 records", "spoiled.jsonl: 6 records; rejected 1 (1 bad JSON)"]
    assert lines[-1].startswith("step 2/2: loss ")
    assert all(word in lines[-1] for word in ("mse", "held out", "samples/s", "tokens/s", "left"))
    assert len((out / "log.jsonl").read_text().splitlines()) == 2
    again = clara(*command)
    assert again.code == 0
    assert again.out == f"checkpoint: {out / 'checkpoint'}\n"
    scored = clara("eval", "--data", QUESTIONS, "--model", out / "checkpoint", "--limit", 2, "--max-new-tokens", 2)
    assert scored.code == 0


def test_train_shows_a_live_line_on_a_terminal(
    clara: Clara, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("train", "scp", PASSAGES, "--out", tmp_path / "run", "--config", recipe)
    live = on_a_terminal(monkeypatch, "stderr", *command)
    assert live.code == 0
    assert "2/2" in live.out
    assert "loss" in live.out
    missing = clara("train", "instruct", *command[2:])
    assert missing.code == 2
    assert "other settings" in missing.err


def test_an_interrupted_run_says_how_it_goes_on(
    clara: Clara, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "train", interrupted)
    called = clara("train", "scp", PASSAGES, "--out", tmp_path / "run", "--config", recipe)
    assert called.code == 130
    assert called.err.splitlines()[-1] == "clara: interrupted; the same command goes on from the last checkpoint"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("stepz = 3\nbatch_size = 0\n", ("stepz", "batch_size")),
        ("[compression]\nrates = [3]\nread_outs = 1\n", ("read_outs",)),
        ("steps = \n", ("TOML",)),
    ],
)
def test_a_wrong_recipe_names_all_its_faults(clara: Clara, tmp_path: Path, text: str, named: tuple[str, ...]) -> None:
    recipe = tmp_path / "wrong.toml"
    recipe.write_text(text)
    called = clara("train", "scp", "--data", PASSAGES, "--out", tmp_path / "run", "--config", recipe)
    assert called.code == 2
    assert all(name in called.err for name in named)
    assert called.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_data_to_measure_on_is_never_trained_on(clara: Clara, recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "Eval" / "sub"
    folder.mkdir(parents=True)
    hidden = folder / "records.jsonl"
    hidden.write_text(PASSAGES.read_text())
    link = tmp_path / "innocent.jsonl"
    link.symlink_to(hidden)
    for path in (hidden, link):
        called = clara("train", "scp", "--data", PASSAGES, path, "--out", tmp_path / "run", "--config", recipe)
        assert called.code == 2
        assert f"{path} is under a folder named eval" in called.err
    assert not (tmp_path / "run").exists()


def test_an_output_folder_that_cannot_be_made(clara: Clara, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "file"
    out.touch()
    for command in (("train", "scp", "--config", recipe, "--data", PASSAGES), ("eval", "--data", QUESTIONS)):
        called = clara(*command, "--out", out / "below")
        assert called.code == 2
        assert "cannot be made" in called.err.splitlines()[-1]


@pytest.mark.parametrize(("given", "context"), [("gold", "memory"), ("candidates", "text"), ("candidates", "none")])
def test_eval_prints_one_object(clara: Clara, tiny_checkpoint: Path, tmp_path: Path, given: str, context: str) -> None:
    options = ("--given", given, "--context", context, "--rate", 16, "--max-new-tokens", 3, "--out", tmp_path / "out")
    called = clara("eval", "--data", QUESTIONS, "--model", tiny_checkpoint, *options, "--json")
    result = called.json()
    assert list(result) == EVAL_KEYS
    assert list(result["ci95"]) == ["em", "f1", "cover_em"]
    assert (result["errors"], result["context"], result["rate"]) == (0, context, 16)
    assert result["model"] == str(tiny_checkpoint)
    assert result["data_sha256"] == hashlib.sha256(QUESTIONS.read_bytes()).hexdigest()
    assert (result["recall_at_5"] is None) == (given == "gold")
    assert "multi_hop: 8 questions (clara)" in called.err
    rows = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == result["n"] == (7 if given == "gold" else 8)  # the last record has no gold document
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == result


def test_eval_shows_a_table_and_says_what_it_left_out(clara: Clara, tiny_checkpoint: Path) -> None:
    called = clara("eval", "--data", QUESTIONS, "--model", tiny_checkpoint, "--max-new-tokens", 2)
    assert called.code == 0
    assert "F1" in called.out
    assert "not asked: 1 questions without a gold document" in called.err
    refused = clara("eval", "--data", QUESTIONS, "--model", tiny_checkpoint, "--rate", 8)
    assert refused.code == 2
    assert "4x, 16x" in refused.err


def test_the_base_reads_text_unless_told_otherwise(clara: Clara, tiny_checkpoint: Path, tmp_path: Path) -> None:
    answers = {}
    for reader in (None, "base", "generator"):
        out = tmp_path / str(reader)
        option = () if reader is None else ("--reader", reader)
        options = ("--context", "text", "--max-new-tokens", 6, "--out", out, *option)
        assert clara("eval", "--data", QUESTIONS, "--model", tiny_checkpoint, *options).code == 0
        rows = (out / "rows.jsonl").read_text().splitlines()
        answers[reader] = [json.loads(row)["prediction"] for row in rows]
    assert answers[None] == answers["base"] != answers["generator"]

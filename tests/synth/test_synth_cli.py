"""``clara synth`` as a user calls it."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
from cases import knowledge, write_passages
from typer.testing import CliRunner, Result

from clara.cli.entry import application
from clara.errors import ConfigError, RecordError, SynthesisError
from clara.synth.settings import SynthSettings
from llm_server import LLMServer, always, serving

DOCS = Path(__file__).parents[2] / "docs" / "synth.md"
MULTI_HOP = Path(__file__).parents[1] / "data" / "fixtures" / "multi_hop.jsonl"
APP = application()


def call(*arguments: object) -> Result:
    result = CliRunner().invoke(APP, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_documents_to_records_with_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLARA_LLM_API_KEY", "secret")
    docs, out = write_passages(tmp_path / "in.jsonl", 3), tmp_path / "records.jsonl"
    with serving(LLMServer(knowledge(3))) as llm:
        options = ("--llm", llm.url, "--llm-model", "m", "--report", tmp_path / "report.md", "--limit", 2)
        result = call("synth", docs, "--out", out, *options)
        assert result.exit_code == 0
        assert "accepted in round 1" in result.stdout
        assert len(out.read_text().splitlines()) == 2
        assert (tmp_path / "report.md").exists()
        assert (tmp_path / "report.png").exists()
        assert "secret" not in out.read_text()
        with pytest.raises(SynthesisError, match="--resume"):
            call("synth", docs, "--out", out, *options)
        result = call("synth", docs, "--out", out, *options[:4], "--resume", "--json")
    report = json.loads(result.stdout)
    assert report["accepted"] == 3
    assert report["accepted_by_round"] == {"1": 3}
    assert report["run"]["requests"] == 4


def test_settings_come_from_a_file_and_options_win(tmp_path: Path) -> None:
    docs, out = write_passages(tmp_path / "in.jsonl", 1), tmp_path / "records.jsonl"
    with serving(LLMServer(knowledge(1))) as llm:
        config = tmp_path / "synth.toml"
        config.write_text(
            f'judge = "lexical"\n[server]\nurl = "{llm.url}"\nmodel = "from-file"\n[sampling]\ntemperature = 0.1\n'
        )
        assert call("synth", docs, "--out", out, "--config", config, "--temperature", 0.4).exit_code == 0
        bodies = [request.body for request in llm.calls]
    assert {(body["model"], body["temperature"]) for body in bodies} == {("from-file", 0.4)}
    assert len(bodies) == 3
    config.write_text("[server]\nurl = 'http://x'\nmodel = 'm'\nspeed = 3\n")
    with pytest.raises(ConfigError, match=r"server\.speed"):
        call("synth", docs, "--out", out, "--config", config)


def test_without_a_language_model_the_remedy_is_named(tmp_path: Path) -> None:
    docs = write_passages(tmp_path / "in.jsonl", 1)
    with pytest.raises(ConfigError, match=r"--llm URL and --llm-model NAME"):
        call("synth", docs, "--out", tmp_path / "records.jsonl")


def test_passages_left_open_by_the_server_end_with_1(tmp_path: Path) -> None:
    docs, out = write_passages(tmp_path / "in.jsonl", 1), tmp_path / "records.jsonl"
    config = tmp_path / "synth.toml"
    config.write_text("[server]\nretries = 1\nfirst_wait_seconds = 0.01\n")
    with serving(LLMServer(knowledge(1), script=always("500"))) as llm:
        result = call("synth", docs, "--out", out, "--llm", llm.url, "--llm-model", "m", "--config", config)
    assert result.exit_code == 1
    assert "--resume" in result.stderr


def test_a_spent_budget_is_a_good_end(tmp_path: Path) -> None:
    docs, out = write_passages(tmp_path / "in.jsonl", 2), tmp_path / "records.jsonl"
    with serving(LLMServer(knowledge(2))) as llm:
        result = call("synth", docs, "--out", out, "--llm", llm.url, "--llm-model", "m", "--max-tokens", 100)
    assert result.exit_code == 0
    assert "the budget is spent" in result.stdout + result.stderr
    assert len(llm.calls) == 0


def test_records_become_official_rows_and_back(tmp_path: Path) -> None:
    docs, out = write_passages(tmp_path / "in.jsonl", 2), tmp_path / "records.jsonl"
    with serving(LLMServer(knowledge(2))) as llm:
        call("synth", docs, "--out", out, "--llm", llm.url, "--llm-model", "m")
    assert "4 rows" in call("convert-records", out, tmp_path / "official.jsonl", "--to", "official").stdout
    assert (
        "2 records"
        in call("convert-records", tmp_path / "official.jsonl", tmp_path / "back.jsonl", "--to", "records").stdout
    )
    back = [json.loads(line) for line in (tmp_path / "back.jsonl").read_text("utf-8").splitlines()]
    assert [len(record["qa"]) for record in back] == [6, 6]
    with pytest.raises(RecordError, match="row 1"):
        call("convert-records", out, tmp_path / "x.jsonl", "--to", "records")
    several = MULTI_HOP.read_text("utf-8").splitlines()[0]
    (tmp_path / "mixed.jsonl").write_text(out.read_text("utf-8") + several + "\n{broken\n", encoding="utf-8")
    mixed = call("convert-records", tmp_path / "mixed.jsonl", tmp_path / "mixed.out.jsonl", "--to", "official")
    assert "4 rows" in mixed.stdout
    assert "rejected 1" in mixed.stderr
    assert "left out: 1 question over several documents" in mixed.stderr


def test_documented_commands_and_settings_are_taken() -> None:
    text = DOCS.read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, re.S) for line in block.splitlines()]
    commands = [shlex.split(line) for line in lines if line.startswith("clara ")]
    assert {command[1] for command in commands} == {"synth", "train", "convert-records"}
    root: Any = typer.main.get_command(application())
    for _, name, *arguments in commands:
        root.commands[name].make_context(name, arguments)  # an option that is missing or unknown is an error
    (settings,) = re.findall(r"```toml\n(.*?)```", text, re.S)
    SynthSettings.model_validate(tomllib.loads(settings))


def test_a_server_that_refuses_everything_is_no_good_end(tmp_path: Path) -> None:
    docs, out = write_passages(tmp_path / "in.jsonl", 3), tmp_path / "records.jsonl"
    with serving(LLMServer(knowledge(3), script=always("400"))) as llm:
        options = ("--out", out, "--llm", llm.url, "--llm-model", "m")
        with pytest.raises(SynthesisError, match="scripted 400"):
            call("synth", docs, *options)
        llm.script = always("")
        assert call("synth", docs, *options, "--resume").exit_code == 0
    assert len(out.read_text().splitlines()) == 3

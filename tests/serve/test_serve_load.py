"""What ``clara bench serve`` measures, against the real server."""

from __future__ import annotations

import json

import pytest
from serving import Running, Serve

from clara.cli import main
from clara.serve.access import Limits
from clara.serve.load import LoadQuestions, _Quantiles, measure_load

pytest_plugins = ["server_fixtures"]

QUESTIONS = ["How high is the Eiffel Tower?", "Where does coffee come from?"]


def test_bench_serve_counts_what_clients_saw(shared: Running, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "serve", "--url", shared.base, "--clients", "1", "--clients", "3", "--seconds", "1", "--json"]
    assert main([*arguments, "--max-new-tokens", "4"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [run["clients"] for run in told["runs"]] == [1, 3]
    for run in told["runs"]:
        assert (run["errors"], run["faults"]) == (0, {})
        assert run["answers"] >= run["clients"]
        assert run["answers_per_minute"] == pytest.approx(60 * run["answers"] / run["seconds"])
        assert 0 < run["first_token"]["p50"] <= run["total"]["p50"] <= run["total"]["p95"] <= run["total"]["p99"]


def test_what_is_refused_is_counted_by_its_code(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    server = serve("docs", limits=Limits(question_characters=5))
    result = measure_load(server.base, LoadQuestions(None, QUESTIONS, 4), clients=2, seconds=0.2)
    assert result.errors == result.faults["context_length_exceeded"] > 0
    assert (result.answers, result.total, result.first_token) == (0, None, None)
    assert main(["bench", "serve", "--url", "http://127.0.0.1:9", "--clients", "1", "--seconds", "1"]) == 1
    assert "0.0 answers a minute" in capsys.readouterr().out


def test_quantiles() -> None:
    assert _Quantiles.of([float(number) for number in range(101)]) == _Quantiles(50.0, 95.0, 99.0)

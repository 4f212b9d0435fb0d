"""The options for large models as a user meets them: a refusal with its way out, and devices that are not here."""

from __future__ import annotations

from pathlib import Path

import pytest
from calling import Clara

from clara.model import placement

pytest_plugins = ["cli_fixtures"]


def test_too_little_memory_is_one_line_and_can_be_overruled(
    clara: Clara, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "_free_memory", lambda: 1000)
    ask = ("ask", "Who?", "--store", store, "--max-new-tokens", 2, "--json")
    refused = clara(*ask)
    assert refused.code == 2
    assert refused.err.count("\n") == 1
    assert "needs about" in refused.err
    assert "--no-memory-check (CLARA_MEMORY_CHECK=0)" in refused.err
    assert len(clara(*ask, "--no-memory-check").json()["citations"]) == 5
    monkeypatch.setenv("CLARA_MEMORY_CHECK", "0")
    assert clara(*ask).code == 0


def test_doctor_shows_the_estimate(clara: Clara, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = {check["name"]: check for check in clara("doctor", "--store", store, "--json").json()["checks"]}
    assert "takes about" in checks["base model"]["detail"]
    assert "are free on cpu" in checks["base model"]["detail"]
    monkeypatch.setattr(placement, "_free_memory", lambda: 1000)
    failed = clara("doctor", "--store", store)
    assert failed.code == 1
    assert "fail  base model" in failed.out
    assert "--dtype int8 or int4" in failed.out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--device", "balanced"), "spreads weights over GPUs, and torch sees none here"),
        (("--device", "cuda:1"), "torch sees no GPU here"),
        (("--device", "warp"), "give cpu, cuda, cuda:1, mps, auto, balanced or sequential"),
        (("--attention", "flash"), "attention flash needs a CUDA device"),
    ],
)
def test_what_this_machine_does_not_have(options: tuple[str, str], said: str, clara: Clara, store: Path) -> None:
    refused = clara("ask", "Who?", "--store", store, *options)
    assert refused.code == 2
    assert said in refused.err

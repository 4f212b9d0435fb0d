"""The scripts between the embedded checkpoint's stages: what of their records they use, what they say of bad ones."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a script as the command line does."""

    def run(name: str, *arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(SCRIPTS / name), run_name="__main__")

    return run


def test_faults_of_what_is_given_are_said_without_a_traceback(call: Callable[..., None], tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    with pytest.raises(SystemExit, match="nothing"):
        call("question_sample.py", nothing, tmp_path / "sample.jsonl.gz")

"""How ``clara index`` says how far it is, and what Ctrl-C leaves."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from calling import Clara, on_a_terminal

from clara.cli import terminal
from clara.index import LanceStore

pytest_plugins = ["cli_fixtures"]

LINE = re.compile(r"[\d,]+ of about [\d,]+ passages?: file \d+ of 12(, [\d.,]+ a second, about \d+:\d\d:\d\d left)?")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for n in range(12):
        (folder / f"{n:02}.txt").write_text(f"Sentence of story {n} about the mill on the river. " * 60, "utf-8")
    return folder


def test_without_a_terminal_a_line_comes_now_and_then(
    clara: Clara, texts: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "_SECONDS_A_LINE", 0.0)
    called = clara("index", texts, "--store", "s", "--model", tiny_checkpoint)
    assert called.code == 0
    lines = called.err.splitlines()
    assert len(lines) > 12
    assert all(LINE.fullmatch(line) for line in lines), called.err
    assert lines[-1].startswith("240 of about 240 passages: file 12 of 12, ")


def test_a_short_run_says_nothing_before_its_end(clara: Clara, texts: Path, tiny_checkpoint: Path) -> None:
    assert clara("index", texts, "--store", "s", "--model", tiny_checkpoint).err == ""


def test_a_terminal_sees_passages_rate_and_time_left(
    texts: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    arguments = ("index", texts, "--store", tmp_path / "s", "--model", tiny_checkpoint)
    live = on_a_terminal(monkeypatch, "stderr", *arguments)
    assert live.code == 0
    assert "a second, about" in live.out


def test_ctrl_c_says_what_is_kept_and_the_same_command_goes_on(
    clara: Clara, texts: Path, tiny_checkpoint: Path
) -> None:
    """In a process of its own, to which a terminal would send the signal, with all that it has started."""
    command = [sys.executable, "-c", _SLOWLY, "index", str(texts), "--store", "s", "--model", str(tiny_checkpoint)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as running:
        assert running.stderr is not None
        assert any(LINE.match(line) for line in running.stderr), "libraries may say something first"
        os.killpg(running.pid, signal.SIGINT)
        out, err = running.communicate(timeout=60)
    assert (running.returncode, out) == (130, "")
    (said,) = [line for line in err.splitlines() if not LINE.match(line)]
    found = re.fullmatch(
        r"clara: interrupted; ([\d,]+) whole documents? and ([\d,]+) passages are kept in s; the same command goes on "
        r"from there",
        said,
    )
    assert found, err
    with LanceStore.open(Path("s"), None) as store:
        assert (len(store.documents()), store.count()) == (int(found[1]), int(found[2]))
        assert store.count() >= 8
    report = clara("index", texts, "--store", "s", "--model", tiny_checkpoint, "--json").json()
    assert report["store"]["documents"] == 12
    made = report["passages"] + report["reused"]  # a document that was cut short holds texts that are kept
    assert made == report["store"]["passages"] - int(found[2])


_SLOWLY = """
import sys, time
from clara.cli import terminal
from clara.model import ClaraModel
terminal._SECONDS_A_LINE = 0.0
compress = ClaraModel.compress
def slowly(self, *arguments, **options):
    time.sleep(0.5)
    return compress(self, *arguments, **options)
ClaraModel.compress = slowly
from clara.cli import main
sys.exit(main())
"""

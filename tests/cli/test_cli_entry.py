"""Errors, exit codes and start-up: what holds for every command."""

from __future__ import annotations

import os
import resource
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from calling import Clara

from clara.cli import store as store_commands
from clara.errors import StoreError

pytest_plugins = ["cli_fixtures"]

ROOT = Path(__file__).parents[2]
COMMANDS = ("index", "ask", "search", "chat", "remove", "info", "doctor", "train", "eval", "synth")


def one_line(text: str) -> bool:
    return text.startswith("clara: ") and text.endswith("\n") and text.count("\n") == 1


def test_help_is_fast_and_loads_no_heavy_library() -> None:
    """The least processor time of three runs: a busy sibling thread of the core makes a run dearer, none cheaper."""
    code = (
        "import sys; sys.argv[1:] = ['--help']; from clara.cli import main; code = main(); "
        "heavy = {'torch', 'transformers', 'lancedb', 'pyarrow', 'peft'} & sys.modules.keys(); "
        "sys.exit(str(sorted(heavy)) if heavy else code)"
    )
    taken = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.returncode == 0, done.stderr
        assert all(f"\n  {name} " in done.stdout for name in COMMANDS)
    assert min(taken) < 1.0


def test_without_a_command_the_help_is_shown(clara: Clara) -> None:
    called = clara()
    assert called.code == 0
    assert called.out.startswith("Usage: clara ")


def test_version(clara: Clara) -> None:
    called = clara("--version")
    assert (called.code, called.err) == (0, "")
    assert called.out.startswith("clara 0.")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(clara: Clara, command: str) -> None:
    called = clara(command, "--help")
    assert called.code == 0
    assert called.out.startswith(f"Usage: clara {command} ")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("nonsense",), "nonsense"),
        (("index",), "PATH"),
        (("ask", "q", "--k", "0"), "--k"),
        (("ask", "q", "--mode", "telepathy"), "telepathy"),
        (("info", "--sore", "x"), "--sore"),
        (("ask", "  "), "the question is empty"),
        (("ask", "What", "is", "new?"), "(is new?); put the question in quotes; see clara ask --help"),
        (("search", "--keep-within"), "a question that begins with - stands last, behind --; see clara search"),
        (("ask", "q"), "clara index PATH --store store"),
        (("search", "q", "--mode", "text"), "clara index PATH --store store"),
        (("chat",), "clara index PATH --store store"),
        (("info",), "clara index PATH --store store"),
        (("remove", "x"), "clara index PATH --store store"),
        (("index", "missing.txt"), "missing.txt"),
        (("train", "scp", "--out", "o", "--config", "c.toml"), "--data"),
        (("train", "scp", "--data", "d.jsonl", "--out", "o", "--config", "c.toml"), "c.toml"),
        (("eval", "--data", "none.jsonl"), "none.jsonl"),
        (("info", "--store", ""), "--store is empty"),
        (("info", "--store="), "--store is empty"),
        (("info", "--store", "~nobody-of-that-name/s"), "--store"),
        (("index", "missing.txt", "--max-memory-mb", str(2**70)), "--max-memory-mb"),
        (("remove", "a\0b", "--store", "s"), "clara index PATH"),
        (("ask", "q", "--model", ""), "--model is empty"),
        (("push", "", "somebody/something"), "a path is empty"),
        (("info", "--store", "/dev/null"), "/dev/null is a file; a store is a folder"),
        (("search", "q", "--k", "many"), "--k"),
        (("search", "q", "--k", "2.5"), "--k"),
        (("ask", "q", "--threads", "99999999999999999999"), "--threads"),
        (("index", "missing.txt", "--max-file-mb", "inf"), "missing.txt"),
        (("index", "missing.txt", "--max-file-mb", "nan"), "--max-file-mb"),
        (("info", "--sore\x1b[31m", "x"), "--sore\\x1b[31m"),
        (("index", "a\x1b[2J\nb"), r"a\x1b[2J b"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_2(clara: Clara, arguments: tuple[str, ...], named: str) -> None:
    called = clara(*arguments)
    assert called.code == 2
    assert one_line(called.err), called.err
    assert named in called.err
    assert called.out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "--document", "PIPE"),
        ("synth", "PIPE", "--out", "o.jsonl", "--config", "PIPE"),
        ("train", "scp", "--data", "PIPE", "--out", "o", "--config", "PIPE"),
        ("train", "scp", "--data", "PIPE", "--out", "o", "--config", str(ROOT / "recipes" / "tiny.toml")),
        ("convert-records", "PIPE", "out.jsonl", "--to", "official"),
        ("convert-records", "PIPE", "out.jsonl", "--to", "records"),
    ],
)
def test_a_pipe_in_place_of_a_file_is_said_not_waited_for(
    clara: Clara, tiny_checkpoint: Path, arguments: tuple[str, ...]
) -> None:
    os.mkfifo("pipe.jsonl")
    model = ("--model", tiny_checkpoint) if arguments[0] == "inspect" else ()
    with _at_most(60):
        called = clara(*(argument.replace("PIPE", "pipe.jsonl") for argument in arguments), *model)
    assert called.code == 2
    assert one_line(called.err)
    assert "pipe.jsonl" in called.err
    assert "is a pipe, a device or a socket, not a regular file" in called.err


@contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    def late(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_a_store_that_is_something_else_is_named(clara: Clara, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    called = clara("info", "--store", tmp_path / "photos")
    assert called.code == 2
    assert one_line(called.err)
    assert "cat.jpg" in called.err


def test_debug_shows_the_traceback_too(clara: Clara, monkeypatch: pytest.MonkeyPatch) -> None:
    for called in (clara("--debug", "info"), clara("info", "--debug")):
        assert called.code == 2
        assert "Traceback" in called.err
        assert "StoreNotFoundError" in called.err
        assert one_line(called.err.splitlines(keepends=True)[-1])
    monkeypatch.setenv("CLARA_DEBUG", "1")
    assert "Traceback" in clara("info").err
    monkeypatch.setenv("CLARA_DEBUG", "0")
    assert one_line(clara("info").err)


def test_an_unexpected_exception_is_called_a_bug(clara: Clara, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_path: Path) -> None:
        raise ZeroDivisionError("one\ntwo")

    monkeypatch.setattr(store_commands, "open_store", broken)
    called = clara("info")
    assert called.code == 1
    assert one_line(called.err)
    assert "bug" in called.err
    assert "ZeroDivisionError: one two" in called.err
    assert "Traceback" in clara("info", "--debug").err


def test_an_interrupted_command_says_so_in_one_line(clara: Clara, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store_commands, "open_store", interrupted)
    called = clara("info")
    assert called.code == 130
    assert called.err == "clara: interrupted\n"


def test_a_message_of_several_lines_becomes_one(clara: Clara, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_path: Path) -> None:
        raise StoreError("first\n   second\r\nthird")

    monkeypatch.setattr(store_commands, "open_store", failing)
    assert clara("info").err == "clara: first second third\n"


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "clara.cli", "info", "--sore"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert one_line(done.stderr)


def test_the_reference_is_what_the_commands_say() -> None:
    render = runpy.run_path(str(ROOT / "scripts" / "cli_reference.py"))["render"]
    written = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert written == render(), "run: python scripts/cli_reference.py"

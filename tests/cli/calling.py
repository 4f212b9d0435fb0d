"""How the tests call the command line: in this process through ``main``; a stream may be a terminal."""

from __future__ import annotations

import json
import os
import pty
import sys
import termios
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from threading import Thread
from typing import Any

import pytest

from clara.cli import main


@dataclass(frozen=True, slots=True)
class Called:
    """Exit code and output of one call."""

    code: int
    out: str
    err: str

    def json(self) -> Any:  # noqa: ANN401
        """The one JSON value on stdout; anything else there is an error."""
        assert self.code == 0, self.err
        assert self.out.endswith("\n")
        assert self.out.count("\n") == 1, self.out
        return json.loads(self.out)


Clara = Callable[..., Called]


def caller(capsys: pytest.CaptureFixture[str]) -> Clara:
    """A function that runs ``clara`` with arguments of any type."""

    def call(*arguments: object) -> Called:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return Called(code, printed.out, printed.err)

    return call


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, stream: str, *arguments: object) -> Called:
    """Run ``clara`` with stdout or stderr a real terminal device; ``out`` is what arrived on its other end."""
    above, below = pty.openpty()
    settings = termios.tcgetattr(below)
    settings[1] &= ~termios.OPOST  # newlines as they are written
    termios.tcsetattr(below, termios.TCSANOW, settings)
    pieces: list[bytes] = []

    def read() -> None:
        with suppress(OSError):  # as Linux says that the other end was closed
            while piece := os.read(above, 1 << 16):
                pieces.append(piece)

    reader = Thread(target=read)
    reader.start()
    with os.fdopen(below, "w", encoding="utf-8") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, stream, terminal)
        patch.setenv("TERM", "xterm")
        code = main([str(argument) for argument in arguments])
    reader.join()
    os.close(above)
    return Called(code, b"".join(pieces).decode(), "")

"""Output: JSON, tables, bars that only a terminal sees, names and numbers for people.

Documents, names and models are foreign text: ``Screen`` and ``plain`` keep it from controlling the terminal.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from clara.errors import ClaraError, OutputError, StoreEmptyError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells report it."""

_SECONDS_A_LINE = 30.0
"""Between the lines that replace a bar."""

_SNIPPET = 160  # characters of a passage shown on a terminal
_DownloadProgress = Callable[[str, int, int], None]

# C0, DEL and C1 steer a terminal; the others make letters that follow run the other way, which disguises a name.
_CONTROLS = [*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_SHOWN_AS = {code: repr(chr(code))[1:-1] for code in _CONTROLS}
_KEPT_IN_TEXT = {code: text for code, text in _SHOWN_AS.items() if chr(code) not in "\t\n"}
_KEPT_IN_BARS = {code: text for code, text in _KEPT_IN_TEXT.items() if chr(code) != "\r"}
_IN_JSON = {code: f"\\u{code:04x}" for code in _CONTROLS if code >= 0x7F}  # json has escaped the others
_NARROWEST = 40
_UNLIMITED = 100_000  # columns: where nobody looks, a name stays on one line


class Screen:
    """Stdout or stderr on which foreign text is harmless: control characters are written as visible escapes.

    Args:
        stream: where the text goes.
        bars: leave carriage returns as they are, with which libraries draw progress.
        needed: writing to a closed or full stream is an OutputError, then and ever after: a library may swallow the
            first one. Otherwise output is dropped.
    """

    def __init__(self, stream: TextIO, *, bars: bool, needed: bool) -> None:
        self.stream = stream
        self._table = _KEPT_IN_BARS if bars else _KEPT_IN_TEXT
        self._needed = needed
        self._broken: str | None = None  # why the stream cannot be written

    def write(self, text: str) -> int:
        """Write a text, control characters escaped."""
        with self._faults():
            self.stream.write(text.translate(self._table))
        return len(text)

    def control(self, sequence: str) -> None:
        """Write a control sequence of our own."""
        with self._faults():
            self.stream.write(sequence)

    def flush(self) -> None:
        """Flush the stream."""
        with self._faults():
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the stream has
        return getattr(self.stream, name)

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            _drain(self.stream)
            seen_enough = error.errno == errno.EPIPE  # ``clara … | head``
            self._broken = "" if seen_enough else f"the output cannot be written: {error.strerror or error}"
        if self._needed and self._broken is not None:
            raise OutputError(self._broken)


def _drain(stream: TextIO) -> None:
    """Redirect a broken stream, or Python fails once more at its end."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def interrupted(error: BaseException) -> bool:
    """Test for Ctrl-C, also where it struck inside a library."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, KeyboardInterrupt):
            return True
        cause = cause.__context__
    return False


def plain(text: str) -> str:
    """A short text for one line of a terminal: every control character as an escape."""
    return text.translate(_SHOWN_AS)


def print_result(value: object, *lines: str, as_json: bool) -> None:
    """Print a command's result on stdout: one JSON value, or lines for people."""
    if as_json:
        print_json(value)
    else:
        write("\n".join(lines))


def print_json(value: object) -> None:
    """Print one JSON value as one line on stdout."""
    ascii_only = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    write(json.dumps(value, ensure_ascii=ascii_only).translate(_IN_JSON))


def write(line: str = "") -> None:
    """Print a line on stdout."""
    sys.stdout.write(line + "\n")


def note(line: str) -> None:
    """Print a line on stderr."""
    sys.stderr.write(line.translate(_KEPT_IN_TEXT) + "\n")


def message_of(error: ClaraError) -> str:
    """What an error says to who types commands."""
    return f"{error}: clara index PATH" if isinstance(error, StoreEmptyError) else str(error)


def console() -> Console:
    """Rich's stdout, for tables: as wide as the terminal, of any width where there is none."""
    from rich.console import Console  # noqa: PLC0415

    width = _columns() if sys.stdout.isatty() else _UNLIMITED
    return Console(file=sys.stdout, color_system=None, width=width, highlight=False, markup=False, emoji=False)


def table(*headings: str, words: int = 1) -> Table:
    """A table whose first columns hold words, and whose others numbers."""
    from rich.table import Table  # noqa: PLC0415

    made = Table(box=None, pad_edge=False)
    for column, heading in enumerate(headings):
        made.add_column(heading, justify="left" if column < words else "right")
    return made


def _error_console() -> Console:
    """Rich's stderr, for what moves; its own control sequences must reach the terminal."""
    from rich.console import Console  # noqa: PLC0415

    stream = sys.stderr.stream if isinstance(sys.stderr, Screen) else sys.stderr
    return Console(file=stream, width=_columns())


def _columns() -> int:
    return max(shutil.get_terminal_size().columns, _NARROWEST)  # a width of 0 is unknown there: 80


def snippet(text: str) -> str:
    """The beginning of a text on one line."""
    line = plain(" ".join(text.split()))
    return line if len(line) <= _SNIPPET else line[: _SNIPPET - 1].rstrip() + "…"


def write_emphasised(text: str, start: int, end: int) -> None:
    """Print a text on one line with ``text[start:end]`` bold on a terminal, else between guillemets."""
    before, marked, after = (plain(" ".join(part.split())) for part in (text[:start], text[start:end], text[end:]))
    left = before + " " * (text[:start] != text[:start].rstrip() and bool(before))
    right = " " * (text[end:] != text[end:].lstrip() and bool(after)) + after
    if sys.stdout.isatty() and "NO_COLOR" not in os.environ and isinstance(sys.stdout, Screen):
        sys.stdout.write(f"    {left}")
        sys.stdout.control("\x1b[1m")
        sys.stdout.write(marked)
        sys.stdout.control("\x1b[0m")
        write(right)
    else:
        write(f"    {left}«{marked}»{right}")


def shown(uri: str) -> str:
    """A document's name as typed here: relative to the working folder if below it."""
    here = Path.cwd().as_posix().rstrip("/") + "/"
    return plain(uri.removeprefix(here))


def megabytes(count: int) -> str:
    """Bytes for people."""
    return f"{count / 1e6:,.1f} MB" if count >= 50_000 else f"{count / 1e3:,.1f} kB"


def counted(count: int, noun: str) -> str:
    """``1 document``, ``2 documents``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


@contextmanager
def bar(label: str) -> Iterator[Callable[[int, int, str], None]]:
    """A progress bar on stderr if that is a terminal; yields its update of (done, total, label)."""
    if not sys.stderr.isatty():
        yield lambda _done, _total, _words: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn  # noqa: PLC0415

    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=_error_console(), transient=True) as progress:
        task = progress.add_task("", total=None)

        def show(done: int, total: int, words: str) -> None:
            progress.update(task, total=total, completed=done, description=plain(words))

        yield show


class ShowProgress(Protocol):
    """Reports progress."""

    def __call__(self, done: int, total: int, words: str, line: str, *, now: bool = False) -> None:
        """Draw the bar with ``words`` beside it; without a terminal write ``line``, if it is due or ``now``."""


@contextmanager
def bar_or_lines(label: str, *, at_once: bool = True) -> Iterator[ShowProgress]:
    """A progress bar on stderr if that is a terminal, else a line every half minute, the first one at once or then."""
    due = time.monotonic() + (0 if at_once else _SECONDS_A_LINE)
    with bar(label) as show:

        def say(done: int, total: int, words: str, line: str, *, now: bool = False) -> None:
            nonlocal due
            if sys.stderr.isatty():
                show(done, total, words)
            elif now or time.monotonic() >= due:
                due = time.monotonic() + _SECONDS_A_LINE
                note(line)
                sys.stderr.flush()

        yield say


def download_lines() -> _DownloadProgress:
    """Report downloads in one line for each kind of work."""
    seen: set[str] = set()

    def say(what: str, _done: int, _total: int) -> None:
        if what not in seen:
            seen.add(what)
            note(f"{what} …")

    return say


@contextmanager
def download_progress() -> Iterator[_DownloadProgress]:
    """Report downloads: a moving line on a terminal, single lines elsewhere."""
    if not sys.stderr.isatty():
        yield download_lines()
        return

    with _error_console().status("loading the model") as status:

        def show(what: str, done: int, total: int) -> None:
            status.update(plain(what) if done < total else f"{plain(what)}: done")

        yield show

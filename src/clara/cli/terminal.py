"""How things look: JSON, bars that only a terminal sees, names and numbers for people. Knows no commands."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

SNIPPET = 160
"""Characters of a passage shown on a terminal."""

DownloadProgress = Callable[[str, int, int], None]


def print_json(value: object) -> None:
    """Print one JSON value as one line on stdout."""
    plain = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    write(json.dumps(value, ensure_ascii=plain))


def write(line: str = "") -> None:
    """Print a line on stdout."""
    sys.stdout.write(line + "\n")


def note(line: str) -> None:
    """Print a line on stderr."""
    sys.stderr.write(line + "\n")


def console() -> Console:
    """Rich's view of stdout, for tables."""
    from rich.console import Console  # noqa: PLC0415

    return Console(highlight=False, markup=False, emoji=False)


def snippet(text: str) -> str:
    """The beginning of a text on one line."""
    line = " ".join(text.split())
    return line if len(line) <= SNIPPET else line[: SNIPPET - 1].rstrip() + "…"


def emphasised(text: str, start: int, end: int) -> str:
    """A text on one line with ``text[start:end]`` marked: bold on a terminal, else between guillemets."""
    before, marked, after = (" ".join(part.split()) for part in (text[:start], text[start:end], text[end:]))
    left = before + " " * (text[:start] != text[:start].rstrip() and bool(before))
    right = " " * (text[end:] != text[end:].lstrip() and bool(after)) + after
    opening, closing = ("\x1b[1m", "\x1b[0m") if sys.stdout.isatty() and "NO_COLOR" not in os.environ else ("«", "»")
    return f"{left}{opening}{marked}{closing}{right}"


def shown(uri: str) -> str:
    """A document's name as a person would type it here: relative to the working folder where it lies below that."""
    here = Path.cwd().as_posix().rstrip("/") + "/"
    return uri.removeprefix(here)


def megabytes(count: int) -> str:
    """A number of bytes for people."""
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
def bar(label: str) -> Iterator[Callable[[int, int, str], None] | None]:
    """A progress bar on stderr if that is a terminal.

    Yields:
        What to call with (done, total, words beside the bar), or None where there is no terminal.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn  # noqa: PLC0415

    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)

        def show(done: int, total: int, words: str) -> None:
            progress.update(task, total=total, completed=done, description=words)

        yield show


def download_lines() -> DownloadProgress:
    """Tell about downloads in one line for each kind of work."""
    seen: set[str] = set()

    def tell(what: str, _done: int, _total: int) -> None:
        if what not in seen:
            seen.add(what)
            note(f"{what} …")

    return tell


@contextmanager
def download_progress() -> Iterator[DownloadProgress]:
    """Tell about downloads: a moving line on a terminal, single lines elsewhere."""
    if not sys.stderr.isatty():
        yield download_lines()
        return
    from rich.console import Console  # noqa: PLC0415

    with Console(stderr=True).status("loading the model") as status:

        def show(what: str, done: int, total: int) -> None:
            status.update(what if done < total else f"{what}: done")

        yield show

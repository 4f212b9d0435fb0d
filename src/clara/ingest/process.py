"""The parent's side of the processes that take files apart (``worker``): starts some, asks, names what ended one.

Knows processes, not formats.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from clara.errors import DocumentError
from clara.ingest.document import document_uri
from clara.ingest.limits import ReadLimits
from clara.ingest.report import LeftOut, Skipped, fault
from clara.records import Document, Heading

_OVER_MEMORY = 71  # ``worker.OVER_MEMORY``; importing it here would import every reader
# How parsers end that get no memory: the watching thread, the system's own killer, and PDFium's ways of giving up.
_WANTED_MEMORY = frozenset([_OVER_MEMORY, -signal.SIGKILL, -signal.SIGABRT, -signal.SIGTRAP, -signal.SIGILL])
# The parent's own search path, so that both run the same source; -P keeps the working folder off it.
_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from clara.ingest.worker import main; main()"


class ReadingProcesses:
    """Processes that read the files of a list, each asked for one file more than is being taken.

    A process works ahead until the pipe to the parent is full, which bounds what waits in memory.

    Args:
        files: the files in the order in which they will be read; others can be read too.
        count: how many processes.
        max_bytes: as for ``read_file``.
        limits: what reading one file may take.
    """

    def __init__(self, files: Sequence[Path], *, count: int, max_bytes: int, limits: ReadLimits) -> None:
        self._files = files
        self._places = {path: place for place, path in enumerate(files)}
        self._processes = [_ReadingProcess(max_bytes, limits) for _ in range(count)]

    def read(self, path: Path) -> Iterator[Document | Skipped | LeftOut]:
        """As ``_ReadingProcess.read``."""
        place, count = self._places.get(path, -1), len(self._processes)
        if place >= 0:
            for ahead in range(place, min(place + count + 1, len(self._files))):
                self._processes[ahead % count].ask(self._files[ahead])
        yield from self._processes[place % count].read(path)

    def close(self) -> None:
        """End all of them; they are started again if something is read afterwards."""
        for process in self._processes:
            process.close()


class _ReadingProcess:
    """One process, started when first asked and again after one that a file ended.

    Not for several threads at once.
    """

    def __init__(self, max_bytes: int, limits: ReadLimits) -> None:
        self._max_bytes = max_bytes
        self._limits = limits
        self._asked: list[Path] = []  # what it has not begun to hand over
        self._process: subprocess.Popen[bytes] | None = None
        self._end: weakref.finalize[..., Any] | None = None

    def ask(self, path: Path) -> None:
        """Let it read a file next; nothing if it has been asked to."""
        if path in self._asked:
            return
        # One that has ended is not started again while what it has left in the pipe is wanted: ``read`` finds out.
        process = self._process if self._process is not None and self._asked else self._running()
        self._asked.append(path)
        _send(process, {"path": os.path.abspath(path), "max_bytes": self._max_bytes})  # noqa: PTH100 - keeps what Path would tidy

    def read(self, path: Path) -> Iterator[Document | Skipped | LeftOut]:
        """As ``read_file``, in the other process and within the limits.

        Raises:
            DocumentError: as ``read_file``; or the file took more than a limit, or its parser crashed.
            ImportError: a parser is not installed.
        """
        if self._asked and self._asked[0] != path:
            self.close()  # asked for files that nobody wants before this one
        self.ask(path)
        process = self._process
        assert process is not None  # noqa: S101 - ``ask`` has started it
        reusable = False
        try:
            while (message := _receive(process)) is not None:
                if "item" in message:
                    yield _item(message["item"], message["values"])
                    continue
                reusable = not message["spent"]
                _raise_fault(message)
                return
            raise self._named_death(process, document_uri(path))
        finally:
            if reusable:
                self._asked.remove(path)
            else:  # over, spent, or the reader of this file has gone away in the middle
                self.close()

    def close(self) -> None:
        """End the process; it is started again if something is read afterwards."""
        if self._end is not None:
            self._end()
        self._process = self._end = None
        self._asked.clear()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        command = [sys.executable, "-P", "-c", _START, json.dumps(sys.path), json.dumps(asdict(self._limits))]
        # Nothing else is inherited: Python closes all other files in the child, the store's lock among them.
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and source
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self._process = process
        self._end = weakref.finalize(self, _stop, process)
        return process

    def _named_death(self, process: subprocess.Popen[bytes], uri: str) -> DocumentError:
        """What a process died of, by its exit status."""
        status = process.wait()
        if status == -signal.SIGALRM:
            seconds = self._limits.seconds
            return fault(uri, "too slow", f"takes longer than {seconds:,} s to read; raise it with --max-seconds")
        name = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        if status in _WANTED_MEMORY:
            return fault(
                uri,
                "too large",
                f"needs more than the {self._limits.memory_mb:,} MB of memory that reading may take ({name}); "
                "raise it with --max-memory-mb",
            )
        return fault(uri, "broken", f"its parser crashed ({name}); save or download it again")


def _send(process: subprocess.Popen[bytes], request: dict[str, Any]) -> None:
    assert process.stdin is not None  # noqa: S101 - opened as a pipe
    try:
        process.stdin.write(json.dumps(request).encode("ascii") + b"\n")
        process.stdin.flush()
    except BrokenPipeError:
        pass  # it is gone, which the missing answer tells


def _receive(process: subprocess.Popen[bytes]) -> dict[str, Any] | None:
    """The next message, or None from a process that has ended, perhaps in the middle of one."""
    assert process.stdout is not None  # noqa: S101 - opened as a pipe
    line = process.stdout.readline()
    if not line.endswith(b"\n"):
        return None
    message: dict[str, Any] = json.loads(line.decode("utf-8", "surrogatepass"))
    return message


def _raise_fault(message: dict[str, Any]) -> None:
    if "fault" in message:
        raise DocumentError(message["fault"]["message"], reason=message["fault"]["reason"])
    if "missing" in message:
        raise ImportError(message["missing"])


def _item(kind: str, values: dict[str, Any]) -> Document | Skipped | LeftOut:
    if kind != "Document":
        return Skipped(**values) if kind == "Skipped" else LeftOut(**values)
    headings = tuple(Heading(**heading) for heading in values["headings"])
    return Document(**{**values, "pages": tuple(values["pages"]), "headings": headings})


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    with process:  # closes its pipes and waits for it
        pass

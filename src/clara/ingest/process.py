"""The parent's side of the process that takes files apart (``worker``): starts it, asks, names what ended it.

Knows processes, not formats.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from clara.errors import DocumentError
from clara.ingest.document import document_uri
from clara.ingest.limits import ReadLimits
from clara.ingest.report import LeftOut, Skipped, fault
from clara.records import Document, Heading

_OVER_MEMORY = 71  # ``worker.OVER_MEMORY``; importing it here would import every reader
_NEAR_LIMIT = 0.5  # of the memory limit: a parser that crashes having held that much wanted more
# The parent's own search path, so that both run the same source; -P keeps the working folder off it.
_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from clara.ingest.worker import main; main()"


class ReadingProcess:
    """One process that reads files, started when first asked and again after one that a file ended.

    Not for several threads at once.
    """

    def __init__(self, limits: ReadLimits) -> None:
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None
        self._end: weakref.finalize[..., Any] | None = None

    def read(self, path: Path, *, max_bytes: int) -> Iterator[Document | Skipped | LeftOut]:
        """As ``read_file``, in the other process and within the limits.

        Raises:
            DocumentError: as ``read_file``; or the file took more than a limit, or its parser crashed.
            ImportError: a parser is not installed.
        """
        process = self._running()
        reusable = False
        try:
            _send(process, {"path": os.path.abspath(path), "max_bytes": max_bytes})  # noqa: PTH100 - keeps what Path would tidy
            while (message := _receive(process)) is not None:
                if "item" in message:
                    yield _item(message["item"], message["values"])
                    continue
                reusable = not message["spent"]
                _raise_fault(message)
                return
            raise self._named_death(process, document_uri(path))
        finally:
            if not reusable:  # over, spent, or the reader of this file has gone away in the middle
                self.close()

    def close(self) -> None:
        """End the process; it is started again if something is read afterwards."""
        if self._end is not None:
            self._end()
        self._process = self._end = None

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
        """What a process died of, by its exit status and the memory it had taken."""
        limits = self._limits
        status, most = _reaped(process)
        if status == -signal.SIGALRM:
            return fault(
                uri, "too slow", f"takes longer than {limits.seconds:,} s to read; raise it with --max-seconds"
            )
        name = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        if status in (_OVER_MEMORY, -signal.SIGKILL) or most > _NEAR_LIMIT * limits.memory_mb * 2**20:
            return fault(
                uri,
                "too large",
                f"needs more than the {limits.memory_mb:,} MB of memory that reading may take ({name}); "
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


def _reaped(process: subprocess.Popen[bytes]) -> tuple[int, int]:
    """Exit status of a process that has ended or is ending, and the most memory it has held, in bytes."""
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except ChildProcessError:  # a program that ignores SIGCHLD: the system has reaped it
        return process.wait(), 0
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss * (1024 if sys.platform == "linux" else 1)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    with process:  # closes its pipes and waits for it
        pass

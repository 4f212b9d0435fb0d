"""The processes that take files apart: a parser that eats memory, never ends or crashes takes only its own along.

Knows processes, not formats. The parent (``ReadingProcesses``) starts some, asks, and names what ended one. A child is
started by a command, never by ``fork`` (LanceDB and torch have threads). It reads requests from its standard input, a
JSON object a line, and answers each on its standard output: a line for each item that ``read_file`` gives, and a last
one with the fault, if there was one. Its imports are those of the readers, no torch.

A child keeps its own limits, so that they hold whatever its parent does: the kernel ends it when a file takes too long,
and refuses memory beyond the limit (Linux) or a thread looks after it (elsewhere); it ends when its parent does.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import queue
import resource
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from clara.errors import DocumentError
from clara.ingest.document import LeftOut, ReadLimits, Skipped, document_uri, fault, or_raise
from clara.records import Document, Heading

_OVER_MEMORY = 71  # exit status of a process that has taken more memory than it may
# How parsers end that get no memory: the watching thread, the system's own killer, and PDFium's ways of giving up.
_WANTED_MEMORY = frozenset([_OVER_MEMORY, -signal.SIGKILL, -signal.SIGABRT, -signal.SIGTRAP, -signal.SIGILL])
# The parent's own search path, so that both run the same source; -P keeps the working folder off it.
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "import clara.ingest.read; from clara.ingest.process import work; work()"
)
_ON_LINUX = platform.system() == "Linux"
_LOOKS_A_SECOND = 10  # at the memory taken, where the kernel does not limit it
_SPENT = 0.5  # of the memory limit: a process that has held more is not used again, memory rarely goes back


class ReadingProcesses:
    """Processes that read the files of a list, each asked for one file more than is being taken.

    A process works ahead until the pipe to the parent is full, which bounds what waits in memory. ``files`` are in the
    order in which they will be read; others can be read too.
    """

    def __init__(self, files: Sequence[Path], *, count: int, max_bytes: int, limits: ReadLimits) -> None:
        self._files = files
        self._places = {path: place for place, path in enumerate(files)}
        self._processes = [_ReadingProcess(max_bytes, limits) for _ in range(count)]

    def read(self, path: Path) -> Iterator[Document | Skipped | LeftOut]:
        """As ``read_file``; a ``DocumentError`` may also name a limit that was passed, or a parser's crash."""
        place, count = self._places.get(path, -1), len(self._processes)
        if place >= 0:
            for ahead in range(place, min(place + count + 1, len(self._files))):
                self._processes[ahead % count].ask(self._files[ahead])
        yield from self._processes[place % count].read(path)

    def close(self) -> None:
        """End all of them; they start again if something is read afterwards."""
        for process in self._processes:
            process.close()


class _ReadingProcess:
    """A process, started when first asked and again after a file has ended it.

    Not for several threads at once.
    """

    def __init__(self, max_bytes: int, limits: ReadLimits) -> None:
        self._max_bytes = max_bytes
        self._limits = limits
        self._asked: list[Path] = []  # what it has not begun to hand over
        self._process: subprocess.Popen[bytes] | None = None
        self._answered = False  # it has read a file, so what kills it may have come between two
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
        if self._asked and self._asked[0] != path:
            self.close()  # asked for files that nobody wants before this one
        self.ask(path)
        process = self._process
        assert process is not None  # noqa: S101 - ``ask`` has started it
        killed_before = reusable = began = False
        try:
            while (message := _receive(process)) is not None:
                if "item" in message:
                    began = True
                    yield _item(message["item"], message["values"])
                    continue
                reusable = self._answered = not message["spent"]
                if "fault" in message:
                    raise DocumentError(**message["fault"])
                if "missing" in message:
                    raise ImportError(message["missing"])
                return
            killed_before = self._answered and not began and process.wait() == -signal.SIGKILL
            if not killed_before:
                raise self._named_death(process, document_uri(path))
        finally:
            if reusable:
                self._asked.remove(path)
            else:  # over, spent, or the reader of this file has gone away in the middle
                self.close()
        if killed_before:
            yield from self.read(path)  # by a new process, which tells whether it is this file's fault

    def close(self) -> None:
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
        self._process, self._answered = process, False
        self._end = weakref.finalize(self, _stop, process)
        return process

    def _named_death(self, process: subprocess.Popen[bytes], uri: str) -> DocumentError:
        """The fault that a process died of, by its exit status."""
        status = process.wait()
        if status == -signal.SIGALRM:
            detail = f"takes longer than {self._limits.seconds:,} s to read; {or_raise('--max-seconds')}"
            return fault(uri, "too slow", detail)
        name = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        if status in _WANTED_MEMORY:
            detail = f"needs more than the {self._limits.memory_mb:,} MiB of memory that reading may take ({name})"
            return fault(uri, "too large", f"{detail}; {or_raise('--max-memory-mb')}")
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


def _item(kind: str, values: dict[str, Any]) -> Document | Skipped | LeftOut:
    if kind != "Document":
        return Skipped(**values) if kind == "Skipped" else LeftOut(**values)
    headings = tuple(Heading(**heading) for heading in values["headings"])
    return Document(**{**values, "pages": tuple(values["pages"]), "headings": headings})


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    with process:  # closes its pipes and waits for it
        pass


def work() -> None:
    """Answer requests until the parent closes the pipe; the arguments are the limits as JSON."""
    limits = ReadLimits(**json.loads(sys.argv[2]))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a library prints goes nowhere
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent says what happens
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    _limit_memory(limits.memory_mb * 2**20)
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive_requests, args=(sys.stdin.buffer, requests), daemon=True).start()
    while True:
        _answer(json.loads(requests.get()), answers, limits)


def _limit_memory(allowed: int) -> None:
    """End or refuse what takes ``allowed`` bytes more than this process does now."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a parser that crashes leaves no dump of a document
    if not _ON_LINUX:
        _watch_memory(allowed)
        return
    with contextlib.suppress(OSError):
        # Where the whole machine runs short, this process is to end and not the one that holds the store.
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = _pages(0) + allowed
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def _watch_memory(allowed: int) -> None:
    """Let a thread end this process when it has taken ``allowed`` bytes more than now."""
    most = _held() + allowed

    def watch() -> None:
        while _held() <= most:
            time.sleep(1 / _LOOKS_A_SECOND)
        os._exit(_OVER_MEMORY)

    threading.Thread(target=watch, daemon=True).start()


def _receive_requests(source: IO[bytes], requests: queue.SimpleQueue[bytes]) -> None:
    for line in source:
        requests.put(line)
    os._exit(0)  # the parent has closed the pipe or is gone, whatever is being read


def _answer(request: dict[str, Any], answers: IO[bytes], limits: ReadLimits) -> None:
    from clara.ingest.read import read_file  # noqa: PLC0415 - which imports the parent's side

    last: dict[str, Any] = {}
    try:
        items = read_file(Path(request["path"]), max_bytes=request["max_bytes"], limits=limits)
        while True:
            # Only the reader's time counts: the parent may take hours before it wants the next record.
            signal.alarm(limits.seconds)
            item = next(items, None)
            signal.alarm(0)
            if item is None:
                break
            _write(answers, {"item": type(item).__name__, "values": asdict(item)})
    except DocumentError as error:
        signal.alarm(0)
        last = {"fault": {"message": str(error), "reason": error.reason}}
    except ImportError as error:
        signal.alarm(0)
        last = {"missing": str(error)}
    _write(answers, {**last, "spent": _held() > _SPENT * limits.memory_mb * 2**20})


def _held() -> int:
    """Bytes that this process holds; what ``getrusage`` calls its most are its parent's, if that is larger."""
    if _ON_LINUX:
        return _pages(1)
    import psutil  # noqa: PLC0415 - only where /proc does not tell

    return int(psutil.Process().memory_info().rss)


def _pages(field: int) -> int:
    """A number of ``/proc/self/statm`` in bytes: 0 the whole address space, 1 what is in memory."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[field]) * resource.getpagesize()


def _write(answers: IO[bytes], message: dict[str, Any]) -> None:
    # Surrogates pass: a parser's message may hold a part of what it could not decode.
    answers.write(json.dumps(message, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
    answers.flush()

"""The process that takes files apart: a parser that eats memory, never ends or crashes takes only this one along.

Started by ``process`` with a command, never by ``fork`` (LanceDB and torch have threads). It reads requests from its
standard input, a JSON object a line, and answers each on its standard output: a line for each item that ``read_file``
gives, and a last one with the fault, if there was one. Its imports are those of the readers, no torch.

It keeps its own limits, so that they hold whatever its parent does: the kernel ends it when a file takes too long, and
refuses memory beyond the limit (Linux) or a thread looks after it (elsewhere); it ends when its parent does.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import queue
import resource
import signal
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from clara.errors import DocumentError
from clara.ingest.limits import ReadLimits
from clara.ingest.read import read_file

OVER_MEMORY = 71
"""Exit status of a process that has taken more memory than it may."""

_ON_LINUX = platform.system() == "Linux"
_LOOKS_A_SECOND = 10  # at the memory taken, where the kernel does not limit it
_SPENT = 0.5  # of the memory limit: a process that has held more is not used again, memory rarely goes back


def main() -> None:
    """Answer requests until the parent closes the pipe; the arguments are the limits as JSON."""
    limits = ReadLimits(**json.loads(sys.argv[2]))
    answers = _own_output()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent says what happens
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    _limit_memory(limits.memory_mb * 2**20)
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(sys.stdin.buffer, requests), daemon=True).start()
    while True:
        _answer(json.loads(requests.get()), answers, limits)


def _limit_memory(allowed: int) -> None:
    """End or refuse what takes ``allowed`` bytes more than this process does now."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a parser that crashes leaves no dump of a document
    if not _ON_LINUX:
        watch_memory(allowed)
        return
    with contextlib.suppress(OSError):
        # Where the whole machine runs short, this process is to end and not the one that holds the store.
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = _pages(0) + allowed
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def watch_memory(allowed: int) -> None:
    """Let a thread end this process when it has taken ``allowed`` bytes more than now."""
    most = _held() + allowed

    def watch() -> None:
        while _held() <= most:
            time.sleep(1 / _LOOKS_A_SECOND)
        os._exit(OVER_MEMORY)

    threading.Thread(target=watch, daemon=True).start()


def _own_output() -> IO[bytes]:
    """The pipe to the parent, which nothing else writes to: what a library prints goes nowhere."""
    answers = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    return answers


def _receive(source: IO[bytes], requests: queue.SimpleQueue[bytes]) -> None:
    for line in source:
        requests.put(line)
    os._exit(0)  # the parent has closed the pipe or is gone, whatever is being read


def _answer(request: dict[str, Any], answers: IO[bytes], limits: ReadLimits) -> None:
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
        last: dict[str, Any] = {}
    except DocumentError as error:
        signal.alarm(0)
        last = {"fault": {"message": str(error), "reason": error.reason}}
    except ImportError as error:
        signal.alarm(0)
        last = {"missing": str(error)}
    _write(answers, {**last, "spent": _spent(limits)})


def _spent(limits: ReadLimits) -> bool:
    """Whether this process has grown too far to read another file."""
    return _held() > _SPENT * limits.memory_mb * 2**20


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

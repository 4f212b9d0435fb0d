"""Journal of one system on one task: a prediction a line, so that a killed run resumes.

JSON Lines: a header with the run's key, then the origin (``Provenance``) of the predictions that follow and a line a
question, on disk before the next batch is asked. Lines are looked up by a hash of the query, so a run with more
questions resumes too. Scores are not kept: they are computed anew from the predictions.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TypeAlias

from filelock import FileLock, Timeout

from clara.config import usable_cores
from clara.errors import InputError
from clara.evaluate.cache import Failure
from clara.evaluate.system import Prediction, Query

_FORMAT_VERSION = 1


Entry: TypeAlias = Prediction | str
"""A prediction, or the kind and message of an error."""


def query_hash(query: Query) -> str:
    """16 hex digits of everything a system sees of a question."""
    seen = [query.id, query.question, [[doc.title, doc.text] for doc in query.docs]]
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:16]


class Journal:
    """An open journal, of one process at a time; a context manager.

    ``path`` is made with its folder if missing. ``key`` is everything that decides the predictions, in plain values.
    With ``retry_errors`` questions that gave an error are forgotten, so that they are asked again. ``entries`` are by
    ``query_hash``; there is an origin for each process that added predictions, ``origin`` this one's.

    Raises:
        InputError: another process writes it, it belongs to another key, or it cannot be written.
    """

    def __init__(
        self,
        path: Path,
        key: Mapping[str, object],
        *,
        origin: Provenance | None = None,
        retry_errors: bool = False,
    ) -> None:
        self.path = path
        self.entries: dict[str, Entry] = {}
        self.origins: list[dict[str, object]] = []
        self._origin = asdict(origin) if origin is not None else None
        self._lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=0)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout:
            raise InputError(f"another run is writing {path}; wait for it, or give another --out") from None
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror or error}") from None
        try:
            self._file = self._opened(dict(key))
        except BaseException:
            self._lock.release()
            raise
        if retry_errors:
            self.entries = {name: entry for name, entry in self.entries.items() if isinstance(entry, Prediction)}

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._lock.release()

    def add(self, queries: Sequence[Query], results: Sequence[Prediction | Failure]) -> None:
        """Append outcomes; they are on disk when this returns."""
        lines = []
        if self._origin is not None:
            self.origins.append(self._origin)
            lines.append(_line({"origin": self._origin}))
            self._origin = None
        for query, result in zip(queries, results, strict=True):
            name = query_hash(query)
            reply, error = (None, result.reason) if isinstance(result, Failure) else (asdict(result), None)
            self.entries[name] = result.reason if isinstance(result, Failure) else result
            # The keys ``ask`` and ``reply`` are those of the first journals, which still resume.
            lines.append(_line({"ask": name, "id": query.id, "reply": reply, "error": error}))
        self._file.write(b"".join(lines))
        self._sync()

    def _opened(self, key: dict[str, object]) -> BinaryIO:
        header = {"clara_journal": _FORMAT_VERSION, "key": key}
        content = self.path.read_bytes() if self.path.exists() else b""
        # A kill leaves at most one torn line, the last: what follows the last newline is cut off.
        whole = content[: content.rfind(b"\n") + 1]
        lines = whole.splitlines()
        if lines:
            first = _decoded(lines[0], self.path, 1)
            if first != json.loads(json.dumps(header)):
                raise InputError(f"{self.path} is the journal of another run ({first}); give another --out")
            for number, line in enumerate(lines[1:], start=2):
                self._take(_decoded(line, self.path, number), number)
        file = self.path.open("r+b" if self.path.exists() else "xb")
        file.truncate(len(whole))
        file.seek(len(whole))
        self._file = file
        if not lines:
            file.write(_line(header))
            self._sync()
        return file

    def _take(self, value: Mapping[str, Any], number: int) -> None:
        if "origin" in value:
            self.origins.append(value["origin"])
            return
        try:
            entry: Entry = value["error"]
            if (reply := value["reply"]) is not None:
                ranking = tuple(reply["ranking"]) if reply["ranking"] is not None else None
                entry = Prediction(**{**reply, "ranking": ranking, "used": tuple(reply["used"])})
            self.entries[value["ask"]] = entry
        except (KeyError, TypeError) as error:
            raise InputError(f"{self.path}:{number} is no line of a journal ({error!r}); remove the file") from None

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())


def _line(value: Mapping[str, object]) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _decoded(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise InputError(f"{path}:{number} is damaged; remove the file, its questions are then asked again")
    return value


_SECONDS_FOR_GIT = 10


def _commit() -> str:
    """Commit of this package's files, or the version of the installed package."""
    folder = Path(__file__).parent
    commit = _git(folder, "rev-parse", "HEAD")
    # A package installed below some other repository is not of that repository's commit.
    if commit is None or _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return f"version {version('clara-rag')}"
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", str(folder.parent))
    return commit + ("+changes" if changed else "")


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603 - fixed arguments
            ["git", "-C", str(folder), *arguments],  # noqa: S607 - the user's own
            capture_output=True,
            text=True,
            timeout=_SECONDS_FOR_GIT,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Origin of a run of this command, starting now on this machine.

    Attributes:
        commit: of the working copy, ``+changes`` if files differ from it; ``version X`` of an installed package.
        checkpoint: ``weights.whole_identity``.
        seed: of bootstrap and permutation tests; answers are greedy.
    """

    command: str
    commit: str = field(default_factory=_commit)
    model: str
    checkpoint: str
    seed: int
    cpu: str = field(default_factory=_cpu_name)
    cores: int = field(default_factory=usable_cores)
    device: str
    torch: str = field(default_factory=lambda: version("torch"))
    python: str = field(default_factory=platform.python_version)
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

"""Uploaded files and the jobs that index them: a folder a store, one thread that writes, progress that can be watched.

A client's file name is a name and never a path: what could lead out of the folder is refused before a byte is kept.
Parsing is ``ingest``'s work, in a child process with limits of its own.
"""

from __future__ import annotations

import os
import secrets
import shutil
import threading
import time
import unicodedata
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from logging import getLogger
from pathlib import Path
from typing import Any, BinaryIO, Literal

from clara.errors import ClaraError
from clara.indexing import AddProgress, AddReport
from clara.serve.batching import trying
from clara.serve.faults import ApiError, api_error
from clara.serve.library import ServedDocument, ServedStore, filename_of
from clara.serve.limits import Limits

INCOMING = ".incoming"
"""Files that are not whole yet; a name that indexing passes over."""

_KEPT_JOBS = 256
_LONGEST_NAME = 200  # bytes; file systems take 255
_log = getLogger("clara.serve")

Status = Literal["queued", "running", "done", "failed"]


@dataclass(slots=True)
class Job:
    """One indexing job.

    Attributes:
        id: public.
        store: where to.
        files: the files, in the store's folder of uploads.
        created: Unix seconds.
        status: how far.
        progress: the last that indexing told.
        report: at the end.
        error: why it failed.
    """

    id: str
    store: ServedStore
    files: tuple[Path, ...]
    created: int
    status: Status = "queued"
    progress: AddProgress | None = None
    report: AddReport | None = None
    error: ApiError | None = None

    def told(self) -> dict[str, Any]:
        """What a client sees of it."""
        progress, report = self.progress, self.report
        return {
            "id": self.id,
            "object": "clara.indexing_job",
            "created": self.created,
            "store": self.store.name,
            "status": self.status,
            "files": len(self.files),
            "files_done": progress.files if progress is not None else 0,
            "passages": progress.passages if progress is not None else 0,
            "passages_expected": progress.passages_expected if progress is not None else None,
            "seconds_left": progress.seconds_left if progress is not None else None,
            "added": report.added if report is not None else None,
            "updated": report.updated if report is not None else None,
            "unchanged": report.unchanged if report is not None else None,
            "failures": [] if report is None else _failures(report, self.store.uploads),
            "error": None if self.error is None else {"code": self.error.code, "message": self.error.message},
        }

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.status in {"done", "failed"}


@dataclass(slots=True)
class Uploads:
    """Takes files in and indexes them, one job after another.

    Attributes:
        limits: how many and how large.
    """

    limits: Limits
    _jobs: OrderedDict[str, Job] = field(default_factory=OrderedDict)
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="indexing"))
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def close(self) -> None:
        """End; a job that runs is finished first, the others are dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def keep(self, store: ServedStore, name: str, source: BinaryIO) -> Path:
        """Copy an upload to where it can be moved into the folder whole.

        Args:
            store: whose upload.
            name: checked by ``safe_name``.
            source: its bytes.

        Raises:
            ApiError: it is larger than the limit; nothing is kept then.
        """
        folder = store.uploads / INCOMING / secrets.token_hex(8)
        folder.mkdir(parents=True)
        path = folder / name
        try:
            with path.open("xb") as target:
                _copy(source, target, name, self.limits.file_bytes)
        except BaseException:
            discard([path])
            raise
        return path

    def submit(self, store: ServedStore, kept: Sequence[Path]) -> Job:
        """Move kept files into the folder, and index them when it is their turn.

        Raises:
            ApiError: too many jobs wait; the files are deleted then.
        """
        with self._turn:
            waiting = sum(not job.ended for job in self._jobs.values())
            if waiting >= self.limits.jobs:
                discard(kept)
                message = f"{waiting} indexing jobs are waiting, no more may; try again later"
                raise ApiError(429, "queue_full", message, retry_after=30)
            files = tuple(store.uploads / path.name for path in kept)
            job = Job(f"job-{secrets.token_hex(12)}", store, files, int(time.time()))
            self._jobs[job.id] = job
            ended = [job_id for job_id, each in self._jobs.items() if each.ended]
            for job_id in ended[: max(0, len(self._jobs) - _KEPT_JOBS)]:
                del self._jobs[job_id]
        self._pool.submit(self._run, job, tuple(kept))
        return job

    def job(self, job_id: str) -> Job | None:
        """A job by its id; the oldest that ended are forgotten."""
        return self._jobs.get(job_id)

    def remove(self, document: ServedDocument) -> None:
        """Remove a document from its store, and its file where it was uploaded.

        Raises:
            ApiError: documents are being added to the store.
        """
        busy = ApiError(409, "store_busy", "documents are being added; try again when the job has ended", retry_after=5)
        store = document.store
        with trying(store.writing, busy):
            store.rag.remove(document.uri)
            path = Path(document.uri)
            if path.parent == store.uploads.resolve():
                path.unlink(missing_ok=True)

    def _run(self, job: Job, kept: Sequence[Path]) -> None:
        def tell(progress: AddProgress) -> None:
            job.progress = progress

        job.status = "running"
        try:
            with job.store.writing:
                for path, target in zip(kept, job.files, strict=True):
                    path.replace(target)
                job.report = job.store.rag.add(job.files, max_bytes=self.limits.file_bytes, progress=tell)
            job.status = "done"
        except Exception as error:  # noqa: BLE001 - told to whoever watches the job
            job.error = api_error(error)
            job.status = "failed"
            _log.error("indexing failed", extra={"fields": {"job": job.id, "error": type(error).__name__}})
            if not isinstance(error, ClaraError):
                _log.debug("indexing failed", exc_info=error)
        finally:
            discard(kept)


def _copy(source: BinaryIO, target: BinaryIO, name: str, most: int) -> None:
    while piece := source.read(1 << 20):
        target.write(piece)
        if target.tell() > most:
            raise ApiError(413, "file_too_large", f"{name} is larger than {most} bytes")


def discard(kept: Sequence[Path]) -> None:
    """Delete the folders of kept files."""
    for path in kept:
        shutil.rmtree(path.parent, ignore_errors=True)


def clear_incoming(store: ServedStore) -> None:
    """Delete what an earlier server left half taken in."""
    with suppress(FileNotFoundError):
        shutil.rmtree(store.uploads / INCOMING)


def safe_name(given: str | None) -> str:
    """The name of an uploaded file.

    Raises:
        ApiError: it is none, or could lead elsewhere: it holds a folder, a control character, or begins with a dot.
    """
    name = unicodedata.normalize("NFC", given or "")
    wrong = (
        not name
        or name.startswith(".")
        or any(sign in name for sign in "/\\:" + "\0")
        or any(unicodedata.category(sign) in {"Cc", "Cs"} for sign in name)
        or name != name.strip()
        or len(os.fsencode(name)) > _LONGEST_NAME
    )
    if wrong:
        raise ApiError(
            400,
            "invalid_filename",
            f"a file's name must be a plain name of at most {_LONGEST_NAME} bytes, without folders, got {given!r:.80}",
            param="files",
        )
    return name


def _failures(report: AddReport, folder: Path) -> list[dict[str, str]]:
    prefix = f"{folder.resolve().as_posix()}/"
    return [
        {"file": filename_of(each.uri), "reason": each.reason, "message": each.message.replace(prefix, "")}
        for each in report.ingest.skipped
    ]

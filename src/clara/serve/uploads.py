"""Uploaded files and the jobs that index them: a folder a store, one thread that writes, progress that can be watched.

A client's file name is a name and never a path: what could lead out of the folder is refused before a byte is kept.
Parsing is ``ingest``'s work, in a child process with limits of its own. An upload has a folder of its own until its job
has ended, and its job is written down there: what a server did not finish, the next one on the store does.
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
from typing import Any, Literal

from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from clara.errors import ClaraError
from clara.indexing import AddProgress, AddReport
from clara.ingest import document_uri, source_of
from clara.serve.access import Limits
from clara.serve.faults import ApiError, api_error, mebibytes
from clara.serve.library import ServedDocument, ServedStore, filename_of, no_document

_INCOMING = ".incoming"
"""Uploads that are not indexed yet, a folder each; a name that indexing passes over."""

_JOB_FILE = ".job.json"  # no upload has such a name
_MOST_ATTEMPTS = 3  # of one job: what ends a server each time shall not do so for ever
_KEPT_JOBS = 256
_LONGEST_NAME = 200  # bytes; file systems take 255
_MOST_FIELDS = 16
_log = getLogger("clara.serve")


async def read_form(request: Request, limits: Limits) -> FormData:
    """The fields and files of a request; close it. A file beyond the limit is refused before it is kept.

    Raises:
        ApiError: it is no multipart form, or goes beyond the limits.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise ApiError(400, "missing_files", "send a multipart form with the field files", param="files")
    parser = _Measured(request, limits)
    try:
        return await parser.parse()
    except MultiPartException as error:
        raise ApiError(400, "invalid_value", f"the form cannot be read: {error.message}", param="files") from None


class _Measured(MultiPartParser):
    def __init__(self, request: Request, limits: Limits) -> None:
        super().__init__(request.headers, request.stream(), max_files=limits.files + 1, max_fields=_MOST_FIELDS)
        self._most_files, self._most = limits.files, limits.file_bytes
        self._taken = 0

    def on_part_begin(self) -> None:
        self._taken = 0
        super().on_part_begin()

    def on_part_end(self) -> None:
        super().on_part_end()
        if sum(isinstance(value, UploadFile) for _, value in self.items) > self._most_files:
            message = f"more than {self._most_files} files came at once; upload them in parts"
            raise ApiError(413, "too_many_files", message, param="files")

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._taken += end - start
        if self._taken > self._most:
            raise ApiError(
                413, "file_too_large", f"a file is larger than {mebibytes(self._most)}; split it", param="files"
            )
        super().on_part_data(data, start, end)


class _Stopped(Exception):  # noqa: N818 - no error: the server ends, and the job goes on in the next
    """The server ends before the job."""


class _Promise(BaseModel):
    """A job as it is written down: its files' names in the order of the upload, how often it was begun."""

    created: int
    files: list[str]
    attempts: int = 0


@dataclass(slots=True)
class Job:
    """An indexing job.

    Attributes:
        folder: the upload's own, until the job has ended.
        files: in the store's folder of uploads.
        created: Unix seconds.
        attempts: how often it was begun, in this server and those before it.
        progress: the last that indexing told.
        report: at the end.
    """

    id: str
    store: ServedStore
    folder: Path
    files: tuple[Path, ...]
    created: int
    attempts: int = 0
    status: Literal["queued", "running", "done", "failed"] = "queued"
    progress: AddProgress | None = None
    report: AddReport | None = None
    error: ApiError | None = None

    def told(self) -> dict[str, Any]:
        """The job as a client sees it."""
        status = self.status  # before the report, which is there when it says that the job is done
        progress, report = self.progress, self.report
        return {
            "id": self.id,
            "object": "clara.indexing_job",
            "created": self.created,
            "store": self.store.name,
            "status": status,
            "filenames": [path.name for path in self.files],
            "files": len(self.files),
            "files_done": progress.files if progress is not None else 0,
            "passages": progress.passages if progress is not None else 0,
            "passages_expected": progress.passages_expected if progress is not None else None,
            "seconds_left": progress.seconds_left if progress is not None else None,
            **{name: getattr(report, name, None) for name in ("added", "updated", "unchanged")},
            "failures": [] if report is None else _failures(report, self.store.uploads),
            "error": None if self.error is None else {"code": self.error.code, "message": self.error.message},
        }

    @property
    def ended(self) -> bool:
        """True if nothing more will happen."""
        return self.status in {"done", "failed"}

    def write_down(self) -> None:
        """Promise that it will be finished, whatever becomes of this server."""
        names = [path.name for path in self.files]
        promise = _Promise(created=self.created, files=names, attempts=self.attempts)
        unfinished = self.folder / f"{_JOB_FILE}.new"
        unfinished.write_text(promise.model_dump_json(), encoding="utf-8")
        unfinished.replace(self.folder / _JOB_FILE)


@dataclass(slots=True)
class Uploads:
    """Takes files in and indexes them, one job after another."""

    limits: Limits
    _jobs: OrderedDict[str, Job] = field(default_factory=OrderedDict)
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="indexing"))
    _turn: threading.Lock = field(default_factory=threading.Lock)
    _closing: threading.Event = field(default_factory=threading.Event)

    def close(self) -> None:
        """End; the job that runs stops after its next commit, and is finished by the next server, like the others."""
        self._closing.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def take(self, store: ServedStore, uploaded: Sequence[UploadFile]) -> Job:
        """Keep the files of an upload, all or none, and index them when it is their turn.

        Raises:
            ApiError: there is none, a name cannot be, or too many jobs wait.
        """
        if not uploaded:
            message = "no file came; send a multipart form with the field files"
            raise ApiError(400, "missing_files", message, param="files")
        names = [_safe_name(each.filename) for each in uploaded]
        if len(set(names)) < len(names):
            raise ApiError(400, "invalid_filename", "two files have the same name", param="files")
        folder = store.uploads / _INCOMING / f"job-{secrets.token_hex(12)}"
        folder.mkdir(parents=True)
        try:
            for name, each in zip(names, uploaded, strict=True):
                with (folder / name).open("xb") as target:
                    shutil.copyfileobj(each.file, target)
            files = tuple(store.uploads / name for name in names)
            job = Job(folder.name, store, folder, files, int(time.time()))
            self._promise(job)
        except BaseException:
            _discard(folder)
            raise
        return job

    def _promise(self, job: Job) -> None:
        with self._turn:
            waiting = sum(not each.ended for each in self._jobs.values())
            if waiting >= self.limits.jobs:
                message = f"{waiting} indexing jobs are waiting, no more may; try again later"
                raise ApiError(429, "queue_full", message, retry_after=30)
            job.write_down()
            self._queue(job)

    def resume(self, store: ServedStore) -> None:
        """Go on with what an earlier server promised, oldest first; delete what it had only half taken in."""
        found: list[Job] = []
        incoming = store.uploads / _INCOMING
        for folder in sorted(incoming.iterdir()) if incoming.is_dir() else []:
            try:
                promise = _Promise.model_validate_json((folder / _JOB_FILE).read_bytes())
                files = tuple(store.uploads / _safe_name(name) for name in promise.files)
            except (OSError, ValidationError, ApiError):
                _discard(folder)
                continue
            found.append(Job(folder.name, store, folder, files, promise.created, promise.attempts))
        with self._turn:
            for job in sorted(found, key=lambda each: each.created):
                _log.info("indexing resumed", extra={"fields": {"job": job.id, "attempts": job.attempts}})
                self._queue(job)

    def _queue(self, job: Job) -> None:
        self._jobs[job.id] = job
        ended = [job_id for job_id, each in self._jobs.items() if each.ended]
        for job_id in ended[: max(0, len(self._jobs) - _KEPT_JOBS)]:
            del self._jobs[job_id]
        self._pool.submit(self._run, job)

    def job(self, job_id: str) -> Job | None:
        """A job by its id; the oldest that ended are forgotten."""
        return self._jobs.get(job_id)

    def unfinished(self, store: ServedStore) -> list[Job]:
        """The jobs on a store that run or wait, in their order."""
        with self._turn:
            return [each for each in self._jobs.values() if each.store is store and not each.ended]

    def remove(self, document: ServedDocument) -> None:
        """Remove a document from its store, and its file where it was uploaded and no other document comes from it.

        Raises:
            ApiError: documents are being added to the store, or it was removed meanwhile.
        """
        busy = ApiError(409, "store_busy", "documents are being added; try again when the job has ended", retry_after=5)
        store = document.store
        if not store.writing.acquire(blocking=False):
            raise busy
        try:
            if document.uri not in store.rag.store.documents():
                raise no_document()
            store.rag.remove(document.uri)
            path = Path(source_of(document.uri))
            if path.parent == store.uploads.resolve():
                _delete_unread(store, [path])
        finally:
            store.writing.release()

    def _run(self, job: Job) -> None:
        def tell(progress: AddProgress) -> None:
            job.progress = progress
            if self._closing.is_set():
                raise _Stopped

        job.status = "running"
        try:
            with job.store.writing:
                self._begin(job)
                job.report = job.store.rag.add(job.files, max_bytes=self.limits.file_bytes, progress=tell)
        except _Stopped:
            job.status = "queued"
            job.attempts -= 1  # those count after which a server did not end as it should
            job.write_down()
            return
        except Exception as error:  # noqa: BLE001 - told to whoever watches the job
            job.error = api_error(error)
            if not isinstance(error, ClaraError | ApiError):
                _log.error("indexing failed", exc_info=error)
        with suppress(ClaraError, OSError), job.store.writing:
            _delete_unread(job.store, job.files)
        _discard(job.folder)
        job.status = "done" if job.error is None else "failed"
        code = None if job.error is None else job.error.code
        fields = {"job": job.id, "status": job.status, "files": len(job.files), "code": code}
        _log.info("indexing ended", extra={"fields": fields})

    def _begin(self, job: Job) -> None:
        """Move the files of an upload to where they stay (ApiError: the job was begun too often)."""
        if job.attempts >= _MOST_ATTEMPTS:
            message = f"the server ended {job.attempts} times while it indexed these files; upload them one by one"
            raise ApiError(500, "job_failed", message)
        job.attempts += 1
        job.write_down()
        for target in job.files:
            with suppress(FileNotFoundError):  # moved by an earlier attempt
                (job.folder / target.name).replace(target)


def _delete_unread(store: ServedStore, files: Sequence[Path]) -> None:
    """Delete uploaded files that no document comes from: they are in no list, so nobody could remove them."""
    sources = {source_of(uri) for uri in store.rag.store.documents()}
    for path in files:
        if document_uri(path) not in sources:
            path.unlink(missing_ok=True)


def _discard(folder: Path) -> None:
    """Delete an upload's folder."""
    shutil.rmtree(folder, ignore_errors=True)


def _safe_name(given: str | None) -> str:
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

"""``/documents``: upload, list, delete, the jobs that index; a document's text, highlighted or passage by passage."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import asdict
from enum import Enum
from typing import Annotated, Any, Final

from anyio import Event
from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from sse_starlette import EventSourceResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from clara.ingest import location_of, page_breaks
from clara.records import DocumentSize
from clara.serve.api.page import document_page
from clara.serve.faults import STREAM, ApiError
from clara.serve.library import ServedDocument
from clara.serve.state import caller_of, log_event, state_of
from clara.serve.uploads import Job, read_form

router = APIRouter()
_DOCUMENTS: Final[list[str | Enum]] = ["documents"]

_LOOK_SECONDS = 0.2
_MOST_PASSAGES = 400  # of one request
_BEFORE = 8  # passages shown above the one that was asked for
_Char = Annotated[str | None, Query(pattern=r"^\d{1,12},\d{1,12}$")]
_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "files": {"type": "array", "items": {"type": "string", "format": "binary"}},
                        "store": {"type": "string"},
                    },
                    "required": ["files"],
                }
            }
        },
    }
}


@router.post("/documents", name="upload", tags=_DOCUMENTS, status_code=202, openapi_extra=_FORM)
async def _upload(request: Request, store: Annotated[str | None, Query()] = None) -> JSONResponse:
    """Take files in and index them; the answer is the job."""
    state = state_of(request)
    if store is not None:
        state.library.to_write(caller_of(request), store)  # before a body of gigabytes is read
    form = await read_form(request, state.limits)
    try:
        named = form.get("store")
        served = state.library.to_write(caller_of(request), store or (named if isinstance(named, str) else None))
        files = [each for each in (*form.getlist("files"), *form.getlist("file")) if isinstance(each, UploadFile)]
        job = await run_in_threadpool(state.uploads.take, served, files)
    finally:
        await form.close()
    log_event(request, "upload", job=job.id, store=served.name, files=len(files))
    return JSONResponse(job.told(), 202)


@router.get("/documents", name="list_documents", tags=_DOCUMENTS)
def _list_documents(
    request: Request,
    store: Annotated[str | None, Query()] = None,
    after: Annotated[str | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
) -> dict[str, Any]:
    """Documents of a store, by file name."""
    state = state_of(request)
    served = state.library.store(caller_of(request), store, param="store")
    documents = state.library.documents(served)
    first = 0
    if after is not None:
        first = next((place for place, each in enumerate(documents, start=1) if each.id == after), 0)
        if not first:  # from the beginning again, a client that turns pages would never come to the end
            message = "after names no document of this store, it may have been removed; list again without it"
            raise ApiError(400, "invalid_value", message, param="after")
    page = documents[first : first + limit]
    sizes = served.rag.store.sizes()
    return {
        "object": "list",
        "store": served.name,
        "data": [_told(each, sizes.get(each.uri)) for each in page],
        "total": len(documents),
        "has_more": first + limit < len(documents),
    }


@router.get("/documents/jobs", name="list_jobs", tags=_DOCUMENTS)
def _list_jobs(request: Request, store: Annotated[str | None, Query()] = None) -> dict[str, Any]:
    """Indexing jobs on a store that run or wait, in their order."""
    state = state_of(request)
    served = state.library.store(caller_of(request), store, param="store")
    jobs = [job.told() for job in state.uploads.unfinished(served)]
    return {"object": "list", "store": served.name, "data": jobs}


@router.get("/documents/jobs/{job_id}", name="get_job", tags=_DOCUMENTS)
async def _get_job(request: Request, job_id: str) -> dict[str, Any]:
    """Progress of an indexing job."""
    return _job(request, job_id).told()


@router.get(
    "/documents/jobs/{job_id}/events", name="watch_job", tags=_DOCUMENTS, response_class=Response, responses=STREAM
)
async def _watch_job(request: Request, job_id: str) -> Response:
    """Progress of an indexing job, as server-sent events, until it ends."""
    job = _job(request, job_id)
    closing = Event()

    async def events() -> AsyncIterator[dict[str, str]]:
        last = ""
        while True:
            ended = job.ended or closing.is_set()
            told = json.dumps(job.told())
            if told != last:
                yield {"event": job.status, "data": told}
            if ended:
                return
            last = told
            await asyncio.sleep(_LOOK_SECONDS)

    return EventSourceResponse(events(), sep="\n", shutdown_event=closing, shutdown_grace_period=5 * _LOOK_SECONDS)


@router.get("/documents/{document_id}", name="read_document", tags=_DOCUMENTS, response_class=HTMLResponse)
def _read_document(request: Request, document_id: str, char: _Char = None) -> HTMLResponse:
    """The text of a document, characters ``char=START,END`` highlighted."""
    document = state_of(request).library.document(caller_of(request), document_id)
    start, end = (int(number) for number in (char or "0,0").split(","))
    texts = document.store.rag.store.texts(document.uri)
    folders = request.url.path.removeprefix(request.scope.get("root_path", "")).count("/") - 1
    return document_page(document.filename, texts, start, end, root="../" * folders)


@router.get("/documents/{document_id}/passages", name="read_passages", tags=["exploring"])
def _read_passages(
    request: Request,
    document_id: str,
    char: _Char = None,
    first: Annotated[int | None, Query(ge=0)] = None,
    limit: Annotated[int, Query(ge=1, le=_MOST_PASSAGES)] = 40,
) -> dict[str, Any]:
    """A document's passages from the one numbered ``first``; else those around the character where ``char`` begins."""
    document = state_of(request).library.document(caller_of(request), document_id)
    passages = document.store.rag.store.texts(document.uri)
    if first is None:
        start = int((char or "0").partition(",")[0])
        at = next((place for place, each in enumerate(passages) if start < each.passage.end), 0)
        first = max(0, at - (_BEFORE if limit > _BEFORE else 0))
    return {
        "object": "list",
        "id": document.id,
        "filename": document.filename,
        "store": document.store.name,
        "total": len(passages),
        "first": first,
        "passages": [
            {
                "start": each.passage.start,
                "end": each.passage.end,
                "text": each.passage.text,
                **asdict(location_of(each.metadata, each.passage.start)),
                "breaks": page_breaks(each.metadata),
            }
            for each in passages[first : first + limit]
        ],
    }


@router.delete("/documents/{document_id}", name="delete_document", tags=_DOCUMENTS)
def _delete_document(request: Request, document_id: str) -> dict[str, Any]:
    """Remove a document, and its file where it was uploaded."""
    state, caller = state_of(request), caller_of(request)
    document = state.library.document(caller, document_id)
    state.library.to_write(caller, document.store.name)
    state.uploads.remove(document)
    return {"id": document.id, "object": "document.deleted", "deleted": True}


def _job(request: Request, job_id: str) -> Job:
    """A job on a store that the caller may use (ApiError: there is none)."""
    job = state_of(request).uploads.job(job_id)
    if job is None or not caller_of(request).may_use(job.store.name):
        raise ApiError(404, "job_not_found", "there is no such job, or it ended long ago")
    return job


def _told(document: ServedDocument, size: DocumentSize | None) -> dict[str, Any]:
    store = document.store.rag.store
    return {
        "id": document.id,
        "object": "document",
        "filename": document.filename,
        "store": document.store.name,
        "passages": document.passages,
        "characters": size.characters if size else 0,
        "tokens": size.tokens if size else 0,
        "memory_tokens": document.passages * store.model.memory_tokens,
        "memory_bytes": document.passages * store.memory_bytes,
    }

"""Search without an answer: ``/search`` as plain JSON, ``/vector_stores`` in OpenAI's shape."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict

from clara.errors import NothingFoundError
from clara.ingest import location_of
from clara.records import Hit, SearchMode
from clara.serve.answers import check_filled, check_k, check_length
from clara.serve.api.messages import document_address
from clara.serve.library import ServedStore, document_id, filename_of
from clara.serve.state import caller_of, client_of, state_of

router = APIRouter(tags=["search"])


class SearchFields(BaseModel):
    """The object ``clara`` of a search.

    Attributes:
        mode: ``hybrid``, ``latent`` (by memories) or ``text`` (BM25).
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    mode: SearchMode = "hybrid"


class SearchRequest(BaseModel):
    """The body of ``/search``; unknown fields are passed over."""

    query: str
    store: str | None = None
    k: int | None = None
    clara: SearchFields | None = None


class VectorStoreSearch(BaseModel):
    """The body of OpenAI's vector store search; unknown fields are passed over."""

    query: str | list[str]
    max_num_results: int | None = None
    clara: SearchFields | None = None


@router.get("/search")
async def search_by_address(
    request: Request,
    query: Annotated[str, Query()],
    store: Annotated[str | None, Query()] = None,
    k: Annotated[int | None, Query()] = None,
    mode: Annotated[SearchMode, Query()] = "hybrid",
) -> dict[str, Any]:
    """The best passages for a question."""
    return await _results(request, SearchRequest(query=query, store=store, k=k, clara=SearchFields(mode=mode)))


@router.post("/search")
async def search(request: Request, body: SearchRequest) -> dict[str, Any]:
    """The best passages for a question."""
    return await _results(request, body)


@router.post("/vector_stores/{name}/search")
async def search_vector_store(request: Request, name: str, body: VectorStoreSearch) -> dict[str, Any]:
    """The best passages for a question, in OpenAI's shape."""
    query = body.query if isinstance(body.query, str) else " ".join(body.query)
    served = state_of(request).library.store(caller_of(request), name, param="vector_store_id")
    hits = await _hits(request, served, query, body.max_num_results, body.clara)
    data = [
        {
            "file_id": document_id(served.name, hit.passage.document),
            "filename": filename_of(hit.passage.document),
            "score": hit.score,
            "attributes": {"start": hit.passage.start, "end": hit.passage.end, **_place(hit)},
            "content": [{"type": "text", "text": hit.passage.text}],
        }
        for hit in hits
    ]
    return {
        "object": "vector_store.search_results.page",
        "search_query": [query],
        "data": data,
        "has_more": False,
        "next_page": None,
    }


async def _results(request: Request, asked: SearchRequest) -> dict[str, Any]:
    served = state_of(request).library.store(caller_of(request), asked.store, param="store")
    hits = await _hits(request, served, asked.query, asked.k, asked.clara)
    return {"object": "list", "store": served.name, "results": [_result(request, served, hit) for hit in hits]}


async def _hits(
    request: Request, served: ServedStore, query: str, k: int | None, fields: SearchFields | None
) -> list[Hit]:
    state = state_of(request)
    check_length(query, state.limits)
    check_k(k, state.limits)
    check_filled(served)
    mode = (fields or SearchFields()).mode
    try:
        return await state.queue.call(
            lambda: served.rag.search(query, k or served.rag.model.default_k, mode=mode), client_of(request)
        )
    except NothingFoundError:
        return []


def _result(request: Request, served: ServedStore, hit: Hit) -> dict[str, Any]:
    """A passage that is found, under names that clients of search services expect."""
    passage = hit.passage
    public = document_id(served.name, passage.document)
    return {
        "content": passage.text,
        "title": passage.title or filename_of(passage.document),
        "source": filename_of(passage.document),
        "url": document_address(request, served, passage.document, passage.start, passage.end),
        "document_id": public,
        "passage_id": passage.id,
        "page": location_of(hit.metadata, passage.start).page,
        "score": hit.score,
        "metadata": {"start": passage.start, "end": passage.end, **_place(hit)},
    }


def _place(hit: Hit) -> dict[str, str | int]:
    where = location_of(hit.metadata, hit.passage.start)
    place: dict[str, str | int] = {"heading": where.heading} if where.heading else {}
    return place if where.page is None else {**place, "page": where.page}

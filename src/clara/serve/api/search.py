"""Without an answer: ``/search`` as plain JSON, ``/vector_stores`` in OpenAI's shape, ``/embeddings`` of texts."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from clara.answering import PassageFilter
from clara.errors import NothingFoundError
from clara.records import Hit, SearchMode
from clara.serve.answers import check_filled, check_k, check_length
from clara.serve.api.answers import document_address
from clara.serve.faults import ApiError
from clara.serve.filters import FilterFields, attributes_of
from clara.serve.library import ServedStore, document_id, filename_of
from clara.serve.state import caller_of, client_of, state_of

router = APIRouter(tags=["search"])
_MOST_TEXTS = 256


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


class VectorStoreSearch(FilterFields):
    """The body of OpenAI's vector store search; unknown fields are passed over."""

    query: str | list[str]
    rewrite_query: Literal[False] | None = None  # a question is searched for as it stands
    clara: SearchFields | None = None


@router.get("/search", name="search_by_address")
async def _search_by_address(
    request: Request,
    query: Annotated[str, Query()],
    store: Annotated[str | None, Query()] = None,
    k: Annotated[int | None, Query()] = None,
    mode: Annotated[SearchMode, Query()] = "hybrid",
) -> dict[str, Any]:
    """The best passages for a question."""
    return await _results(request, SearchRequest(query=query, store=store, k=k, clara=SearchFields(mode=mode)))


@router.post("/search", name="search")
async def _search(request: Request, body: SearchRequest) -> dict[str, Any]:
    """The best passages for a question."""
    return await _results(request, body)


@router.post("/vector_stores/{name}/search", name="search_vector_store")
async def _search_vector_store(request: Request, name: str, body: VectorStoreSearch) -> dict[str, Any]:
    """The best passages for a question, in OpenAI's shape."""
    query = body.query if isinstance(body.query, str) else " ".join(body.query)
    served = state_of(request).library.store(caller_of(request), name, param="vector_store_id")
    check_k(body.max_num_results, state_of(request).limits, param="max_num_results")
    fields = body.clara or SearchFields()
    hits = await _hits(
        request, served, query, body.max_num_results, fields.mode, only=body.passages(served, fields.mode)
    )
    data = [
        {
            "file_id": document_id(served.name, hit.passage.document),
            "filename": filename_of(hit.passage.document),
            "score": hit.score,
            "attributes": attributes_of(hit),
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
    check_k(asked.k, state_of(request).limits, param="k")
    hits = await _hits(request, served, asked.query, asked.k, (asked.clara or SearchFields()).mode)
    return {"object": "list", "store": served.name, "results": [_result(request, served, hit) for hit in hits]}


async def _hits(
    request: Request,
    served: ServedStore,
    query: str,
    k: int | None,
    mode: SearchMode,
    *,
    only: PassageFilter | None = None,
) -> list[Hit]:
    state = state_of(request)
    check_length(query, state.limits)
    check_filled(served)
    try:
        return await state.queue.call(
            lambda: served.rag.search(query, k or served.rag.model.default_k, mode=mode, only=only), client_of(request)
        )
    except NothingFoundError:
        return []


def _result(request: Request, served: ServedStore, hit: Hit) -> dict[str, Any]:
    """A passage that is found, under names that clients of search services expect."""
    passage, attributes = hit.passage, attributes_of(hit)
    public = document_id(served.name, passage.document)
    return {
        "content": passage.text,
        "title": passage.title or filename_of(passage.document),
        "source": filename_of(passage.document),
        "url": document_address(request, served, passage.document, passage.start, passage.end),
        "document_id": public,
        "passage_id": passage.id,
        "page": attributes.get("page"),
        "score": hit.score,
        "metadata": attributes,
    }


class EmbeddingFields(BaseModel):
    """The object ``clara`` of the body.

    Attributes:
        kind: what the texts are: a ``question`` has a vector of its own in the space of passages.
    """

    kind: Literal["question", "passage"] = "question"


class EmbeddingRequest(BaseModel):
    """The body; unknown fields are passed over."""

    model: str | None = None
    input: str | list[str] = Field(min_length=1)
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    clara: EmbeddingFields | None = None


@router.post("/embeddings", name="embeddings")
async def _embeddings(request: Request, body: EmbeddingRequest) -> dict[str, Any]:
    """The vectors, of unit length."""
    state = state_of(request)
    store = state.library.store(caller_of(request), body.model)
    texts = [body.input] if isinstance(body.input, str) else body.input[: _MOST_TEXTS + 1]
    if len(texts) > _MOST_TEXTS:
        raise ApiError(400, "invalid_value", f"at most {_MOST_TEXTS} texts a request", param="input")
    for text in texts:
        check_length(text, state.limits)
    width = store.rag.model.memory_tokens(store.rag.rate) * store.rag.model.width
    if body.dimensions not in {None, width}:
        message = f"the vectors of {store.name!r} have {width} dimensions, not {body.dimensions}; leave dimensions out"
        raise ApiError(400, "invalid_value", message, param="dimensions")
    kind = (body.clara or EmbeddingFields()).kind
    made = await state.queue.call(lambda: _vectors(store, texts, kind), client_of(request))
    tokens = sum(count for _, count in made)
    data = [
        {"object": "embedding", "index": i, "embedding": _encoded(vector, body.encoding_format)}
        for i, (vector, _) in enumerate(made)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": store.name, "usage": usage}


def _vectors(store: ServedStore, texts: list[str], kind: str) -> list[tuple[np.ndarray[Any, Any], int]]:
    model, rate = store.rag.model, store.rag.rate
    made = model.encode_queries(texts, rate=rate) if kind == "question" else model.compress(texts, rate=rate)
    return [(memory.search_vector(), memory.token_count) for memory in made]


def _encoded(vector: np.ndarray[Any, Any], form: str | None) -> list[float] | str:
    if form == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(number) for number in vector]

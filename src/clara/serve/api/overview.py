"""Stores in numbers and pictures, and the health of the server.

/models                    each store that the caller may use, as a model
/stores                    what each takes as text and as memory, and the caller's rights
/lens                      words that the memory of a question points at
/map, /map/question        passages of a store in two dimensions, and where a question stands among them
/healthz, /readyz          the process runs; stores can be read
/metrics                   counts for Prometheus
"""

from __future__ import annotations

from enum import Enum
from functools import partial
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.concurrency import run_in_threadpool

from clara.errors import ClaraError
from clara.serve.answers import check_filled, check_length
from clara.serve.faults import ApiError
from clara.serve.insights import MapPoint
from clara.serve.library import ServedStore, document_id, filename_of
from clara.serve.state import caller_of, client_of, state_of

router = APIRouter()

_MODELS: Final[list[str | Enum]] = ["models"]
_EXPLORING: Final[list[str | Enum]] = ["exploring"]
_OPERATION: Final[list[str | Enum]] = ["operation"]
_StoreName = Annotated[str | None, Query()]
_Question = Annotated[str, Query()]


@router.get("/models", name="list_models", tags=_MODELS)
async def _list_models(request: Request) -> dict[str, Any]:
    """The stores."""
    visible = state_of(request).library.visible(caller_of(request))
    return {"object": "list", "data": [_model(store) for store in visible]}


@router.get("/models/{name}", name="get_model", tags=_MODELS)
async def _get_model(request: Request, name: str) -> dict[str, Any]:
    """A store."""
    return _model(state_of(request).library.store(caller_of(request), name))


def _model(store: ServedStore) -> dict[str, Any]:
    return {"id": store.name, "object": "model", "created": store.created, "owned_by": "clara"}


@router.get("/stores", name="list_stores", tags=_EXPLORING)
def _list_stores(request: Request) -> dict[str, Any]:
    """The caller's stores in numbers, and the limits of uploads and questions."""
    state, caller = state_of(request), caller_of(request)
    limits = state.limits
    return {
        "object": "list",
        "data": [{**_numbers(store), "write": caller.write} for store in state.library.visible(caller)],
        "limits": {
            "file_bytes": limits.file_bytes,
            "files": limits.files,
            "question_characters": limits.question_characters,
        },
    }


def _numbers(served: ServedStore) -> dict[str, Any]:
    store, model = served.rag.store, served.rag.model
    sizes = store.sizes().values()
    documents = store.documents().values()
    passages = sum(each.passages for each in documents)
    return {
        "name": served.name,
        "object": "clara.store",
        "model": model.name,
        "llm": served.rag.llm is not None,
        "rate": served.rag.rate,
        "codec": store.codec,
        "documents": len(documents),
        "passages": passages,
        "characters": sum(size.characters for size in sizes),
        "tokens": sum(size.tokens for size in sizes),
        "memory_tokens": passages * store.model.memory_tokens,
        "memory_bytes": passages * store.memory_bytes,
    }


@router.get("/lens", name="lens", tags=_EXPLORING)
async def _lens(request: Request, query: _Question, store: _StoreName = None) -> dict[str, Any]:
    """The words that the memory of a question points at and that it does not say."""
    state = state_of(request)
    served = _asked_store(request, query, store)
    insights = state.insights
    for reference in insights.unseen(served.rag):
        # A turn each: a question that is asked meanwhile waits for one of them at most.
        await state.queue.call(partial(insights.look, served.rag, reference), client_of(request))
    words = await state.queue.call(lambda: insights.words(served.rag, query), client_of(request))
    return {
        "object": "clara.lens",
        "store": served.name,
        "words": [{"word": word.word, "slots": word.slots, "score": word.score} for word in words],
    }


@router.get("/map", name="corpus_map", tags=_EXPLORING)
async def _corpus_map(request: Request, store: _StoreName = None) -> dict[str, Any]:
    """The passages of a store in two dimensions."""
    served = state_of(request).library.store(caller_of(request), store, param="store")
    check_filled(served)
    drawn = await run_in_threadpool(state_of(request).insights.map, served.rag)
    return {
        "object": "clara.map",
        "store": served.name,
        "passages": drawn.passages,
        "points": [_point(served, point) for point in drawn.points],
        "documents": {document_id(served.name, each.document): filename_of(each.document) for each in drawn.points},
    }


def _point(served: ServedStore, point: MapPoint) -> dict[str, Any]:
    return {
        "passage_id": point.passage_id,
        "document": document_id(served.name, point.document),
        "start": point.start,
        "end": point.end,
        "text": point.text,
        "x": round(point.x, 4),
        "y": round(point.y, 4),
    }


@router.get("/map/question", name="place_question", tags=_EXPLORING)
async def _place_question(request: Request, query: _Question, store: _StoreName = None) -> dict[str, Any]:
    """Where a question stands on the map of a store."""
    served = _asked_store(request, query, store)
    check_filled(served)
    x, y = await state_of(request).queue.call(
        lambda: state_of(request).insights.place(served.rag, query), client_of(request)
    )
    return {"object": "clara.map_place", "store": served.name, "x": x, "y": y}


def _asked_store(request: Request, question: str, name: str | None) -> ServedStore:
    """The store of a question that is not refused."""
    state = state_of(request)
    check_length(question, state.limits)
    return state.library.store(caller_of(request), name, param="store")


@router.get("/healthz", name="healthz", tags=_OPERATION)
async def _healthz() -> dict[str, str]:
    """Answers while the process runs."""
    return {"status": "ok"}


@router.get("/readyz", name="readyz", tags=_OPERATION)
def _readyz(request: Request) -> Response:
    """Answers 200 once questions can be answered."""
    try:
        for store in state_of(request).library.all().values():
            store.rag.store.count()
    except ClaraError:
        return JSONResponse({"status": "a store cannot be read"}, 503)
    return JSONResponse({"status": "ok"})


@router.get("/metrics", name="metrics", tags=_OPERATION, response_class=PlainTextResponse)
async def _metrics(request: Request) -> Response:
    """Counts of the whole server, so only for keys that may use every store.

    Raises:
        ApiError: the key may not.
    """
    if caller_of(request).stores is not None:
        raise ApiError(403, "forbidden", "the counts of all stores are for keys that may use every store")
    return Response(state_of(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)

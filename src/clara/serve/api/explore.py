"""What the page needs beside OpenAI's API: stores in numbers, three readings of a question, its lens, a map, passages.

/stores                    what each store takes as text and as memory, and the caller's rights
/compare                   a question answered from memories, from the text, and from nothing, as events
/lens                      words that the memory of a question points at
/map, /map/question        passages of a store in two dimensions, and where a question stands among them
/documents/ID/passages     a part of a document, with its pages
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Generator
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from clara.ingest import location_of, page_breaks
from clara.records import ContextChoice
from clara.serve.answers import Ask, ClaraFields, Told, check_filled, check_length, usage
from clara.serve.api.messages import AnswerFields, Message, asked, conversation, record, url_citations
from clara.serve.api.streams import answer_stream
from clara.serve.insights import MapPoint
from clara.serve.library import ServedStore, document_id, filename_of
from clara.serve.state import caller_of, client_of, state_of

router = APIRouter(tags=["exploring"])

READINGS: Final[tuple[ContextChoice, ...]] = ("memory", "text", "none")
MOST_PASSAGES = 400
"""Of one request for a document's passages."""

_BEFORE = 8  # passages shown above the one that was asked for
StoreName = Annotated[str | None, Query()]
Question = Annotated[str, Query()]


class CompareRequest(AnswerFields):
    """The body of ``/compare``: as of ``/chat/completions``; ``clara.context`` is passed over."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)


@router.get("/stores")
def list_stores(request: Request) -> dict[str, Any]:
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


@router.post("/compare")
async def compare(request: Request, body: CompareRequest) -> Response:
    """Answer the same question from memories, from the same passages' text, and from nothing."""
    ask = asked(request, body, conversation(body.messages), body.max_tokens)
    readings = [replace(ask, fields=_read_as(ask, context)) for context in READINGS]
    first = await _timed(request, readings[0])

    async def chunks() -> AsyncIterator[str]:
        yield _reading(request, readings[0], first)
        for reading in readings[1:]:
            yield _reading(request, reading, await _timed(request, reading))

    told = chunks()
    return answer_stream(request, told, told)


@router.get("/lens")
async def lens(request: Request, query: Question, store: StoreName = None) -> dict[str, Any]:
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


@router.get("/map")
async def corpus_map(request: Request, store: StoreName = None) -> dict[str, Any]:
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


@router.get("/map/question")
async def place_question(request: Request, query: Question, store: StoreName = None) -> dict[str, Any]:
    """Where a question stands on the map of a store."""
    served = _asked_store(request, query, store)
    check_filled(served)
    x, y = await state_of(request).queue.call(
        lambda: state_of(request).insights.place(served.rag, query), client_of(request)
    )
    return {"object": "clara.map_place", "store": served.name, "x": x, "y": y}


@router.get("/documents/{document_id}/passages")
def read_passages(
    request: Request,
    document_id: str,
    char: Annotated[str | None, Query(pattern=r"^\d{1,12},\d{1,12}$")] = None,
    first: Annotated[int | None, Query(ge=0)] = None,
    limit: Annotated[int, Query(ge=1, le=MOST_PASSAGES)] = 40,
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
                "page": location_of(each.metadata, each.passage.start).page,
                "heading": location_of(each.metadata, each.passage.start).heading,
                "breaks": page_breaks(each.metadata),
            }
            for each in passages[first : first + limit]
        ],
    }


@dataclass(frozen=True, slots=True)
class _Timed:
    told: Told
    seconds: float


async def _timed(request: Request, ask: Ask) -> _Timed:
    """An answer with the seconds that it took, the wait for the model left out."""
    state = state_of(request)

    def work() -> Generator[_Timed | None, None, None]:
        started = time.perf_counter()
        for told in ask.whole(state.limits):
            yield None if told is None else _Timed(told, time.perf_counter() - started)

    return await state.queue.first(work, client_of(request))


def _read_as(ask: Ask, context: ContextChoice) -> ClaraFields:
    """The fields of a question with another context; from nothing, nothing can be quoted."""
    changes: dict[str, Any] = {"context": context, **({"wording": None} if context == "none" else {})}
    return ask.fields.model_copy(update=changes)


def _reading(request: Request, ask: Ask, timed: _Timed) -> str:
    told = timed.told
    record(request, ask, told)
    return json.dumps(
        {
            "object": "clara.reading",
            "context": ask.fields.context,
            "text": told.text,
            "seconds": timed.seconds,
            "annotations": url_citations(request, ask.store, told),
            "usage": usage(told.tokens),
            "clara": told.details(),
        }
    )


def _asked_store(request: Request, question: str, name: str | None) -> ServedStore:
    """The store of a question that is not refused."""
    state = state_of(request)
    check_length(question, state.limits)
    return state.library.store(caller_of(request), name, param="store")


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

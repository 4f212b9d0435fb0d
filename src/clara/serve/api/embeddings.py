"""``/embeddings``: search vectors of texts, read as questions or as passages."""

from __future__ import annotations

import base64
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from clara.serve.answers import check_length
from clara.serve.faults import ApiError
from clara.serve.library import ServedStore
from clara.serve.state import caller_of, client_of, state_of

router = APIRouter(tags=["search"])
_MOST_TEXTS = 256


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
    encoding_format: Literal["float", "base64"] = "float"
    clara: EmbeddingFields | None = None


@router.post("/embeddings")
async def embeddings(request: Request, body: EmbeddingRequest) -> dict[str, Any]:
    """The vectors, of unit length."""
    state = state_of(request)
    store = state.library.store(caller_of(request), body.model)
    texts = [body.input] if isinstance(body.input, str) else body.input[: _MOST_TEXTS + 1]
    if len(texts) > _MOST_TEXTS:
        raise ApiError(400, "invalid_value", f"at most {_MOST_TEXTS} texts a request", param="input")
    for text in texts:
        check_length(text, state.limits)
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


def _encoded(vector: np.ndarray[Any, Any], form: str) -> list[float] | str:
    if form == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(number) for number in vector]

"""``/models``: each store that the caller may use, as a model."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from clara.serve.library import ServedStore
from clara.serve.state import caller_of, state_of

router = APIRouter(tags=["models"])


@router.get("/models")
async def list_models(request: Request) -> dict[str, Any]:
    """The stores."""
    visible = state_of(request).library.visible(caller_of(request))
    return {"object": "list", "data": [_model(store) for store in visible]}


@router.get("/models/{name}")
async def get_model(request: Request, name: str) -> dict[str, Any]:
    """One store."""
    return _model(state_of(request).library.store(caller_of(request), name))


def _model(store: ServedStore) -> dict[str, Any]:
    return {"id": store.name, "object": "model", "created": store.created, "owned_by": "clara"}

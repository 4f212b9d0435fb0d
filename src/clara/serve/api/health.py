"""``/healthz`` (the process runs), ``/readyz`` (stores can be read) and ``/metrics`` (Prometheus)."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from clara.errors import ClaraError
from clara.serve.faults import ApiError
from clara.serve.state import caller_of, state_of

router = APIRouter(tags=["operation"])


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """Whether the process runs."""
    return {"status": "ok"}


@router.get("/readyz")
def readyz(request: Request) -> Response:
    """Whether questions can be answered."""
    try:
        for store in state_of(request).library.all().values():
            store.rag.store.count()
    except ClaraError:
        return JSONResponse({"status": "a store cannot be read"}, 503)
    return JSONResponse({"status": "ok"})


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Counts of the whole server, so only for keys that may use every store.

    Raises:
        ApiError: the key may not.
    """
    if caller_of(request).stores is not None:
        raise ApiError(403, "forbidden", "the counts of all stores are for keys that may use every store")
    return Response(state_of(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)

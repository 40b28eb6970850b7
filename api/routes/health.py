"""Whether the process lives, whether it can serve, and what it counted."""

from __future__ import annotations

import asyncio

import msgspec
import psycopg
from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from psycopg_pool import PoolTimeout
from starlette.responses import Response

from api.edge import Edge, edge_of
from api.metrics import behind

router = APIRouter(tags=["health"])


@router.get("/livez", operation_id="livez")
async def livez() -> Response:
    """The process answers."""
    return Response(b'{"status":"ok"}', media_type="application/json")


@router.get("/readyz", operation_id="readyz", responses={503: {"description": "Not now."}})
async def readyz(request: Request) -> Response:
    """The process can take requests: the store answers, read models are not far behind, and it is not shutting down."""
    edge = edge_of(request)
    checks = {"store": await _store(edge), "projections": _projections(edge), "draining": "draining" if edge.draining else "ok"}
    ready = all(said == "ok" for said in checks.values())
    body = msgspec.json.encode({"status": "ok" if ready else "unavailable", "checks": checks})
    return Response(body, 200 if ready else 503, media_type="application/json")


async def _store(edge: Edge) -> str:
    if edge.store.pool is None:
        return "ok"
    try:
        async with asyncio.timeout(2), edge.store.pool.connection() as conn:
            await conn.execute("select partitions from store")
    except (psycopg.Error, PoolTimeout, OSError, TimeoutError):
        return "unreachable"
    return "ok"


def _projections(edge: Edge) -> str:
    if edge.follower is None:
        return "ok"
    return "ok" if behind(edge.follower) <= edge.settings.ready_lag_events else "behind"


@router.get("/metrics", operation_id="metrics", responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """Prometheus metrics of this process."""
    return Response(edge_of(request).metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

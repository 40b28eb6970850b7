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
from api.following import halted, stopped
from api.metrics import behind

router = APIRouter(tags=["health"])


@router.get("/livez", operation_id="livez")
async def livez() -> Response:
    """The process answers."""
    return Response(b'{"status":"ok"}', media_type="application/json")


@router.get("/readyz", operation_id="readyz", responses={503: {"description": "Not now."}})
async def readyz(request: Request) -> Response:
    """The process can take requests: the store answers, read models follow and are not far behind, it is not shutting down."""
    edge = edge_of(request)
    checks = {"store": await _store(edge), "projections": _projections(edge), "draining": "draining" if edge.draining else "ok"}
    ready = all(said == "ok" for said in checks.values())
    told: dict[str, object] = {"status": "ok" if ready else "unavailable", "checks": checks}
    if edge.follower is not None and (halts := halted(edge.follower)):
        told["halted"] = halts
    if lanes := _stopped_lanes(edge):
        told["stopped_lanes"] = lanes
    body = msgspec.json.encode(told)
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
    if stopped(edge.follower):
        return "stopped"
    return "ok" if behind(edge.follower) <= edge.settings.ready_lag_events else "behind"


def _stopped_lanes(edge: Edge) -> dict[str, int]:
    """By consumer, as the metrics tell it. They make nobody unready: the others' work goes on, and it is an operator's turn."""
    families = edge.metrics.registry.restricted_registry(["holdbook_tasks_stopped_lanes"]).collect()
    return {sample.labels["consumer"]: int(sample.value) for family in families for sample in family.samples if sample.value}


@router.get("/metrics", operation_id="metrics", responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """Prometheus metrics of this process."""
    return Response(edge_of(request).metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

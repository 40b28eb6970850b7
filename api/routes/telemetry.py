"""Telemetry of the tenant's programs: taken anonymised, told as counts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request
from pydantic import ConfigDict, Field
from starlette.responses import Response

from api import bodies, openapi
from api.bodies import Body
from api.edge import ask
from api.openapi import query
from api.privacy.telemetry import TelemetryBatch, anonymous
from api.problems import Problem
from eventstore.store import partition_of
from projections import telemetry

router = APIRouter(tags=["telemetry"])

WRITE, READ = "telemetry:write", "tenant:read"
_LINES = 10_000


class TelemetryTaken(Body):
    """How many events are new, and how many were there already."""

    accepted: int
    repeated: int


@dataclass(frozen=True, slots=True)
class TelemetryCount:
    """Events of a name on a day (UTC), and from how many installations."""

    day: date
    name: str
    events: int
    installations: int


@dataclass(frozen=True, slots=True)
class TelemetrySummary:
    """The last day first; within a day by name."""

    counts: tuple[TelemetryCount, ...]


_EVENT = {
    "event_id": "7e2a91b0-64c3-4f0d-8c55-0d5b2f7c11a3",
    "name": "broadcast.finished",
    "at": "2026-11-21T05:45:00Z",
    "properties": {"messages": 120, "seconds": 31.5, "theme": "dark", "resumed": False},
}
_COUNTS: Any = {"counts": [{"day": "2026-11-21", "name": "broadcast.finished", "events": 3, "installations": 2}]}
_told = openapi.command(
    TelemetryBatch,
    TelemetryTaken,
    "send_telemetry",
    body={"batch": {"installation_id": "5f0c2a9e-desktop", "events": [_EVENT]}},
    answer={"accepted": 1, "repeated": 0},
    refusals=(),
    missing="route.not_found",
)
_taken = _told["responses"].pop(200)
_taken.pop("headers", None)


@router.post(
    "/v1/telemetry",
    operation_id=_told["operation_id"],
    status_code=202,
    responses={202: _taken, **{status: told for status, told in _told["responses"].items() if status not in (404, 409)}},
    openapi_extra={**openapi.needs(WRITE), "requestBody": _told["openapi_extra"]["requestBody"]},
)
async def send_telemetry(request: Request) -> Response:
    """Send telemetry. It is anonymised before anything is kept; the same event counts once, so send again what got no answer."""
    edge, headers, principal = await ask(request, WRITE)
    batch = bodies.parse(TelemetryBatch, await bodies.read(request, headers, edge.settings.body_limit_bytes))
    tenant_id, store = principal.tenant_id, edge.store
    if store.pool is None:
        raise Problem("store.unavailable")
    rows = await anonymous(store.sealing, tenant_id, batch, datetime.now(UTC))
    accepted = await telemetry.keep(store.pool, partition_of(tenant_id, store.partitions), tenant_id, rows)
    answer = {"accepted": accepted, "repeated": len(batch.events) - accepted}
    return Response(msgspec.json.encode(answer), 202, media_type="application/json")


class _SummaryQuery(Body):
    # Query values are text, so they cannot be strict.
    model_config = ConfigDict(extra="forbid", strict=False)

    days: Annotated[int, Field(ge=1, le=400, description="How far back.")] = 30


@router.get("/v1/telemetry/summary", **query(TelemetrySummary, "telemetry_summary", permission=READ, answer=_COUNTS, found=False))
async def telemetry_summary(request: Request, asked_for: Annotated[_SummaryQuery, Query()]) -> Response:
    """How many events of each name came on each day."""
    edge, _, principal = await ask(request, READ)
    since = datetime.now(UTC) - timedelta(days=asked_for.days)
    days = await edge.readers.telemetry.summary(principal.tenant_id, since, _LINES)
    answer = TelemetrySummary(tuple(TelemetryCount(*each) for each in days))
    return Response(msgspec.json.encode(answer), media_type="application/json")

"""Who did what, and when: what the log holds of a tenant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from fastapi import APIRouter, Query, Request
from pydantic import ConfigDict, Field
from starlette.responses import Response

from api import paging
from api.bodies import MAX_AMOUNT, Body, Meter, Moment, Subject
from api.edge import Edge, ask
from api.openapi import query
from api.problems import Problem, invalid
from domain.identity.service_accounts import KeyIssued
from domain.kernel.decider import Refused
from domain.quota import quota_stream
from projections.audit_queries import AuditFilter, AuditRow

router = APIRouter(tags=["audit"])


@dataclass(frozen=True, slots=True)
class AuditOrigin:
    """From where the command came. `id` is the same for the same place and sender; the rest is known until retention or erasure ends it."""

    id: str
    address: str | None
    agent: str | None


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One event. Its id is `command_id` and `ordinal`: a command records one or more. `refused` is the code of a refusal."""

    position: int
    at: datetime
    actor: str | None
    origin: AuditOrigin | None
    stream: str
    type: str
    command_id: UUID
    ordinal: int
    cause: UUID | None
    trace: str | None
    refused: str | None
    payload: Any


@dataclass(frozen=True, slots=True)
class AuditPage:
    """One page."""

    entries: tuple[AuditEntry, ...]


_Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]


class AuditQuery(Body):
    """Which events are wanted."""

    # Query values are text, so they cannot be strict.
    model_config = ConfigDict(extra="forbid", strict=False)

    actor: Annotated[_Name | None, Field(description="Who sent the command.")] = None
    stream: Annotated[_Name | None, Field(description="What it happened to.")] = None
    meter: Annotated[Meter | None, Field(description="Together with subject: the quota it happened to.")] = None
    subject: Subject | None = None
    type: Annotated[
        str | None,
        Field(
            max_length=100,
            pattern=r"^[a-z][a-z0-9_]*(\.[a-z0-9_]+)*\.?$",
            description="A type, or with a dot at its end all that begin so.",
        ),
    ] = None
    since: Annotated[Moment | None, Field(description="Recorded then or later.")] = None
    until: Annotated[Moment | None, Field(description="Recorded before.")] = None
    after: Annotated[int | None, Field(ge=0, le=MAX_AMOUNT, description="Behind this position of the log.")] = None
    order: Literal["newest", "oldest"] = "newest"
    cursor: paging.Cursor = None
    limit: Annotated[int, Field(ge=1, le=200)] = 50
    min_position: Annotated[int | None, Field(ge=0, le=MAX_AMOUNT, description="Wait until the read model has come so far.")] = None


_EXAMPLE: Any = {
    "entries": [
        {
            "position": 17,
            "at": "2026-11-21T05:45:00Z",
            "actor": "service:6f1c8f0e2b7a4c5d9e3f1a2b3c4d5e6f",
            "origin": {"id": "5d9e3f1a2b3c4d5e", "address": "203.0.113.7", "agent": "holdbook-bot/1.0"},
            "stream": "refused-9b2f6c1e4d3a5b7c8d9e0f1a2b3c4d5e",
            "type": "command.refused",
            "command_id": "9b2f6c1e-4d3a-5b7c-8d9e-0f1a2b3c4d5e",
            "ordinal": 0,
            "cause": "1c8e4b2a-7d6f-5e3c-9a0b-4d5e6f7a8b9c",
            "trace": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "refused": "quota.exceeded",
            "payload": {"code": "quota.exceeded", "command": "Reserve", "stream": "quota-5b7c8d9e0f1a2b3c4d5e9b2f6c1e4d3a", "index": None},
        }
    ]
}


@router.get("/v1/audit", **query(AuditPage, "audit", permission="audit:read", answer=_EXAMPLE, found=False))
async def audit(request: Request, asked_for: Annotated[AuditQuery, Query()]) -> Response:
    """What was recorded, refusals included; filters combine. The Link header leads to the next page."""
    edge, _, principal = await ask(request, "audit:read")
    return await answer(request, edge, principal.tenant_id, asked_for)


async def answer(request: Request, edge: Edge, tenant_id: UUID, asked_for: AuditQuery) -> Response:
    """A page of what was recorded of a tenant, for whoever may see it."""
    rows = await edge.readers.audit.page(
        tenant_id,
        _filter(tenant_id, asked_for),
        newest_first=asked_for.order == "newest",
        limit=asked_for.limit,
        min_position=asked_for.min_position,
    )
    last = (str(rows[-1].position),) if len(rows) == asked_for.limit else None
    return paging.page(request, {"entries": await _entries(edge, tenant_id, rows)}, last)


def _filter(tenant_id: UUID, asked_for: AuditQuery) -> AuditFilter:
    if (asked_for.meter is None) != (asked_for.subject is None):
        raise _wrong("subject" if asked_for.subject is None else "meter", "meter and subject name a quota together")
    stream = asked_for.stream
    if asked_for.meter is not None and asked_for.subject is not None:
        if stream is not None:
            raise _wrong("stream", "either a stream, or meter and subject")
        stream = quota_stream(tenant_id, asked_for.subject, asked_for.meter)
    if asked_for.since is not None and asked_for.until is not None and asked_for.until <= asked_for.since:
        raise _wrong("until", "later than since")
    after, before = asked_for.after, None
    place = paging.place(asked_for.cursor, 1)
    if place is not None:
        if not place[0].isascii() or not place[0].isdigit() or int(place[0]) > MAX_AMOUNT:
            raise paging.not_a_cursor()
        if asked_for.order == "newest":
            before = int(place[0])
        else:
            after = max(int(place[0]), after or 0)
    return AuditFilter(
        actor=asked_for.actor, stream=stream, type=asked_for.type, since=asked_for.since, until=asked_for.until, after=after, before=before
    )


def _wrong(field: str, message: str) -> Problem:
    return invalid([{"type": "audit", "loc": (field,), "msg": message}])


async def _entries(edge: Edge, tenant_id: UUID, rows: Sequence[AuditRow]) -> list[AuditEntry]:
    """The rows with their contents from the log. What was pruned in the meantime is left out."""
    log = edge.store.writer(tenant_id).log
    recorded = {row.position: row for row in await log.rows_at(tenant_id, [row.position for row in rows])} if rows else {}
    known = await edge.store.origins.show(tenant_id, (row.origin for row in rows if row.origin is not None))
    return [
        AuditEntry(
            row.position,
            row.recorded_at.astimezone(UTC),
            row.actor,
            None if row.origin is None else AuditOrigin(row.origin, *known.get(row.origin, (None, None))),
            *row[4:],
            refused=_code(found.payload) if row.type == Refused.event_name else None,
            payload=_payload(found.type, found.payload),
        )
        for row in rows
        if (found := recorded.get(row.position)) is not None and found.type == row.type
    ]


def _payload(type_: str, payload: str) -> msgspec.Raw:
    """As it was recorded. A key's digest is nobody's business who reads along; an export has it, or its chain would prove nothing."""
    if type_ != KeyIssued.event_name:
        return msgspec.Raw(payload.encode())
    return msgspec.Raw(msgspec.json.encode({name: value for name, value in msgspec.json.decode(payload).items() if name != "secret_hash"}))


class _Refusal(msgspec.Struct):
    code: str


_decode_refusal = msgspec.json.Decoder(_Refusal).decode


def _code(payload: str) -> str:
    return _decode_refusal(payload).code

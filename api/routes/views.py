"""What can be asked: how a quota stands now or stood at any moment, which quotas there are, what is open."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from starlette.responses import Response

from api import paging
from api.bodies import MAX_AMOUNT, Body, Meter, Moment, Subject
from api.edge import Asked, ask
from api.openapi import query
from api.outside import SLASH
from api.problems import Problem, invalid
from api.routes import usage
from api.routes.quotas import MeterPath, SubjectPath
from api.subjects import check_subject, only_subject
from domain import quota
from domain.quota import QUOTA, Quota, QuotaNotFound, quota_stream
from domain.quota.view import QuotaView, view
from projections.consumer import ProjectionBehind

router = APIRouter(tags=["quotas"])


@dataclass(frozen=True, slots=True)
class OpenReservation:
    """A reservation that has not ended: `booked` units of `amount` are used."""

    reservation_id: str
    amount: int
    booked: int
    reserved_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class QuotaList:
    """One page."""

    quotas: tuple[QuotaView, ...]


@dataclass(frozen=True, slots=True)
class OpenList:
    """One page."""

    reservations: tuple[OpenReservation, ...]


_AT = datetime(2026, 11, 21, 5, 45, tzinfo=UTC)


def _example() -> Any:
    """A view made by the domain itself, so that it never shows what a view does not hold."""
    state: Any = QUOTA.initial
    limits = (quota.Limit("monthly", 1000, quota.Window("month")),)
    for event in (
        quota.LimitsSet("customer-1", "tokens", "UTC", limits, quota.Overdraft(), quota.MAX_OPEN, _AT),
        quota.Reserved("customer-1", "tokens", usage.ID, 40, _AT, _AT + timedelta(minutes=15)),
    ):
        state = QUOTA.evolve(state, event)
    return msgspec.to_builtins(view(state, _AT))


VIEW_EXAMPLE = _example()
OPEN_EXAMPLE = msgspec.to_builtins(OpenList((OpenReservation(usage.ID, 40, 0, _AT, _AT),)))


class _ViewQuery(Body):
    # Query values are text, so they cannot be strict.
    model_config = ConfigDict(extra="forbid", strict=False)

    min_position: Annotated[int | None, Field(ge=0, le=MAX_AMOUNT, description="Wait until the read model has come so far.")] = None
    as_of: Annotated[Moment | None, Field(description="As it stood at this moment, from the log itself.")] = None


class _UsageQuery(_ViewQuery):
    subject: Annotated[Subject | None, Field(description="Without it `default`, or the person's own.")] = None
    meter: Meter = usage.DEFAULT_METER


class _ListQuery(Body):
    model_config = ConfigDict(extra="forbid", strict=False)

    meter: Meter | None = None
    cursor: paging.Cursor = None
    limit: Annotated[int, Field(ge=1, le=200)] = 50


class _OpenQuery(Body):
    model_config = ConfigDict(extra="forbid", strict=False)

    cursor: paging.Cursor = None
    limit: Annotated[int, Field(ge=1, le=200)] = 50


_target = TypeAdapter(tuple[Meter, Subject])


def _checked(meter: str, subject: str) -> tuple[str, str]:
    try:
        return _target.validate_python((meter, subject.replace(SLASH, "/")))
    except ValidationError as error:
        named = [{**found, "loc": (("meter", "subject")[int(found["loc"][0])],)} for found in error.errors(include_input=False)]
        raise invalid(named) from None


@router.get("/v1/usage", tags=["usage"], **query(QuotaView, "usage", permission="usage:read", answer=VIEW_EXAMPLE))
async def usage_of(request: Request, asked_for: Annotated[_UsageQuery, Query()]) -> Response:
    """How a quota stands."""
    asked = await ask(request, "usage:read")
    subject = asked_for.subject or only_subject(asked.principal) or usage.DEFAULT_SUBJECT
    return await _show(asked, asked_for.meter, subject, asked_for)


@router.get("/v1/quotas/{meter}/{subject}", **query(QuotaView, "get_quota", permission="usage:read", answer=VIEW_EXAMPLE))
async def get_quota(request: Request, meter: MeterPath, subject: SubjectPath, asked_for: Annotated[_ViewQuery, Query()]) -> Response:
    """How a quota stands."""
    asked = await ask(request, "usage:read")
    return await _show(asked, *_checked(meter, subject), asked_for)


@router.get("/v1/quotas", **query(QuotaList, "list_quotas", permission="usage:read", answer={"quotas": [VIEW_EXAMPLE]}, found=False))
async def list_quotas(request: Request, asked_for: Annotated[_ListQuery, Query()]) -> Response:
    """The tenant's quotas by meter and subject, or a person's own. The Link header leads to the next page."""
    edge, _, principal = await ask(request, "usage:read")
    after = paging.place(asked_for.cursor, 2)
    only, now = only_subject(principal), datetime.now(UTC)
    found = await edge.readers.quotas.list(principal.tenant_id, now, asked_for.meter, after, asked_for.limit, subject=only)
    last = (found[-1].meter, found[-1].subject) if len(found) == asked_for.limit else None
    return paging.page(request, {"quotas": found}, last)


@router.get(
    "/v1/quotas/{meter}/{subject}/reservations", **query(OpenList, "list_reservations", permission="usage:read", answer=OPEN_EXAMPLE)
)
async def list_reservations(
    request: Request, meter: MeterPath, subject: SubjectPath, asked_for: Annotated[_OpenQuery, Query()]
) -> Response:
    """A quota's open reservations by id. The Link header leads to the next page."""
    edge, _, principal = await ask(request, "usage:read")
    meter, subject = _checked(meter, subject)
    check_subject(principal, subject)
    after = paging.place(asked_for.cursor, 1)
    found = await edge.readers.quotas.reservations(principal.tenant_id, subject, meter, after[0] if after else None, asked_for.limit)
    last = (found[-1].reservation_id,) if len(found) == asked_for.limit else None
    return paging.page(request, {"reservations": found}, last)


async def _show(asked: Asked, meter: str, subject: str, wanted: _ViewQuery) -> Response:
    check_subject(asked.principal, subject)
    tenant_id, now = asked.principal.tenant_id, datetime.now(UTC)
    try:
        if wanted.as_of is not None:
            found = await _as_of(asked, meter, subject, wanted.as_of)
        else:
            found = await asked.edge.readers.quotas.get(tenant_id, subject, meter, now, wanted.min_position)
    except (ProjectionBehind, TimeoutError):
        raise Problem("projection.behind") from None
    if found is None:
        raise QuotaNotFound
    return Response(_encode(found), media_type="application/json")


_encode = msgspec.json.Encoder().encode


async def _as_of(asked: Asked, meter: str, subject: str, moment: datetime) -> QuotaView | None:
    """Fold the stream's events up to a moment."""
    store, tenant_id = asked.edge.store, asked.principal.tenant_id
    stream = quota_stream(tenant_id, subject, meter)
    state: Any = QUOTA.initial
    async with asked.edge.folding:
        for count, row in enumerate(await store.writer(tenant_id).log.stream_rows([(stream, 0)]), 1):
            if row.recorded_at > moment or row.tenant_id != tenant_id:
                break
            state = QUOTA.evolve(state, store.codec.decode(row.type, row.payload))
            if count % 500 == 0:
                await asyncio.sleep(0)
    return view(state, moment) if isinstance(state, Quota) else None

"""What was used on each day."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Query, Request
from pydantic import ConfigDict, Field
from starlette.responses import Response

from api import paging
from api.bodies import MAX_AMOUNT, Body, Meter, Subject
from api.edge import ask
from api.openapi import query
from api.problems import invalid
from api.subjects import check_subject, only_subject
from projections.usage_queries import KEYS, UsageLine

router = APIRouter(tags=["usage"])

MOST_DAYS = 366
_FIRST, _LAST = date(1970, 1, 1), date(9998, 12, 31)


@dataclass(frozen=True, slots=True)
class UsageList:
    """One page."""

    lines: tuple[UsageLine, ...]


Day = Annotated[date, Field(ge=_FIRST, le=_LAST)]


class _DaysQuery(Body):
    # Query values are text, so they cannot be strict.
    model_config = ConfigDict(extra="forbid", strict=False)

    first: Annotated[Day, Field(alias="from", description="The first day, in the tenant's time zone.")]
    end: Annotated[Day, Field(alias="to", description=f"The day behind the last one, at most {MOST_DAYS} days later.")]
    meter: Meter | None = None
    subject: Subject | None = None
    by: Annotated[
        Literal["day", "subject", "meter"],
        Field(description="One line for each day and meter; for each day, meter and subject; or for each meter over all the days."),
    ] = "day"
    cursor: paging.Cursor = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    min_position: Annotated[int | None, Field(ge=0, le=MAX_AMOUNT, description="Wait until the read model has come so far.")] = None


_EXAMPLE: Any = msgspec.to_builtins(UsageList((UsageLine(date(2026, 11, 21), "messages", "customer-1", 37, 0, 40, 3, 1, 1, 0, 0, 0, 0),)))


@router.get("/v1/usage/days", **query(UsageList, "usage_by_day", permission="usage:read", answer=_EXAMPLE, found=False))
async def usage_by_day(request: Request, asked_for: Annotated[_DaysQuery, Query()]) -> Response:
    """What was used, by days of the tenant's calendar. The Link header leads to the next page."""
    edge, _, principal = await ask(request, "usage:read")
    subject = asked_for.subject or only_subject(principal)
    if subject is not None:
        check_subject(principal, subject)
    first, end, by = asked_for.first, asked_for.end, asked_for.by
    if not timedelta(0) < end - first <= timedelta(days=MOST_DAYS):
        raise invalid([{"type": "range", "loc": ("to",), "msg": f"1 to {MOST_DAYS} days behind from"}])
    found = await edge.readers.usage.days(
        principal.tenant_id,
        first,
        end,
        meter=asked_for.meter,
        subject=subject,
        by=by,
        after=_behind(asked_for.cursor, KEYS[by]),
        limit=asked_for.limit,
        min_position=asked_for.min_position,
    )
    last = tuple(str(getattr(found[-1], name)) for name in KEYS[by]) if len(found) == asked_for.limit else None
    return paging.page(request, {"lines": found}, last)


def _behind(cursor: str | None, keys: tuple[str, ...]) -> list[str | date] | None:
    place = paging.place(cursor, len(keys))
    if place is None:
        return None
    try:
        return [date.fromisoformat(value) if name == "day" else value for name, value in zip(keys, place, strict=True)]
    except ValueError:
        raise paging.not_a_cursor() from None

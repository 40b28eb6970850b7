"""What was refused at the door, for those who may read the audit."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import ConfigDict, Field
from starlette.responses import Response

from api import paging
from api.bodies import Body
from api.edge import ask
from api.openapi import query
from api.refusals import Refusal

router = APIRouter(tags=["audit"])


@dataclass(frozen=True, slots=True)
class RefusalList:
    """One page."""

    refusals: tuple[Refusal, ...]


class _Query(Body):
    # Query values are text, so they cannot be strict.
    model_config = ConfigDict(extra="forbid", strict=False)

    cursor: paging.Cursor = None
    limit: Annotated[int, Field(ge=1, le=500)] = 100


_EXAMPLE: Any = {
    "refusals": [
        {
            "hour": "2026-11-21T05:00:00Z",
            "kind": "rate",
            "count": 41,
            "samples": [{"at": "2026-11-21T05:45:01Z", "credential": "5f0c2ad0f3b14c6e8f3c0a5d1b2e4f60", "network": "203.0.113.0/24"}],
        }
    ]
}


@router.get("/v1/refusals", **query(RefusalList, "list_refusals", permission="audit:read", answer=_EXAMPLE, found=False))
async def list_refusals(request: Request, asked_for: Annotated[_Query, Query()]) -> Response:
    """Requests of this tenant that were refused at the door, by hour and kind, the newest first. The Link header leads to the next page."""
    edge, _, principal = await ask(request, "audit:read")
    found = await edge.refusals.list(principal.tenant_id, _behind(asked_for.cursor), asked_for.limit)
    last = (found[-1].hour.isoformat(), found[-1].kind) if len(found) == asked_for.limit else None
    return paging.page(request, {"refusals": found}, last)


def _behind(cursor: str | None) -> tuple[datetime, str] | None:
    place = paging.place(cursor, 2)
    if place is None:
        return None
    try:
        hour = datetime.fromisoformat(place[0])
    except ValueError:
        raise paging.not_a_cursor() from None
    if hour.utcoffset() is None:
        raise paging.not_a_cursor()
    return hour, place[1]

"""Telemetry at the door: what could lead to somebody is taken off before anything is kept.

The installation's id becomes a keyed digest that is another one each day, so what one installation does on two days cannot be put together.
Moments are cut to the hour, numbers are bounded and rounded so that no phone number, account or place fits into one, and texts are
short words of a program, not of a person. Who sent it is not kept at all.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

import msgspec
from pydantic import AfterValidator, Field

from api.bodies import Body, Moment
from api.masking import mask
from eventstore.sealing import Sealing
from projections.telemetry import TelemetryRow

MAX_EVENTS, MAX_PROPERTIES = 500, 20
MAX_NUMBER = 10**9
"""Above it begin phone numbers and accounts."""
DECIMALS = 2

_WORD = re.compile(r"[a-z0-9][a-z0-9_.\-]{0,31}")
_MANY_DIGITS = re.compile(r"\d{7}")
_encode = msgspec.json.Encoder(order="sorted").encode


def _plain(value: bool | int | float | str) -> bool | int | float | str:
    match value:
        case bool():
            return value
        case str():
            # Many digits in a row are a number of somebody's; what the logs would mask is no word of a program either.
            if not _WORD.fullmatch(value) or _MANY_DIGITS.search(value) or mask(value) != value:
                raise ValueError("A text is up to 32 lower-case letters, digits and _.- of a program's own words, without long numbers.")
            return value
        case _:
            if not abs(value) < MAX_NUMBER:  # also of what is no number
                raise ValueError(f"A number lies between -{MAX_NUMBER} and {MAX_NUMBER}.")
            return round(value, DECIMALS)


Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*$", max_length=64)]
Property = Annotated[bool | int | float | str, AfterValidator(_plain)]


class TelemetryEvent(Body):
    """Something that happened in a program. The same `event_id` counts once."""

    event_id: Annotated[str, Field(pattern=r"^[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}$", description="A random UUID.")]
    name: Name
    at: Annotated[Moment, Field(description="Kept to the hour; one in the future counts as now.")]
    properties: Annotated[
        dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")], Property],
        Field(max_length=MAX_PROPERTIES, description="Numbers, booleans, and short words of a program. No free text."),
    ] = Field({})


class TelemetryBatch(Body):
    """What one installation tells."""

    installation_id: Annotated[str, Field(min_length=8, max_length=128, pattern=r"^[A-Za-z0-9_.\-]+$", description="Never kept.")]
    events: Annotated[list[TelemetryEvent], Field(min_length=1, max_length=MAX_EVENTS)]


async def anonymous(sealing: Sealing, tenant_id: UUID, batch: TelemetryBatch, now: datetime) -> list[TelemetryRow]:
    """What is kept of a batch, each event once."""
    day = f"{now.astimezone(UTC):%Y-%m-%d}"
    installation = UUID(await sealing.digest(tenant_id, f"telemetry.installation.{day}", batch.installation_id))
    rows: dict[UUID, TelemetryRow] = {}
    for event in batch.events:
        # The sender's id would be in the sender's own logs as well.
        event_id = UUID(await sealing.digest(tenant_id, "telemetry.event", UUID(event.event_id).hex))
        at = min(event.at, now).replace(minute=0, second=0, microsecond=0)
        rows.setdefault(event_id, TelemetryRow(event_id, at, installation, event.name, _text(event.properties)))
    return list(rows.values())


def _text(properties: dict[str, Any]) -> str:
    return _encode(properties).decode()

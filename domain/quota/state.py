"""State. Values: nobody changes one after it was made. They are not frozen dataclasses because making those takes twice as long."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from domain.kernel.persistent import Heap, Map
from domain.quota.credits import CreditUse, Grants, credits_left
from domain.quota.events import Expired
from domain.quota.limits import Overdraft, Tally

Part = tuple[int, int, int]
"""(incarnation of the limit, key of the window, units of the reservation counted there)"""


@dataclass(slots=True)
class Open:
    """A reservation that has not ended: ``booked`` units of ``amount`` are used, the rest is reserved."""

    amount: int
    booked: int
    at: datetime
    expires_at: datetime
    parts: tuple[Part, ...]
    credits: tuple[CreditUse, ...]


@dataclass(slots=True)
class Closed:
    """A reservation that ended: ``last`` is what the final commit booked, ``total`` all that was."""

    status: Literal["committed", "rolled_back", "expired"]
    last: int
    total: int
    freed: int


@dataclass(frozen=True, slots=True)
class Terms:
    """What only SetLimits changes."""

    subject: str
    meter: str
    zone: str
    overdraft: Overdraft
    max_open: int
    next_born: int
    allowance: int | None
    """How far below zero limits may go; None means without end."""


@dataclass(frozen=True, slots=True)
class NotConfigured:
    """No limits and no grant yet. It holds no maps: maps shared by all quotas would be handed to and fro between them."""


@dataclass(slots=True)
class Quota:
    terms: Terms
    limits: tuple[Tally, ...]
    grants: Grants
    open: Map[str, Open]
    expiries: Heap[tuple[datetime, str]]
    """When open reservations expire. What ended otherwise is left in until it is due or most of the heap is such."""
    closed: Map[str, Closed]
    closed_before: Map[str, Closed]
    used: int
    reserved: int


State = NotConfigured | Quota

NOT_CONFIGURED = NotConfigured()


def find_closed(state: Quota, reservation_id: str) -> Closed | None:
    closed: Closed | None = state.closed.get(reservation_id) or state.closed_before.get(reservation_id)
    return closed


def due(state: Quota, at: datetime) -> list[Expired]:
    """The expiries that have come by then, soonest first."""
    events: list[Expired] = []
    expiries = state.expiries
    while (least := expiries.least) is not None and least[0] <= at:
        expiries = expiries.pop()
        held: Open | None = state.open.get(least[1])
        if held is not None and held.expires_at == least[0]:
            events.append(Expired(least[1], held.booked, max(0, held.amount - held.booked), at))
    return events


def remaining(state: Quota, at: datetime) -> int | None:
    """The least that remains over all limits, credits added where they may pay; None means unlimited."""
    limits = state.limits
    if not state.grants:
        return min([tally.room(at) for tally in limits]) if limits else None
    left = credits_left(state.grants, at)
    return min([spendable(tally, at, left) for tally in limits]) if limits else None


def spendable(tally: Tally, at: datetime, left: int) -> int:
    """What remains of one limit when so many credits are left."""
    room = tally.room(at)
    return max(room, 0) + left if tally.limit.overflow and left else room

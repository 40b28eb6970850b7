"""Commands: what may be asked of a quota."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from domain.kernel.decider import Command
from domain.quota.limits import NO_OVERDRAFT, Limit, Overdraft

MAX_OPEN = 10_000
MAX_TTL_SECONDS = 30 * 86400


class Mode(StrEnum):
    """How a reservation meets the limits."""

    NORMAL = "normal"
    BEST_EFFORT = "best_effort"
    """Take as much as there is room for, at least one."""
    CHECK_ONLY = "check_only"
    """Answer as if, and record nothing."""
    ADJUST = "adjust"
    """Whether there is room or not."""


@dataclass(slots=True, kw_only=True)
class Reserve(Command):
    subject: str
    meter: str
    amount: int
    reservation_id: str
    ttl_seconds: int = 900
    mode: Mode = Mode.NORMAL


@dataclass(slots=True, kw_only=True)
class Commit(Command):
    """Book ``used`` units on top of what was booked before; a final commit ends the reservation and frees the rest.

    A commit that is not final may prolong the reservation: it then lasts ``ttl_seconds`` from now, if that is longer.
    """

    reservation_id: str
    used: int
    final: bool = True
    ttl_seconds: int | None = None
    only_of: str | None = None
    """The one subject that whoever asks may act for: a reservation of anybody else's is not there."""


@dataclass(slots=True, kw_only=True)
class Rollback(Command):
    reservation_id: str
    only_of: str | None = None
    """As of :class:`Commit`."""


@dataclass(slots=True, kw_only=True)
class Consume(Command):
    """Reserve and commit at once."""

    subject: str
    meter: str
    amount: int
    reservation_id: str
    mode: Mode = Mode.NORMAL


@dataclass(slots=True, kw_only=True)
class Expire(Command):
    """End all reservations that are due."""


@dataclass(slots=True, kw_only=True)
class Grant(Command):
    subject: str
    meter: str
    grant_id: str
    amount: int
    priority: int = 0
    effective_at: datetime | None = None
    expires_at: datetime | None = None
    rollover_amount: int = 0
    rollover_until: datetime | None = None


@dataclass(slots=True, kw_only=True)
class VoidGrant(Command):
    grant_id: str


@dataclass(slots=True, kw_only=True)
class SetLimits(Command):
    """Replace the limits. One that keeps its id and window keeps its counters; no limits at all means metering only."""

    subject: str
    meter: str
    zone: str = "UTC"
    limits: tuple[Limit, ...] = ()
    overdraft: Overdraft = NO_OVERDRAFT
    max_open: int = MAX_OPEN


@dataclass(slots=True, kw_only=True)
class Adjust(Command):
    """Correct what is used in the current window of every limit by a signed amount."""

    subject: str
    meter: str
    amount: int
    reason: str


QuotaCommand = Reserve | Commit | Rollback | Consume | Expire | Grant | VoidGrant | SetLimits | Adjust

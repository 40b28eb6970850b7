"""Events. Stored for ever: never rename or remove a class or a field; a change of shape is a new version and an upcast."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from domain.kernel.decider import Event, event
from domain.quota.credits import CreditUse
from domain.quota.limits import Limit, Overdraft


@event("quota.limits_set")
@dataclass(frozen=True, slots=True)
class LimitsSet(Event):
    """The limits, overdraft and time zone of the quota are these from now on."""

    subject: str
    meter: str
    zone: str
    limits: tuple[Limit, ...]
    overdraft: Overdraft
    max_open: int
    at: datetime


@event("quota.reserved")
@dataclass(frozen=True, slots=True)
class Reserved(Event):
    """``amount`` is held until ``expires_at``; ``credits`` says what grants pay of it, ``overdrawn`` what found no room."""

    subject: str
    meter: str
    reservation_id: str
    amount: int
    at: datetime
    expires_at: datetime
    credits: tuple[CreditUse, ...] = ()
    overdrawn: int = 0


@event("quota.progressed")
@dataclass(frozen=True, slots=True)
class Progressed(Event):
    """``used`` units of an open reservation were booked; the rest is still held."""

    reservation_id: str
    used: int
    expires_at: datetime
    at: datetime


@event("quota.committed")
@dataclass(frozen=True, slots=True)
class Committed(Event):
    """The reservation was committed: ``used`` is what this commit booked, ``total`` includes what was booked in parts before."""

    reservation_id: str
    used: int
    total: int
    freed: int
    at: datetime


@event("quota.rolled_back")
@dataclass(frozen=True, slots=True)
class RolledBack(Event):
    """The reservation was given back: ``total`` had been booked in parts before, ``freed`` is free again."""

    reservation_id: str
    total: int
    freed: int
    at: datetime


@event("quota.expired")
@dataclass(frozen=True, slots=True)
class Expired(Event):
    """The reservation ended by itself: ``total`` had been booked in parts before, ``freed`` is free again."""

    reservation_id: str
    total: int
    freed: int
    at: datetime


@event("quota.consumed")
@dataclass(frozen=True, slots=True)
class Consumed(Event):
    """``amount`` was used at once, without a reservation to come back to."""

    subject: str
    meter: str
    reservation_id: str
    amount: int
    at: datetime
    credits: tuple[CreditUse, ...] = ()
    overdrawn: int = 0


@event("quota.granted")
@dataclass(frozen=True, slots=True)
class Granted(Event):
    """Credits were given, to be spent from ``effective_at`` until ``expires_at``."""

    subject: str
    meter: str
    grant_id: str
    amount: int
    priority: int
    effective_at: datetime
    expires_at: datetime | None
    rollover_amount: int
    rollover_until: datetime | None
    at: datetime


@event("quota.grant_voided")
@dataclass(frozen=True, slots=True)
class GrantVoided(Event):
    """What was left of a grant can no longer be spent."""

    grant_id: str
    freed: int
    at: datetime


@event("quota.adjusted")
@dataclass(frozen=True, slots=True)
class Adjusted(Event):
    """An operator corrected what was used by ``amount``, which may be negative."""

    subject: str
    meter: str
    amount: int
    reason: str
    at: datetime


@event("quota.threshold_crossed")
@dataclass(frozen=True, slots=True)
class ThresholdCrossed(Event):
    """Use and reservations reached a percentage of a limit. ``window_start`` is None for a lifetime limit."""

    subject: str
    meter: str
    limit_id: str
    percent: int
    amount: int
    window_start: datetime | None
    at: datetime


QuotaEvent = (
    Reserved | Committed | Progressed | RolledBack | Expired | Consumed | Granted | GrantVoided | Adjusted | LimitsSet | ThresholdCrossed
)

"""A quota: how much of one meter one subject may use, counted in windows and held by reservations.

Use is reserved before the work and committed after it, wholly or in parts; what is not committed is freed by a rollback or
by expiry. Every limit must have room for a reservation. What does not fit into limits that overflow is paid by credits,
and an overdraft lets limits go below zero. What is used counts in the windows of the moment it was reserved.
A reservation ends once: whoever comes first of a final commit, a rollback and the expiry wins. Expiry needs nobody's help:
each command first ends what is due by its own ``at``.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from hashlib import sha256
from typing import Any, ClassVar, Literal, TypeVar, assert_never
from uuid import UUID, uuid5

from domain.kernel.decider import Command, Decider, Event, Rejected, event
from domain.kernel.persistent import Heap, Map
from domain.quota_credits import CreditUse, GrantBalance, Grants, credits_left, draw, find, granted, is_full, returned, taken
from domain.quota_limits import (
    LIFETIME,
    MAX_AMOUNT,
    NO_OVERDRAFT,
    FrozenTally,
    Limit,
    Overdraft,
    Tally,
    Window,
    limits_are_valid,
    new_tally,
    overdraft_is_valid,
    thaw_tally,
    zone_is_known,
)

__all__ = [
    "LIFETIME", "QUOTA", "Adjust", "Commit", "Consume", "CreditUse", "Expire", "Grant", "Limit", "Mode", "Overdraft", "Quota",
    "Reserve", "Rollback", "SetLimits", "VoidGrant", "Window", "quota_stream", "reservation_id", "stream_of_reservation",
]  # fmt: skip

MAX_OPEN = 10_000
MAX_TTL_SECONDS = 30 * 86400
CLOSED_REMEMBERED = 1_000
"""At least so many reservations that ended last are remembered, at most twice as many."""

PREPAID = Limit("prepaid", 0, LIFETIME, overflow=True, thresholds=())
"""The limit of a quota that was only ever granted credits: nothing is free."""


@lru_cache(maxsize=65_536)
def quota_stream(tenant_id: UUID, subject: str, meter: str) -> str:
    """The stream of the quota of one subject on one meter."""
    return "quota-" + uuid5(tenant_id, f"{meter}\x00{subject}").hex


def reservation_id(stream: str, command_id: UUID, index: int = 0) -> str:
    """An id that leads back to the quota's stream; ``index`` tells apart reservations of one command."""
    digest = sha256(command_id.bytes + index.to_bytes(4, "big")).digest()
    return urlsafe_b64encode(bytes.fromhex(stream[6:]) + digest[:14]).decode()


_RESERVATION_ID = re.compile(r"[A-Za-z0-9_-]{40}")


def stream_of_reservation(reservation_id: str) -> str:
    """The stream a reservation belongs to; a malformed id raises :class:`ReservationNotFound`."""
    if not _RESERVATION_ID.fullmatch(reservation_id):
        raise ReservationNotFound(reservation_id=reservation_id)
    return "quota-" + urlsafe_b64decode(reservation_id)[:16].hex()


# Events. Stored for ever: never rename or remove a class or a field; a change of shape is a new version and an upcast.


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


# Commands


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


@dataclass(slots=True, kw_only=True)
class Rollback(Command):
    reservation_id: str


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
QuotaEvent = (
    Reserved | Committed | Progressed | RolledBack | Expired | Consumed | Granted | GrantVoided | Adjusted | LimitsSet | ThresholdCrossed
)


# State. Values: nobody changes one after it was made. They are not frozen dataclasses because making those takes twice as long.

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


# Refusals that several functions raise. The others stand beside the one that raises them.


class InvalidCommand(Rejected):
    """A field of the command makes no sense."""

    code: ClassVar[str] = "quota.invalid"
    frozen: ClassVar[bool] = False
    status: ClassVar[str] = "invalid"


class QuotaNotFound(Rejected):
    """The subject has no quota on this meter."""

    code: ClassVar[str] = "quota.not_found"
    frozen: ClassVar[bool] = False
    status: ClassVar[str] = "not_found"


class ReservationNotFound(Rejected):
    """There is no such reservation, or it ended long ago."""

    code: ClassVar[str] = "quota.reservation_not_found"
    frozen: ClassVar[bool] = False
    status: ClassVar[str] = "not_found"


class ReservationClosed(Rejected):
    """The reservation has already ended in another way."""

    code: ClassVar[str] = "quota.reservation_closed"


# Decide


def decide(command: QuotaCommand, state: State) -> Sequence[Event]:
    """The checks come in this order: shape of the command, existence of the quota, then (after what is due has expired)
    existence of the reservation or grant, its state, age of the window, number of open reservations, room."""
    match command:
        case Reserve():
            return _reserve(command, state)
        case Commit():
            return _commit(command, state)
        case Rollback():
            return _rollback(command, state)
        case Consume():
            return _consume(command, state)
        case Expire():
            return due(state, command.at) if isinstance(state, Quota) else ()
        case Grant():
            return _grant(command, state)
        case VoidGrant():
            return _void_grant(command, state)
        case SetLimits():
            return _set_limits(command, state)
        case Adjust():
            return _adjust(command, state)
        case _:
            assert_never(command)


def _settled(state: State, at: datetime) -> tuple[Quota, list[Event]]:
    """The quota without what is due by then, and the events that made it so."""
    if isinstance(state, NotConfigured):
        raise QuotaNotFound()
    least = state.expiries.least
    if least is None or least[0] > at:
        return state, []
    events = due(state, at)
    settled: State = state
    for expired in events:
        settled = evolve(settled, expired)
    assert isinstance(settled, Quota)
    return settled, [*events]


def _reserve(command: Reserve, state: State) -> Sequence[Event]:
    if not 1 <= command.ttl_seconds <= MAX_TTL_SECONDS:
        raise InvalidCommand("ttl_seconds")
    at, checking = command.at, command.mode is Mode.CHECK_ONLY
    try:
        state, events, granted, uses, overdrawn, crossings = _admit(command, state)
    except Rejected as refusal:
        raise _unrecorded(refusal) if checking else refusal from None
    if checking:
        return ()
    expires_at = at + timedelta(seconds=command.ttl_seconds)
    terms = state.terms
    events.append(Reserved(terms.subject, terms.meter, command.reservation_id, granted, at, expires_at, uses, overdrawn))
    return events + crossings if crossings else events


def _consume(command: Consume, state: State) -> Sequence[Event]:
    checking = command.mode is Mode.CHECK_ONLY
    try:
        state, events, granted, uses, overdrawn, crossings = _admit(command, state)
    except Rejected as refusal:
        raise _unrecorded(refusal) if checking else refusal from None
    if checking:
        return ()
    terms = state.terms
    events.append(Consumed(terms.subject, terms.meter, command.reservation_id, granted, command.at, uses, overdrawn))
    return events + crossings


Refusal = TypeVar("Refusal", bound=Rejected)


def _unrecorded(refusal: Refusal) -> Refusal:
    """A refused check leaves nothing behind, as an accepted one does."""
    refusal.frozen = False  # type: ignore[misc]  # for this one refusal, not for its class
    return refusal


class ReservationExists(Rejected):
    """A reservation with this id was already made."""

    code: ClassVar[str] = "quota.reservation_exists"


class TooManyOpen(Rejected):
    """Too many reservations are open at once."""

    code: ClassVar[str] = "quota.too_many_open"


Admission = tuple[Quota, list[Event], int, tuple[CreditUse, ...], int, list[Event]]


def _admit(command: Reserve | Consume, state: State) -> Admission:
    """What is granted: the settled quota, what expired, the amount, its credits, what it overdraws, the thresholds crossed."""
    at, amount, wanted_id = command.at, command.amount, command.reservation_id
    if not 1 <= amount <= MAX_AMOUNT:
        raise InvalidCommand("amount")
    if not 1 <= len(wanted_id) <= 64:
        raise InvalidCommand("reservation_id")
    state, events = _settled(state, at)
    if state.open.get(wanted_id) is not None or find_closed(state, wanted_id) is not None:
        raise ReservationExists(reservation_id=wanted_id)
    limits, grants = state.limits, state.grants
    _check_age(limits, at)
    if len(state.open) >= state.terms.max_open and type(command) is Reserve:
        raise TooManyOpen(max_open=state.terms.max_open)
    rooms = [tally.room(at) for tally in limits]
    left = credits_left(grants, at) if grants else 0
    if rooms:
        amount = _fitting(state, rooms, left, command)
    drawn = _drawn(limits, rooms, left, amount) if left else 0
    crossings: list[Event] = []
    overdrawn = 0
    for tally, room in zip(limits, rooms, strict=True):
        counted = amount - drawn if drawn and tally.limit.overflow else amount
        overdrawn = max(overdrawn, counted - max(room, 0)) if counted > room else overdrawn
        if tally.limit.thresholds:
            crossings += _crossings(state.terms, tally, tally.locate(at), counted, at)
    return state, events, amount, draw(grants, drawn, at) if drawn else (), overdrawn, crossings


class QuotaTooOld(Rejected):
    """The moment lies in a window that is no longer remembered."""

    code: ClassVar[str] = "quota.too_old"


def _check_age(limits: tuple[Tally, ...], at: datetime) -> None:
    for tally in limits:
        if tally.forgets(at):
            raise QuotaTooOld(limit_id=tally.limit.limit_id)


class QuotaExceeded(Rejected):
    """There is not enough room left."""

    code: ClassVar[str] = "quota.exceeded"


def _fitting(state: Quota, rooms: list[int], left: int, command: Reserve | Consume) -> int:
    """How much of the amount is granted."""
    allowance, amount, mode = state.terms.allowance, command.amount, command.mode
    if allowance is None or mode is Mode.ADJUST:
        return amount
    most, tightest = MAX_AMOUNT + 1, 0
    for i, tally in enumerate(state.limits):
        reach = max(rooms[i] + allowance, 0)
        if left and tally.limit.overflow:
            reach += left
        if reach < most:
            most, tightest = reach, i
    if amount <= most:
        return amount
    if mode is Mode.BEST_EFFORT and most >= 1:
        return most
    tally = state.limits[tightest]
    raise QuotaExceeded(
        limit_id=tally.limit.limit_id,
        remaining=spendable(tally, command.at, left),
        requested=amount,
        retry_at=iso(tally.resets_at(command.at)),
    )


def _drawn(limits: tuple[Tally, ...], rooms: list[int], left: int, amount: int) -> int:
    """How much of the amount credits pay: what does not fit into the tightest limit that overflows."""
    shortfall = max([amount - max(room, 0) for tally, room in zip(limits, rooms, strict=True) if tally.limit.overflow], default=0)
    return max(0, min(shortfall, amount, left))


def _crossings(terms: Terms, tally: Tally, key: int, added: int, at: datetime) -> list[Event]:
    limit = tally.limit
    return [
        ThresholdCrossed(terms.subject, terms.meter, limit.limit_id, percent, limit.amount, tally.window_start(key), at)
        for percent in tally.crossings(key, added)
    ]


class ReservationExpired(Rejected):
    """The reservation has expired; what it held is free again."""

    code: ClassVar[str] = "quota.reservation_expired"


def _commit(command: Commit, state: State) -> Sequence[Event]:
    used, at = command.used, command.at
    if not 0 <= used <= MAX_AMOUNT:
        raise InvalidCommand("used")
    if command.ttl_seconds is not None and (command.final or not 1 <= command.ttl_seconds <= MAX_TTL_SECONDS):
        raise InvalidCommand("ttl_seconds")
    state, events = _settled(state, at)
    held: Open | None = state.open.get(command.reservation_id)
    if held is None:
        return _commit_again(command, state, events)
    left = max(0, held.amount - held.booked)
    if used > left:
        _check_extra(state, held, used - left, command)
    if command.final:
        events.append(Committed(command.reservation_id, used, held.booked + used, max(0, left - used), at))
    else:
        expires_at = held.expires_at
        if command.ttl_seconds is not None:
            expires_at = max(expires_at, at + timedelta(seconds=command.ttl_seconds))
        if used or expires_at != held.expires_at:
            events.append(Progressed(command.reservation_id, used, expires_at, at))
    if used > left:
        for tally, part in _counted_in(state, held, at):
            events += _crossings(state.terms, tally, part[1], used - left, at)
    return events


def _commit_again(command: Commit, state: Quota, events: list[Event]) -> list[Event]:
    closed = find_closed(state, command.reservation_id)
    if closed is None:
        raise ReservationNotFound(reservation_id=command.reservation_id)
    if closed.status == "expired":
        raise ReservationExpired(reservation_id=command.reservation_id)
    if closed.status != "committed" or not command.final or command.used != closed.last:
        raise ReservationClosed(reservation_id=command.reservation_id, status=closed.status)
    return events


class CommitExceedsReserved(Rejected):
    """More was used than is left of the reservation."""

    code: ClassVar[str] = "quota.commit_exceeds_reserved"


def _check_extra(state: Quota, held: Open, extra: int, command: Commit) -> None:
    """Whether the overdraft covers what was used beyond the reservation."""
    allowance = state.terms.allowance
    if allowance is None:
        return
    # The part that stays within the reservation only turns from reserved into used, so it changes no room.
    if allowance and all(tally.room_in(part[1]) - extra >= -allowance for tally, part in _counted_in(state, held, command.at)):
        return
    raise CommitExceedsReserved(reservation_id=command.reservation_id, left=max(0, held.amount - held.booked), used=command.used)


def _counted_in(state: Quota, held: Open, at: datetime) -> list[tuple[Tally, Part]]:
    """The limits and windows in which a reservation still counts at that moment."""
    seen = [tally.as_of(at) for tally in state.limits]
    return [(tally, part) for tally in seen for part in held.parts if part[0] == tally.born and tally.holds(part[1])]


def _rollback(command: Rollback, state: State) -> Sequence[Event]:
    state, events = _settled(state, command.at)
    held: Open | None = state.open.get(command.reservation_id)
    if held is not None:
        events.append(RolledBack(command.reservation_id, held.booked, max(0, held.amount - held.booked), command.at))
        return events
    closed = find_closed(state, command.reservation_id)
    if closed is None:
        raise ReservationNotFound(reservation_id=command.reservation_id)
    if closed.status == "committed":
        raise ReservationClosed(reservation_id=command.reservation_id, status=closed.status)
    return events


class GrantExists(Rejected):
    """Another grant has this id."""

    code: ClassVar[str] = "quota.grant_exists"


class TooManyGrants(Rejected):
    """Too many grants are in force at once."""

    code: ClassVar[str] = "quota.too_many_grants"


def _grant(command: Grant, state: State) -> Sequence[Event]:
    at = command.at
    _check_target(command)
    _check_grant(command)
    events: list[Event] = []
    if isinstance(state, Quota):
        state, events = _settled(state, at)
        if (known := find(state.grants, command.grant_id)) is not None:
            if not _same_grant(command, known):
                raise GrantExists(grant_id=command.grant_id)
            return events
        if is_full(state.grants, at):
            raise TooManyGrants()
    effective_at = command.effective_at or at
    # Not earlier: a grant that was accepted may be sent again after it has expired.
    if command.expires_at is not None and command.expires_at <= effective_at:
        raise InvalidCommand("expires_at")
    terms = command.amount, command.priority, effective_at, command.expires_at
    rollover = command.rollover_amount, command.rollover_until
    events.append(Granted(command.subject, command.meter, command.grant_id, *terms, *rollover, at))
    return events


def _check_grant(command: Grant) -> None:
    expires_at, until = command.expires_at, command.rollover_until
    if not 1 <= len(command.grant_id) <= 64:
        raise InvalidCommand("grant_id")
    if not 1 <= command.amount <= MAX_AMOUNT:
        raise InvalidCommand("amount")
    if not -(2**31) <= command.priority < 2**31:
        raise InvalidCommand("priority")
    for name, moment in (("effective_at", command.effective_at), ("expires_at", expires_at), ("rollover_until", until)):
        if moment is not None and moment.utcoffset() is None:
            raise InvalidCommand(name)
    if not 0 <= command.rollover_amount <= command.amount:
        raise InvalidCommand("rollover_amount")
    if (until is None) != (command.rollover_amount == 0) or (until is not None and (expires_at is None or until <= expires_at)):
        raise InvalidCommand("rollover_until")


def _same_grant(command: Grant, known: GrantBalance) -> bool:
    # Without effective_at a grant takes effect when it arrives, so one that is sent again has no moment to compare.
    return (command.amount, command.priority, command.expires_at, command.rollover_amount, command.rollover_until) == (
        known.amount, known.priority, known.expires_at, known.rollover_amount, known.rollover_until,
    ) and command.effective_at in (None, known.effective_at)  # fmt: skip


class GrantNotFound(Rejected):
    """There is no such grant."""

    code: ClassVar[str] = "quota.grant_not_found"
    frozen: ClassVar[bool] = False
    status: ClassVar[str] = "not_found"


def _void_grant(command: VoidGrant, state: State) -> Sequence[Event]:
    state, events = _settled(state, command.at)
    known = find(state.grants, command.grant_id)
    if known is None:
        raise GrantNotFound(grant_id=command.grant_id)
    if known.voided is None:
        events.append(GrantVoided(command.grant_id, known.left(command.at), command.at))
    return events


def _set_limits(command: SetLimits, state: State) -> Sequence[Event]:
    _check_target(command)
    _check_limits(command)
    events: list[Event] = []
    if isinstance(state, Quota):
        state, events = _settled(state, command.at)
        terms = state.terms
        standing = terms.zone, tuple(tally.limit for tally in state.limits), terms.overdraft, terms.max_open
        if standing == (command.zone, command.limits, command.overdraft, command.max_open):
            return events
    events.append(LimitsSet(command.subject, command.meter, command.zone, command.limits, command.overdraft, command.max_open, command.at))
    return events


def _check_limits(command: SetLimits) -> None:
    if not zone_is_known(command.zone):
        raise InvalidCommand("zone")
    if not limits_are_valid(command.limits):
        raise InvalidCommand("limits")
    if not overdraft_is_valid(command.overdraft):
        raise InvalidCommand("overdraft")
    if not 1 <= command.max_open <= 100_000:
        raise InvalidCommand("max_open")


def _check_target(command: Grant | SetLimits | Adjust) -> None:
    if not 1 <= len(command.subject) <= 200:
        raise InvalidCommand("subject")
    if not 1 <= len(command.meter) <= 200 or "\x00" in command.meter:
        raise InvalidCommand("meter")


def _adjust(command: Adjust, state: State) -> Sequence[Event]:
    amount, at = command.amount, command.at
    _check_target(command)
    if amount == 0 or not -MAX_AMOUNT <= amount <= MAX_AMOUNT:
        raise InvalidCommand("amount")
    if not 1 <= len(command.reason) <= 64:
        raise InvalidCommand("reason")
    state, events = _settled(state, at)
    _check_age(state.limits, at)
    events.append(Adjusted(command.subject, command.meter, amount, command.reason, at))
    for tally in state.limits:
        events += _crossings(state.terms, tally, tally.locate(at), amount, at)
    return events


# Evolve


def evolve(state: State, event: QuotaEvent) -> State:
    """Never refuses: an event is a fact, and one about what is not there changes nothing."""
    match event:
        case LimitsSet():
            return _limits_set(state, event)
        case Granted():
            return _granted(state, event)
        case _ if isinstance(state, NotConfigured):
            return state
        case Reserved():
            return _reserved(state, event)
        case Committed():
            return _ended(state, event.reservation_id, event.used, "committed", event.at)
        case Progressed():
            return _progressed(state, event)
        case Expired():
            return _ended(state, event.reservation_id, 0, "expired", event.at)
        case RolledBack():
            return _ended(state, event.reservation_id, 0, "rolled_back", event.at)
        case Consumed():
            return _consumed(state, event)
        case ThresholdCrossed():
            return _crossed(state, event)
        case Adjusted():
            limits = tuple([tally.add(tally.locate(event.at), event.amount, 0) for tally in state.limits])
            return _with(state, limits, state.grants, used=event.amount)
        case GrantVoided():
            grants = tuple([grant.void(event.freed) if grant.grant_id == event.grant_id else grant for grant in state.grants])
            return _with(state, state.limits, grants)
        case _:
            assert_never(event)


def _with(state: Quota, limits: tuple[Tally, ...], grants: Grants, used: int = 0) -> Quota:
    return Quota(
        state.terms, limits, grants, state.open, state.expiries, state.closed, state.closed_before, state.used + used, state.reserved
    )


def _limits_set(state: State, event: LimitsSet) -> Quota:
    born = state.terms.next_born if isinstance(state, Quota) else 0
    limits: list[Tally] = []
    for limit in event.limits:
        kept = _standing(state, limit, event.zone) if isinstance(state, Quota) else None
        limits.append(new_tally(born, limit, event.zone) if kept is None else kept.with_limit(limit))
        born += kept is None
    terms = _terms(event.subject, event.meter, event.zone, event.overdraft, event.max_open, born)
    if isinstance(state, NotConfigured):
        return Quota(terms, tuple(limits), (), Map(), Heap(), Map(), Map(), 0, 0)
    return Quota(
        terms, tuple(limits), state.grants, state.open, state.expiries, state.closed, state.closed_before, state.used, state.reserved
    )


def _standing(state: Quota, limit: Limit, zone: str) -> Tally | None:
    """The counters a limit keeps: windows of a calendar are others in another zone, so those start anew."""
    for tally in state.limits:
        if tally.limit.limit_id == limit.limit_id and tally.limit.window == limit.window:
            same = zone == state.terms.zone or limit.window.kind in ("lifetime", "rolling")
            return tally if same else None
    return None


def _terms(subject: str, meter: str, zone: str, overdraft: Overdraft, max_open: int, next_born: int) -> Terms:
    allowance = {"none": 0, "bounded": overdraft.amount, "soft": None}[overdraft.kind]
    return Terms(subject, meter, zone, overdraft, max_open, next_born, allowance)


def _granted(state: State, event: Granted) -> Quota:
    if isinstance(state, NotConfigured):
        state = _limits_set(state, LimitsSet(event.subject, event.meter, "UTC", (PREPAID,), NO_OVERDRAFT, MAX_OPEN, event.at))
    number = 1 + max((grant.number for grant in state.grants), default=-1)
    grant = GrantBalance(
        event.grant_id, number, event.amount, event.priority, event.effective_at, event.expires_at,
        event.rollover_amount, event.rollover_until, event.amount,
    )  # fmt: skip
    return _with(state, state.limits, granted(state.grants, grant, event.at))


def _spread(state: Quota, event: Reserved | Consumed) -> tuple[list[tuple[Tally, int]], Grants]:
    """How many units of what was granted count in which limit, and the grants after paying their part."""
    amount, uses = event.amount, event.credits
    if not uses:
        return [(tally, amount) for tally in state.limits], state.grants
    own = amount - sum([use.amount for use in uses])
    spread = [(tally, own if tally.limit.overflow else amount) for tally in state.limits]
    return spread, taken(state.grants, uses, event.at)


def _reserved(state: Quota, event: Reserved) -> Quota:
    at, amount, identity = event.at, event.amount, event.reservation_id
    spread, grants = _spread(state, event)
    limits, parts = [], []
    for tally, counted in spread:
        key = tally.locate(at)
        limits.append(tally.add(key, 0, counted))
        parts.append((tally.born, key, counted))
    held = Open(amount, 0, at, event.expires_at, tuple(parts), event.credits)
    expiries = state.expiries.push((event.expires_at, identity))
    return Quota(
        state.terms, tuple(limits), grants, state.open.set(identity, held), expiries,
        state.closed, state.closed_before, state.used, state.reserved + amount,
    )  # fmt: skip


def _consumed(state: Quota, event: Consumed) -> Quota:
    spread, grants = _spread(state, event)
    limits = tuple([tally.add(tally.locate(event.at), counted, 0) for tally, counted in spread])
    closed, before = _remember(state, event.reservation_id, Closed("committed", event.amount, event.amount, 0))
    return Quota(state.terms, limits, grants, state.open, state.expiries, closed, before, state.used + event.amount, state.reserved)


def _progressed(state: Quota, event: Progressed) -> Quota:
    identity = event.reservation_id
    held: Open | None = state.open.get(identity)
    if held is None:
        return state
    booked = held.booked + event.used
    limits = _booked(state.limits, held, booked, ended=False)
    expiries = state.expiries
    if event.expires_at != held.expires_at:
        expiries = expiries.push((event.expires_at, identity))
    opened = state.open.set(identity, Open(held.amount, booked, held.at, event.expires_at, held.parts, held.credits))
    released = max(0, held.amount - held.booked) - max(0, held.amount - booked)
    return Quota(
        state.terms, limits, state.grants, opened, _tidy(expiries, opened, event.at), state.closed, state.closed_before,
        state.used + event.used, state.reserved - released,
    )  # fmt: skip


def _ended(state: Quota, identity: str, used: int, status: Literal["committed", "rolled_back", "expired"], at: datetime) -> Quota:
    held: Open | None = state.open.get(identity)
    if held is None:
        return state
    total = held.booked + used
    limits = _booked(state.limits, held, total, ended=True)
    grants = _refunded(state.grants, held, total) if held.credits else state.grants
    opened = state.open.without(identity)
    closed, before = _remember(state, identity, Closed(status, used, total, max(0, held.amount - total)))
    reserved = state.reserved - max(0, held.amount - held.booked)
    expiries = _tidy(state.expiries, opened, at)
    return Quota(state.terms, limits, grants, opened, expiries, closed, before, state.used + used, reserved)


def _booked(limits: tuple[Tally, ...], held: Open, total: int, ended: bool) -> tuple[Tally, ...]:
    """The limits after ``total`` units of a reservation are used; once it has ended nothing of it stays reserved.

    Of what counts in a limit the first units are used first, so that credits are needed last and come back first.
    """
    amount, booked, parts = held.amount, held.booked, held.parts
    moved = []
    for i, tally in enumerate(limits):
        part = parts[i] if i < len(parts) else None
        if part is None or part[0] != tally.born:  # the limits changed since
            part = next((other for other in parts if other[0] == tally.born), None)
        if part is not None:
            _, key, counted = part
            before, after = min(booked, counted), min(total, counted)
            used = after - before
            if total > amount:
                used += total - max(booked, amount)
            moved.append(tally.add(key, used, before - counted if ended else before - after))
        else:
            moved.append(tally)
    return tuple(moved)


def _refunded(grants: Grants, held: Open, total: int) -> Grants:
    drawn = sum([use.amount for use in held.credits])
    needed = min(drawn, max(0, total - (held.amount - drawn)))
    return taken(grants, returned(held.credits, drawn - needed), held.at, -1) if needed < drawn else grants


def _remember(state: Quota, identity: str, closed: Closed) -> tuple[Map[str, Closed], Map[str, Closed]]:
    """The two generations of closed reservations: when the younger is full the older is forgotten."""
    if len(state.closed) >= CLOSED_REMEMBERED:
        return Map({identity: closed}), state.closed
    return state.closed.set(identity, closed), state.closed_before


def _tidy(expiries: Heap[tuple[datetime, str]], opened: Map[str, Open], at: datetime) -> Heap[tuple[datetime, str]]:
    """The heap without what ended before it was due, dropped when it is due or when it is most of the heap."""
    if expiries.size > 2 * len(opened) + 64:
        return Heap([(held.expires_at, identity) for identity, held in opened.items()])
    # Otherwise each later command would have to look through the same ones again.
    while (least := expiries.least) is not None and least[0] <= at:
        held: Open | None = opened.get(least[1])
        if held is not None and held.expires_at == least[0]:
            break
        expiries = expiries.pop()
    return expiries


def _crossed(state: Quota, event: ThresholdCrossed) -> Quota:
    limits = [
        tally.cross(event.window_start, event.percent, event.at) if tally.limit.limit_id == event.limit_id else tally
        for tally in state.limits
    ]
    return _with(state, tuple(limits), state.grants)


# Reply


def iso(moment: datetime | None) -> str | None:
    """RFC 3339 in UTC, with Z."""
    if moment is None:
        return None
    if moment.tzinfo is not UTC:
        moment = moment.astimezone(UTC)
    return moment.isoformat()[:-6] + "Z"


def reply(command: QuotaCommand, before: State, after: State, events: Sequence[Event]) -> Mapping[str, Any]:
    """What the caller is told. Maps of ``before`` are left alone: reading an old version takes them from the new one."""
    if isinstance(after, NotConfigured):
        return {"expired": 0}
    match command:
        case Reserve():
            return _reserve_reply(command, after, events)
        case Commit():
            return _commit_reply(command, after)
        case Rollback():
            closed = find_closed(after, command.reservation_id)
            assert closed is not None
            room = remaining(after, command.at)
            return {"reservation_id": command.reservation_id, "status": closed.status, "freed": closed.freed, "remaining": room}
        case Consume():
            return _consume_reply(command, after, events)
        case Expire():
            return {"expired": len(events), "remaining": remaining(after, command.at)}
        case Grant():
            left = credits_left(after.grants, command.at)
            return {"grant_id": command.grant_id, "amount": command.amount, "credits_remaining": left}
        case VoidGrant():
            known = find(after.grants, command.grant_id)
            left = credits_left(after.grants, command.at)
            return {"grant_id": command.grant_id, "freed": known.voided if known else 0, "credits_remaining": left}
        case SetLimits():
            return {"limits": len(after.limits), "remaining": remaining(after, command.at)}
        case Adjust():
            return {"amount": command.amount, "used": after.used, "remaining": remaining(after, command.at)}
        case _:
            assert_never(command)


def _reserve_reply(command: Reserve, after: Quota, events: Sequence[Event]) -> Mapping[str, Any]:
    for fact in events:
        if type(fact) is Reserved:
            return {
                "reservation_id": command.reservation_id,
                "status": "reserved",
                "granted": fact.amount,
                "overdrawn": fact.overdrawn,
                "expires_at": iso(fact.expires_at),
                "remaining": remaining(after, command.at),
            }
    state, _, granted, _, overdrawn, _ = _admit(command, after)
    return {
        "reservation_id": command.reservation_id,
        "status": "checked",
        "granted": granted,
        "overdrawn": overdrawn,
        "expires_at": None,
        "remaining": remaining(state, command.at),
    }


def _commit_reply(command: Commit, after: Quota) -> Mapping[str, Any]:
    identity, left = command.reservation_id, remaining(after, command.at)
    held: Open | None = after.open.get(identity)
    if held is not None:
        return {"reservation_id": identity, "status": "open", "used": held.booked, "freed": 0, "remaining": left}
    closed = find_closed(after, identity)
    assert closed is not None
    return {"reservation_id": identity, "status": closed.status, "used": closed.total, "freed": closed.freed, "remaining": left}


def _consume_reply(command: Consume, after: Quota, events: Sequence[Event]) -> Mapping[str, Any]:
    consumed = next((fact for fact in events if isinstance(fact, Consumed)), None)
    if consumed is not None:
        status, granted, used, overdrawn = "committed", consumed.amount, consumed.amount, consumed.overdrawn
    else:
        after, _, granted, _, overdrawn, _ = _admit(command, after)
        status, used = "checked", 0
    return {
        "reservation_id": command.reservation_id,
        "status": status,
        "granted": granted,
        "used": used,
        "freed": 0,
        "overdrawn": overdrawn,
        "remaining": remaining(after, command.at),
    }


# Freeze and thaw


@dataclass(frozen=True, slots=True)
class FrozenQuota:
    """A quota for a snapshot, in a fixed order; one without a meter is not configured."""

    subject: str = ""
    meter: str = ""
    zone: str = "UTC"
    overdraft: Overdraft = NO_OVERDRAFT
    max_open: int = MAX_OPEN
    next_born: int = 0
    limits: tuple[FrozenTally, ...] = ()
    grants: tuple[GrantBalance, ...] = ()
    open: tuple[tuple[str, Open], ...] = ()
    closed: tuple[tuple[str, Closed], ...] = ()
    closed_before: tuple[tuple[str, Closed], ...] = ()
    used: int = 0
    reserved: int = 0


def freeze(state: State) -> FrozenQuota:
    if isinstance(state, NotConfigured):
        return FrozenQuota()
    terms = state.terms
    return FrozenQuota(
        terms.subject, terms.meter, terms.zone, terms.overdraft, terms.max_open, terms.next_born,
        tuple(tally.freeze() for tally in state.limits),
        state.grants,
        tuple(sorted(state.open.items(), key=_identity)),
        tuple(sorted(state.closed.items(), key=_identity)),
        tuple(sorted(state.closed_before.items(), key=_identity)),
        state.used, state.reserved,
    )  # fmt: skip


def _identity(pair: tuple[str, Open | Closed]) -> str:
    return pair[0]


def thaw(frozen: FrozenQuota) -> State:
    if not frozen.meter:
        return NOT_CONFIGURED
    return Quota(
        _terms(frozen.subject, frozen.meter, frozen.zone, frozen.overdraft, frozen.max_open, frozen.next_born),
        tuple(thaw_tally(tally, frozen.zone) for tally in frozen.limits),
        frozen.grants,
        Map(frozen.open),
        Heap([(held.expires_at, identity) for identity, held in frozen.open]),
        Map(frozen.closed),
        Map(frozen.closed_before),
        frozen.used,
        frozen.reserved,
    )


QUOTA: Decider[State] = Decider(
    category="quota",
    commands=(Reserve, Commit, Rollback, Consume, Expire, Grant, VoidGrant, SetLimits, Adjust),
    events=(
        LimitsSet, Reserved, Progressed, Committed, RolledBack, Expired, Consumed, Granted, GrantVoided, Adjusted, ThresholdCrossed,
    ),
    initial=NOT_CONFIGURED,
    decide=decide,
    evolve=evolve,
    reply=reply,
    frozen_type=FrozenQuota,
    freeze=freeze,
    thaw=thaw,
    refusals=(
        CommitExceedsReserved, GrantExists, GrantNotFound, InvalidCommand, QuotaExceeded, QuotaNotFound, QuotaTooOld,
        ReservationClosed, ReservationExists, ReservationExpired, ReservationNotFound, TooManyGrants, TooManyOpen,
    ),
)  # fmt: skip

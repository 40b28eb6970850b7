"""Decide whether there is room: reserve and consume."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import ClassVar, TypeVar

from domain.kernel.decider import Event, Rejected
from domain.quota.commands import MAX_TTL_SECONDS, Consume, Mode, Reserve
from domain.quota.credits import CreditUse, credits_left, draw
from domain.quota.events import Consumed, Reserved
from domain.quota.limits import MAX_AMOUNT, Tally
from domain.quota.moments import iso
from domain.quota.refusals import InvalidCommand
from domain.quota.state import Quota, State, find_closed, spendable
from domain.quota.steps import _check_age, _crossings, _settled


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

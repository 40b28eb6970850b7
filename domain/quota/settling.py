"""Decide how a reservation ends: commit and roll back."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import ClassVar

from domain.kernel.decider import Event, Rejected
from domain.quota.commands import MAX_TTL_SECONDS, Commit, Rollback
from domain.quota.events import Committed, Progressed, RolledBack
from domain.quota.limits import MAX_AMOUNT, Tally
from domain.quota.refusals import InvalidCommand, ReservationClosed, ReservationNotFound
from domain.quota.state import Open, Part, Quota, State, find_closed
from domain.quota.steps import _crossings, _settled


class ReservationExpired(Rejected):
    """The reservation has expired; what it held is free again."""

    code: ClassVar[str] = "quota.reservation_expired"


def _commit(command: Commit, state: State) -> Sequence[Event]:
    used, at = command.used, command.at
    if not 0 <= used <= MAX_AMOUNT:
        raise InvalidCommand("used")
    if command.ttl_seconds is not None and (command.final or not 1 <= command.ttl_seconds <= MAX_TTL_SECONDS):
        raise InvalidCommand("ttl_seconds")
    _check_owner(command, state)
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


def _check_owner(command: Commit | Rollback, state: State) -> None:
    """Somebody else's is answered as one that there is not, so that nothing can be learned of it."""
    if command.only_of is not None and not (isinstance(state, Quota) and state.terms.subject == command.only_of):
        raise ReservationNotFound(reservation_id=command.reservation_id)


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
    _check_owner(command, state)
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

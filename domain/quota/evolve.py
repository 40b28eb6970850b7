"""Evolve: what a quota is after an event."""

from __future__ import annotations

from datetime import datetime
from typing import Literal, assert_never

from domain.kernel.persistent import Heap, Map
from domain.quota.commands import MAX_OPEN
from domain.quota.credits import GrantBalance, Grants, granted, returned, taken
from domain.quota.events import (
    Adjusted,
    Committed,
    Consumed,
    Expired,
    Granted,
    GrantVoided,
    LimitsSet,
    Progressed,
    QuotaEvent,
    Reserved,
    RolledBack,
    ThresholdCrossed,
)
from domain.quota.limits import LIFETIME, NO_OVERDRAFT, Limit, Overdraft, Tally, new_tally
from domain.quota.state import Closed, NotConfigured, Open, Quota, State, Terms

CLOSED_REMEMBERED = 1_000
"""At least so many reservations that ended last are remembered, at most twice as many."""

PREPAID = Limit("prepaid", 0, LIFETIME, overflow=True, thresholds=())
"""The limit of a quota that was only ever granted credits: nothing is free."""


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

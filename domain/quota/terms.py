"""Decide what an operator may change: limits, grants, what is used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from domain.kernel.decider import Event, Rejected
from domain.quota.commands import Adjust, Grant, SetLimits, VoidGrant
from domain.quota.credits import GrantBalance, find, is_full
from domain.quota.events import Adjusted, Granted, GrantVoided, LimitsSet
from domain.quota.limits import MAX_AMOUNT, limits_are_valid, overdraft_is_valid, zone_is_known
from domain.quota.refusals import InvalidCommand
from domain.quota.state import Quota, State
from domain.quota.steps import _check_age, _crossings, _settled


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

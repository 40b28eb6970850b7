"""Decide: which events a command leads to, or why it is refused. The work is done in admission, settling and terms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from domain.kernel.decider import Event
from domain.quota.admission import _consume, _reserve
from domain.quota.commands import Adjust, Commit, Consume, Expire, Grant, QuotaCommand, Reserve, Rollback, SetLimits, VoidGrant
from domain.quota.settling import _commit, _rollback
from domain.quota.state import Quota, State, due
from domain.quota.terms import _adjust, _grant, _set_limits, _void_grant


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

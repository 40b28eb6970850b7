"""Reply: what the caller is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, assert_never

from domain.kernel.decider import Event
from domain.quota.admission import _admit
from domain.quota.commands import Adjust, Commit, Consume, Expire, Grant, QuotaCommand, Reserve, Rollback, SetLimits, VoidGrant
from domain.quota.credits import credits_left, find
from domain.quota.events import Consumed, Reserved
from domain.quota.moments import iso
from domain.quota.state import NotConfigured, Open, Quota, State, find_closed, remaining


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

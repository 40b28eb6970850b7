"""Retention: for how many days a tenant keeps each kind of data that is no part of the log.

What the log holds is kept for ever; what is personal in it ends by erasure. Every kind has a default and bounds, in one table. A shorter
policy takes effect the next time the worker looks, also on what was kept under the longer one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, NamedTuple, assert_never
from uuid import UUID

from domain.kernel.decider import Command, Decider, Event, Rejected, event

__all__ = ["KINDS", "RETENTION", "Kind", "ResetRetention", "Retention", "SetRetention", "retention_stream"]


class Kind(NamedTuple):
    """A kind of data. ``default`` and ``most`` of None: for ever."""

    default: int | None
    least: int
    most: int | None
    meaning: str


KINDS: Mapping[str, Kind] = {
    "telemetry": Kind(30, 1, 400, "Telemetry, which holds nothing personal."),
    "origins": Kind(90, 1, 400, "From which addresses commands came."),
    "refusals": Kind(30, 1, 400, "Samples of what was refused at the door."),
    "inactive_people": Kind(None, 30, None, "People who do not sign in: they are erased, owners and operators never."),
}
"""Every kind there is, with its days."""


def retention_stream(tenant_id: UUID) -> str:
    """The stream of a tenant's policies."""
    return f"retention-{tenant_id.hex}"


# Events. Stored for ever: never rename or remove a class or a field; a change of shape is a new version and an upcast.


@event("retention.set")
@dataclass(frozen=True, slots=True)
class RetentionSet(Event):
    """A kind of data is kept for so many days; None is for ever."""

    kind: str
    days: int | None
    at: datetime


@event("retention.reset")
@dataclass(frozen=True, slots=True)
class RetentionReset(Event):
    """A kind of data is kept as long as the default says."""

    kind: str
    at: datetime


# Commands


@dataclass(slots=True, kw_only=True)
class SetRetention(Command):
    kind: str
    days: int | None


@dataclass(slots=True, kw_only=True)
class ResetRetention(Command):
    kind: str


RetentionCommand = SetRetention | ResetRetention
RetentionEvent = RetentionSet | RetentionReset


# State


class Policy(NamedTuple):
    """What a tenant chose for a kind."""

    kind: str
    days: int | None


@dataclass(frozen=True, slots=True)
class Retention:
    """What the tenant chose, in the order it did; everything else is by default."""

    policies: tuple[Policy, ...] = ()

    def find(self, kind: str) -> Policy | None:
        """What was chosen for a kind."""
        return next((policy for policy in self.policies if policy.kind == kind), None)

    def days(self, kind: str) -> int | None:
        """For how many days the kind is kept; None is for ever."""
        policy = self.find(kind)
        return KINDS[kind].default if policy is None else policy.days


# Decide


class InvalidRetention(Rejected):
    """There is no such kind of data, or it may not be kept for so many days."""

    code: ClassVar[str] = "retention.invalid"
    frozen: ClassVar[bool] = False
    status: ClassVar[str] = "invalid"


def decide_retention(command: RetentionCommand, state: Retention) -> Sequence[Event]:
    """The checks come in this order: the kind, its bounds."""
    kind = KINDS.get(command.kind)
    if kind is None:
        raise InvalidRetention("kind")
    match command:
        case SetRetention():
            return _set(command, kind, state)
        case ResetRetention():
            return [] if state.find(command.kind) is None else [RetentionReset(command.kind, command.at)]
        case _:
            assert_never(command)


def _set(command: SetRetention, kind: Kind, state: Retention) -> Sequence[Event]:
    days = command.days
    too_long = kind.most is not None and (days is None or days > kind.most)
    if too_long or (days is not None and not kind.least <= days <= 36_500):
        raise InvalidRetention("days", least=kind.least, most=kind.most)
    policy = Policy(command.kind, days)
    return [] if state.find(command.kind) == policy else [RetentionSet(command.kind, days, command.at)]


# Evolve


def evolve_retention(state: Retention, event: RetentionEvent) -> Retention:
    """Never refuses."""
    others = tuple(policy for policy in state.policies if policy.kind != event.kind)
    match event:
        case RetentionSet():
            return Retention((*others, Policy(event.kind, event.days)))
        case RetentionReset():
            return Retention(others)
        case _:
            assert_never(event)


# Reply


def reply_retention(command: RetentionCommand, before: Retention, after: Retention, events: Sequence[Event]) -> Mapping[str, Any]:
    return {"kind": command.kind, "days": after.days(command.kind)}


# Freeze and thaw


def _same(state: Retention) -> Retention:
    return state


RETENTION: Decider[Retention] = Decider(
    category="retention",
    commands=(SetRetention, ResetRetention),
    events=(RetentionSet, RetentionReset),
    initial=Retention(),
    decide=decide_retention,
    evolve=evolve_retention,
    reply=reply_retention,
    frozen_type=Retention,
    freeze=_same,
    thaw=_same,
    refusals=(InvalidRetention,),
)

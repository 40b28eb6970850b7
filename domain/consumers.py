"""Which events an operator had a consumer skip.

A consumer stops at an event that it cannot apply. An operator may then have it go on without that event: this is recorded, with
the reason, in the partition and under the tenant of the event itself. It holds for one version of the consumer's fold; a newer
one gets the event again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID, uuid5

from domain.kernel.decider import Command, Decider, Event, Rejected, event

__all__ = ["CONSUMER", "EventSkipped", "SkipEvent", "Skips", "consumer_stream", "skip_command_id"]

MAX_REASON = 500
_NAME = re.compile(r"[a-z][a-z0-9_.:-]{0,99}")
_COMMANDS = UUID("6d0f6a43-9f4c-5f2c-8a56-9d2a8f1f2b11")


def consumer_stream(tenant_id: UUID, consumer: str) -> str:
    """The stream of what one consumer skips of one tenant's events."""
    return "consumer-" + uuid5(tenant_id, f"consumer\x00{consumer}").hex


def skip_command_id(consumer: str, version: int, partition: int, position: int) -> UUID:
    """The id of the command to skip this event: the same for everybody who wants it, and when it is tried again."""
    return uuid5(_COMMANDS, f"{consumer}|{version}|{partition}|{position}")


# Events. Stored for ever: never rename or remove a class or a field; a change of shape is a new version and an upcast.


@event("consumer.event_skipped")
@dataclass(frozen=True, slots=True)
class EventSkipped(Event):
    """``version`` is the fold's, 0 for a consumer that is no projection."""

    consumer: str
    version: int
    partition: int
    position: int
    reason: str
    at: datetime


# Commands


@dataclass(slots=True, kw_only=True)
class SkipEvent(Command):
    """``reason`` is kept for ever: it must not hold what an event holds of persons."""

    consumer: str
    version: int
    partition: int
    position: int
    reason: str


# State


@dataclass(frozen=True, slots=True)
class Skips:
    """``skipped`` are (version, position), in the order they were skipped."""

    skipped: tuple[tuple[int, int], ...] = ()


# Decide


class InvalidSkip(Rejected):
    """A field of the command makes no sense."""

    code: ClassVar[str] = "consumer.skip_invalid"
    frozen: ClassVar[bool] = False
    status: ClassVar[str] = "invalid"


def decide(command: SkipEvent, state: Skips) -> Sequence[Event]:
    """The checks come in this order: shape of the command, whether it is skipped already."""
    if not _NAME.fullmatch(command.consumer):
        raise InvalidSkip("consumer")
    if command.version < 0:
        raise InvalidSkip("version")
    if command.partition < 0:
        raise InvalidSkip("partition")
    if command.position < 1:
        raise InvalidSkip("position")
    if not 1 <= len(command.reason.strip()) <= MAX_REASON:
        raise InvalidSkip("reason")
    if (command.version, command.position) in state.skipped:
        return ()
    return [EventSkipped(command.consumer, command.version, command.partition, command.position, command.reason, command.at)]


# Evolve


def evolve(state: Skips, event: EventSkipped) -> Skips:
    """Never refuses."""
    return Skips((*state.skipped, (event.version, event.position)))


# Reply


def reply(command: SkipEvent, before: Skips, after: Skips, events: Sequence[Event]) -> Mapping[str, Any]:
    return {"consumer": command.consumer, "partition": command.partition, "position": command.position, "status": "skipped"}


# Freeze and thaw


def _same(state: Skips) -> Skips:
    return state


CONSUMER: Decider[Skips] = Decider(
    category="consumer",
    commands=(SkipEvent,),
    events=(EventSkipped,),
    initial=Skips(),
    decide=decide,
    evolve=evolve,
    reply=reply,
    frozen_type=Skips,
    freeze=_same,
    thaw=_same,
    refusals=(InvalidSkip,),
)

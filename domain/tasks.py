"""Which tasks an operator had skipped.

A task that cannot be done stops its lane. An operator may have the lane go on without it: this is recorded, with the reason, under
the tenant whose task it was, before the task is removed. What the task should have led to is then up to the operator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar
from uuid import NAMESPACE_URL, UUID, uuid5

from domain.kernel.decider import Command, Decider, Event, Rejected, event

__all__ = ["TASKS", "Lane", "SkipTask", "TaskSkipped", "skip_task_id", "task_stream"]

MAX_REASON = 500
_SKIP = uuid5(NAMESPACE_URL, "holdbook:task:skip")


def task_stream(tenant_id: UUID, consumer: str, lane: str) -> str:
    """The stream of what was skipped of one lane."""
    return "task-" + uuid5(tenant_id, f"{consumer}|{lane}").hex


def skip_task_id(tenant_id: UUID, consumer: str, lane: str, number: int) -> UUID:
    """The id of the command to skip this task: the same for everybody who wants it, and when it is tried again."""
    return uuid5(_SKIP, f"{tenant_id.hex}|{consumer}|{number}|{lane}")


# Events. Stored for ever: never rename or remove a class or a field; a change of shape is a new version and an upcast.


@event("task.skipped")
@dataclass(frozen=True, slots=True)
class TaskSkipped(Event):
    """A task of a consumer's lane was removed without being done; ``number`` is its place in the lane."""

    consumer: str
    lane: str
    number: int
    reason: str
    at: datetime


# Commands


@dataclass(slots=True, kw_only=True)
class SkipTask(Command):
    """``reason`` is kept for ever: it must not hold what a task holds of persons."""

    consumer: str
    lane: str
    number: int
    reason: str


# State


@dataclass(frozen=True, slots=True)
class Lane:
    """``skipped_last`` is the number of the task skipped last; a lane is in order, so that is enough."""

    skipped_last: int | None = None


# Decide


class InvalidTaskSkip(Rejected):
    """A field of the command makes no sense."""

    code: ClassVar[str] = "task.skip_invalid"
    frozen: ClassVar[bool] = False
    status: ClassVar[str] = "invalid"


def decide(command: SkipTask, state: Lane) -> Sequence[Event]:
    """The checks come in this order: shape of the command, whether it is skipped already."""
    if not command.consumer:
        raise InvalidTaskSkip("consumer")
    if not command.lane:
        raise InvalidTaskSkip("lane")
    if not 1 <= len(command.reason.strip()) <= MAX_REASON:
        raise InvalidTaskSkip("reason")
    if command.number == state.skipped_last:
        return ()
    return [TaskSkipped(command.consumer, command.lane, command.number, command.reason, command.at)]


# Evolve


def evolve(state: Lane, event: TaskSkipped) -> Lane:
    """Never refuses."""
    return Lane(event.number)


# Reply


def reply(command: SkipTask, before: Lane, after: Lane, events: Sequence[Event]) -> Mapping[str, Any]:
    return {"consumer": command.consumer, "lane": command.lane, "number": command.number, "status": "skipped"}


# Freeze and thaw


def _same(state: Lane) -> Lane:
    return state


TASKS: Decider[Lane] = Decider(
    category="task",
    commands=(SkipTask,),
    events=(TaskSkipped,),
    initial=Lane(),
    decide=decide,
    evolve=evolve,
    reply=reply,
    frozen_type=Lane,
    freeze=_same,
    thaw=_same,
    refusals=(InvalidTaskSkip,),
)

"""Moments that a stream waits for: a trial's end, a reminder, the next step of a dunning.

An aggregate says with each event which of its deadlines begin, move or end (`Decider.deadlines`) and which command a deadline that has
come leads to (`Decider.when_due`). A deadline is known by its name within its stream. Its command is submitted until the deadline
was moved or ended, or the command was refused for good; it must therefore lead to an event that does one of these. A decision
that depends on a moment looks at the command's ``at`` and never waits for the deadline's command: that comes after its moment, sometime.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import NAMESPACE_URL, UUID, uuid5

_DEADLINE = uuid5(NAMESPACE_URL, "holdbook:deadline")


@dataclass(frozen=True, slots=True)
class Due:
    """The stream's deadline of this name comes at this moment; one that was set before moves."""

    name: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Done:
    """The stream has no deadline of this name any more; that there was none is no mistake."""

    name: str


def deadline_command_id(tenant_id: UUID, stream: str, name: str, version: int, at: datetime) -> UUID:
    """The id of the command that a deadline leads to, the same for whoever submits it.

    ``version`` is that of the event that set it: the same moment set again is another deadline.
    """
    return uuid5(_DEADLINE, f"{tenant_id.hex}|{stream}|{name}|{version}|{at.astimezone(UTC).isoformat()}")

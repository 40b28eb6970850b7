"""What an operator of the platform looked at in a tenant: the tenant sees in its own log that it was done.

One record for each operator, thing and minute, so that turning pages does not flood the log. What an operator changes is recorded by
the change itself, under the operator's name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

from domain.kernel.decider import Command, Decider, Event, Rejected, event

__all__ = ["OPERATOR", "Look", "OperatorLooked", "operator_stream"]

MAX_REMEMBERED = 50
_WHAT = re.compile(r"[a-z][a-z0-9_.]{0,99}")


def operator_stream(tenant_id: UUID, operator_id: UUID) -> str:
    """The stream of what an operator looked at in one tenant. It names both: a stream belongs to one tenant alone."""
    return f"operator-{operator_id.hex}-{tenant_id.hex}"


# Events. Stored for ever: never rename or remove a class or a field; a change of shape is a new version and an upcast.


@event("operator.looked")
@dataclass(frozen=True, slots=True)
class OperatorLooked(Event):
    """An operator was about to be shown something of the tenant."""

    what: str
    at: datetime


# Commands


@dataclass(slots=True, kw_only=True)
class Look(Command):
    """``what`` is a word of the program, never something that was typed in."""

    what: str


# State


@dataclass(frozen=True, slots=True)
class Looked:
    what: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Looks:
    """What was looked at last; of each thing the last time it was recorded."""

    last: tuple[Looked, ...] = ()


# Decide


class InvalidLook(Rejected):
    """What is looked at has no such name."""

    code: ClassVar[str] = "operator.look_invalid"
    frozen: ClassVar[bool] = False
    status: ClassVar[str] = "invalid"


def decide_operator(command: Look, state: Looks) -> Sequence[Event]:
    """The checks come in this order: shape of the command, whether the same was recorded in this minute."""
    if not _WHAT.fullmatch(command.what):
        raise InvalidLook("what")
    if any(each.what == command.what and _minute(each.at) == _minute(command.at) for each in state.last):
        return ()
    return [OperatorLooked(command.what, command.at)]


def _minute(at: datetime) -> datetime:
    return at.replace(second=0, microsecond=0)


# Evolve


def evolve_operator(state: Looks, event: OperatorLooked) -> Looks:
    """Never refuses."""
    others = tuple(each for each in state.last if each.what != event.what)
    return Looks((*others, Looked(event.what, event.at))[-MAX_REMEMBERED:])


# Reply


def reply_operator(command: Look, before: Looks, after: Looks, events: Sequence[Event]) -> Mapping[str, Any]:
    return {"what": command.what}


# Freeze and thaw


def _same(state: Looks) -> Looks:
    return state


OPERATOR: Decider[Looks] = Decider(
    category="operator",
    commands=(Look,),
    events=(OperatorLooked,),
    initial=Looks(),
    decide=decide_operator,
    evolve=evolve_operator,
    reply=reply_operator,
    frozen_type=Looks,
    freeze=_same,
    thaw=_same,
    refusals=(InvalidLook,),
)

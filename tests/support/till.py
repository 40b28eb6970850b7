"""A till: the smallest aggregate that gives every kind of answer. Tests of the store run it where quotas would only be in the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from domain.kernel.decider import Command, Decider, Event, Rejected, event
from domain.kernel.persistent import Map


@event("till.opened")
@dataclass(frozen=True, slots=True)
class Opened(Event):
    room: int
    at: datetime


@event("till.taken")
@dataclass(frozen=True, slots=True)
class Taken(Event):
    take_id: str
    amount: int
    at: datetime


@event("till.returned")
@dataclass(frozen=True, slots=True)
class Returned(Event):
    take_id: str
    at: datetime


@dataclass(slots=True, kw_only=True)
class Open(Command):
    """Set the room."""

    room: int


@dataclass(slots=True, kw_only=True)
class Take(Command):
    """Two events when ``twice``."""

    take_id: str
    amount: int = 1
    twice: bool = False


@dataclass(slots=True, kw_only=True)
class Return(Command):
    take_id: str


@dataclass(slots=True, kw_only=True)
class Look(Command):
    """Changes nothing."""


@dataclass(slots=True, kw_only=True)
class Break(Command):
    """A bug in a decider."""


class NotOpen(Rejected):
    """There is no such till."""

    code, frozen, status = "till.not_open", False, "not_found"


class Invalid(Rejected):
    """The amount makes no sense."""

    code, frozen, status = "till.invalid", False, "invalid"


class Full(Rejected):
    """There is no room."""

    code = "till.full"


class AlreadyReturned(Rejected):
    """It was returned before."""

    code = "till.already_returned"


@dataclass(frozen=True, slots=True)
class Closed:
    pass


@dataclass(frozen=True, slots=True)
class Till:
    room: int
    takes: Map[str, int]
    """What is taken by id; 0 is what was returned."""
    used: int


State = Closed | Till


def decide(command: Any, state: State) -> Sequence[Event]:
    match command:
        case Open():
            return (Opened(command.room, command.at),)
        case Break():
            raise RuntimeError("a bug")
        case _ if isinstance(state, Closed):
            raise NotOpen
        case Take():
            return _take(command, state)
        case Return():
            if state.takes.get(command.take_id) is None:
                raise NotOpen("take_id")
            if not state.takes[command.take_id]:
                raise AlreadyReturned(take_id=command.take_id)
            return (Returned(command.take_id, command.at),)
        case _:
            return ()


def _take(command: Take, state: Till) -> Sequence[Event]:
    if command.amount < 1:
        raise Invalid("amount")
    wanted = command.amount * (2 if command.twice else 1)
    if state.used + wanted > state.room:
        raise Full(remaining=state.room - state.used)
    first = Taken(command.take_id, command.amount, command.at)
    return (first, Taken(command.take_id + "+", command.amount, command.at)) if command.twice else (first,)


def evolve(state: State, event: Any) -> State:
    match event:
        case Opened():
            return Till(event.room, state.takes, state.used) if isinstance(state, Till) else Till(event.room, Map(), 0)
        case _ if isinstance(state, Closed):
            return state
        case Taken():
            return Till(state.room, state.takes.set(event.take_id, event.amount), state.used + event.amount)
        case _:
            return Till(state.room, state.takes.set(event.take_id, 0), state.used - state.takes[event.take_id])


def reply(command: Any, before: State, after: State, events: Sequence[Event]) -> dict[str, Any]:
    """With the moment in it, so that an answer given anew differs from the first one."""
    used, room = (after.used, after.room) if isinstance(after, Till) else (0, 0)
    return {"used": used, "remaining": room - used, "at": command.at.isoformat(), "events": len(events)}


@dataclass(frozen=True, slots=True)
class FrozenTill:
    room: int = -1
    takes: tuple[tuple[str, int], ...] = ()


def freeze(state: State) -> FrozenTill:
    return FrozenTill(state.room, tuple(sorted(state.takes.items()))) if isinstance(state, Till) else FrozenTill()


def thaw(frozen: FrozenTill) -> State:
    return Closed() if frozen.room < 0 else Till(frozen.room, Map(frozen.takes), sum(amount for _, amount in frozen.takes))


TILL: Decider[State] = Decider(
    category="till", commands=(Open, Take, Return, Look, Break), events=(Opened, Taken, Returned), initial=Closed(), decide=decide,
    evolve=evolve, reply=reply, frozen_type=FrozenTill, freeze=freeze, thaw=thaw, refusals=(NotOpen, Invalid, Full, AlreadyReturned),
)  # fmt: skip

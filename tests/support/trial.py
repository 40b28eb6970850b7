"""A trial: the smallest aggregate that waits for something. Three days before its end it reminds, then it ends, unless it was bought."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from domain.kernel.deadlines import Done, Due
from domain.kernel.decider import Command, Decider, Event, Rejected, event

NOTICE = timedelta(days=3)


@event("trial.begun")
@dataclass(frozen=True, slots=True)
class Begun(Event):
    ends_at: datetime


@event("trial.extended")
@dataclass(frozen=True, slots=True)
class Extended(Event):
    ends_at: datetime


@event("trial.locked")
@dataclass(frozen=True, slots=True)
class Locked(Event):
    """From now on its end is refused for good."""


@event("trial.reminded")
@dataclass(frozen=True, slots=True)
class Reminded(Event):
    at: datetime


@event("trial.bought")
@dataclass(frozen=True, slots=True)
class Bought(Event):
    at: datetime


@event("trial.ended")
@dataclass(frozen=True, slots=True)
class Ended(Event):
    at: datetime


@dataclass(slots=True, kw_only=True)
class Begin(Command):
    days: int


@dataclass(slots=True, kw_only=True)
class Extend(Command):
    days: int


@dataclass(slots=True, kw_only=True)
class Lock(Command):
    pass


@dataclass(slots=True, kw_only=True)
class Buy(Command):
    pass


@dataclass(slots=True, kw_only=True)
class Remind(Command):
    pass


@dataclass(slots=True, kw_only=True)
class End(Command):
    pass


class TrialLocked(Rejected):
    """The trial is locked."""

    code = "trial.locked"


class NoTrial(Rejected):
    """There is no trial."""

    code, frozen, status = "trial.not_found", False, "not_found"


@dataclass(frozen=True, slots=True)
class Trial:
    ends_at: datetime | None = None
    over: bool = False
    locked: bool = False
    reminded: bool = False


def decide(command: Any, state: Trial) -> Sequence[Event]:
    if isinstance(command, Begin):
        return (Begun(command.at + timedelta(days=command.days)),)
    if state.ends_at is None:
        raise NoTrial
    if state.over:
        return ()
    match command:
        case Extend():
            return (Extended(state.ends_at + timedelta(days=command.days)),)
        case Lock():
            return (Locked(),)
        case Buy():
            return (Bought(command.at),)
        case Remind():
            return () if state.reminded or command.at < state.ends_at - NOTICE else (Reminded(command.at),)
        case End() if command.at < state.ends_at:
            return ()
        case End() if state.locked:
            raise TrialLocked
        case _:
            return (Ended(command.at),)


def evolve(state: Trial, event: Any) -> Trial:
    match event:
        case Begun() | Extended():
            return Trial(event.ends_at, False, state.locked, False)
        case Locked():
            return Trial(state.ends_at, state.over, True, state.reminded)
        case Reminded():
            return Trial(state.ends_at, state.over, state.locked, True)
        case _:
            return Trial(state.ends_at, True, state.locked, state.reminded)


def deadlines(event: Any) -> Sequence[Due | Done]:
    match event:
        case Begun() | Extended():
            return (Due("remind", event.ends_at - NOTICE), Due("end", event.ends_at))
        case Reminded():
            return (Done("remind"),)
        case Bought() | Ended():
            return (Done("remind"), Done("end"))
        case _:
            return ()


def when_due(name: str, at: datetime) -> Command:
    return Remind() if name == "remind" else End()


def reply(command: Any, before: Trial, after: Trial, events: Sequence[Event]) -> dict[str, Any]:
    return {"over": after.over}


def same(state: Trial) -> Trial:
    return state


TRIAL: Decider[Trial] = Decider(
    category="trial", commands=(Begin, Extend, Lock, Buy, Remind, End), events=(Begun, Extended, Locked, Reminded, Bought, Ended),
    initial=Trial(), decide=decide, evolve=evolve, reply=reply, frozen_type=Trial, freeze=same, thaw=same,
    refusals=(TrialLocked, NoTrial), deadlines=deadlines, when_due=when_due,
)  # fmt: skip

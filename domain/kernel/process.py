"""What follows from an event: processes, which only think, and effects, which also ask the world.

A process is a pure function from something that happened to named commands. An effect awaits a provider first. Either may be run
any number of times for one event, by any number of workers: each command's id is made of the event's id and the command's
*name*, so it is recorded once. A name therefore tells what the command is for ("activate", "remind-3"), is unique among the
commands of one event, and stays the same when the process is changed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple
from uuid import NAMESPACE_URL, UUID, uuid5

from domain.kernel.decider import Command, Decider, Event

_PROCESS = uuid5(NAMESPACE_URL, "holdbook:process")
_EFFECT = uuid5(NAMESPACE_URL, "holdbook:effect")


class Happened(NamedTuple):
    """An event with what the log knows of it. Its id is (command_id, ordinal)."""

    tenant_id: UUID
    stream: str
    version: int
    position: int
    command_id: UUID
    ordinal: int
    recorded_at: datetime
    actor: str | None
    trace: str | None
    event: Event


class Named(NamedTuple):
    """A command that follows from an event. Without ``tenant_id`` it is for the event's tenant."""

    name: str
    decider: Decider[Any]
    stream: str
    command: Command
    tenant_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Process:
    """``react`` is pure: the same commands for the same event, whenever and wherever it is asked.

    Events of one stream are reacted to in their order, those of different streams in any. A process that is new starts with what
    happens from then on, unless ``from_start``.
    """

    name: str
    on: tuple[type[Event], ...]
    react: Callable[[Happened], Sequence[Named]]
    from_start: bool = False


class Tools(NamedTuple):
    """What an effect is handed. ``idempotency_key`` is the same for every try of the same effect on the same event."""

    idempotency_key: str
    attempt: int
    now: datetime


@dataclass(frozen=True, slots=True)
class Effect:
    """``perform`` awaits the world and returns what follows. It may be cut off and run again at any point.

    Whatever it asks of a provider carries the idempotency key, or is asked for by an id of its own before it is asked to be done.
    What it raises makes it be tried again later.
    """

    name: str
    on: tuple[type[Event], ...]
    perform: Callable[[Happened, Tools], Awaitable[Sequence[Named]]]
    from_start: bool = False


def process_command_id(process: str, happened: Happened, name: str) -> UUID:
    """The id of the command of that name which follows from that event."""
    return uuid5(_PROCESS, f"{process}|{happened.command_id}:{happened.ordinal}|{name}")


def idempotency_key(effect: str, happened: Happened) -> str:
    """What a provider is given to know a repeated request by."""
    return str(uuid5(_EFFECT, f"{effect}|{happened.command_id}:{happened.ordinal}"))

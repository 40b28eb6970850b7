"""The shape every aggregate has: commands in, events out, state folded from events.

``decide(command, state) -> events`` refuses by raising :class:`Rejected`; ``evolve(state, event) -> state`` never
refuses. Both are pure. States are persistent values: an older state stays usable after a newer one was made from it,
which is how a failed command, or the third item of an atomic batch, leaves nothing behind.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar, Generic, TypeVar

from domain.kernel.deadlines import Done, Due

State = TypeVar("State")
EventClass = TypeVar("EventClass", bound=type)

UNSTAMPED = datetime.min.replace(tzinfo=UTC)
"""The ``at`` of a command that no writer has taken yet."""

_EVENT_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+")


@dataclass(slots=True, kw_only=True)
class Command:
    """An intention. The writer stamps ``at`` when it takes the command; nobody else changes a command."""

    at: datetime = UNSTAMPED


class Event:
    """A fact. Subclasses are frozen dataclasses with slots, named by :func:`event`; their fields are stored for ever."""

    __slots__ = ()
    event_name: ClassVar[str]
    event_version: ClassVar[int]


def event(name: str, version: int = 1) -> Callable[[EventClass], EventClass]:
    """Give an event class the name and schema version under which it is stored for ever."""
    if not _EVENT_NAME.fullmatch(name) or version < 1:
        raise ValueError(f"not an event name and version: {name!r}, {version}")

    def mark(cls: EventClass) -> EventClass:
        cls.event_name = name  # type: ignore[attr-defined]  # declared on Event, which the bound cannot say
        cls.event_version = version  # type: ignore[attr-defined]  # as above
        return cls

    return mark


class Rejected(Exception):
    """The command is refused by a rule. The class docstring of each subclass is its message to people.

    ``frozen`` says whether the refusal is recorded and answered for ever to the same key (the target existed and a
    rule said no), or leaves nothing (not found, malformed), so that the same key may be tried again.
    """

    code: ClassVar[str] = "rejected"
    frozen: ClassVar[bool] = True
    status: ClassVar[str] = "conflict"
    """What kind of refusal it is, for edges to translate: ``conflict``, ``not_found`` or ``invalid``."""

    def __init__(self, field_name: str | None = None, **details: Any) -> None:
        super().__init__(self.code)
        self.field_name = field_name
        self.index: int | None = None  # which item of a batch was refused
        self.details: Mapping[str, Any] = details

    @property
    def message(self) -> str:
        """The first paragraph of the docstring, on one line."""
        return " ".join((type(self).__doc__ or self.code).split("\n\n")[0].split())


def no_deadlines(event: Any) -> Sequence[Due | Done]:
    """Of an aggregate that waits for nothing."""
    return ()


def never_due(name: str, at: datetime) -> Command:
    """Of an aggregate that waits for nothing."""
    raise LookupError(f"no deadline is named {name}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Decider(Generic[State]):
    """One aggregate: everything the store needs to run it, and nothing about how it is run.

    ``freeze`` turns a state into plain dataclasses of exactly type ``frozen_type`` for a snapshot, ``thaw`` turns it
    back; ``state_schema`` is raised whenever the frozen shape or the meaning of the fold changes, which makes older
    snapshots be ignored. ``reply`` is what the caller of a command is told, computed from the command, the state before,
    the state after and the events; it holds no personal data and no secrets, because it is kept for ever.
    """

    category: str
    commands: tuple[type[Command], ...]
    events: tuple[type[Event], ...]
    initial: State
    decide: Callable[[Any, State], Sequence[Event]]
    evolve: Callable[[State, Any], State]
    reply: Callable[[Any, State, State, Sequence[Event]], Mapping[str, Any]]
    frozen_type: Any
    freeze: Callable[[State], Any]
    thaw: Callable[[Any], State]
    state_schema: int = 1
    refusals: tuple[type[Rejected], ...] = ()
    upcasts: Mapping[tuple[str, int], Callable[[dict[str, Any]], dict[str, Any]]] = field(default_factory=dict)
    """(event name, version) -> pure function from that version's payload to the next version's."""
    deadlines: Callable[[Any], Sequence[Due | Done]] = no_deadlines
    """Which of the stream's deadlines an event begins, moves or ends, see `domain.kernel.deadlines`."""
    when_due: Callable[[str, datetime], Command] = never_due
    """The command that a deadline of this name leads to, which came at this moment."""


@event("command.refused")
@dataclass(frozen=True, slots=True, kw_only=True)
class Refused(Event):
    """A command was refused by a rule; recorded in a stream of its own, so that no aggregate moves."""

    code: str
    command: str
    stream: str
    index: int | None = None

"""How aggregates, processes and effects are tested: in sentences, without a database.

An aggregate::

    given(TRIAL, Begun(END)).when(Buy(), at=NOW).then(Bought(NOW))
    given(TRIAL).when(Buy()).refused("trial.not_found")

A process alone, which is a pure function::

    react(WELCOME).given(Begun(END)).then(Named("room", TILL, "till-1", Open(room=5)))

Everything together, over the in-memory twin of the store, with a clock that only the test moves (`tests.support.kit_run`)::

    run = Run([TRIAL, TILL], [WELCOME, BILL], World(bill=lambda happened, tools: [...]))
    await run.given("trial-1", Begun(END))      # happened before there were processes
    await run.when("trial-1", Extend(days=3))   # and what follows, until nothing follows any more
    await run.until(END)                        # deadlines on the way
    run.then(Extended(...), Reminded(...), ...)

Every process and effect is run twice for each event, as may happen any day, and nothing more may come of the second time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import NAMESPACE_URL, UUID, uuid5

from domain.kernel.decider import Command, Decider, Event, Rejected
from domain.kernel.process import Effect, Happened, Named, Process, Tools

NOW = datetime(2027, 3, 1, 12, tzinfo=UTC)
TENANT = UUID("7e7a7e57-0000-4000-8000-000000000001")


# An aggregate alone


@dataclass
class Given:
    """A decider and what happened to it."""

    decider: Decider[Any]
    events: tuple[Event, ...]

    def when(self, command: Command, at: datetime = NOW) -> When:
        """Decide a command on that."""
        state = self.decider.initial
        for event in self.events:
            state = self.decider.evolve(state, event)
        assert type(command) in self.decider.commands, f"{type(command).__name__} is not among the decider's commands"
        command.at = at
        try:
            return When(list(self.decider.decide(command, state)), None)
        except Rejected as rejected:
            refusal = rejected
        assert type(refusal) in self.decider.refusals, f"{type(refusal).__name__} is not among the decider's refusals"
        return When([], refusal)


@dataclass
class When:
    """What became of it."""

    events: list[Event]
    refusal: Rejected | None

    def then(self, *events: Event) -> None:
        """Exactly these events."""
        assert self.refusal is None, f"refused: {self.refusal}"
        assert self.events == list(events)

    def refused(self, code: str, field: str | None = None) -> None:
        """Refused with this code."""
        assert self.refusal is not None, f"not refused: {self.events}"
        assert (self.refusal.code, self.refusal.field_name) == (code, field)


def given(decider: Decider[Any], *events: Event) -> Given:
    """See the module."""
    return Given(decider, events)


# A process alone


def happened(event: Event, *, stream: str = "any-1", tenant_id: UUID = TENANT, position: int = 1, at: datetime = NOW) -> Happened:
    """An event as a process sees it; its id is made of its position."""
    command_id = uuid5(NAMESPACE_URL, f"{tenant_id}|{position}")
    return Happened(tenant_id, stream, position, position, command_id, 0, at, None, None, event)


@dataclass
class Reacted:
    """A process and the commands that followed from what it was given."""

    process: Process
    named: list[Named]

    def given(self, *events: Event | Happened) -> Reacted:
        """What happens; events of types that the process is not interested in never reach it."""
        for position, each in enumerate(events, 1):
            one = each if isinstance(each, Happened) else happened(each, position=position)
            if isinstance(one.event, self.process.on):
                first, second = list(self.process.react(one)), list(self.process.react(one))
                assert first == second, "a process is pure: the same commands for the same event"
                names = [named.name for named in first]
                assert len(set(names)) == len(names), f"names are unique among the commands of one event: {names}"
                self.named += first
        return self

    def then(self, *named: Named) -> None:
        """Exactly these commands."""
        assert self.named == list(named)


def react(process: Process) -> Reacted:
    """See the module."""
    return Reacted(process, [])


# The world of effects


class Asked(NamedTuple):
    """What an effect asked of the world."""

    effect: str
    event: Event
    idempotency_key: str
    attempt: int


Answer = Callable[[Happened, Tools], Sequence[Named]]


class World:
    """Stands in for providers and receivers: notes what it is asked and answers as the test says, by the effect's name.

    An answer may raise: then the effect is tried again, up to five times.
    """

    def __init__(self, **answers: Answer) -> None:
        self.answers, self.asked = answers, list[Asked]()

    def done(self, effect: str) -> list[Asked]:
        """What this effect asked, the repetitions that a provider knows by their key left out."""
        return list({asked.idempotency_key: asked for asked in self.asked if asked.effect == effect}.values())

    def instead_of(self, effect: Effect) -> Effect:
        """The effect, with this world behind it."""

        async def perform(happened: Happened, tools: Tools) -> Sequence[Named]:
            self.asked.append(Asked(effect.name, happened.event, tools.idempotency_key, tools.attempt))
            return self.answers[effect.name](happened, tools)

        return replace(effect, perform=perform) if effect.name in self.answers else effect

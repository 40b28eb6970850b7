"""Aggregates, processes, effects and deadlines at work on the in-memory twin of the store; see `tests.support.kit`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from domain.kernel.decider import Command, Decider, Event, Rejected
from domain.kernel.process import Effect, Process, Tools, idempotency_key
from eventstore.codec import Codec
from eventstore.deciding import REFUSED
from eventstore.memory import MemoryLog
from eventstore.requests import Item, Outcome, Request
from eventstore.rows import GENESIS, Row, row_hash
from eventstore.store import Store, partition_of
from projections.consumer import Recorded
from projections.deadlines import ACTOR, Deadline, Fold, request_of
from projections.reactions import Reaction, consumer_name, follow_from, happened_of, stored_types
from tests.support.kit import NOW, TENANT, World

MOST_STEPS = 1_000
MOST_TRIES = 5


def recorded(row: Row) -> Recorded:
    """A row as consumers get it."""
    told = row._asdict()
    return Recorded(**{name: told[name] for name in Recorded._fields})


class _Partition:
    """A log, and how far it was reacted to, looked through for deadlines, and given."""

    def __init__(self, log: MemoryLog) -> None:
        self.log, self.reacted, self.folded, self.given = log, 0, 0, 0


class Run:
    """A store with everything at work on it that is given."""

    def __init__(
        self, deciders: Sequence[Decider[Any]], reactions: Sequence[Reaction] = (), world: World | None = None, now: datetime = NOW
    ) -> None:
        self.now, self._codec = now, Codec(deciders)
        self.store = Store(self._codec, 64, lambda number: self._partition(number).log)
        self.refused: list[tuple[str, str]] = []
        """What rules refused of processes', effects' and deadlines' commands: whose, and the code."""
        world = world or World()
        self._reactions = [world.instead_of(each) if isinstance(each, Effect) else each for each in reactions]
        self._partitions: dict[int, _Partition] = {}
        self._fold, self._deadlines = Fold(self._codec), dict[tuple[str, str], Deadline]()

    def _partition(self, number: int) -> _Partition:
        if number not in self._partitions:
            self._partitions[number] = _Partition(MemoryLog(number, lambda: self.now))
        return self._partitions[number]

    # Given, when

    async def given(self, stream: str, *events: Event, tenant_id: UUID = TENANT) -> None:
        """These events are in the log, and no process reacts to them: they happened before there was one."""
        number = partition_of(tenant_id, self.store.partitions)
        partition = self._partition(number)
        rows = partition.log.rows
        for event in events:
            version = 1 + max((row.version for row in rows if row.stream == stream), default=0)
            type_, payload = self._codec.encode(event)
            row = Row(
                len(rows) + 1, tenant_id, stream, version, uuid4(), 0, type_, self.now, None, None, None, payload, None, None,
                os.urandom(16), b"",
            )  # fmt: skip
            rows.append(row._replace(hash=row_hash(number, rows[-1].hash if rows else GENESIS, row)))
        partition.reacted = partition.given = len(rows)

    async def when(self, stream: str, command: Command, tenant_id: UUID = TENANT) -> Outcome:
        """Submit a command, and let follow what follows. Raises what refuses it and leaves nothing."""
        decider = self._codec.decider_of(stream)
        assert decider is not None, f"no aggregate that was given has streams like {stream}"
        outcome = await self.store.submit(Request(tenant_id, uuid4(), (Item(decider, stream, command),), b""))
        await self._settle()
        return outcome

    async def until(self, moment: datetime) -> None:
        """Let time pass, with each deadline on the way at its moment, in order."""
        for _ in range(MOST_STEPS):
            self._look_for_deadlines()
            due = [(deadline.due_at, place) for place, deadline in self._deadlines.items() if deadline.due_at <= moment]
            if not due:
                self.now = max(self.now, moment)
                return
            at, place = min(due)
            self.now = max(self.now, at)
            request = request_of(self._codec, self._deadlines.pop(place))
            assert request is not None
            await self._submit(f"{ACTOR}:{place[1]}", request)
            await self._settle()
        raise AssertionError(f"after {MOST_STEPS} deadlines there is still one due")

    # Then

    def events(self, tenant_id: UUID = TENANT) -> list[Event]:
        """What was recorded for a tenant since what was given, refusals left out."""
        partition = self._partition(partition_of(tenant_id, self.store.partitions))
        rows = partition.log.rows[partition.given :]
        return [self._codec.decode(row.type, row.payload) for row in rows if row.tenant_id == tenant_id and row.type != REFUSED]

    def then(self, *events: Event, tenant_id: UUID = TENANT) -> None:
        """Exactly these, in this order."""
        assert self.events(tenant_id) == list(events)

    # What follows

    async def _settle(self) -> None:
        """React until nothing follows any more."""
        for _ in range(MOST_STEPS):
            row = next(self._unseen(), None)
            if row is None:
                return
            for reaction in self._reactions:
                if row.type in stored_types(reaction.on):
                    await self._react_twice(reaction, row)
        raise AssertionError(f"after {MOST_STEPS} events something still follows: do two processes feed each other?")

    def _unseen(self) -> Iterator[Recorded]:
        for partition in self._partitions.values():
            if partition.reacted < len(partition.log.rows):
                partition.reacted += 1
                yield recorded(partition.log.rows[partition.reacted - 1])

    async def _react_twice(self, reaction: Reaction, row: Recorded) -> None:
        await self._react(reaction, row)
        before, refused = self._lengths(), list(self.refused)
        await self._react(reaction, row)
        assert self._lengths() == before, f"{consumer_name(reaction)} recorded something when it was run again for one {row.type}"
        self.refused = refused

    async def _react(self, reaction: Reaction, row: Recorded) -> None:
        for request in await self._follows(reaction, row):
            await self._submit(consumer_name(reaction), request)

    async def _follows(self, reaction: Reaction, row: Recorded) -> Sequence[Request]:
        happened = happened_of(self._codec, row)
        key = idempotency_key(reaction.name, happened)
        tries = 1 if isinstance(reaction, Process) else MOST_TRIES
        for attempt in range(tries):
            tools = Tools(key, attempt, self.now)
            try:
                return await follow_from(reaction, happened, lambda: tools)  # noqa: B023  # called in this turn
            except Exception:
                if attempt + 1 == tries:
                    raise
        raise AssertionError

    async def _submit(self, whose: str, request: Request) -> None:
        try:
            outcome = await self.store.submit(request)
        except Rejected as refusal:
            self.refused.append((whose, refusal.code))
        else:
            if outcome.refused:
                self.refused.append((whose, str(json.loads(outcome.reply)["code"])))

    def _lengths(self) -> list[int]:
        return [len(partition.log.rows) for partition in self._partitions.values()]

    def _look_for_deadlines(self) -> None:
        for partition in self._partitions.values():
            changes = self._fold.changes(recorded(row) for row in partition.log.rows[partition.folded :])
            partition.folded = len(partition.log.rows)
            for place, deadline in changes.last.items():
                if deadline is None:
                    self._deadlines.pop(place, None)
                else:
                    self._deadlines[place] = deadline

"""What every stream waits for: its deadlines by name, until they are moved, ended or answered for good.

Folded for all aggregates from what `Decider.deadlines` says of each event, so ``VERSION`` is raised when an aggregate says something
else of events that are already in logs. A deadline whose command was refused for good has had its answer and ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from sqlalchemy import BigInteger, Column, DateTime, Index, Integer, MetaData, Table, Text, Uuid

from domain.kernel.deadlines import Due, deadline_command_id
from domain.kernel.decider import Decider, Refused, no_deadlines
from eventstore.codec import Codec, stored_type
from eventstore.requests import Item, Request
from projections.consumer import Connection, Projection, Recorded
from projections.deleted import deleted
from projections.reading import FOLLOWER, Model, Reading, asks_again

NAME, VERSION, SHAPE = "deadlines", 1, 1
MODEL = Model(NAME, SHAPE)
ACTOR = "process:deadline"


def define(metadata: MetaData, generation: int) -> None:
    """The tables of one generation."""
    Table(
        f"deadline_{generation}",
        metadata,
        Column("partition", Integer, primary_key=True),
        Column("stream", Text(collation="C"), primary_key=True),
        Column("name", Text(collation="C"), primary_key=True),
        Column("tenant_id", Uuid, nullable=False),
        Column("due_at", DateTime(timezone=True), nullable=False),
        Column("version", BigInteger, nullable=False, comment="of the event that set it"),
        Column("command_id", Uuid, nullable=False, comment="of the command it leads to"),
        Column("cause", Uuid, nullable=False, comment="the command whose event set it"),
        Index(f"deadline_{generation}_due", "partition", "due_at"),
        info={"readers": False},
    )


class Deadline(NamedTuple):
    """A deadline that is set."""

    stream: str
    name: str
    tenant_id: UUID
    due_at: datetime
    version: int
    command_id: UUID
    cause: UUID


class Changes(NamedTuple):
    """What a run of events does to the deadlines before it: first ``answered`` ends, then ``last`` holds, None for what ended."""

    answered: list[tuple[str, UUID]]
    last: dict[tuple[str, str], Deadline | None]


class Fold:
    """From events to changes of deadlines. Pure."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        waiting = [decider for decider in codec.deciders.values() if decider.deadlines is not no_deadlines]
        self._categories = {decider.category for decider in waiting}
        self._of: dict[str, Decider[Any]] = {
            stored_type(cls.event_name, version): decider
            for decider in waiting
            for cls in decider.events
            for version in range(1, cls.event_version + 1)
        }
        self._refused = msgspec.json.Decoder(Refused).decode

    def concerns(self, row: Recorded) -> bool:
        """Whether the event may change a deadline."""
        return row.type in self._of or (row.type == Refused.event_name and bool(self._of))

    def changes(self, rows: Iterable[Recorded]) -> Changes:
        """Of the events of one partition, in order."""
        changes = Changes([], {})
        for row in rows:
            decider = self._of.get(row.type)
            if decider is not None:
                for said in decider.deadlines(self._codec.decode(row.type, row.payload)):
                    changes.last[row.stream, said.name] = _set(row, said) if isinstance(said, Due) else None
            elif self.concerns(row):
                self._answer(changes, row)
        return changes

    def _answer(self, changes: Changes, row: Recorded) -> None:
        stream = self._refused(row.payload).stream
        if stream.partition("-")[0] not in self._categories:
            return
        for place, deadline in changes.last.items():
            if deadline is not None and deadline.command_id == row.command_id:
                changes.last[place] = None
                return
        changes.answered.append((stream, row.command_id))


def _set(row: Recorded, due: Due) -> Deadline:
    command_id = deadline_command_id(row.tenant_id, row.stream, due.name, row.version, due.at)
    return Deadline(row.stream, due.name, row.tenant_id, due.at, row.version, command_id, row.command_id)


class Deadlines:
    """The consumer."""

    name, version, starts_at_head = NAME, VERSION, False

    def __init__(self, codec: Codec, generation: int = 1) -> None:
        self.generation, self._fold = generation, Fold(codec)
        table = f"deadline_{generation}"
        self._answered = f"""
            delete from {table} d using unnest(%b::text[], %b::uuid[]) as u(stream, command_id)
            where d.partition = %s and d.stream = u.stream and d.command_id = u.command_id"""
        self._end = f"""
            delete from {table} d using unnest(%b::text[], %b::text[]) as u(stream, name)
            where d.partition = %s and d.stream = u.stream and d.name = u.name"""
        self._set = f"""
            insert into {table} (partition, stream, name, tenant_id, due_at, version, command_id, cause)
            select %s::int, u.stream, u.name, u.tenant_id, u.due_at, u.version, u.command_id, u.cause
            from unnest(%b::text[], %b::text[], %b::uuid[], %b::timestamptz[], %b::bigint[], %b::uuid[], %b::uuid[])
              as u(stream, name, tenant_id, due_at, version, command_id, cause)
            on conflict (partition, stream, name) do update
            set due_at = excluded.due_at, version = excluded.version, command_id = excluded.command_id, cause = excluded.cause"""
        self._forget = f"delete from {table} where partition = %s and tenant_id = any(%b::uuid[])"

    async def apply(self, conn: Connection, partition: int, rows: Sequence[Recorded]) -> Callable[[], None]:
        """See :class:`projections.consumer.Consumer`."""
        gone = await deleted(conn, partition, rows)
        changes = self._fold.changes(row for row in rows if row.tenant_id not in gone.silent and self._fold.concerns(row))
        if gone.ending:
            await conn.execute(self._forget, (partition, gone.ending))
        if changes.answered:
            await conn.execute(self._answered, (*_columns(changes.answered), partition))
        ended = [place for place, deadline in changes.last.items() if deadline is None]
        if ended:
            await conn.execute(self._end, (*_columns(ended), partition))
        if present := [deadline for deadline in changes.last.values() if deadline is not None]:
            await conn.execute(self._set, (partition, *_columns(present)))
        return self.forget

    def forget(self) -> None:
        """Nothing is kept."""


def _columns(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]


def request_of(codec: Codec, deadline: Deadline) -> Request | None:
    """The command of a deadline that has come; None when this program does not know the stream's aggregate."""
    decider = codec.decider_of(deadline.stream)
    if decider is None:
        return None
    item = Item(decider, deadline.stream, decider.when_due(deadline.name, deadline.due_at))
    return Request(deadline.tenant_id, deadline.command_id, (item,), b"", actor=ACTOR, cause=deadline.cause)


class DeadlineReader:
    """Asks for what is due over all tenants, as the followers' role."""

    name = NAME

    def __init__(self, reading: Reading, codec: Codec) -> None:
        self._reading, self._codec = reading, codec

    @classmethod
    async def open(cls, dsn: str, codec: Codec) -> DeadlineReader:
        """Connect."""
        return cls(await Reading.open(dsn, FOLLOWER, 1), codec)

    async def close(self) -> None:
        """Close the connection."""
        await self._reading.close()

    async def now(self) -> datetime:
        """The database's time, by which it is decided what is due: machines disagree."""
        async with self._reading.begin(MODEL) as (conn, _):
            found = await (await conn.execute("select now()")).fetchone()
        assert found is not None
        return found[0]  # type: ignore[no-any-return]  # a timestamptz

    @asks_again
    async def due(self, now: datetime, limit: int) -> Sequence[Request]:
        """The commands of deadlines that have come: of every tenant its oldest first, then of every tenant its next."""
        async with self._reading.begin(MODEL) as (conn, generation):
            query = f"""
                select stream, name, tenant_id, due_at, version, command_id, cause from (
                  select d.*, row_number() over (partition by partition, tenant_id order by due_at, stream, name) as turn
                  from deadline_{generation} d where partition = any(%b::int[]) and due_at <= %s) waiting
                order by turn, due_at, stream, name limit %s"""
            cursor = await conn.execute(query, (list(range(self._reading.partitions)), now, limit), binary=True)
            found = [Deadline._make(row) for row in await cursor.fetchall()]
        made = [request_of(self._codec, deadline) for deadline in found]
        return [request for request in made if request is not None]


PROJECTION = Projection(NAME, version=VERSION, shape=SHAPE, define=define, consumer=Deadlines)

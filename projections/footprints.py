"""Which streams are about a person, and when each was last in use: for the export of everything about somebody, and for retention.

Streams that are named after the person need no row to be found; theirs say when somebody was last there. Sessions and sender accounts have
names of their own. The rows of a person who was erased go.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Column, DateTime, Index, Integer, MetaData, Table, Text, Uuid

from domain.identity import sessions, signins, users
from domain.privacy.people import SubjectErased, person_of
from domain.sender_account import Registered
from eventstore.codec import Codec
from projections.consumer import Connection, Projection, Recorded
from projections.deleted import deleted
from projections.reading import Model, Reading, asks_again

MODEL = Model("footprints", shape=1)
VERSION = 1

_TYPES = frozenset(
    each.event_name
    for each in (
        users.UserInvited, users.UserCreated, users.InvitationAccepted, users.UserResumed, signins.Succeeded, sessions.SessionStarted,
        sessions.SessionRefreshed, Registered, SubjectErased,
    )
)  # fmt: skip
_GENERATION = "select generation from projection where name = %s and shape = %s"


def define(metadata: MetaData, generation: int) -> None:
    """The table of one generation."""
    name = f"footprint_{generation}"
    Table(
        name,
        metadata,
        Column("partition", Integer, primary_key=True),
        Column("tenant_id", Uuid, primary_key=True),
        Column("person_id", Uuid, primary_key=True),
        Column("stream", Text(collation="C"), primary_key=True),
        Column("seen_at", DateTime(timezone=True), nullable=False),
        Index(f"{name}_by_stream", "partition", "stream"),
        info={"readers": True},
    )


class Footprints:
    """The consumer."""

    name, version, starts_at_head = MODEL.name, VERSION, False

    def __init__(self, codec: Codec, generation: int = 1) -> None:
        self.generation, self._codec = generation, codec
        table = f"footprint_{generation}"
        self._put = (
            f"insert into {table} (partition, tenant_id, person_id, stream, seen_at) values (%s, %s, %s, %s, %s) "
            "on conflict (partition, tenant_id, person_id, stream) do update set seen_at = excluded.seen_at"
        )
        self._used = f"update {table} set seen_at = %s where partition = %s and stream = %s"
        self._erase = f"delete from {table} where partition = %s and tenant_id = %s and person_id = %s"
        self._forget = f"delete from {table} where partition = %s and tenant_id = %s"

    async def apply(self, conn: Connection, partition: int, rows: Sequence[Recorded]) -> Callable[[], None]:
        """See :class:`projections.consumer.Consumer`."""
        traces = [row for row in rows if row.type in _TYPES]
        if not traces and not any(row.type == "tenant.deleted" for row in rows):
            return self.forget
        gone = await deleted(conn, partition, rows)
        for row in traces:
            if row.tenant_id not in gone.silent:
                await self._take(conn, partition, row)
        for tenant_id in gone.ending:
            await conn.execute(self._forget, (partition, tenant_id))
        return self.forget

    def forget(self) -> None:
        """Nothing is kept."""

    async def _take(self, conn: Connection, partition: int, row: Recorded) -> None:
        event: Any = self._codec.decode(row.type, row.payload)
        match event:
            case SubjectErased():
                await conn.execute(self._erase, (partition, row.tenant_id, event.person_id))
                return
            case sessions.SessionRefreshed():
                await conn.execute(self._used, (event.at, partition, row.stream))
                return
            case sessions.SessionStarted():
                person_id = event.user_id
            case Registered():
                person_id = person_of(row.tenant_id, event.owner)
            case _:
                person_id = UUID(row.stream.partition("-")[2])
        await conn.execute(self._put, (partition, row.tenant_id, person_id, row.stream, event.at))


class FootprintReader:
    """Asks about one tenant at a time."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    @asks_again
    async def streams(self, tenant_id: UUID, person_id: UUID) -> list[str]:
        """The streams that are known to be about a person, by name."""
        async with self._reading.begin(MODEL, tenant_id) as (conn, generation):
            query = f"select stream from footprint_{generation} where partition = %s and tenant_id = %s and person_id = %s order by stream"
            cursor = await conn.execute(query, (self._reading.partition_of(tenant_id), tenant_id, person_id))
            return [stream for (stream,) in await cursor.fetchall()]


class Idle(NamedTuple):
    """A person who has not been there for long, as far as the read model knows, and the streams that say so."""

    person_id: UUID
    streams: list[str]


async def tenants(conn: Connection, partition: int) -> list[UUID]:
    """Those who have people. For the followers' role."""
    found = await (await conn.execute(_GENERATION, MODEL)).fetchone()
    if found is None:
        return []
    query = f"select distinct tenant_id from footprint_{int(found[0])} where partition = %s"
    return [tenant_id for (tenant_id,) in await (await conn.execute(query, (partition,))).fetchall()]


async def idle(conn: Connection, partition: int, tenant_id: UUID, before: datetime, after: UUID | None, limit: int) -> list[Idle]:
    """People with a name of their own as users who were last there before a moment, by id, behind one. For the followers' role."""
    found = await (await conn.execute(_GENERATION, MODEL)).fetchone()
    if found is None:
        return []
    query = f"""
        select person_id, array_agg(stream) from footprint_{int(found[0])}
        where partition = %s and tenant_id = %s and (%s::uuid is null or person_id > %s)
        group by person_id having max(seen_at) < %s and bool_or(stream like 'user-%%') order by person_id limit %s"""
    return [Idle._make(row) for row in await (await conn.execute(query, (partition, tenant_id, after, after, before, limit))).fetchall()]


PROJECTION = Projection(MODEL.name, version=VERSION, shape=MODEL.shape, define=define, consumer=Footprints)

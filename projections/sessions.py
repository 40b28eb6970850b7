"""Sessions that people have: one row for each that began and did not end.

Whether somebody may come in is decided from the log itself; this table is for lists. What ended is forgotten, and so is everything
of an erased person's. A row of a device that was unbound stays until the session's time is over: whoever shows it looks at the devices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Literal, NamedTuple
from uuid import UUID

from sqlalchemy import Column, DateTime, Index, Integer, MetaData, Table, Text, Uuid

from domain.identity.sessions import SessionEnded, SessionRefreshed, SessionStarted, first_end
from domain.identity.signins import SignedOutEverywhere
from domain.identity.users import UserErased
from eventstore.codec import Codec
from eventstore.errors import CorruptLog
from projections.consumer import Connection, Projection, Recorded
from projections.deleted import deleted
from projections.reading import Model, Reading, asks_again

NAME, VERSION, SHAPE = "sessions", 1, 1
MODEL = Model(NAME, SHAPE)
_TAKEN = frozenset(
    each.event_name for each in (SessionStarted, SessionRefreshed, SessionEnded, SignedOutEverywhere, UserErased)
)  # fmt: skip


def define(metadata: MetaData, generation: int) -> None:
    """The tables of one generation."""
    name = f"session_{generation}"
    Table(
        name,
        metadata,
        Column("partition", Integer, primary_key=True),
        Column("tenant_id", Uuid, primary_key=True),
        Column("session_id", Uuid, primary_key=True),
        Column("user_id", Uuid, nullable=False),
        Column("kind", Text(collation="C"), nullable=False),
        Column("device", Text(collation="C"), comment="the digest of its fingerprint"),
        Column("started_at", DateTime(timezone=True), nullable=False),
        Column("used_at", DateTime(timezone=True), nullable=False),
        Column("until", DateTime(timezone=True), nullable=False),
        Index(f"{name}_by_user", "partition", "tenant_id", "user_id", "started_at"),
        info={"readers": True},
    )


class Sessions:
    """The consumer."""

    name, version, starts_at_head = NAME, VERSION, False

    def __init__(self, codec: Codec, generation: int = 1) -> None:
        self.generation, self._codec = generation, codec
        table, place = f"session_{generation}", "where partition = %s and tenant_id = %s"
        self._start = (
            f"insert into {table} (partition, tenant_id, session_id, user_id, kind, device, started_at, used_at, until) "
            "values (%s, %s, %s, %s, %s, %s, %s, %s, %s) on conflict do nothing"
        )
        self._use = f"update {table} set used_at = %s, until = %s {place} and session_id = %s"
        self._end = f"delete from {table} {place} and session_id = %s"
        self._end_until = f"delete from {table} {place} and user_id = %s and started_at <= %s"
        self._end_all = f"delete from {table} {place} and user_id = %s"
        self._forget_tenant = f"delete from {table} {place}"

    async def apply(self, conn: Connection, partition: int, rows: Sequence[Recorded]) -> Callable[[], None]:
        """See :class:`projections.consumer.Consumer`."""
        changes = [row for row in rows if row.type in _TAKEN]
        if not changes and not any(row.type == "tenant.deleted" for row in rows):
            return self.forget
        gone = await deleted(conn, partition, rows)
        for row in changes:
            if row.tenant_id not in gone.silent:
                await self._take(conn, partition, row)
        for tenant_id in gone.ending:
            await conn.execute(self._forget_tenant, (partition, tenant_id))
        return self.forget

    def forget(self) -> None:
        """Nothing is kept."""

    async def _take(self, conn: Connection, partition: int, row: Recorded) -> None:
        event: Any = self._codec.decode(row.type, row.payload)
        place, of = (partition, row.tenant_id), UUID(row.stream.partition("-")[2])
        match event:
            case SessionStarted():
                told = (*place, of, event.user_id, event.kind, event.device, event.at, event.at, first_end(event))
                await conn.execute(self._start, told)
            case SessionRefreshed():
                await conn.execute(self._use, (event.at, event.until, *place, of))
            case SessionEnded():
                await conn.execute(self._end, (*place, of))
            case SignedOutEverywhere():
                await conn.execute(self._end_until, (*place, of, event.at))
            case UserErased():
                await conn.execute(self._end_all, (*place, of))
            case _:
                raise CorruptLog(f"Stream {row.stream} holds {row.type}.")


class SessionRow(NamedTuple):
    """A session that has not ended by what was recorded; by now its time may be over."""

    session_id: UUID
    kind: Literal["token", "browser"]
    device: str | None
    started_at: datetime
    used_at: datetime
    until: datetime


class SessionReader:
    """Asks for one person's sessions."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    @asks_again
    async def list(
        self,
        tenant_id: UUID,
        user_id: UUID,
        now: datetime,
        limit: int = 200,
        min_position: int | None = None,
        timeout_seconds: float = 5,
    ) -> Sequence[SessionRow]:
        """Those whose time is not over, the newest first.

        With ``min_position`` only after the read model has applied that position of the tenant's partition; raises
        `ProjectionBehind` when it has not in time.
        """
        await self._reading.reach(MODEL, tenant_id, min_position, timeout_seconds)
        async with self._reading.begin(MODEL, tenant_id) as (conn, generation):
            query = (
                f"select session_id, kind, device, started_at, used_at, until from session_{generation} "
                "where partition = %s and tenant_id = %s and user_id = %s and until > %s order by started_at desc, session_id limit %s"
            )
            cursor = await conn.execute(query, (self._reading.partition_of(tenant_id), tenant_id, user_id, now, limit))
            return [SessionRow._make(row) for row in await cursor.fetchall()]


PROJECTION = Projection(NAME, version=VERSION, shape=SHAPE, define=define, consumer=Sessions)

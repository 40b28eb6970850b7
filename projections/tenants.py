"""Which tenants there are, for operators: no reader's role can see this table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from psycopg import AsyncConnection
from sqlalchemy import Column, DateTime, Integer, MetaData, Table, Text, Uuid

from domain.identity.tenants import TenantCreated, TenantDeleted
from eventstore.codec import Codec
from eventstore.errors import StoreError
from projections.consumer import Connection, Projection, Recorded

NAME = "tenants"
VERSION, SHAPE = 1, 1


def define(metadata: MetaData, generation: int) -> None:
    """The tables of one generation."""
    Table(
        f"tenant_{generation}",
        metadata,
        Column("partition", Integer, primary_key=True),
        Column("tenant_id", Uuid, primary_key=True),
        Column("name", Text, nullable=False),
        Column("zone", Text, nullable=False),
        Column("created_at", DateTime(timezone=True), nullable=False),
        info={"readers": False},
    )


class Tenants:
    """The consumer."""

    name, version, starts_at_head = NAME, VERSION, False

    def __init__(self, codec: Codec, generation: int = 1) -> None:
        self.generation, self._codec = generation, codec
        self._insert = (
            f"insert into tenant_{generation} (partition, tenant_id, name, zone, created_at) values (%s, %s, %s, %s, %s) "
            "on conflict (partition, tenant_id) do update set name = excluded.name, zone = excluded.zone"
        )
        self._delete = f"delete from tenant_{generation} where partition = %s and tenant_id = %s"

    async def apply(self, conn: Connection, partition: int, rows: Sequence[Recorded]) -> Callable[[], None]:
        """See :class:`projections.consumer.Consumer`."""
        for row in rows:
            if row.stream.startswith("tenant-"):
                event = self._codec.decode(row.type, row.payload)
                if isinstance(event, TenantCreated):
                    await conn.execute(self._insert, (partition, event.tenant_id, event.name, event.zone, event.at))
                elif isinstance(event, TenantDeleted):
                    await conn.execute(self._delete, (partition, event.tenant_id))
        return self.forget

    def forget(self) -> None:
        """Nothing is kept."""


class TenantRow(NamedTuple):
    """One tenant."""

    tenant_id: UUID
    name: str
    zone: str
    created_at: datetime


async def list_tenants(dsn: str) -> list[TenantRow]:
    """All tenants, oldest first. For operators: needs a login that may act as the followers' role."""
    async with await AsyncConnection.connect(dsn, options="-c role=holdbook_follower") as conn:
        found = await (await conn.execute("select generation from projection where name = %s and shape = %s", (NAME, SHAPE))).fetchone()
        if found is None:
            raise StoreError("The list of tenants is not built yet: start a worker.")
        query = f"select tenant_id, name, zone, created_at from tenant_{int(found[0])} order by created_at, tenant_id"
        cursor = await conn.execute(query)
        return [TenantRow._make(row) for row in await cursor.fetchall()]


PROJECTION = Projection(NAME, version=VERSION, shape=SHAPE, define=define, consumer=Tenants)

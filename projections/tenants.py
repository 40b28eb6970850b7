"""Which tenants there are, for operators: no reader's role can see this table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from psycopg import AsyncConnection
from sqlalchemy import Column, DateTime, Integer, MetaData, Table, Text, Uuid

from domain.identity.tenants import Tenant, TenantCreated, TenantDeleted, TenantResumed, TenantSettingsChanged, TenantSuspended
from eventstore.codec import Codec
from eventstore.errors import StoreError
from projections.consumer import SKIPPED, Connection, Projection, Recorded

NAME = "tenants"
VERSION, SHAPE = 2, 2
_COLUMNS = "tenant_id, name, zone, locale, currency, registration, status, created_at"


def define(metadata: MetaData, generation: int) -> None:
    """The tables of one generation."""
    Table(
        f"tenant_{generation}",
        metadata,
        Column("partition", Integer, primary_key=True),
        Column("tenant_id", Uuid, primary_key=True),
        Column("name", Text, nullable=False),
        Column("zone", Text, nullable=False),
        Column("locale", Text, nullable=False),
        Column("currency", Text, nullable=False),
        Column("registration", Text, nullable=False),
        Column("status", Text, nullable=False),
        Column("created_at", DateTime(timezone=True), nullable=False),
        info={"readers": False},
    )


class Tenants:
    """The consumer."""

    name, version, starts_at_head = NAME, VERSION, False

    def __init__(self, codec: Codec, generation: int = 1) -> None:
        self.generation, self._codec = generation, codec
        one = "where partition = %s and tenant_id = %s"
        self._insert = (
            f"insert into tenant_{generation} (partition, {_COLUMNS}) values (%s, %s, %s, %s, %s, %s, %s, %s, %s) "
            "on conflict (partition, tenant_id) do update set name = excluded.name, zone = excluded.zone"
        )
        self._settings = f"update tenant_{generation} set name = %s, zone = %s, locale = %s, currency = %s, registration = %s {one}"
        self._status = f"update tenant_{generation} set status = %s {one}"
        self._delete = f"delete from tenant_{generation} {one}"

    async def apply(self, conn: Connection, partition: int, rows: Sequence[Recorded]) -> Callable[[], None]:
        """See :class:`projections.consumer.Consumer`."""
        for row in rows:
            if row.stream.startswith("tenant-") and row.type != SKIPPED:
                await self._take(conn, partition, row)
        return self.forget

    async def _take(self, conn: Connection, partition: int, row: Recorded) -> None:
        event = self._codec.decode(row.type, row.payload)
        place = partition, row.tenant_id
        match event:
            case TenantCreated():
                begun = Tenant(event.tenant_id, event.name, event.zone)
                settings = begun.name, begun.zone, begun.locale, begun.currency, begun.registration
                await conn.execute(self._insert, (*place, *settings, "active", event.at))
            case TenantSettingsChanged():
                settings = event.name, event.zone, event.locale, event.currency, event.registration
                await conn.execute(self._settings, (*settings, *place))
            case TenantSuspended():
                await conn.execute(self._status, ("suspended", *place))
            case TenantResumed():
                await conn.execute(self._status, ("active", *place))
            case TenantDeleted():
                await conn.execute(self._delete, place)
            case _:
                pass  # its owners

    def forget(self) -> None:
        """Nothing is kept."""


class TenantRow(NamedTuple):
    """One tenant."""

    tenant_id: UUID
    name: str
    zone: str
    locale: str
    currency: str
    registration: str
    status: str
    created_at: datetime


async def list_tenants(
    dsn: str, *, status: str | None = None, after: tuple[datetime, UUID] | None = None, limit: int | None = None
) -> list[TenantRow]:
    """Tenants of this status, oldest first, behind a place in that order. For operators: needs a login that may act as the followers'
    role.
    """
    async with await AsyncConnection.connect(dsn, options="-c role=holdbook_follower") as conn:
        found = await (await conn.execute("select generation from projection where name = %s and shape = %s", (NAME, SHAPE))).fetchone()
        if found is None:
            raise StoreError("The list of tenants is not built yet: start a worker.")
        query = (
            f"select {_COLUMNS} from tenant_{int(found[0])} where (%s::text is null or status = %s) "
            "and (%s::timestamptz is null or (created_at, tenant_id) > (%s::timestamptz, %s::uuid)) "
            "order by created_at, tenant_id limit %s"
        )
        at, tenant_id = after or (None, None)
        cursor = await conn.execute(query, (status, status, at, at, tenant_id, limit))
        return [TenantRow._make(row) for row in await cursor.fetchall()]


PROJECTION = Projection(NAME, version=VERSION, shape=SHAPE, define=define, consumer=Tenants)

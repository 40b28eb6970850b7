"""Telemetry: a table apart from the log, of what programs tell about themselves and nobody can be found in.

An event is kept once, whoever sends it how often. Rows are removed by retention, a tenant's with the tenant.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime
from typing import NamedTuple
from uuid import UUID

from psycopg_pool import AsyncConnectionPool

from projections.consumer import Connection
from projections.reading import Reading

_KEEP = """
insert into telemetry (partition, tenant_id, event_id, at, installation, name, properties)
select %s::int, %s::uuid, u.event_id, u.at, u.installation, u.name, u.properties::json
from unnest(%b::uuid[], %b::timestamptz[], %b::uuid[], %b::text[], %b::text[]) as u(event_id, at, installation, name, properties)
on conflict do nothing"""
_SUMMARY = """
select (at at time zone 'UTC')::date as day, name, count(*), count(distinct installation) from telemetry
where partition = %s and tenant_id = %s and at >= %s group by 1, 2 order by 1 desc, 2 limit %s"""
_OLD = "select distinct tenant_id from telemetry where partition = %s and at < %s"
_PURGE = """
delete from telemetry where partition = %s and tenant_id = %s and event_id in (
  select event_id from telemetry where partition = %s and tenant_id = %s and at < %s limit %s)"""


class TelemetryRow(NamedTuple):
    """One event. ``properties`` is JSON text, ``at`` is a full hour."""

    event_id: UUID
    at: datetime
    installation: UUID
    name: str
    properties: str


class TelemetryDay(NamedTuple):
    """How many events of a name came on a day (UTC), and from how many installations."""

    day: date
    name: str
    events: int
    installations: int


async def keep(pool: AsyncConnectionPool[Connection], partition: int, tenant_id: UUID, rows: Sequence[TelemetryRow]) -> int:
    """Keep what is not there yet; how many that were."""
    # In the order of the key: two that keep the same events in different orders would wait for one another.
    ordered = sorted(rows, key=lambda row: row.event_id.bytes)
    async with pool.connection() as conn:
        cursor = await conn.execute(_KEEP, (partition, tenant_id, *map(list, zip(*ordered, strict=True))))
        return cursor.rowcount


async def tenants(conn: Connection, partition: int, before: datetime) -> list[UUID]:
    """Those who have something from before a moment."""
    return [tenant_id for (tenant_id,) in await (await conn.execute(_OLD, (partition, before))).fetchall()]


async def purge(conn: Connection, partition: int, tenant_id: UUID, before: datetime, limit: int) -> int:
    """Remove a tenant's from before a moment, some at a time; how many that were."""
    return (await conn.execute(_PURGE, (partition, tenant_id, partition, tenant_id, before, limit))).rowcount


class TelemetryReader:
    """A tenant's own counts."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    async def summary(self, tenant_id: UUID, since: datetime, limit: int) -> list[TelemetryDay]:
        """Counts by day and name, the last day first."""
        async with self._reading.as_tenant(tenant_id) as conn:
            cursor = await conn.execute(_SUMMARY, (self._reading.partition_of(tenant_id), tenant_id, since, limit))
            return [TelemetryDay._make(row) for row in await cursor.fetchall()]

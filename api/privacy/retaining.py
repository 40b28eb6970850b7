"""Retention: a service of the worker that removes, once an hour, what a tenant keeps no longer.

By the database's clock, in short statements, and without any order between workers: each removes what it finds, and what one has removed
another does not find. A policy is read when it is needed, so a shorter one holds at the next run. People who stay away are erased like
anybody else, after the log itself was asked when they were last there; a read model may be behind.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import NAMESPACE_URL, UUID, uuid5

import structlog
from prometheus_client.core import CounterMetricFamily, Metric
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from api import refusals
from api.privacy import erasing
from domain.identity.signins import signin_stream
from domain.identity.tenants import TENANT, Tenant, tenant_stream
from domain.identity.users import USER, Active, Invited, Suspended, user_stream
from domain.privacy.retention import KINDS, RETENTION, Retention, retention_stream
from eventstore import origins
from eventstore.postgres import open_pool
from eventstore.requests import Request
from eventstore.store import Store
from projections import footprints, telemetry
from projections.task_table import OPTIONS

log = structlog.get_logger(__name__)

Connection = AsyncConnection[TupleRow]

PEOPLE = "inactive_people"
ACTOR = "process:retention"
AT_ONCE = 1_000
PEOPLE_AT_ONCE = 100
_KEPT_ROLES = frozenset({"owner", "operator"})
_COMMANDS = uuid5(NAMESPACE_URL, "holdbook:retention")
_NOW = "select clock_timestamp()"
_OLD_ORIGINS = "select distinct tenant_id from origin where partition = %s and last_at < %s"
_OLD_REFUSALS = "select distinct tenant_id from door_refusal where partition = %s and hour < %s"
_LAST = "select max(recorded_at) from event where partition = %s and tenant_id = %s and stream = any(%s)"


class Purge(NamedTuple):
    """A kind of rows: which tenants have some from before a moment, and how some of one tenant's are removed."""

    kind: str
    tenants: Callable[[Connection, int, datetime], Awaitable[Sequence[UUID]]]
    remove: Callable[[Connection, int, UUID, datetime, int], Awaitable[int]]


def _having(query: Any) -> Callable[[Connection, int, datetime], Awaitable[Sequence[UUID]]]:
    async def tenants(conn: Connection, partition: int, before: datetime) -> Sequence[UUID]:
        return [tenant_id for (tenant_id,) in await (await conn.execute(query, (partition, before))).fetchall()]

    return tenants


PURGES: tuple[Purge, ...] = (
    Purge("telemetry", telemetry.tenants, telemetry.purge),
    Purge("origins", _having(_OLD_ORIGINS), origins.purge),
    Purge("refusals", _having(_OLD_REFUSALS), refusals.purge),
)
"""Everything that is kept in rows and not for ever. Webhooks' deliveries have a setting of the deployment instead."""


class Retaining:
    """The service."""

    first_seconds = 30.0
    """A process that has just begun has better things to do."""
    every_seconds = 3600.0

    def __init__(self, dsn: str, store: Store, purges: Sequence[Purge] = PURGES) -> None:
        self._dsn, self._store, self._purges = dsn, store, purges
        self._stopping = asyncio.Event()
        self.removed: Counter[str] = Counter()
        self.failed = 0

    def collect(self) -> Iterator[Metric]:
        """See :class:`api.metrics.Collects`."""
        removed = CounterMetricFamily("holdbook_retention_removed", "Rows removed, and people erased, by kind.", labels=("kind",))
        for kind in KINDS:
            removed.add_metric((kind,), self.removed[kind])
        yield removed
        yield CounterMetricFamily("holdbook_retention_failed", "Runs that did not come to their end.", value=self.failed)

    def stop(self) -> None:
        """See :class:`api.services.Service`."""
        self._stopping.set()

    async def run(self) -> None:
        """See :class:`api.services.Service`."""
        await self._pause(self.first_seconds)
        while not self._stopping.is_set():
            try:
                await self.once()
            except Exception as error:  # nobody awaits this task before the process ends
                self.failed += 1
                log.warning("retention.not_done", reason=type(error).__name__)
            await self._pause(self.every_seconds)

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    async def once(self) -> None:
        """Look at everything, and remove what is due."""
        pool = await open_pool(self._dsn, size=1, options=OPTIONS)
        try:
            for partition in range(self._store.partitions):
                if self._stopping.is_set():
                    return
                for purge in self._purges:
                    await self._rows(pool, partition, purge)
                await self._people(pool, partition)
        finally:
            await pool.close()

    async def _rows(self, pool: AsyncConnectionPool[Connection], partition: int, purge: Purge) -> None:
        async with pool.connection() as conn:
            now = await _now(conn)
            # No policy is shorter than the kind's least: who has nothing older need not be looked at.
            tenants = await purge.tenants(conn, partition, now - timedelta(days=KINDS[purge.kind].least))
        for tenant_id in tenants:
            days = (await self._policies(tenant_id)).days(purge.kind)
            if days is None:
                continue
            gone = AT_ONCE
            while gone >= AT_ONCE and not self._stopping.is_set():
                async with pool.connection() as conn:
                    gone = await purge.remove(conn, partition, tenant_id, now - timedelta(days=days), AT_ONCE)
                self.removed[purge.kind] += gone

    async def _policies(self, tenant_id: UUID) -> Retention:
        found: Retention = (await self._store.state(RETENTION, tenant_id, retention_stream(tenant_id))).state
        return found

    async def _people(self, pool: AsyncConnectionPool[Connection], partition: int) -> None:
        async with pool.connection() as conn:
            now = await _now(conn)
            tenants = await footprints.tenants(conn, partition)
        for tenant_id in tenants:
            days = (await self._policies(tenant_id)).days(PEOPLE)
            tenant = (await self._store.state(TENANT, tenant_id, tenant_stream(tenant_id))).state
            if days is None or not isinstance(tenant, Tenant):
                continue
            before, after = now - timedelta(days=days), None
            while not self._stopping.is_set():
                async with pool.connection() as conn:
                    idle = await footprints.idle(conn, partition, tenant_id, before, after, PEOPLE_AT_ONCE)
                for each in idle:
                    await self._person(pool, partition, tenant_id, each, before)
                if len(idle) < PEOPLE_AT_ONCE:
                    break
                after = idle[-1].person_id

    async def _person(
        self, pool: AsyncConnectionPool[Connection], partition: int, tenant_id: UUID, idle: footprints.Idle, before: datetime
    ) -> None:
        """Erase one, unless the log knows better than the read model."""
        user_id = idle.person_id
        user = (await self._store.state(USER, tenant_id, user_stream(user_id))).state
        if not isinstance(user, Invited | Active | Suspended) or user.role in _KEPT_ROLES:
            return
        async with pool.connection() as conn:
            last = await _last_there(conn, partition, tenant_id, user_id, idle.streams)
        if last is None or last >= before:
            return
        items = await erasing.items(self._store, tenant_id, user_id, user)
        # One id for one absence: two workers that find it at once erase once.
        command_id = uuid5(_COMMANDS, f"{tenant_id.hex}|{user_id.hex}|{last.isoformat()}")
        outcome = await self._store.submit(Request(tenant_id, command_id, items, b"", actor=ACTOR))
        if outcome.refused:
            return
        await erasing.complete(self._store, tenant_id, user_id)
        self.removed[PEOPLE] += 0 if outcome.replayed else 1


async def _now(conn: Connection) -> datetime:
    row = await (await conn.execute(_NOW)).fetchone()
    assert row is not None
    now: datetime = row[0]
    return now


async def _last_there(conn: Connection, partition: int, tenant_id: UUID, user_id: UUID, streams: Sequence[str]) -> datetime | None:
    """When the log last heard of somebody.

    A session that the read model does not know yet began with a sign-in, which is in a stream of the person's name.
    """
    wanted = [user_stream(user_id), signin_stream(user_id), *streams]
    row = await (await conn.execute(_LAST, (partition, tenant_id, wanted))).fetchone()
    return None if row is None else row[0]

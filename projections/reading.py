"""What all queries of read models share: connections of one role, one moment of everything, and waiting for a position."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar
from uuid import UUID

from psycopg.errors import UndefinedTable
from psycopg_pool import AsyncConnectionPool

from eventstore.postgres import open_pool
from eventstore.store import partition_of
from projections.consumer import Connection, ProjectionBehind

READER, FOLLOWER = "holdbook_reader", "holdbook_follower"
"""Roles: row-level security shows a reader one tenant, and the followers' role everything."""

_OPTIONS = "-c plan_cache_mode=force_custom_plan -c jit=off -c timezone=UTC -c statement_timeout=30s -c role="
_GENERATION = "select generation from projection where name = %s and shape = %s"
_REACHED = f"""
select c.position, c.stopped from checkpoint c
where c.partition = %s and c.consumer = %s and c.generation = ({_GENERATION})"""


class Model(NamedTuple):
    """Which read model a query asks: its name, and the shape of its tables that the query was written for."""

    name: str
    shape: int


Asked = ParamSpec("Asked")
Answer = TypeVar("Answer")


def asks_again(query: Callable[Asked, Awaitable[Answer]]) -> Callable[Asked, Coroutine[Any, Any, Answer]]:
    """A query that is asked once more when the generation it was reading is no longer there: the next one has been answering since."""

    @wraps(query)
    async def ask(*args: Asked.args, **kwargs: Asked.kwargs) -> Answer:
        try:
            return await query(*args, **kwargs)
        except UndefinedTable:
            return await query(*args, **kwargs)

    return ask


class Reading:
    """Reads from the generation that the registry names at that moment. Shared by all readers of a process."""

    def __init__(self, pool: AsyncConnectionPool[Connection], partitions: int) -> None:
        self._pool, self.partitions = pool, partitions

    @classmethod
    async def open(cls, dsn: str, role: str, connections: int) -> Reading:
        """Connect as a role."""
        pool = await open_pool(dsn, size=connections, options=_OPTIONS + role)
        async with pool.connection() as conn:
            row = await (await conn.execute("select partitions from store")).fetchone()
        assert row is not None
        return cls(pool, row[0])

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.close()

    def partition_of(self, tenant_id: UUID) -> int:
        """Where the tenant lives."""
        return partition_of(tenant_id, self.partitions)

    @asynccontextmanager
    async def begin(self, model: Model, tenant_id: UUID | None = None) -> AsyncIterator[tuple[Connection, int]]:
        """A transaction that sees one moment of everything, as the tenant, if there is one; and the generation to read."""
        async with self._pool.connection() as conn:
            async with conn.pipeline():
                await conn.execute("begin isolation level repeatable read, read only")
                if tenant_id is not None:
                    # A literal, because Citus hands on SET LOCAL and not set_config(); a UUID needs no quoting.
                    await conn.execute(f"set local app.tenant_id = '{UUID(int=tenant_id.int)}'")
                found = await (await conn.execute(_GENERATION, model)).fetchone()
            if found is None:  # new in this release, and not built yet
                raise ProjectionBehind(0, 0)
            yield conn, found[0]
            await conn.execute("commit")

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection for one who begins, names the tenant and ends in one text of their own."""
        async with self._pool.connection() as conn:
            yield conn

    @asynccontextmanager
    async def as_tenant(self, tenant_id: UUID) -> AsyncIterator[Connection]:
        """A transaction of the tenant's, for tables without generations."""
        async with self._pool.connection() as conn:
            async with conn.pipeline():
                await conn.execute("begin read only")
                await conn.execute(f"set local app.tenant_id = '{UUID(int=tenant_id.int)}'")
            yield conn
            await conn.execute("commit")

    async def reach(self, model: Model, tenant_id: UUID, wanted: int | None, timeout_seconds: float) -> None:
        """Wait until the read model has applied a position of the tenant's partition.

        Raises `ProjectionBehind` when it has not in time, and at once when it has stopped.
        """
        if not wanted:
            return
        place = self.partition_of(tenant_id), model.name, *model
        deadline, pause = time.monotonic() + timeout_seconds, 0.005
        while True:
            async with self._pool.connection() as conn:
                found = await (await conn.execute(_REACHED, place)).fetchone()
            position, stopped = found or (0, None)
            if position >= wanted:
                return
            if stopped is not None or time.monotonic() + pause > deadline:
                raise ProjectionBehind(position, wanted, stopped)
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 0.1)

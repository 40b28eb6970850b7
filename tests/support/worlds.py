"""A log that several stores may open, as several processes would: in memory, or in a database of its own.

What an operator with a superuser's connection can do to it stands here too, because tests must be able to do harm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Protocol
from uuid import UUID, uuid4, uuid5

import psycopg

from domain.kernel.decider import Command, Decider
from eventstore.codec import Codec
from eventstore.memory import MemoryLog
from eventstore.rows import COLUMNS, Row, first_broken
from eventstore.store import Store, partition_of
from eventstore.writer import Item, Options, Request
from tests.support.till import TILL

TENANT = UUID("7e7a7e57-0000-4000-8000-000000000001")
OTHER = next(other for other in (uuid5(TENANT, str(n)) for n in range(10_000)) if partition_of(other, 64) == partition_of(TENANT, 64))
"""Another tenant, in the same partition."""

SELECT = ", ".join(f"{name}::text" if name in ("payload", "reply") else name for name in COLUMNS)


def fingerprint(body: str) -> bytes:
    return sha256(body.encode()).digest()


def ask(
    *items: tuple[str, Command],
    key: UUID | None = None,
    tenant: UUID = TENANT,
    decider: Decider[Any] = TILL,
    body: str | None = None,
    **more: Any,
) -> Request:
    """A request. The body's fingerprint covers what is asked, unless ``body`` says otherwise."""
    digest = fingerprint(repr(items) if body is None else body)
    return Request(tenant, key or uuid4(), tuple(Item(decider, stream, command) for stream, command in items), digest, **more)


class World(Protocol):
    """One log of one partition, and the stores on it."""

    async def open(self, options: Options | None = None, deciders: Sequence[Decider[Any]] = (TILL,)) -> Store:
        """Another store on the same log, as another process would open it."""
        ...

    def rows(self) -> list[Row]:
        """The log of the tenant's partition."""
        ...

    def lose_tail(self, events: int) -> None:
        """What a failover to a standby that lagged behind does."""
        ...

    def rename_type(self, position: int, stored_type: str) -> None:
        """Give an event a type of a newer program."""
        ...

    async def close(self) -> None:
        """Drain every store."""
        ...


def broken(world: World) -> int | None:
    """The first broken position of the tenant's partition."""
    return first_broken(partition_of(TENANT, 64), world.rows())


class MemoryWorld:
    """The twin's log, with a clock in the hands of the test."""

    def __init__(self, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.logs: dict[int, MemoryLog] = {}
        self.clock = clock
        self.make: Callable[[int, Callable[[], datetime]], MemoryLog] = MemoryLog
        self.stores: list[Store] = []

    def log(self, partition: int) -> MemoryLog:
        if partition not in self.logs:
            self.logs[partition] = self.make(partition, lambda: self.clock())  # noqa: PLW0108  # as it is then
        return self.logs[partition]

    async def open(self, options: Options | None = None, deciders: Sequence[Decider[Any]] = (TILL,)) -> Store:
        self.stores.append(Store(Codec(deciders), 64, self.log, options))
        return self.stores[-1]

    def rows(self) -> list[Row]:
        return list(self.log(partition_of(TENANT, 64)).rows)

    def lose_tail(self, events: int) -> None:
        rows = self.log(partition_of(TENANT, 64)).rows
        del rows[len(rows) - events :]

    def rename_type(self, position: int, stored_type: str) -> None:
        rows = self.log(partition_of(TENANT, 64)).rows
        rows[position - 1] = rows[position - 1]._replace(type=stored_type)

    async def close(self) -> None:
        for store in self.stores:
            await store.drain()


class PostgresWorld:
    """A migrated database, and a superuser's connection to it."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.partition = partition_of(TENANT, 64)
        self.admin = psycopg.connect(dsn, autocommit=True)
        self.stores: list[Store] = []

    async def open(self, options: Options | None = None, deciders: Sequence[Decider[Any]] = (TILL,), *, connections: int = 4) -> Store:
        self.stores.append(await Store.open(self.dsn, deciders, options, connections=connections))
        return self.stores[-1]

    def rows(self) -> list[Row]:
        query = f"select {SELECT} from event where partition = %s order by position"
        return [Row._make(row) for row in self.admin.execute(query, (self.partition,), binary=True)]

    def lose_tail(self, events: int) -> None:
        query = "delete from event where partition = %s and position > (select max(position) from event where partition = %s) - %s"
        self.admin.execute(query, (self.partition, self.partition, events))

    def rename_type(self, position: int, stored_type: str) -> None:
        self.admin.execute("update event set type = %s where partition = %s and position = %s", (stored_type, self.partition, position))

    async def close(self) -> None:
        for store in self.stores:
            await store.drain()
        self.admin.close()

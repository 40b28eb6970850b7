"""From where commands came: an address and a program, kept apart from the log, which only holds an id of them.

The id is a digest under the person's own key, so it cannot be found by trying addresses once the person was erased; the address itself is
sealed with that key, in a table whose rows retention removes. An actor in the log reads ``user:<id>@<origin id>``.
"""

from __future__ import annotations

import hmac
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from uuid import UUID

import msgspec
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from eventstore.sealing import Erased, Sealing

AGAIN_SECONDS = 12 * 3600.0
"""How often an origin in use is said to be so: retention counts in days, and removes none that was used within its days."""

_PURPOSE = "origin"
_MAX_AGENT = 200
_REMEMBERED = 20_000
_KEEP = """
insert into origin (partition, tenant_id, origin_id, person_id, sealed, first_at, last_at) values (%s, %s, %s, %s, %s, %s, %s)
on conflict (partition, tenant_id, origin_id) do update set last_at = greatest(origin.last_at, excluded.last_at)"""
_SHOW = "select origin_id, person_id, sealed from origin where partition = %s and tenant_id = %s and origin_id = any(%s)"
_FORGET = "delete from origin where partition = %s and tenant_id = %s and person_id = %s"
_PURGE = """
delete from origin where partition = %s and tenant_id = %s and origin_id in (
  select origin_id from origin where partition = %s and tenant_id = %s and last_at < %s limit %s)"""


class Origin(NamedTuple):
    """An address, and what the program there calls itself."""

    address: str
    agent: str | None


def with_origin(actor: str, origin_id: str | None) -> str:
    """An actor as the log has it."""
    return actor if origin_id is None else f"{actor}@{origin_id}"


def without_origin(actor: str) -> str:
    """Who it was."""
    return actor.partition("@")[0]


class Origins:
    """Keeps them, and tells them to those who may know."""

    def __init__(
        self,
        pool: AsyncConnectionPool[AsyncConnection[TupleRow]] | None,
        sealing: Sealing,
        partition_of: Callable[[UUID], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool, self._sealing, self._partition_of, self._clock = pool, sealing, partition_of, clock
        self._known: OrderedDict[tuple[UUID, UUID, str, str | None], tuple[float, str]] = OrderedDict()
        self._rows: dict[tuple[UUID, str], tuple[UUID, str]] = {}
        """In place of the table, without a database."""

    async def of(self, tenant_id: UUID, person_id: UUID, address: str, agent: str | None) -> str | None:
        """The id under which it is kept from now on, at the latest; None for a person who was erased."""
        place = (tenant_id, person_id, address, agent)
        now = self._clock()
        found = self._known.get(place)
        if found is not None and now - found[0] < AGAIN_SECONDS:
            return found[1]
        try:
            origin_id = await self._keep(tenant_id, person_id, Origin(address, agent[:_MAX_AGENT] if agent else None))
        except Erased:
            return None
        self._known[place] = (now, origin_id)
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return origin_id

    async def _keep(self, tenant_id: UUID, person_id: UUID, origin: Origin) -> str:
        text = msgspec.json.encode(origin)
        key = await self._sealing.person_secret(tenant_id, person_id, _PURPOSE)
        origin_id = hmac.digest(key, text, "sha256").hex()[:16]
        sealed = await self._sealing.seal(tenant_id, person_id, _PURPOSE, text.decode())
        if self._pool is None:
            self._rows.setdefault((tenant_id, origin_id), (person_id, sealed))
            return origin_id
        now = datetime.now(UTC)
        async with self._pool.connection() as conn:
            await conn.execute(_KEEP, (self._partition_of(tenant_id), tenant_id, origin_id, person_id, sealed, now, now))
        return origin_id

    async def show(self, tenant_id: UUID, origin_ids: Iterable[str]) -> dict[str, Origin]:
        """Those of them that are still kept, and whose person was not erased."""
        wanted = sorted(set(origin_ids))
        if not wanted:
            return {}
        if self._pool is None:
            rows = [(each, *self._rows[tenant_id, each]) for each in wanted if (tenant_id, each) in self._rows]
        else:
            async with self._pool.connection() as conn:
                rows = await (await conn.execute(_SHOW, (self._partition_of(tenant_id), tenant_id, wanted))).fetchall()
        shown: dict[str, Origin] = {}
        for origin_id, person_id, sealed in rows:
            text = await self._sealing.open(tenant_id, person_id, _PURPOSE, sealed)
            if text is not None:
                shown[origin_id] = Origin(*msgspec.json.decode(text))
        return shown


async def forget(conn: AsyncConnection[TupleRow], partition: int, tenant_id: UUID, person_id: UUID) -> int:
    """Remove all of a person's; how many there were."""
    return (await conn.execute(_FORGET, (partition, tenant_id, person_id))).rowcount


async def purge(conn: AsyncConnection[TupleRow], partition: int, tenant_id: UUID, before: datetime, limit: int = 1_000) -> int:
    """Remove those of a tenant that were last used before a moment, some at a time; how many that were.

    One in use says so every :data:`AGAIN_SECONDS`, and the moment is moved back by as much: what is in use is not removed.
    """
    partition_tenant = (partition, tenant_id)
    before -= timedelta(seconds=AGAIN_SECONDS)
    return (await conn.execute(_PURGE, (*partition_tenant, *partition_tenant, before, limit))).rowcount

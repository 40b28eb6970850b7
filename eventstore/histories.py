"""What the log holds of one stream, page by page: for answers about somebody's past, however long it is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from eventstore.store import Store, partition_of

PAGE = 500

_PAGE = """
select version, position, type, recorded_at, actor, payload::text from event
where partition = %s and stream = %s and version > %s and tenant_id = %s order by version limit %s"""


class Past(NamedTuple):
    """One event of a stream, with its payload as it is stored."""

    version: int
    position: int
    type: str
    recorded_at: datetime
    actor: str | None
    payload: str


async def page(store: Store, tenant_id: UUID, stream: str, after: int = 0, limit: int = PAGE) -> Sequence[Past]:
    """A stream's events behind a version, in order. Nothing of another tenant's, whatever the stream is called."""
    if store.pool is None:
        rows = await store.writer(tenant_id).log.stream_rows([(stream, after)])
        own = [row for row in rows if row.tenant_id == tenant_id]
        return [Past(row.version, row.position, row.type, row.recorded_at, row.actor, row.payload) for row in own[:limit]]
    place = (partition_of(tenant_id, store.partitions), stream, after, tenant_id, limit)
    async with store.pool.connection() as conn:
        return [Past._make(row) for row in await (await conn.execute(_PAGE, place)).fetchall()]


async def pages(store: Store, tenant_id: UUID, stream: str, size: int = PAGE) -> AsyncIterator[Past]:
    """All of a stream's events in order. Only one page is held at a time, and no connection between pages."""
    after = 0
    while True:
        found = await page(store, tenant_id, stream, after, size)
        for each in found:
            yield each
        if len(found) < size:
            return
        after = found[-1].version


_ORIGINS = """
select sealed, first_at, last_at from origin where partition = %s and tenant_id = %s and person_id = %s order by first_at, origin_id"""


class SealedOrigin(NamedTuple):
    """From where a person's commands came, between two moments."""

    sealed: str
    first_at: datetime
    last_at: datetime


async def origins_of(store: Store, tenant_id: UUID, person_id: UUID) -> Sequence[SealedOrigin]:
    """Those of a person that are still kept."""
    if store.pool is None:
        return ()
    async with store.pool.connection() as conn:
        cursor = await conn.execute(_ORIGINS, (partition_of(tenant_id, store.partitions), tenant_id, person_id))
        return [SealedOrigin._make(row) for row in await cursor.fetchall()]

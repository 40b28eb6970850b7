"""When each API key was last used: noted in memory, and kept once a minute.

A request pays for one entry in a dictionary. What was noted since the last time is lost with a process that dies, and whatever order
processes keep theirs in, a key's time only ever goes forward.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from uuid import UUID

import psycopg
import structlog
from psycopg_pool import PoolTimeout

from api.auth import Principal
from eventstore.store import Store, partition_of

log = structlog.get_logger(__name__)

EVERY_SECONDS = 60.0
_KEEP = """
insert into key_use as k (partition, tenant_id, account_id, key_id, last_used_at)
select %s::int, u.* from unnest(%b::uuid[], %b::uuid[], %b::text[], %b::timestamptz[]) as u(tenant_id, account_id, key_id, last_used_at)
on conflict (partition, tenant_id, account_id, key_id) do update set last_used_at = greatest(k.last_used_at, excluded.last_used_at)"""

_Used = dict[tuple[str, str], tuple[UUID, float]]


class KeyUse:
    """The notes of one process, and a service that keeps them. ``clock`` tells seconds since 1970."""

    def __init__(self, store: Store, *, seconds: float = EVERY_SECONDS, clock: Callable[[], float] = time.time) -> None:
        self._pool, self._partitions, self._seconds, self._clock = store.pool, store.partitions, seconds, clock
        self._used: _Used = {}
        self._stopping = asyncio.Event()

    def note(self, principal: Principal) -> None:
        """A service account's key opened the door."""
        self._used[principal.account, principal.credential] = principal.tenant_id, self._clock()

    async def run(self) -> None:
        """See :class:`api.services.Service`."""
        stopping = False
        while not stopping:
            with contextlib.suppress(TimeoutError):
                stopping = await asyncio.wait_for(self._stopping.wait(), self._seconds)
            await self.flush()  # also at the end, and when that was asked for before the beginning

    def stop(self) -> None:
        """See :class:`api.services.Service`: what was noted is kept before the end."""
        self._stopping.set()

    async def flush(self) -> None:
        """Keep what was noted. What cannot be kept now waits for the next time."""
        used, self._used = self._used, {}
        if self._pool is None or not used:
            return
        rows: dict[int, list[tuple[UUID, UUID, str, datetime]]] = defaultdict(list)
        for (account, key_id), (tenant_id, seconds) in sorted(used.items()):  # in one order, or two processes could wait for each other
            partition = partition_of(tenant_id, self._partitions)
            rows[partition].append((tenant_id, UUID(account), key_id, datetime.fromtimestamp(seconds, UTC)))
        try:
            async with self._pool.connection() as conn:
                for partition, some in rows.items():
                    await conn.execute(_KEEP, (partition, *map(list, zip(*some, strict=True))))
        except (psycopg.Error, PoolTimeout, OSError) as error:
            log.warning("key_use_not_kept", error=type(error).__name__, keys=len(used))
            self._used = used | self._used

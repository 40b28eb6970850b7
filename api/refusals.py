"""What was refused at the door: counted by tenant, kind and hour, with a few samples; never in the log.

A flood of refused requests must not make the log grow, so what stands here has bounds: one row for each tenant, kind and hour, at most
ten samples in it. A sample says when, the credential's digest under the tenant's own key, and the address without what tells neighbours
apart: enough to see whether it is one who tries or many, and nothing to tell who.

The numbers are kept every few seconds. A process that dies takes its last seconds with it; an answer of the database that was lost has
them counted twice.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple, get_args
from uuid import UUID

import msgspec
import structlog
from prometheus_client.core import CounterMetricFamily, Metric
from psycopg import AsyncConnection, Error
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from api.origin import network_of
from eventstore.errors import StoreError
from eventstore.sealing import Sealing
from eventstore.store import Store, partition_of

log = structlog.get_logger(__name__)

Kind = Literal["sign_in", "rate", "permission", "csrf", "token"]
KINDS: tuple[Kind, ...] = get_args(Kind)

EVERY_SECONDS = 2.0
MOST_SAMPLES = 10
MOST_PLACES = 1_000
"""Tenants, kinds and hours that wait to be kept; what is more is counted as nobody's."""

NOBODY = UUID(int=0)
"""In place of the tenant where none is known."""

_KEEP = f"""
insert into door_refusal (partition, tenant_id, hour, kind, count, samples) values (%s, %s, %s, %s, %s, %s::jsonb)
on conflict (partition, tenant_id, hour, kind) do update set count = door_refusal.count + excluded.count,
  samples = jsonb_path_query_array(door_refusal.samples || excluded.samples, '$[0 to {MOST_SAMPLES - 1}]')"""
_LIST = """
select hour, kind, count, samples::text from door_refusal
where partition = %s and tenant_id = %s and (%s::timestamptz is null or (hour, kind) < (%s, %s)) order by hour desc, kind desc limit %s"""
_PURGE = """
delete from door_refusal where partition = %s and tenant_id = %s and (hour, kind) in (
  select hour, kind from door_refusal where partition = %s and tenant_id = %s and hour < %s limit %s)"""

_encode = msgspec.json.encode
_decode = msgspec.json.decode


class Sample(NamedTuple):
    """One refused request. ``credential`` is a digest of which credential it came with or tried; ``network`` its /24 or /48."""

    at: datetime
    credential: str | None
    network: str | None


@dataclass(frozen=True, slots=True)
class Refusal:
    """The refusals of one kind in one hour."""

    hour: datetime
    kind: str
    count: int
    samples: tuple[dict[str, Any], ...]


class _Waiting:
    """Not kept yet. Credentials stand here as they came: a key's or a session's id, or the digest of a login."""

    __slots__ = ("count", "samples")

    def __init__(self) -> None:
        self.count = 0
        self.samples: list[Sample] = []


_Place = tuple[UUID, datetime, Kind]


class Refusals:
    """The recorder of one process, and a service that keeps what it took."""

    def __init__(self, store: Store, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._pool, self._partitions, self._sealing, self._clock = store.pool, store.partitions, store.sealing, clock
        self._waiting: dict[_Place, _Waiting] = {}
        self._counts: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        self._stopping = asyncio.Event()

    def note(self, kind: Kind, tenant_id: UUID | None, credential: str | None = None, address: str | None = None) -> None:
        """Count one refused request; costs nothing but memory that has bounds.

        ``tenant_id`` is one that exists, not one that a stranger named. ``credential`` is an id, never a secret and never an address of
        a person; ``address`` is the client's.
        """
        self._counts[kind] += 1
        now = self._clock()
        place = (tenant_id or NOBODY, now.replace(minute=0, second=0, microsecond=0), kind)
        waiting = self._waiting.get(place)
        if waiting is None:
            if len(self._waiting) >= MOST_PLACES:
                place = (NOBODY, *place[1:])
            waiting = self._waiting.setdefault(place, _Waiting())
        waiting.count += 1
        if len(waiting.samples) < MOST_SAMPLES:
            waiting.samples.append(Sample(now, credential, None if address is None else network_of(address)))

    def collect(self) -> Iterator[Metric]:
        """See :class:`api.metrics.Collects`."""
        family = CounterMetricFamily("holdbook_door_refusals", "Requests refused at the door.", labels=("kind",))
        for kind, count in self._counts.items():
            family.add_metric((kind,), count)
        yield family

    async def run(self) -> None:
        """See :class:`api.services.Service`."""
        while not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), EVERY_SECONDS)
            await self.flush()
        await self.flush()  # of what came while the last one was kept, or before this began

    def stop(self) -> None:
        """See :class:`api.services.Service`: what was taken is kept before the end."""
        self._stopping.set()

    async def flush(self) -> None:
        """Keep what waits. What cannot be kept now waits for the next time."""
        if self._pool is None:
            self._waiting.clear()
            return
        waiting, self._waiting = self._waiting, {}
        for place in list(waiting):
            try:
                await self._keep(self._pool, place, waiting[place])
            except (Error, PoolTimeout, OSError) as error:
                log.warning("refusals_not_kept", error=type(error).__name__, places=len(waiting))
                self._take_back(waiting)
                return
            del waiting[place]

    async def _keep(self, pool: AsyncConnectionPool[AsyncConnection[TupleRow]], place: _Place, waiting: _Waiting) -> None:
        tenant_id, _, kind = place
        samples = [
            {"at": sample.at, "credential": await _digest(self._sealing, tenant_id, sample.credential), "network": sample.network}
            for sample in waiting.samples
        ]
        row = (partition_of(tenant_id, self._partitions), *place[:2], kind, waiting.count, _encode(samples).decode())
        async with pool.connection() as conn:
            await conn.execute(_KEEP, row)

    def _take_back(self, waiting: dict[_Place, _Waiting]) -> None:
        for place, old in waiting.items():
            new = self._waiting.setdefault(place, _Waiting())
            new.count += old.count
            new.samples = [*old.samples, *new.samples][:MOST_SAMPLES]

    async def list(self, tenant_id: UUID, after: tuple[datetime, str] | None, limit: int) -> Sequence[Refusal]:
        """A tenant's refusals, the newest hour first, behind a place in that order; without a database none."""
        if self._pool is None:
            return []
        hour, kind = after or (None, None)
        asked = (partition_of(tenant_id, self._partitions), tenant_id, hour, hour, kind, limit)
        async with self._pool.connection() as conn:
            rows = await (await conn.execute(_LIST, asked)).fetchall()
        return [Refusal(row[0], row[1], row[2], tuple(_decode(row[3]))) for row in rows]


async def _digest(sealing: Sealing, tenant_id: UUID, credential: str | None) -> str | None:
    """None also where no tenant is known: there is no key to make a digest with that could not be tried out."""
    if credential is None or tenant_id == NOBODY:
        return None
    try:
        return await sealing.digest(tenant_id, "door.refusal", credential)
    except StoreError:  # without the tenant's key the numbers still count
        return None


async def purge(conn: AsyncConnection[TupleRow], partition: int, tenant_id: UUID, before: datetime, limit: int = 1_000) -> int:
    """Remove a tenant's of hours that began before a moment, some at a time; how many rows that were."""
    return (await conn.execute(_PURGE, (partition, tenant_id, partition, tenant_id, before, limit))).rowcount

"""What became of each message to an endpoint: noted by who sends, asked by who owns the endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal, NamedTuple
from uuid import UUID

from psycopg_pool import AsyncConnectionPool

from eventstore.postgres import open_pool
from projections.consumer import Connection
from projections.reading import Reading
from projections.task_table import OPTIONS

State = Literal["waiting", "delivered", "failed", "dropped"]
"""``dropped`` was not sent: the endpoint ended, or the log does not hold the event any more."""

_READ = """
select d.message_id, d.state, d.attempts, d.last_status, d.revision, p.epoch, w.position,
       e.position, e.tenant_id, e.command_id, e.ordinal, e.type, e.stream, e.recorded_at, e.payload::text, e.trace
from webhook_delivery d
join log_partition p on p.partition = d.partition
left join webhook_endpoint w on w.partition = d.partition and w.endpoint_id = d.endpoint_id
left join event e on e.partition = d.partition and e.position = d.position
where d.partition = %s and d.endpoint_id = %s and d.number = %s"""
_NOTE = """
update webhook_delivery
set state = %s, attempts = %s, last_status = %s, last_error = %s, last_at = %s, next_at = %s, done_at = %s, revision = %s
where partition = %s and endpoint_id = %s and number = %s and state = 'waiting'"""
_FORGET = """
delete from webhook_delivery where partition = %s and done_at < %s and (endpoint_id, number) in (
  select endpoint_id, number from webhook_delivery where partition = %s and done_at < %s order by done_at limit %s)"""
_SHOWN = "message_id, number, position, type, state, attempts, last_status, last_error, created_at, last_at, next_at, done_at"
_LIST = f"""
select {_SHOWN} from webhook_delivery
where partition = %s and endpoint_id = %s and (%s::bigint is null or number < %s) order by number desc limit %s"""
_FIND = f"""
select {_SHOWN} from webhook_delivery where partition = %s and endpoint_id = %s and message_id = %s order by number desc limit 1"""


class Place(NamedTuple):
    """A delivery: the message to one endpoint that was queued under this number."""

    partition: int
    endpoint_id: UUID
    number: int


class Event(NamedTuple):
    """What the log holds at the message's position."""

    position: int
    tenant_id: UUID
    command_id: UUID
    ordinal: int
    type: str
    stream: str
    recorded_at: datetime
    payload: str
    trace: str | None


class Due(NamedTuple):
    """A delivery as the sender finds it. ``revision`` is the endpoint's at the last attempt, ``changed_at`` where it last changed."""

    message_id: str
    state: State
    attempts: int
    last_status: int | None
    revision: int | None
    epoch: int
    changed_at: int | None
    event: Event | None


class Note(NamedTuple):
    """What an attempt, or the lack of one, left behind."""

    state: State
    attempts: int
    status: int | None
    error: str | None
    at: datetime
    next_at: datetime | None
    revision: int | None


class Delivery(NamedTuple):
    """A delivery for its owner."""

    message_id: str
    number: int
    position: int
    type: str
    state: State
    attempts: int
    last_status: int | None
    last_error: str | None
    created_at: datetime
    last_at: datetime | None
    next_at: datetime | None
    done_at: datetime | None


class Deliveries:
    """The sender's side, as the followers' role. Its notes are on disk before the task that they are about is removed."""

    def __init__(self, pool: AsyncConnectionPool[Connection]) -> None:
        self._pool = pool

    @classmethod
    async def open(cls, dsn: str, connections: int = 2) -> Deliveries:
        """Connect."""
        return cls(await open_pool(dsn, size=connections, options=OPTIONS))

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.close()

    async def read(self, place: Place) -> Due | None:
        """A delivery and its event; None when there is no such delivery any more."""
        async with self._pool.connection() as conn:
            row = await (await conn.execute(_READ, place)).fetchone()
        if row is None:
            return None
        return Due._make((*row[:7], None if row[7] is None else Event._make(row[7:])))

    async def note(self, place: Place, note: Note) -> None:
        """Keep it, unless another worker has noted an end."""
        done_at = None if note.state == "waiting" else note.at
        told = (note.state, note.attempts, note.status, note.error, note.at, note.next_at, done_at, note.revision, *place)
        async with self._pool.connection() as conn:
            await conn.execute(_NOTE, told)

    async def forget(self, partition: int, before: datetime, at_most: int = 1_000) -> int:
        """Remove deliveries that ended before a moment, oldest first; how many there were to remove."""
        async with self._pool.connection() as conn:
            return (await conn.execute(_FORGET, (partition, before, partition, before, at_most))).rowcount


class DeliveryReader:
    """The owner's side: a tenant's own rows and no others."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    async def list(self, tenant_id: UUID, endpoint_id: UUID, before: int | None = None, limit: int = 50) -> Sequence[Delivery]:
        """An endpoint's deliveries, the newest first, behind a number in that order."""
        async with self._reading.as_tenant(tenant_id) as conn:
            cursor = await conn.execute(_LIST, (self._reading.partition_of(tenant_id), endpoint_id, before, before, limit))
            return [Delivery._make(row) for row in await cursor.fetchall()]

    async def find(self, tenant_id: UUID, endpoint_id: UUID, message_id: str) -> Delivery | None:
        """The last delivery of a message."""
        async with self._reading.as_tenant(tenant_id) as conn:
            row = await (await conn.execute(_FIND, (self._reading.partition_of(tenant_id), endpoint_id, message_id))).fetchone()
        return None if row is None else Delivery._make(row)

"""Reading the log for publishing: the ends of all partitions, and what follows a position together with the hash that anchors it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from eventstore.rows import GENESIS

READER_OPTIONS = (
    "-c role=holdbook_follower -c default_transaction_read_only=on -c statement_timeout=60s -c plan_cache_mode=force_custom_plan "
    "-c jit=off -c timezone=UTC -c tcp_user_timeout=10000"
)
_STORE = "select created_at, partitions from store"
_HEADS = """
select p.partition, p.epoch, coalesce((select max(e.position) from event e where e.partition = p.partition), 0)
from log_partition p where p.partition = any(%b::int[])"""
_RANGE = """
select position, tenant_id, stream, command_id, ordinal, type, recorded_at, trace, payload, hash from (
  select position, tenant_id, stream, command_id, ordinal, type, recorded_at, trace, payload::text as payload, hash,
         sum(octet_length(payload::text)) over (order by position) as bytes
  from event where partition = %s and position >= %s and position <= %s) as ranged
where bytes <= %s or position <= %s order by position"""
_HASHES = "select position, hash from event where partition = %s and position = any(%b::bigint[])"

Connection = AsyncConnection[TupleRow]


class Entry(NamedTuple):
    """What is published of an event."""

    position: int
    tenant_id: UUID
    stream: str
    command_id: UUID
    ordinal: int
    type: str
    recorded_at: datetime
    trace: str | None
    payload: str
    hash: bytes


class LostTail(Exception):
    """The log no longer holds what was read of it before: a failover lost its end."""


class Gap(Exception):
    """A position is missing: the log is corrupt."""


async def store_identity(conn: Connection) -> tuple[str, int]:
    """What tells this store from others, restored copies of it excepted, and its number of partitions."""
    row = await (await conn.execute(_STORE)).fetchone()
    assert row is not None
    return row[0].isoformat(), row[1]


async def heads(conn: Connection, partitions: Sequence[int]) -> dict[int, tuple[int, int]]:
    """Epoch and last position of each partition."""
    cursor = await conn.execute(_HEADS, (list(partitions),), binary=True)
    return {partition: (epoch, position) for partition, epoch, position in await cursor.fetchall()}


async def entries(conn: Connection, partition: int, after: int, hash_: bytes, count: int, size: int) -> list[Entry]:
    """What follows a position whose hash is known: at most so many entries, of at most so many bytes of payload or one.

    Raises :class:`LostTail` when the log has another hash there or ends before it, :class:`Gap` when the next position is missing.
    """
    cursor = await conn.execute(_RANGE, (partition, after, after + count, size, after + 1), binary=True)
    found = [Entry._make(row) for row in await cursor.fetchall()]
    if after == 0:
        if hash_ != GENESIS:
            raise LostTail
    elif not found or found[0].position != after or found.pop(0).hash != hash_:
        raise LostTail
    if any(entry.position != position for position, entry in enumerate(found, after + 1)):
        raise Gap(
            f"Position {next(p for p, entry in enumerate(found, after + 1) if entry.position != p)} of partition {partition} is missing."
        )
    return found


async def hashes(conn: Connection, partition: int, positions: Sequence[int]) -> dict[int, bytes]:
    """The log's hash at each of the positions it has."""
    cursor = await conn.execute(_HASHES, (partition, list(positions)), binary=True)
    return dict(await cursor.fetchall())

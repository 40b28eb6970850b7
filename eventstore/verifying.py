"""Whether the log is what it says: dense, chained, each stream without gap, and what is kept of it in step.

The log is read by COPY in ranges of positions, so memory does not grow with it and no snapshot is held for longer than a range
takes. Everything may be done on a live store; what is appended meanwhile is left out.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from functools import lru_cache
from hashlib import sha256
from typing import Any
from uuid import UUID

import msgspec
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from domain.identity.tenants import TenantDeleted, tenant_stream
from domain.kernel.decider import Decider
from eventstore.codec import Codec
from eventstore.copying import copied
from eventstore.errors import UnknownEventType
from eventstore.rows import GENESIS, PRUNED, Row, row_hash
from eventstore.store import partition_of

OPTIONS = "-c role=holdbook_writer -c default_transaction_read_only=on -c timezone=UTC -c jit=off -c plan_cache_mode=force_custom_plan"
RANGE_EVENTS = 20_000
_LENGTH_OF_SALT = 16

Connection = AsyncConnection[TupleRow]

_COLUMNS = (
    "position, tenant_id, stream, version, command_id, ordinal, type, recorded_at, cause, actor, trace, payload::text, reply::text, "
    "fingerprint, salt, hash, leaf"
)
_TYPES = (
    "int8", "uuid", "text", "int8", "uuid", "int4", "text", "timestamptz", "uuid", "text", "text", "text", "text",
    "bytea", "bytea", "bytea", "bytea",
)  # fmt: skip
_RANGE = f"select {_COLUMNS} from event where partition = {{}} and position > {{}} and position <= {{}} order by position"
_HEAD = "select coalesce(max(position), 0) from event where partition = %s"
_DELETED = "select stream from event where partition = %s and stream = any(%b::text[]) and type = %s"
_VERSIONS = """
select stream, version, position, wanted from (
  select stream, version, position, type, row_number() over w as wanted, lag(position) over w as before
  from event where partition = %s and position <= %s window w as (partition by stream order by version)) streams
where (version <> wanted or before > position) and type <> %s order by position limit %s"""
_SNAPSHOTS = """
select s.stream, s.version, s.state_schema, s.state::text from snapshot s
join event e on e.partition = s.partition and e.stream = s.stream and e.version = s.version and e.hash = s.hash
where s.partition = %s and s.stream > %s order by s.stream limit 100"""
_STREAM = """
select version, type, payload::text from event
where partition = %s and stream = %s and version > %s and version <= %s order by version limit 5000"""
_ELSEWHERE = "select partition from event where partition < 0 or partition >= %s limit 1"


class Chain:
    """Checks rows of one partition one after the other. Keeps nothing of them but the tenants of pruned ones."""

    def __init__(self, partition: int, partitions: int, position: int = 0, digest: bytes = GENESIS) -> None:
        self.partition, self.position, self.digest = partition, position, digest
        self.pruned: dict[UUID, int] = {}
        """Tenants of which something was pruned, and where first."""
        self._lives_in = lru_cache(10_000)(lambda tenant_id: partition_of(tenant_id, partitions))

    def take(self, row: Row, leaf: bytes | None) -> str | None:
        """What is wrong with the next row; None when nothing is. Behind the first thing that is wrong there is no right or wrong."""
        wanted = self.position + 1
        if row.position != wanted:
            return f"position {wanted} is missing"
        if row.type == PRUNED:
            digest = sha256(self.digest + (leaf or b"")).digest()
            self.pruned.setdefault(row.tenant_id, wanted)
        else:
            digest = row_hash(self.partition, self.digest, row)
        if digest != row.hash or len(row.salt) != _LENGTH_OF_SALT:
            return f"the chain is broken at position {wanted}"
        if self._lives_in(row.tenant_id) != self.partition:
            return f"position {wanted} is of a tenant that lives in partition {self._lives_in(row.tenant_id)}"
        self.position, self.digest = wanted, digest
        return None


async def head(conn: Connection, partition: int) -> int:
    """The last position of a partition."""
    row = await (await conn.execute(_HEAD, (partition,))).fetchone()
    return int(row[0]) if row is not None else 0


async def chain(conn: Connection, partition: int, partitions: int, upto: int, told: Callable[[int], None] = lambda rows: None) -> list[str]:
    """What is wrong with the density and the chain of a partition up to a position. ``told`` hears of rows that were checked."""
    checking = Chain(partition, partitions)
    while checking.position < upto:
        start, end = checking.position, min(checking.position + RANGE_EVENTS, upto)
        async with aclosing(copied(conn, _RANGE.format(int(partition), start, end), _TYPES)) as chunks:
            async for rows in chunks:
                for *columns, leaf in rows:
                    wrong = checking.take(Row._make(columns), leaf)
                    if wrong is not None:
                        await conn.close()  # in the middle of a COPY; the caller opens another one
                        return [wrong]
                told(len(rows))
        if checking.position < end:
            return [f"position {checking.position + 1} is missing"]
    return await _unwarranted(conn, checking)


async def _unwarranted(conn: Connection, checked: Chain) -> list[str]:
    """Only what belonged to a tenant that was deleted may be pruned."""
    streams = {tenant_stream(tenant_id): position for tenant_id, position in checked.pruned.items()}
    cursor = await conn.execute(_DELETED, (checked.partition, list(streams), TenantDeleted.event_name))
    right = {row[0] for row in await cursor.fetchall()}
    return [f"position {position} was pruned and its tenant is not deleted" for stream, position in streams.items() if stream not in right]


async def streams(conn: Connection, partition: int, upto: int, at_most: int = 10) -> list[str]:
    """Streams whose versions do not go 1, 2, 3 in the order of positions.

    Whatever the stream of a deleted tenant held before its last event may be pruned already.
    """
    rows = await (await conn.execute(_VERSIONS, (partition, upto, TenantDeleted.event_name, at_most))).fetchall()
    return [f"stream {stream} has version {version} at position {at}, where {wanted} was to come" for stream, version, at, wanted in rows]


async def snapshots(conn: Connection, partition: int, codec: Codec, told: Callable[[int], None] = lambda rows: None) -> list[str]:
    """Snapshots that the store would use and that are not the fold of their stream. ``told`` hears of those that were checked."""
    wrong = []
    async for stream, version, state_schema, text in _pages(conn, partition):
        decider = codec.decider_of(stream)
        if decider is not None and decider.state_schema == state_schema:
            try:
                folded = await _fold(conn, partition, codec, decider, stream, version)
                # Written again, so that nothing but what it says is compared.
                if folded != text and folded != codec.freeze(decider, codec.thaw(decider, text)):
                    wrong.append(f"the snapshot of stream {stream} at version {version} is not its fold")
            except (UnknownEventType, msgspec.DecodeError) as error:
                wrong.append(f"stream {stream}, which has a snapshot, cannot be read: {type(error).__name__}")
        told(1)
    return wrong


async def _pages(conn: Connection, partition: int) -> AsyncIterator[tuple[str, int, int, str]]:
    after = ""
    while rows := await (await conn.execute(_SNAPSHOTS, (partition, after))).fetchall():
        for row in rows:
            yield row
        after = rows[-1][0]


async def _fold(conn: Connection, partition: int, codec: Codec, decider: Decider[Any], stream: str, upto: int) -> str:
    version, state = 0, decider.initial
    while version < upto:
        rows = await (await conn.execute(_STREAM, (partition, stream, version, upto), binary=True)).fetchall()
        if not rows:
            break
        for version, type_, payload in rows:  # noqa: B007  # the last version is where to read on
            state = decider.evolve(state, codec.decode(type_, payload))
    return codec.freeze(decider, state)


async def elsewhere(conn: Connection, partitions: int) -> list[str]:
    """Events in partitions that the store does not have."""
    row = await (await conn.execute(_ELSEWHERE, (partitions,))).fetchone()
    return [] if row is None else [f"there are events in partition {row[0]}, and the store has {partitions}"]

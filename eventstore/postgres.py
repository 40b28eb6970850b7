"""A partition's log in PostgreSQL, by psycopg in pipeline mode.

No table locks, no sequences, no triggers: only the partition's lock row orders writers. JSON columns travel as binary
text arrays and are cast by the server, because psycopg escapes JSON in text-format arrays at three times the cost.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any
from uuid import UUID

import psycopg
from psycopg import AsyncConnection, AsyncCursor, AsyncPipeline
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from domain.identity.tenants import TenantDeleted, tenant_stream
from eventstore.errors import UnsafeServer, WrongSchema
from eventstore.log import Known, Snapshot, Tail
from eventstore.rows import GENESIS, PRUNED, Row

WRITER_OPTIONS = (
    "-c idle_in_transaction_session_timeout=5s -c lock_timeout=10s -c statement_timeout=30s "
    "-c plan_cache_mode=force_generic_plan -c enable_seqscan=off -c enable_bitmapscan=off -c enable_hashjoin=off -c enable_mergejoin=off "
    "-c timezone=UTC -c tcp_user_timeout=10000 -c client_connection_check_interval=2s "
    "-c role=holdbook_writer"
)
"""A paused writer loses its session, and with it the lock, within seconds. A plan is made once, and whatever the tables held then
it is the one by the indexes, since nothing else is allowed: a plan that was made on an empty table and kept would read all
of it later (measured: 2,100 instead of 13,000 commands/s), and one made anew each time costs a lone caller a sixth."""

_SELECT = (
    "position, tenant_id, stream, version, command_id, ordinal, type, recorded_at, cause, actor, trace, "
    "payload::text, reply::text, fingerprint, salt, hash"
)
LOCK = "select epoch, clock_timestamp() from log_partition where partition = %s for update"
_LIMIT = "set local transaction_timeout = '5s'"
"""From when the lock is held, and whatever the session is waiting for then. The time-out of idle transactions is not enough: the
Flush that psycopg sends behind the Sync of a pipeline switches it off, and it does not run between the messages of a pipeline [m]."""
_TAIL = f"select {_SELECT} from event where partition = %s and position >= %s order by position limit %s"
_READ = f"select {_SELECT} from event where partition = %s and position > %s order by position limit %s"
_AT = f"select {_SELECT} from event where partition = %s and position = any(%b::bigint[]) and tenant_id = %s order by position"
INSERT = """
insert into event (partition, position, tenant_id, stream, version, command_id, ordinal, type, recorded_at, cause, actor,
                   trace, payload, reply, fingerprint, salt, hash)
select %s::int, u.position, u.tenant_id, u.stream, u.version, u.command_id, u.ordinal, u.type, u.recorded_at, u.cause, u.actor,
       u.trace, u.payload::json, u.reply::json, u.fingerprint, u.salt, u.hash
from unnest(%b::bigint[], %b::uuid[], %b::text[], %b::bigint[], %b::uuid[], %b::int[], %b::text[], %b::timestamptz[], %b::uuid[],
            %b::text[], %b::text[], %b::text[], %b::text[], %b::bytea[], %b::bytea[], %b::bytea[])
  as u(position, tenant_id, stream, version, command_id, ordinal, type, recorded_at, cause, actor, trace, payload, reply,
       fingerprint, salt, hash)"""
_KNOWN = """
select command_id, position, tenant_id, type, reply::text, fingerprint from event
where partition = %s and ordinal = 0 and command_id = any(%b::uuid[])"""
_SNAPSHOTS = """
select s.stream, s.version, s.state_schema, s.hash, e.tenant_id, s.state::text from snapshot s
join event e on e.partition = s.partition and e.stream = s.stream and e.version = s.version and e.hash = s.hash
where s.partition = %s and s.stream = any(%b::text[])"""
_STREAMS = f"""
select {_SELECT.replace("stream,", "e.stream,", 1).replace("version,", "e.version,", 1)}
from unnest(%b::text[], %b::bigint[]) as u(stream, after) join event e on e.partition = %s and e.stream = u.stream and e.version > u.after
order by e.stream, e.version"""
_LEAVES = f"""
select e.position, e.leaf from unnest(%b::bigint[]) as u(position) join event e on e.partition = %s and e.position = u.position
where e.tenant_id in (select d.tenant_id from event d where d.partition = %s and d.stream = any(%b::text[])
                      and d.type = '{TenantDeleted.event_name}')"""
_SAVE = """
insert into snapshot (partition, stream, version, state_schema, hash, state) values (%s, %s, %s, %s, %s, %s::json)
on conflict (partition, stream) do update
set version = excluded.version, state_schema = excluded.state_schema, hash = excluded.hash, state = excluded.state
where excluded.version > snapshot.version or excluded.state_schema <> snapshot.state_schema"""


class PostgresBatch:
    """A transaction that holds the lock row of one partition."""

    def __init__(self, conn: AsyncConnection[TupleRow], partition: int) -> None:
        self._conn, self._partition = conn, partition
        self._sending: AbstractAsyncContextManager[AsyncPipeline] | None = None
        self.tail: Tail
        self.ended = False

    async def begin(self, head: int, at_most: int, command_ids: Sequence[UUID]) -> None:
        """Take the lock, read the tail and look up commands in one round trip."""
        async with self._conn.pipeline():
            await self._conn.execute("begin")
            lock = await self._conn.execute(LOCK, (self._partition,))
            if self._conn.info.server_version >= 170_000:
                await self._conn.execute(_LIMIT)
            rows = await self._conn.execute(_TAIL, (self._partition, head, at_most), binary=True)
            known = await self._conn.execute(_KNOWN, (self._partition, list(command_ids)), binary=True) if command_ids else None
        locked = await lock.fetchone()
        if locked is None:
            raise WrongSchema(f"Partition {self._partition} was never initialised.")
        found = [Known._make(row) for row in await known.fetchall()] if known is not None else []
        self.tail = Tail(locked[0], locked[1], [Row._make(row) for row in await rows.fetchall()], found)

    async def raise_epoch(self) -> None:
        """See :class:`eventstore.log.Batch`."""
        await self._conn.execute("update log_partition set epoch = epoch + 1 where partition = %s", (self._partition,))
        await self._conn.execute("commit")
        self.ended = True

    async def send(self, rows: Sequence[Row]) -> None:
        """See :class:`eventstore.log.Batch`. The server inserts them while we go on."""
        if self._sending is None:
            sending = self._sending = self._conn.pipeline()
            await sending.__aenter__()
        await self._conn.execute(INSERT, (self._partition, *[list(column) for column in zip(*rows, strict=True)]))

    async def append(self, rows: Sequence[Row]) -> None:
        """Append and commit in one round trip."""
        await self.send(rows)
        assert self._sending is not None
        await self._conn.execute("commit")
        await self._sending.__aexit__(None, None, None)
        self.ended = True

    async def abandon(self) -> None:
        """Close the session, and with it whatever it was sent."""
        await self._conn.close()
        if self._sending is not None:
            with suppress(psycopg.Error):
                await self._sending.__aexit__(None, None, None)


class PostgresLog:
    """One partition's log over a shared pool of writer connections."""

    def __init__(self, pool: AsyncConnectionPool[AsyncConnection[TupleRow]], partition: int) -> None:
        self._pool, self.partition = pool, partition

    async def _rows(self, query: str, parameters: tuple[Any, ...], *, prepare: bool | None = None) -> list[TupleRow]:
        async with self._pool.connection() as conn:
            cursor: AsyncCursor[TupleRow] = await conn.execute(query, parameters, prepare=prepare, binary=True)
            return await cursor.fetchall()

    async def head(self) -> tuple[int, bytes]:
        """See :class:`eventstore.log.PartitionLog`, here and below."""
        rows = await self._rows("select position, hash from event where partition = %s order by position desc limit 1", (self.partition,))
        return (rows[0][0], rows[0][1]) if rows else (0, GENESIS)

    async def known(self, command_ids: Sequence[UUID]) -> list[Known]:  # told in the protocol
        return [Known._make(row) for row in await self._rows(_KNOWN, (self.partition, list(command_ids)))]

    async def read(self, after: int, limit: int) -> list[Row]:  # told in the protocol
        return [Row._make(row) for row in await self._rows(_READ, (self.partition, after, limit))]

    async def rows_at(self, tenant_id: UUID, positions: Sequence[int]) -> list[Row]:  # told in the protocol
        return [Row._make(row) for row in await self._rows(_AT, (self.partition, list(positions), tenant_id))]

    async def leaves(self, rows: Sequence[Row]) -> dict[int, bytes]:
        """The leaves of those of the rows that were pruned, by position, as far as their tenants were deleted; see ``first_broken``."""
        pruned = [row for row in rows if row.type == PRUNED]
        streams = [tenant_stream(tenant_id) for tenant_id in {row.tenant_id for row in pruned}]
        found = await self._rows(_LEAVES, ([row.position for row in pruned], self.partition, self.partition, streams)) if pruned else []
        return dict(found)

    async def snapshots(self, streams: Sequence[str]) -> list[Snapshot]:  # told in the protocol
        return [Snapshot._make(row) for row in await self._rows(_SNAPSHOTS, (self.partition, list(streams)))]

    async def stream_rows(self, after: Sequence[tuple[str, int]]) -> list[Row]:  # told in the protocol
        streams, versions = [name for name, _ in after], [version for _, version in after]
        return [Row._make(row) for row in await self._rows(_STREAMS, (streams, versions, self.partition))]

    async def save(self, snapshots: Iterable[Snapshot]) -> None:  # told in the protocol
        async with self._pool.connection() as conn, conn.cursor() as cursor:
            rows = [(self.partition, s.stream, s.version, s.state_schema, s.hash, s.state) for s in snapshots]
            await cursor.executemany(_SAVE, rows)

    @asynccontextmanager
    async def locked(  # told in the protocol
        self, head: int, at_most: int, command_ids: Sequence[UUID] = ()
    ) -> AsyncIterator[PostgresBatch]:
        async with self._pool.connection() as conn:
            batch = PostgresBatch(conn, self.partition)
            try:
                await batch.begin(head, at_most, command_ids)
                yield batch
                if not batch.ended:
                    await conn.execute("rollback")
                    batch.ended = True
            finally:
                # A session that did not end its transaction is of unknown state, and closing it is the only answer that is
                # always right: the lock goes free, and whoever takes it next sees the truth.
                if not batch.ended:
                    await batch.abandon()


async def open_pool(dsn: str, *, size: int = 4, options: str = WRITER_OPTIONS) -> AsyncConnectionPool[AsyncConnection[TupleRow]]:
    """A pool of autocommit connections with the writer's role and time-outs, checked for a durable server."""
    pool: AsyncConnectionPool[AsyncConnection[TupleRow]] = AsyncConnectionPool(
        dsn,
        min_size=1,
        max_size=size,
        open=False,
        timeout=10,
        kwargs={
            "autocommit": True,
            "options": options,
            "connect_timeout": 5,
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
        },
    )
    try:
        await pool.open(wait=True, timeout=30)
    except BaseException:  # also who gives up waiting leaves nothing behind that goes on connecting
        await pool.close()
        raise
    return pool


async def refuse_unsafe(pool: AsyncConnectionPool[AsyncConnection[TupleRow]]) -> None:
    """Refuse a server on which an acknowledged answer could be lost."""
    async with pool.connection() as conn:
        for setting in ("synchronous_commit", "fsync", "full_page_writes"):
            row = await (await conn.execute("select current_setting(%s)", (setting,))).fetchone()
            if row is None or row[0] == "off":
                raise UnsafeServer(f"{setting} is off; turn it on in the server's or the role's settings.")

"""One reader of the log for all consumers of a process.

Each tick asks once for the ends of all partitions, reads what is new in order and feeds it to every consumer. A consumer's
effect and its checkpoint are one transaction, and the checkpoint moves by compare-and-set, so that any number of
followers may run at the same time: for each range of the log one of them wins and the others change nothing.

What goes wrong stays where it is: an event that one consumer cannot apply stops that consumer on that partition, a gap in
the log or a log of another epoch stops the partition, and the reason stands in the checkpoint's row until somebody
removes it. What another program or a later try may be able to do is not recorded, only retried.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import psycopg
import structlog
from psycopg import AsyncConnection
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from eventstore.errors import UnknownEventType
from eventstore.postgres import open_pool
from projections.consumer import RECORDED, Connection, Consumer, Recorded

log = structlog.get_logger(__name__)

FOLLOWER_OPTIONS = (
    "-c role=holdbook_follower -c synchronous_commit=off -c idle_in_transaction_session_timeout=10s -c lock_timeout=1s "
    "-c statement_timeout=60s -c plan_cache_mode=force_custom_plan -c jit=off -c timezone=UTC -c tcp_user_timeout=10000"
)
"""An acknowledgement that the disk has not seen is right here: what a crash undoes goes together with its checkpoint."""

_HEADS = """
select p.partition, p.epoch, coalesce((select max(e.position) from event e where e.partition = p.partition), 0)
from log_partition p where p.partition = any(%b::int[])"""
_READ = f"select {RECORDED} from event where partition = %s and position > %s and position <= %s order by position"
_BEGIN = """
insert into checkpoint (partition, consumer, generation, position, epoch)
select partition, %s, %s::int, 0, epoch from log_partition where partition = any(%b::int[])
on conflict do nothing"""
_CHECKPOINTS = """
select partition, consumer, generation, position, epoch, stopped from checkpoint
where partition = any(%b::int[]) and consumer = any(%b::text[])"""
_MOVE = """
update checkpoint set position = %s
where partition = %s and consumer = %s and generation = %s and position = %s and stopped is null
  and epoch = (select epoch from log_partition where partition = %s)
returning position"""
_STOP = """
update checkpoint set stopped = %s
where partition = %s and consumer = %s and generation = %s and position = %s and stopped is null"""


@dataclass(slots=True, kw_only=True)
class Pace:
    """How eagerly a follower works. Times in seconds."""

    batch: int = 5_000
    """Rows read and applied at once, at most."""
    poll: float = 0.2
    poll_idle: float = 1.0
    rest: float = 0.02
    """Least time from the start of one pass to the next, so that under load a pass has something to put together."""
    retry: float = 2.0
    """How soon what is stopped or failed is looked at again."""
    connections: int = 2


class Halt(NamedTuple):
    """A consumer that does not go on with a partition. ``recorded`` ones wait for an operator, others are retried."""

    consumer: str
    generation: int
    partition: int
    position: int
    reason: str
    recorded: bool


@dataclass(frozen=True, slots=True)
class Health:
    """``trouble`` is why the log cannot be read at all."""

    trouble: str | None
    halted: tuple[Halt, ...]

    @property
    def ok(self) -> bool:
        """Whether everything follows."""
        return self.trouble is None and not self.halted


@dataclass(slots=True, eq=False)
class _Cursor:
    consumer: Consumer
    partition: int
    position: int = 0
    epoch: int = 0
    stopped: str | None = None
    failed: str | None = None
    retry_at: float = 0.0

    @property
    def active(self) -> bool:
        return self.stopped is None and time.monotonic() >= self.retry_at

    @property
    def place(self) -> tuple[int, str, int]:
        return self.partition, self.consumer.name, self.consumer.generation


@dataclass(slots=True)
class Progress:
    """What a follower did since it started."""

    events: int = 0
    batches: int = 0
    lost: int = 0
    """Ranges that another follower was first with."""


@dataclass(slots=True, eq=False)
class _Pass:
    heads: dict[int, tuple[int, int]]
    work: list[int]
    moved: bool = False
    more: bool = field(default=False)


class _CollectorRests:
    """While many events are folded at once the garbage collector is off.

    A fold makes objects by the thousand and no cycles among them, and the collector looks at all of them, and at all
    cached states, again and again (measured: 23,000 events/s with it, 49,000 without). A batch lasts a fraction of a second.
    """

    def __init__(self) -> None:
        self._batches, self._was_on = 0, True

    def __enter__(self) -> None:
        if self._batches == 0:
            self._was_on = gc.isenabled()
            gc.disable()
        self._batches += 1

    def __exit__(self, *_: object) -> None:
        self._batches -= 1
        if self._batches == 0 and self._was_on:
            gc.enable()


_collector_rests = _CollectorRests()


class Follower:
    """Feeds consumers with the events of partitions until told to stop.

    ``waker`` is set by whoever appends in this process; the follower clears it. Without it, and for what other processes
    append, it polls.
    """

    def __init__(
        self,
        dsn: str,
        partitions: Iterable[int],
        consumers: Sequence[Consumer],
        waker: asyncio.Event | None = None,
        pace: Pace | None = None,
    ) -> None:
        self.pace, self.progress = pace or Pace(), Progress()
        self._dsn, self._partitions, self._consumers = dsn, sorted(set(partitions)), list(consumers)
        self._waker = waker or asyncio.Event()
        self._stopping = asyncio.Event()
        self._cursors: dict[int, list[_Cursor]] = {}
        self.heads: dict[int, tuple[int, int]] = {}
        self._trouble: str | None = "not started"
        self._refresh_at = 0.0
        self._contended_until = 0.0

    def lag(self) -> dict[int, int]:
        """For each partition how many events its slowest consumer has not applied, as of the last pass."""
        return {
            partition: max(0, head - min(cursor.position for cursor in self._cursors[partition]))
            for partition, (head, _) in self.heads.items()
            if self._cursors.get(partition)
        }

    def health(self) -> Health:
        """What does not follow, and why."""
        halted = [
            Halt(
                cursor.consumer.name,
                cursor.consumer.generation,
                cursor.partition,
                cursor.position,
                cursor.stopped or cursor.failed or "",
                cursor.stopped is not None,
            )
            for cursors in self._cursors.values()
            for cursor in cursors
            if cursor.stopped or cursor.failed
        ]
        return Health(self._trouble, tuple(halted))

    def stop(self) -> None:
        """Have :meth:`run` finish the batches under way and return."""
        self._stopping.set()
        self._waker.set()

    async def run(self) -> None:
        """Follow until :meth:`stop`. Outlives restarts of the database."""
        backoff = 0.05
        while not self._stopping.is_set():
            try:
                pool = await open_pool(self._dsn, size=self.pace.connections, options=FOLLOWER_OPTIONS)
                try:
                    backoff = 0.05
                    await self._follow(pool)
                finally:
                    await pool.close()
            except Exception as error:  # nobody awaits this task before the process ends, so whatever it is has to be told here
                self._trouble = _told(error)
                lost = isinstance(error, psycopg.Error | OSError)
                log.warning("follower.retries", reason=self._trouble, exc_info=None if lost else error)
                self._forget()
                await self._pause(backoff)
                backoff = min(backoff * 2, 1.0)

    async def _follow(self, pool: AsyncConnectionPool[AsyncConnection[TupleRow]]) -> None:
        poll = self.pace.poll
        while not self._stopping.is_set():
            self._waker.clear()
            began = time.monotonic()
            current = await self._once(pool)
            self._trouble = None
            if current.more:
                await asyncio.sleep(0)
                continue
            if current.moved:
                spent = time.monotonic() - began
                await self._pause(min(max(self.pace.rest, 2 * spent), 0.25) - spent)
                poll = self.pace.poll
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._waker.wait(), poll)
            if not current.moved:
                poll = min(poll * 1.5, self.pace.poll_idle)

    async def _pause(self, seconds: float) -> None:
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), seconds)

    def _forget(self) -> None:
        """Whatever was in memory may be ahead of, or beside, what the database has now."""
        self._refresh_at = 0.0
        for consumer in self._consumers:
            consumer.forget()

    # One pass

    async def _once(self, pool: AsyncConnectionPool[AsyncConnection[TupleRow]]) -> _Pass:
        async with pool.connection() as conn:
            now = time.monotonic()
            if now >= self._refresh_at or now < self._contended_until:
                await self._refresh(conn)
            # After the checkpoints: then none of them can be ahead of the ends, unless the log lost its tail.
            cursor = await conn.execute(_HEADS, (self._partitions,), binary=True)
            self.heads = {partition: (head, epoch) for partition, epoch, head in await cursor.fetchall()}
            current = _Pass(self.heads, [partition for partition in self.heads if self._behind(partition)])
            if current.work:
                lanes = min(self.pace.connections, len(current.work)) - 1
                others = [asyncio.create_task(self._lane(pool, current)) for _ in range(lanes)]
                results = await asyncio.gather(self._work(conn, current), *others, return_exceptions=True)
                for result in results:
                    if isinstance(result, BaseException):
                        raise result
        return current

    def _behind(self, partition: int) -> bool:
        head, epoch = self.heads[partition]
        return any(cursor.active and (cursor.position != head or cursor.epoch != epoch) for cursor in self._cursors[partition])

    async def _lane(self, pool: AsyncConnectionPool[AsyncConnection[TupleRow]], current: _Pass) -> None:
        async with pool.connection() as conn:
            await self._work(conn, current)

    async def _work(self, conn: Connection, current: _Pass) -> None:
        while current.work and not self._stopping.is_set():
            partition = current.work.pop()
            await self._advance(conn, partition, current)

    async def _refresh(self, conn: Connection) -> None:
        """Take the checkpoints from the database, and begin those that are not there."""
        names = sorted({consumer.name for consumer in self._consumers})
        for _ in range(2):
            rows = await (await conn.execute(_CHECKPOINTS, (self._partitions, names), binary=True)).fetchall()
            found = {(row[0], row[1], row[2]): row[3:] for row in rows}
            wanted = len(self._partitions) * len(self._consumers)
            if not self._cursors:
                self._cursors = {p: [_Cursor(consumer, p) for consumer in self._consumers] for p in self._partitions}
            known = 0
            for cursors in self._cursors.values():
                for cursor in cursors:
                    if cursor.place in found:
                        known += 1
                        self._take(cursor, *found[cursor.place])
            if known == wanted:
                break
            for consumer in self._consumers:
                await conn.execute(_BEGIN, (consumer.name, consumer.generation, self._partitions))
        self._refresh_at = time.monotonic() + self.pace.retry

    def _take(self, cursor: _Cursor, position: int, epoch: int, stopped: str | None) -> None:
        if (position, epoch, stopped) != (cursor.position, cursor.epoch, cursor.stopped):
            cursor.failed, cursor.retry_at = None, 0.0  # somebody went on, or allowed it
        cursor.position, cursor.epoch, cursor.stopped = position, epoch, stopped

    # One partition

    async def _advance(self, conn: Connection, partition: int, current: _Pass) -> None:
        head, epoch = current.heads[partition]
        ready: list[_Cursor] = []
        for cursor in self._cursors[partition]:
            if cursor.active and cursor.epoch != epoch:
                await self._stop(conn, cursor, f"The log is of epoch {epoch}, this was built on epoch {cursor.epoch}: rebuild.")
            elif cursor.active and cursor.position > head:
                await self._stop(conn, cursor, f"The log ends at {head}, before what was applied: it lost its tail. Rebuild.")
            elif cursor.active and cursor.position < head:
                ready.append(cursor)
        # Consumers at one position share the read, and a range ends where others wait, so that all come together.
        starts = sorted({cursor.position for cursor in ready})
        for start, following in zip(starts, [*starts[1:], head], strict=False):
            end = min(start + self.pace.batch, following)
            group = [cursor for cursor in ready if cursor.position == start]
            await self._feed_range(conn, partition, start, end, group, current)
            current.more = current.more or end < head

    async def _feed_range(self, conn: Connection, partition: int, start: int, end: int, group: list[_Cursor], current: _Pass) -> None:
        with _collector_rests if end - start >= 1_000 else contextlib.nullcontext():
            await self._feed_rows(conn, partition, start, end, group, current)

    async def _feed_rows(self, conn: Connection, partition: int, start: int, end: int, group: list[_Cursor], current: _Pass) -> None:
        cursor = await conn.execute(_READ, (partition, start, end), binary=True)
        rows = [Recorded._make(row) for row in await cursor.fetchall()]
        if len(rows) != end - start:
            # Positions are unique and sorted, so the count alone shows that one is missing.
            dense = next((i for i, row in enumerate(rows) if row.position != start + 1 + i), len(rows))
            if dense == 0:
                for halted in group:
                    await self._stop(conn, halted, f"Position {start + 1} of partition {partition} is missing: the log is corrupt.")
                return
            rows = rows[:dense]
        for each in group:
            if await self._feed(conn, each, rows):
                current.moved = True

    async def _feed(self, conn: Connection, cursor: _Cursor, rows: list[Recorded]) -> bool:
        """Apply the rows, or in the end all before the first that cannot be applied. Whether anything was."""
        try:
            return await self._apply(conn, cursor, rows)
        except Exception as error:
            if conn.closed or conn.broken:
                raise
            if conn.info.transaction_status is not TransactionStatus.IDLE:
                await conn.execute("rollback")
            if isinstance(error, psycopg.OperationalError):  # a lock held too long, a full disk: not the event's fault
                self._fail(cursor, error)
                return False
            if len(rows) > 1:
                half = len(rows) // 2
                first = await self._feed(conn, cursor, rows[:half])
                return (await self._feed(conn, cursor, rows[half:])) or first if cursor.position == rows[half - 1].position else first
            if isinstance(error, UnknownEventType | psycopg.ProgrammingError):
                # A newer program knows the type, a migration brings the table: nothing that an operator has to release.
                self._fail(cursor, error)
            else:
                row = rows[0]
                log.error("follower.poison", exc_info=error, consumer=cursor.consumer.name, partition=cursor.partition)
                await self._stop(conn, cursor, f"Position {row.position} ({row.type} of {row.stream}): {_told(error)}")
            return False

    async def _apply(self, conn: Connection, cursor: _Cursor, rows: list[Recorded]) -> bool:
        last = rows[-1].position
        async with conn.pipeline():
            await conn.execute("begin")
            move = await conn.execute(_MOVE, (last, *cursor.place, cursor.position, cursor.partition))
            won = await move.fetchone() is not None
            after = await cursor.consumer.apply(conn, cursor.partition, rows) if won else None
            await conn.execute("commit" if won else "rollback")
        if after is None:
            self.progress.lost += 1
            self._refresh_at, self._contended_until = 0.0, time.monotonic() + 10
            return False
        after()
        cursor.position, cursor.failed = last, None
        self.progress.events += len(rows)
        self.progress.batches += 1
        return True

    def _fail(self, cursor: _Cursor, error: Exception) -> None:
        cursor.failed, cursor.retry_at = _told(error), time.monotonic() + self.pace.retry
        log.warning("follower.failed", consumer=cursor.consumer.name, partition=cursor.partition, reason=cursor.failed)

    async def _stop(self, conn: Connection, cursor: _Cursor, reason: str) -> None:
        log.error("follower.stopped", consumer=cursor.consumer.name, partition=cursor.partition, reason=reason)
        stopped = await conn.execute(_STOP, (reason, *cursor.place, cursor.position))
        if stopped.rowcount:
            cursor.stopped = reason
        else:
            self._refresh_at = 0.0


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:1_000]

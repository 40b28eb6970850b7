"""One reader of the log for all consumers of a process.

Each tick asks once for the ends of all partitions, reads what is new in order and feeds it to every consumer. A consumer's
effect and its checkpoint are one transaction, and the checkpoint moves by compare-and-set, so that any number of
followers may run at the same time: for each range of the log one of them wins and the others change nothing. Leases
keep them from trying; whatever stands still is fed by whoever sees it, lease or no lease.

What goes wrong stays where it is: an event that one consumer cannot apply stops that consumer on that partition, a gap in
the log or a log of another epoch stops the partition, and the reason stands in the checkpoint's row until somebody
removes it. What another program or a later try may be able to do is not recorded, only retried.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import psycopg
import structlog
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from eventstore.postgres import open_pool
from projections.consumer import Connection, Consumer, Roster
from projections.cursors import Cursor, Cursors
from projections.feeding import Feeder, Progress
from projections.halts import Halt, told
from projections.leases import Leases

log = structlog.get_logger(__name__)

FOLLOWER_OPTIONS = (
    "-c role=holdbook_follower -c synchronous_commit=off -c idle_in_transaction_session_timeout=10s -c lock_timeout=1s "
    "-c statement_timeout=60s -c plan_cache_mode=force_custom_plan -c jit=off -c timezone=UTC -c tcp_user_timeout=10000"
)
"""An acknowledgement that the disk has not seen is right here: what a crash undoes goes together with its checkpoint."""

HEADS = """
select p.partition, p.epoch, coalesce((select max(e.position) from event e where e.partition = p.partition), 0), clock_timestamp()
from log_partition p where p.partition = any(%b::int[])"""
"""Where the log ends: of each partition one probe of the primary key."""


@dataclass(slots=True, kw_only=True)
class Pace:
    """How eagerly a follower works. Times in seconds."""

    batch: int = 5_000
    """Rows read and applied at once, at most."""
    poll: float = 0.2
    poll_idle: float = 1.0
    rest: float = 0.02
    """Least time from the start of one pass to the next, so that under load a pass has something to put together."""
    retry: float = 3.0
    """How soon what is stopped or failed is looked at again, and who is to be fed."""
    lease: float = 6.0
    """How long others leave a partition alone that its follower does not feed any more; 0 works without leases."""
    connections: int = 2


@dataclass(frozen=True, slots=True)
class Health:
    """``trouble`` is why the log cannot be read at all."""

    trouble: str | None
    halted: tuple[Halt, ...]

    @property
    def ok(self) -> bool:
        """Whether everything follows."""
        return self.trouble is None and not self.halted


@dataclass(slots=True)
class Figures:
    """One consumer of all generations, over all partitions."""

    lag_events: int = 0
    """Events not applied yet, of the partition that is furthest behind."""
    lag_seconds: float = 0.0
    """An upper bound of the age of the oldest event not applied yet."""
    stopped: int = 0
    """Partitions that wait for an operator."""
    failed: int = 0
    """Partitions that are tried again."""
    progress: Progress = field(default_factory=Progress)


def _fixed(consumers: Sequence[Consumer]) -> Roster:
    given = list(consumers)

    async def roster(_: Connection) -> Sequence[Consumer]:
        return given

    return roster


def _named(cursor: Cursor) -> tuple[str, int]:
    return cursor.consumer.name, cursor.consumer.generation


class Follower:
    """Feeds consumers with the events of partitions until told to stop.

    ``consumers`` are given once, or asked for again and again: those that appear are begun, those that leave are dropped.
    ``waker`` is set by whoever appends in this process, or hears of it; the follower clears it. Without it, it polls.
    """

    def __init__(
        self,
        dsn: str,
        partitions: Iterable[int],
        consumers: Sequence[Consumer] | Roster,
        waker: asyncio.Event | None = None,
        pace: Pace | None = None,
    ) -> None:
        self.pace = pace or Pace()
        self._dsn, self._partitions = dsn, sorted(set(partitions))
        self._roster: Roster = consumers if callable(consumers) else _fixed(consumers)
        self._waker = waker or asyncio.Event()
        self._stopping = asyncio.Event()
        self._cursors = Cursors(self._partitions)
        self._leases = Leases(self._partitions, self.pace.lease)
        self._feeder = Feeder(self.pace.batch, self.pace.retry)
        self.heads: dict[int, tuple[int, int]] = {}
        self._clock: tuple[datetime, float] | None = None
        self._trouble: str | None = "not started"
        self._refresh_at = 0.0

    # What it tells

    @property
    def progress(self) -> Progress:
        """What it did, of all consumers together."""
        return self._feeder.progress

    def lag(self) -> dict[int, int]:
        """For each partition how many events its slowest consumer has not applied, as of the last pass."""
        return {
            partition: max(0, head - min(cursor.position for cursor in cursors))
            for partition, (head, _) in self.heads.items()
            if (cursors := self._cursors.by_partition.get(partition))
        }

    def health(self) -> Health:
        """What does not follow, and why."""
        halted = [
            Halt(*_named(cursor), cursor.partition, cursor.position, cursor.stopped or cursor.failed or "", cursor.stopped is not None)
            for cursor in self._cursors.all()
            if cursor.stopped or cursor.failed
        ]
        return Health(self._trouble, tuple(halted))

    def figures(self) -> dict[str, Figures]:
        """How each consumer stands, by its name."""
        now = self._now()
        told_of: dict[str, Figures] = {name: Figures(progress=progress) for name, progress in self._feeder.progress_of.items()}
        for cursor in self._cursors.all():
            figures = told_of.setdefault(cursor.consumer.name, Figures())
            figures.stopped += cursor.stopped is not None
            figures.failed += cursor.stopped is None and cursor.failed is not None
            head, _ = self.heads.get(cursor.partition, (0, 0))
            if head > cursor.position:
                figures.lag_events = max(figures.lag_events, head - cursor.position)
                figures.lag_seconds = max(figures.lag_seconds, self._behind_for(cursor, now))
        return told_of

    @staticmethod
    def _behind_for(cursor: Cursor, now: datetime) -> float:
        if cursor.fresh_at is not None:
            return max(0.0, (now - cursor.fresh_at).total_seconds())
        return time.monotonic() - cursor.behind_since if cursor.behind_since is not None else 0.0

    def _now(self) -> datetime:
        """The database's time, as of the last pass and what has passed since."""
        if self._clock is None:
            return datetime.now(UTC)
        at, then = self._clock
        return at + timedelta(seconds=time.monotonic() - then)

    # From start to stop

    def stop(self) -> None:
        """Have :meth:`run` finish the batches under way and return."""
        self._stopping.set()
        self._waker.set()

    async def run(self) -> None:
        """Follow until :meth:`stop`. Outlives restarts of the database."""
        backoff = 0.05
        while not self._stopping.is_set():
            try:
                pool = await self._open()
                if pool is None:
                    return
                try:
                    backoff = 0.05
                    await self._follow(pool)
                    await self._let_go(pool)
                finally:
                    await pool.close()
            except Exception as error:  # nobody awaits this task before the process ends, so whatever it is has to be told here
                self._trouble = told(error)
                lost = isinstance(error, psycopg.Error | OSError)
                log.warning("follower.retries", reason=self._trouble, exc_info=None if lost else error)
                self._forget()
                await self._pause(backoff)
                backoff = min(backoff * 2, 1.0)

    async def _open(self) -> AsyncConnectionPool[AsyncConnection[TupleRow]] | None:
        """A pool; None when told to stop before there was one."""
        opening = asyncio.create_task(open_pool(self._dsn, size=self.pace.connections, options=FOLLOWER_OPTIONS))
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({opening, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if opening.done():
            return opening.result()
        opening.cancel()
        await asyncio.wait({opening})
        return None

    async def _let_go(self, pool: AsyncConnectionPool[AsyncConnection[TupleRow]]) -> None:
        with contextlib.suppress(psycopg.Error, OSError):  # whoever comes next waits for the leases' end instead
            async with asyncio.timeout(2), pool.connection() as conn:
                await self._leases.release(conn)

    async def _follow(self, pool: AsyncConnectionPool[AsyncConnection[TupleRow]]) -> None:
        poll = self.pace.poll
        while not self._stopping.is_set():
            self._waker.clear()
            began = time.monotonic()
            moved, more = await self._once(pool)
            self._trouble = None
            if more:
                await asyncio.sleep(0)
                continue
            if moved:
                spent = time.monotonic() - began
                await self._pause(min(max(self.pace.rest, 2 * spent), 0.25) - spent)
                poll = self.pace.poll
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._waker.wait(), poll)
            if not moved:
                poll = min(poll * 1.5, self.pace.poll_idle)

    async def _pause(self, seconds: float) -> None:
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), seconds)

    def _forget(self) -> None:
        """Whatever was in memory may be ahead of, or beside, what the database has now."""
        self._refresh_at = 0.0
        self._leases.forget()
        for consumer in self._cursors.consumers:
            consumer.forget()

    # One pass

    async def _once(self, pool: AsyncConnectionPool[AsyncConnection[TupleRow]]) -> tuple[bool, bool]:
        """Whether anything was applied, and whether there is more to do at once."""
        async with pool.connection() as conn:
            now = time.monotonic()
            if now >= self._refresh_at or now < self._feeder.contended_until or self._feeder.stale:
                self._feeder.stale = False
                await self._cursors.refresh(conn, await self._roster(conn))
                self._refresh_at = time.monotonic() + self.pace.retry
            # After the checkpoints: then none of them can be ahead of the ends, unless the log lost its tail.
            await self._look(conn)
            await self._lease(conn, wanting=any(self._behind(cursor) for cursor in self._cursors.all()))
            before = self.progress.events
            work, more = [partition for partition in self.heads if self._ready(partition)], set[int]()
            if work:
                lanes = min(self.pace.connections, len(work)) - 1
                others = [asyncio.create_task(self._lane(pool, work, more)) for _ in range(lanes)]
                results = await asyncio.gather(self._work(conn, work, more), *others, return_exceptions=True)
                for result in results:
                    if isinstance(result, BaseException):
                        raise result
        return self.progress.events > before, bool(more)

    async def _look(self, conn: Connection) -> None:
        """Where the log ends now."""
        rows = await (await conn.execute(HEADS, (self._partitions,), binary=True)).fetchall()
        self.heads = {partition: (head, epoch) for partition, epoch, head, _ in rows}
        if rows:
            self._clock = rows[-1][3], time.monotonic()
        for partition, _, head, at in rows:
            for cursor in self._cursors.by_partition.get(partition, ()):
                cursor.seen(head, at)

    async def _lease(self, conn: Connection, *, wanting: bool = False) -> None:
        if self._leases.due(wanting=wanting):
            await self._leases.renew(conn, self._cursors.group, self._now())

    def _behind(self, cursor: Cursor) -> bool:
        head, epoch = self.heads.get(cursor.partition, (0, cursor.epoch))
        return cursor.active and (cursor.position != head or cursor.epoch != epoch)

    def _ready(self, partition: int) -> list[Cursor]:
        """The partition's cursors that there is something to do for, and that are ours to do."""
        holds = self._leases.holds(partition)
        return [
            cursor
            for cursor in self._cursors.by_partition.get(partition, ())
            if self._behind(cursor) and (holds or cursor.stands(self.pace.lease))
        ]

    async def _lane(self, pool: AsyncConnectionPool[AsyncConnection[TupleRow]], work: list[int], more: set[int]) -> None:
        async with pool.connection() as conn:
            await self._work(conn, work, more)

    async def _work(self, conn: Connection, work: list[int], more: set[int]) -> None:
        while work and not self._stopping.is_set():
            partition = work.pop()
            if await self._feeder.advance(conn, partition, self._ready(partition), *self.heads[partition]):
                more.add(partition)
            await self._lease(conn)

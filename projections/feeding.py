"""Feeding consumers with a partition's events: each range and its checkpoint in one transaction."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import psycopg
import structlog
from psycopg.pq import TransactionStatus

from eventstore.errors import UnknownEventType
from projections import halts, skips
from projections.consumer import RECORDED, Connection, Recorded
from projections.cursors import Cursor
from projections.halts import told

log = structlog.get_logger(__name__)

_READ = f"select {RECORDED} from event where partition = %s and position > %s and position <= %s order by position"
_MOVE = """
update checkpoint set position = %s, hash = (select hash from event where partition = %s and position = %s)
where partition = %s and consumer = %s and generation = %s and position = %s and stopped is null
  and epoch = (select epoch from log_partition where partition = %s)
  and %s = (select count(*) from skipped_event
            where partition = %s and consumer = %s and version = %s and position > %s and position <= %s)
returning position"""
"""Nothing moves past events of which it was not known that they are skipped: what is in the tables would not be what is recorded."""
_ADOPT = """
update checkpoint set epoch = %s
where partition = %s and consumer = %s and generation = %s and position = %s and epoch = %s and stopped is null
  and (position = 0 or hash = (select hash from event where partition = %s and position = %s))
returning epoch"""
"""The chain's hash covers all that came before, so where the last event applied is the same one nothing that was applied is lost."""
_STOP = """
update checkpoint set stopped = %s
where partition = %s and consumer = %s and generation = %s and position = %s and stopped is null"""


@dataclass(slots=True)
class Progress:
    """What a follower did since it started."""

    events: int = 0
    batches: int = 0
    lost: int = 0
    """Ranges that another follower was first with."""


class CollectorRests:
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


collector_rests = CollectorRests()


class Feeder:
    """Feeds cursors batch by batch. An event that a consumer cannot bear is found by halving, and stops it alone."""

    def __init__(self, batch: int, retry_seconds: float) -> None:
        self._batch, self._retry = batch, retry_seconds
        self.progress = Progress()
        self.progress_of: dict[str, Progress] = {}
        """By the consumers' names."""
        self.contended_until = 0.0
        """Until then somebody else is presumed to feed the same partitions."""
        self.stale = False
        """Whether a checkpoint was found to be another than was believed."""

    async def advance(self, conn: Connection, partition: int, cursors: Sequence[Cursor], head: int, epoch: int) -> bool:
        """Feed one batch to each of these cursors, which are not at the log's end; whether there is more."""
        ready, more = list[Cursor](), False
        for cursor in cursors:
            if cursor.epoch != epoch and not await self._adopted(conn, cursor, epoch):
                await self._stop(conn, cursor, halts.other_epoch(epoch, cursor.epoch))
            elif cursor.position > head:
                await self._stop(conn, cursor, halts.lost_tail(head))
            else:
                ready.append(cursor)
        # Consumers at one position share the read, and a range ends where others wait, so that all come together.
        starts = sorted({cursor.position for cursor in ready})
        for start, following in zip(starts, [*starts[1:], head], strict=False):
            end = min(start + self._batch, following)
            group = [cursor for cursor in ready if cursor.position == start]
            with collector_rests if end - start >= 1_000 else contextlib.nullcontext():
                await self._feed_rows(conn, partition, start, end, group)
            more = more or end < head
        return more

    async def _feed_rows(self, conn: Connection, partition: int, start: int, end: int, group: list[Cursor]) -> None:
        cursor = await conn.execute(_READ, (partition, start, end), binary=True)
        rows = [Recorded._make(row) for row in await cursor.fetchall()]
        if len(rows) != end - start:
            # Positions are unique and sorted, so the count alone shows that one is missing.
            dense = next((i for i, row in enumerate(rows) if row.position != start + 1 + i), len(rows))
            if dense == 0:
                for halted in group:
                    await self._stop(conn, halted, halts.gap(partition, start + 1))
                return
            rows = rows[:dense]
        for each in group:
            await self.feed(conn, each, rows)

    async def feed(self, conn: Connection, cursor: Cursor, rows: list[Recorded]) -> None:
        """Apply the rows, or in the end all before the first that cannot be applied."""
        try:
            await self._apply(conn, cursor, rows)
        except Exception as error:
            if conn.closed or conn.broken:
                raise
            if conn.info.transaction_status is not TransactionStatus.IDLE:
                await conn.execute("rollback")
            if isinstance(error, psycopg.OperationalError):  # a lock held too long, a full disk: not the event's fault
                self._fail(cursor, error)
            elif len(rows) > 1:
                half = len(rows) // 2
                await self.feed(conn, cursor, rows[:half])
                if cursor.position == rows[half - 1].position:
                    await self.feed(conn, cursor, rows[half:])
            elif isinstance(error, UnknownEventType | psycopg.ProgrammingError):
                # A newer program knows the type, a migration brings the table: nothing that an operator has to release.
                self._fail(cursor, error)
            else:
                row = rows[0]
                log.error("follower.poison", exc_info=error, consumer=cursor.consumer.name, partition=cursor.partition)
                await self._stop(conn, cursor, halts.poison(row, error))

    async def _apply(self, conn: Connection, cursor: Cursor, rows: list[Recorded]) -> None:
        def effect() -> Awaitable[Callable[[], None]]:
            return cursor.consumer.apply(conn, cursor.partition, skips.without(rows, cursor.skips))

        await self.move(conn, cursor, rows[-1], len(rows), effect)

    async def move(
        self, conn: Connection, cursor: Cursor, until: Recorded, events: int, effect: Callable[[], Awaitable[Callable[[], None]]]
    ) -> None:
        """Move the checkpoint behind an event in one transaction with what that stands for; neither, when somebody else was first."""
        last = until.position
        async with conn.pipeline():
            await conn.execute("begin")
            place = cursor.partition, last, *cursor.place, cursor.position, cursor.partition
            move = await conn.execute(_MOVE, (last, *place, *_skips(cursor, last)))
            won = await move.fetchone() is not None
            after = await effect() if won else None
            await conn.execute("commit" if won else "rollback")
        progress = self.progress_of.setdefault(cursor.consumer.name, Progress())
        if after is None:
            self.progress.lost += 1
            progress.lost += 1
            self.contended_until, self.stale = time.monotonic() + 10, True
            return
        after()
        cursor.moved(last, until.recorded_at)
        for each in (self.progress, progress):
            each.events += events
            each.batches += 1

    def _fail(self, cursor: Cursor, error: Exception) -> None:
        cursor.failed, cursor.retry_at = told(error), time.monotonic() + self._retry
        log.warning("follower.failed", consumer=cursor.consumer.name, partition=cursor.partition, reason=cursor.failed)

    async def _adopted(self, conn: Connection, cursor: Cursor, epoch: int) -> bool:
        """Go on with a log that lost its tail, if nothing of what was lost had been applied."""
        place = *cursor.place, cursor.position, cursor.epoch, cursor.partition, cursor.position
        if await (await conn.execute(_ADOPT, (epoch, *place))).fetchone() is None:
            return False
        log.warning("follower.epoch", consumer=cursor.consumer.name, partition=cursor.partition, epoch=epoch)
        cursor.epoch = epoch
        return True

    async def _stop(self, conn: Connection, cursor: Cursor, reason: str) -> None:
        log.error("follower.stopped", consumer=cursor.consumer.name, partition=cursor.partition, reason=reason)
        stopped = await conn.execute(_STOP, (reason, *cursor.place, cursor.position))
        if stopped.rowcount:
            cursor.stopped = reason
        else:
            self.stale = True


def _skips(cursor: Cursor, last: int) -> tuple[int, int, str, int, int, int]:
    """How many events up to there are known to be skipped, and where that is counted."""
    known = sum(cursor.position < position <= last for position in cursor.skips)
    return known, cursor.partition, cursor.consumer.name, cursor.consumer.version, cursor.position, last

"""Filling the tables of one generation from the log, beside whatever else goes on.

Each range of positions and the generation's checkpoint are one transaction, and the checkpoint moves by compare-and-set: a
builder that is killed is gone on with by the next one, and two at once change nothing but the time it takes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import psycopg
import structlog
from psycopg import AsyncConnection
from psycopg.pq import TransactionStatus

from eventstore.codec import Codec
from projections import skips
from projections.consumer import Connection, Projection, Recorded
from projections.copying import Rows, ahead
from projections.cursors import Cursor
from projections.feeding import Feeder, collector_rests
from projections.gathering import Gathers
from projections.generations import Generation

log = structlog.get_logger(__name__)

OPTIONS = (
    "-c role=holdbook_follower -c synchronous_commit=off -c idle_in_transaction_session_timeout=60s -c lock_timeout=10s "
    "-c plan_cache_mode=force_custom_plan -c jit=off -c timezone=UTC -c tcp_user_timeout=10000"
)
_HEADS = """
select p.partition, p.epoch, coalesce((select max(e.position) from event e where e.partition = p.partition), 0)
from log_partition p order by p.partition"""
_POSITIONS = """
select partition, position, epoch, stopped from checkpoint where consumer = %s and generation = %s and partition = any(%b::int[])"""
_RELEASE = "update checkpoint set stopped = null where consumer = %s and generation = %s and partition = any(%b::int[])"


class CannotBuild(Exception):
    """The generation cannot go on: the message says where and why. Nothing is lost by trying again."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How eagerly a generation is built."""

    range_events: int = 20_000
    """Events of one transaction, at most."""
    range_bytes: int = 32 * 2**20
    """Contents of events in memory at once, about."""
    gathered_events: int = 500_000
    """The same for consumers that gather: what a kill costs, against how often the same row is written."""
    gathered_streams: int = 20_000
    chunk: int = 2_000
    """Events folded at once."""
    share: float = 1.0
    """The part of the time that is worked; the rest is left to others."""


GENTLE = Effort(range_events=5_000, range_bytes=8 * 2**20, gathered_events=50_000, gathered_streams=2_000, chunk=500, share=0.5)
"""For a process that has something else to do."""


class Builder:
    """Feeds one generation. Not for several tasks at once."""

    def __init__(
        self,
        conn: Connection,
        dsn: str,
        projection: Projection,
        generation: Generation,
        codec: Codec,
        effort: Effort,
        advanced: Callable[[int], None] | None = None,
    ) -> None:
        self.generation, self.effort = generation, effort
        self._conn, self._dsn, self._reading = conn, dsn, conn
        self._consumer = projection.consumer(codec, generation.generation)
        self._advanced = advanced or (lambda events: None)
        self._feeder = Feeder(effort.range_events, 0.0)
        self._cursors: dict[int, Cursor] = {}

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        dsn: str,
        projection: Projection,
        generation: Generation,
        codec: Codec,
        effort: Effort | None = None,
        advanced: Callable[[int], None] | None = None,
    ) -> AsyncIterator[Builder]:
        """A connected builder. ``advanced`` is told of events that were applied."""
        async with await AsyncConnection.connect(dsn, autocommit=True, options=OPTIONS) as conn:
            builder = cls(conn, dsn, projection, generation, codec, effort or Effort(), advanced)
            try:
                await builder._take_checkpoints(release=True)
                yield builder
            finally:
                if builder._reading is not conn:
                    await builder._reading.close()

    @property
    def positions(self) -> dict[int, int]:
        """Where each partition stands, as far as this builder knows."""
        return {partition: cursor.position for partition, cursor in self._cursors.items()}

    async def heads(self) -> dict[int, int]:
        """The ends of the log by partition. Raises `CannotBuild` when the log is not the one this was begun on."""
        found = await (await self._conn.execute(_HEADS, binary=True)).fetchall()
        for partition, epoch, head in found:
            cursor = self._cursors[partition]
            if cursor.epoch != epoch or cursor.position > head:
                await self._take_checkpoints()
            if cursor.epoch != epoch or cursor.position > head:
                raise CannotBuild(f"The log of partition {partition} is another than the one this was begun on: begin again.")
        return {partition: head for partition, _, head in found}

    async def advance(self, targets: Mapping[int, int]) -> None:
        """Apply the log up to these positions, which it has. Raises `CannotBuild`."""
        for partition, target in targets.items():
            cursor = self._cursors[partition]
            while cursor.position < target:
                began = cursor.position
                await self._advance(cursor, target)
                if cursor.stopped or cursor.failed:
                    raise CannotBuild(f"partition {partition}: {cursor.stopped or cursor.failed}")
                if self._feeder.stale:  # another builder was first
                    self._feeder.stale = False
                    await self._take_checkpoints()
                    self._advanced(cursor.position - began)
            # Nothing of a partition that is done is needed for the next one.
            self._consumer.forget()

    async def _advance(self, cursor: Cursor, target: int) -> None:
        """Until the target, or something comes in the way."""
        cursor.skips = await skips.skipped(self._conn, cursor.partition, self._consumer.name, self._consumer.version)
        try:
            if isinstance(self._consumer, Gathers):
                # A process that has nothing else to do leaves no garbage that only the collector finds.
                with collector_rests if self.effort.share == 1 else nullcontext():
                    await self._gather(cursor, target, self._consumer)
                return
        except psycopg.OperationalError:
            raise
        except Exception as error:
            if self._conn.info.transaction_status is not TransactionStatus.IDLE:
                await self._conn.execute("rollback")
            self._consumer.forget()
            began = cursor.position
            await self._take_checkpoints()
            if cursor.position != began:  # what the tables said was another builder's, who was first
                self._advanced(cursor.position - began)
                return
            name, partition = self._consumer.name, cursor.partition
            log.info("projection.build_looks_closer", projection=name, partition=partition, error=type(error).__name__)
            target = min(target, cursor.position + self.effort.gathered_events)
        await self._collect(cursor, target)

    @asynccontextmanager
    async def _ahead(self, cursor: Cursor, target: int) -> AsyncIterator[AsyncIterator[Rows]]:
        if self._reading is self._conn or self._reading.closed:
            self._reading = await AsyncConnection.connect(self._dsn, autocommit=True, options=OPTIONS)
        async with ahead(self._reading, cursor.partition, cursor.position, target, self.effort.chunk) as chunks:
            yield chunks

    async def _gather(self, cursor: Cursor, target: int, consumer: Gathers) -> None:
        """Fold many events before anything is written."""
        gathered, events = consumer.gather(cursor.partition), 0
        async with self._ahead(cursor, target) as chunks:
            since = time.monotonic()
            async for rows in chunks:
                await gathered.take(self._conn, skips.without(rows, cursor.skips))
                events, last = events + len(rows), rows[-1]
                full = events >= self.effort.gathered_events or gathered.streams >= self.effort.gathered_streams
                if full or last.position == target:
                    await self._feeder.move(self._conn, cursor, last, events, partial(gathered.write, self._conn))
                    if cursor.position != last.position:
                        return
                    self._advanced(events)
                    gathered, events = consumer.gather(cursor.partition), 0
                since = await self._rest(since)

    async def _collect(self, cursor: Cursor, target: int) -> None:
        """Apply range by range; an event that cannot be borne stops it there."""
        gathered: list[Recorded] = []
        size, since = 0, time.monotonic()
        async with self._ahead(cursor, target) as chunks:
            async for rows in chunks:
                gathered += rows
                size += sum(len(row.payload) for row in rows)
                full = len(gathered) >= self.effort.range_events or size >= self.effort.range_bytes
                if full or gathered[-1].position == target:
                    if not await self._feed(cursor, gathered):
                        return
                    gathered, size = [], 0
                    since = await self._rest(since)

    async def _feed(self, cursor: Cursor, rows: list[Recorded]) -> bool:
        """Whether all of it was applied, by us."""
        with collector_rests if len(rows) >= 1_000 else nullcontext():
            await self._feeder.feed(self._conn, cursor, rows)
        if cursor.position != rows[-1].position:
            return False
        self._advanced(len(rows))
        return True

    async def _rest(self, since: float) -> float:
        """Leave others their part of the time."""
        if self.effort.share < 1:
            await asyncio.sleep((time.monotonic() - since) * (1 / self.effort.share - 1))
        return time.monotonic()

    async def _take_checkpoints(self, *, release: bool = False) -> None:
        """Believe the database. A stop that an earlier builder recorded is tried again."""
        if not self._cursors:
            found = await (await self._conn.execute(_HEADS, binary=True)).fetchall()
            self._cursors = {partition: Cursor(self._consumer, partition) for partition, _, _ in found}
        place = self.generation.name, self.generation.generation, list(self._cursors)
        if release:
            await self._conn.execute(_RELEASE, place)
        checkpoints = await (await self._conn.execute(_POSITIONS, place, binary=True)).fetchall()
        if len(checkpoints) != len(self._cursors):
            raise CannotBuild(f"Generation {self.generation.generation} of {self.generation.name} was dropped.")
        for partition, position, epoch, stopped in checkpoints:
            self._cursors[partition].take(position, epoch, stopped)

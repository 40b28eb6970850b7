"""The publisher: brings the log to JetStream, in order per partition, nothing missing and nothing twice.

It keeps no checkpoint. The stream's last message of a partition tells which event was published last, and each batch is appended by
compare-and-set on that message, all or nothing (see :mod:`adapters.nats.batches`). So a publisher may be killed, paused or
run twice, an answer may be lost, and the duplicate window does not matter: whoever thought of another end than there is changes nothing
and looks again. Whatever goes wrong with NATS or PostgreSQL ends the connection, and the next one begins by looking.

Each batch is read together with the hash at the position it follows. If the log has another one there it lost its end: publishing goes
on behind the last event that still stands, under a new epoch, and a notice tells listeners.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import structlog
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from adapters.cloudevents import cloud_event, event_id
from adapters.nats import reading, stream
from adapters.nats.batches import BatchTooLarge, Message, Outrun, append, fits
from adapters.nats.bus import Bus, WrongStream, connected, told
from adapters.nats.keeping import forget_before
from adapters.nats.names import EPOCH_TYPE, STREAM, Place, epoch_subject, event_subject
from adapters.nats.reading import Entry
from adapters.nats.rewinding import still_standing
from eventstore.postgres import open_pool
from eventstore.rows import GENESIS, PRUNED

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Where and how to publish. Times in seconds. ``url`` may name several servers, separated by commas."""

    url: str = field(repr=False)
    stream: str = STREAM
    source: str = "holdbook"
    replicas: int = 1
    keep_days: float | None = None
    """How long the stream keeps messages; for ever by default. A partition's last one always stays."""
    duplicates_seconds: float = 10.0
    batch_events: int = 1_000
    """JetStream takes no more in one batch unless it is configured to."""
    batch_bytes: int = 4 * 2**20
    lanes: int = 2
    """Partitions worked on at once."""
    poll: float = 0.2
    poll_idle: float = 1.0
    retry_longest: float = 2.0


NOWHERE = Place(0, 0)


@dataclass(slots=True, eq=False)
class _Line:
    """What is known of one partition: its last message, and why it stands still."""

    partition: int
    sequence: int = 0
    place: Place = NOWHERE
    hash: bytes = GENESIS
    looked: bool = False
    checked: bool = False
    rest_until: float = 0.0
    contended: bool = False
    stopped: str | None = None

    def moved(self, sequence: int, place: Place, hash_: bytes) -> None:
        self.sequence, self.place, self.hash, self.looked = sequence, place, hash_, True


class Publisher:
    """Publishes the partitions' logs until told to stop.

    ``waker`` is set by whoever appends in this process; the publisher clears it. Without it, and for what other processes append, it
    polls. The rest of the process does not depend on it.
    """

    def __init__(self, dsn: str, partitions: Iterable[int], options: Options, waker: asyncio.Event | None = None) -> None:
        self.options, self.published, self.outrun = options, 0, 0
        self._dsn, self._partitions = dsn, sorted(set(partitions))
        self._waker = waker or asyncio.Event()
        self._stopping = asyncio.Event()
        self._lines = {partition: _Line(partition) for partition in self._partitions}
        self._heads: dict[int, tuple[int, int]] = {}
        self._trouble: str | None = "not started"
        self._works: bool | None = None
        self._batch = options.batch_events
        self._keep_at = 0.0

    # What it tells

    @property
    def trouble(self) -> str | None:
        """Why nothing is published at all; None when it works."""
        return self._trouble

    def stopped(self) -> dict[int, str]:
        """Partitions that stand still until somebody helps, and why. They are tried again with every new connection."""
        return {line.partition: line.stopped for line in self._lines.values() if line.stopped}

    def lag(self) -> dict[int, int]:
        """For each partition how many events are in the log and not in the stream, as of the last look at both."""
        return {
            partition: max(0, head - self._lines[partition].place.position)
            for partition, (_, head) in self._heads.items()
            if self._lines[partition].looked
        }

    def collect(self) -> Iterator[Metric]:
        """For Prometheus."""
        yield CounterMetricFamily("holdbook_nats_published", "Events this process published.", value=self.published)
        yield CounterMetricFamily(
            "holdbook_nats_outrun", "Batches that another publisher, or this one before, was first with.", value=self.outrun
        )
        yield GaugeMetricFamily("holdbook_nats_up", "1 when publishing works.", value=int(self._trouble is None))
        yield GaugeMetricFamily("holdbook_nats_stopped_partitions", "Partitions that need help.", value=len(self.stopped()))
        yield GaugeMetricFamily(
            "holdbook_nats_lag_events", "Events not published, of the partition with most.", value=max(self.lag().values(), default=0)
        )

    # Running

    def stop(self) -> None:
        """Have :meth:`run` finish the batches under way and return."""
        self._stopping.set()
        self._waker.set()

    async def run(self) -> None:
        """Publish until :meth:`stop`. Outlives restarts of NATS and of the database."""
        backoff = 0.05
        while not self._stopping.is_set():
            try:
                async with contextlib.AsyncExitStack() as stack:
                    bus = await stack.enter_async_context(connected(self.options.url, self.options.stream, "holdbook publisher"))
                    pool = await open_pool(self._dsn, size=self.options.lanes, options=reading.READER_OPTIONS)
                    stack.push_async_callback(pool.close)
                    await self._prepare(bus, pool)
                    backoff = 0.05
                    await self._publish(bus, pool)
            except Exception as error:  # nobody awaits this task before the process ends, so whatever it is has to be told here
                self._tell(told(error), needs_help=isinstance(error, WrongStream))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), backoff)
                backoff = min(backoff * 2, self.options.retry_longest)

    def _tell(self, trouble: str | None, *, needs_help: bool = False) -> None:
        """Log that it began or ceased to work, once, and each new reason that somebody has to do something about."""
        if trouble is None and not self._works:
            log.info("publisher.works", stream=self.options.stream)
        elif trouble is not None and (self._works in (True, None) or (needs_help and trouble != self._trouble)):
            log.warning("publisher.waits", reason=trouble)
        self._trouble, self._works = trouble, trouble is None

    async def _prepare(self, bus: Bus, pool: AsyncConnectionPool[AsyncConnection[TupleRow]]) -> None:
        async with pool.connection() as conn:
            store, partitions = await reading.store_identity(conn)
        options = self.options
        await stream.ensure(bus, stream.Wanted(store, partitions, options.replicas, options.duplicates_seconds))
        # Whatever was known may be of a stream, or of a log, that lost something since.
        self._lines = {partition: _Line(partition) for partition in self._partitions}

    async def _publish(self, bus: Bus, pool: AsyncConnectionPool[AsyncConnection[TupleRow]]) -> None:
        poll = self.options.poll
        while not self._stopping.is_set():
            self._waker.clear()
            bus.check()
            moved = await self._pass(bus, pool)
            await self._keep(bus)
            self._tell(None)
            if moved:
                poll = self.options.poll
                continue
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._waker.wait(), poll)
            poll = min(poll * 1.5, self.options.poll_idle)

    async def _keep(self, bus: Bus) -> None:
        days = self.options.keep_days
        if days is not None and time.monotonic() >= self._keep_at:
            kept = timedelta(days=days)
            await forget_before(bus, self._partitions, datetime.now(UTC) - kept)
            self._keep_at = time.monotonic() + min(3_600.0, kept.total_seconds() / 10)

    async def _pass(self, bus: Bus, pool: AsyncConnectionPool[AsyncConnection[TupleRow]]) -> bool:
        """Bring every partition to where the log ended when this began. Whether anything was published."""
        async with pool.connection() as conn:
            self._heads = await reading.heads(conn, self._partitions)
        work = [line for line in self._lines.values() if self._due(line)]
        before = self.published

        async def lane() -> None:
            while work and not self._stopping.is_set():
                line = work.pop()
                async with pool.connection() as conn:
                    await self._advance(bus, conn, line)

        results = await asyncio.gather(*(lane() for _ in range(min(self.options.lanes, len(work)))), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return self.published != before

    def _due(self, line: _Line) -> bool:
        epoch, head = self._heads.get(line.partition, (0, 0))
        if line.stopped or time.monotonic() < line.rest_until:
            return False
        return not line.checked or head != line.place.position or epoch > line.place.epoch

    # One partition

    async def _advance(self, bus: Bus, conn: reading.Connection, line: _Line) -> None:
        epoch, head = self._heads[line.partition]
        try:
            if not line.looked or line.contended:
                await self._look(bus, line)
            while not self._stopping.is_set():
                try:
                    found = await reading.entries(
                        conn, line.partition, line.place.position, line.hash, self._batch, self.options.batch_bytes
                    )
                except reading.LostTail:
                    await self._rewind(bus, conn, line, epoch)
                    continue
                line.checked = True
                if epoch > line.place.epoch:
                    await self._begin_epoch(bus, line, epoch, line.place.position, line.hash)
                if found:
                    await self._append(bus, line, found)
                if not found or line.place.position >= head:
                    return
        except Outrun:
            # Another publisher is at work, which is as good. Resting keeps two from doing everything twice.
            self.outrun += 1
            line.looked, line.contended = False, True
            line.rest_until = time.monotonic() + random.uniform(0.2, 0.6)  # noqa: S311  # only so that two do not meet again
        except (reading.Gap, WrongStream) as error:
            line.stopped = str(error)
            log.error("publisher.stopped", partition=line.partition, reason=line.stopped)

    async def _look(self, bus: Bus, line: _Line) -> None:
        last = await bus.last(line.partition)
        if last is None:
            line.moved(0, NOWHERE, GENESIS)
        else:
            line.moved(last.sequence, last.place, last.hash)

    async def _append(self, bus: Bus, line: _Line, found: Sequence[Entry]) -> None:
        messages = [self._message(line, entry) for entry in found]
        for message in messages:
            if not fits(bus.client, message):
                raise WrongStream(f"Position {message.place.position} takes {len(message.body)} bytes; raise the server's max_payload.")
        try:
            sequence = await append(bus, line.partition, line.sequence, messages)
        except BatchTooLarge:
            if self._batch == 1:
                raise
            self._batch = max(1, self._batch // 2)
            return
        line.moved(sequence, messages[-1].place, messages[-1].hash)
        line.contended = False
        self.published += len(messages)

    def _message(self, line: _Line, entry: Entry) -> Message:
        epoch, partition = line.place.epoch, line.partition
        body = cloud_event(
            self.options.source, entry.tenant_id, partition, epoch, entry.position, entry.command_id, entry.ordinal, entry.type,
            entry.stream, entry.recorded_at, None if entry.type == PRUNED else entry.payload, entry.trace,
        )  # fmt: skip
        identity = f"{epoch}:{event_id(entry.command_id, entry.ordinal)}"
        subject = event_subject(partition, entry.tenant_id, entry.type)
        return Message(subject, identity, Place(epoch, entry.position), entry.hash, body)

    async def _rewind(self, bus: Bus, conn: reading.Connection, line: _Line, epoch: int) -> None:
        position, hash_ = await still_standing(bus, conn, line.partition, line.sequence)
        log.warning("publisher.rewinds", partition=line.partition, published=line.place.position, standing=position)
        # The log's own epoch is raised by the writer that notices, which may come later than this; the two never part by more than that.
        await self._begin_epoch(bus, line, max(epoch, line.place.epoch + 1), position, hash_)

    async def _begin_epoch(self, bus: Bus, line: _Line, epoch: int, position: int, hash_: bytes) -> None:
        """Tell listeners that the log goes on behind this position under a new epoch."""
        partition, place = line.partition, Place(epoch, position)
        attributes = {
            "specversion": "1.0",
            "id": f"epoch:{partition}:{epoch}",
            "source": self.options.source,
            "type": EPOCH_TYPE,
            "sequence": str(position),
            "partition": partition,
            "epoch": epoch,
        }
        message = Message(epoch_subject(partition), f"epoch:{partition}:{epoch}", place, hash_, json.dumps(attributes).encode())
        line.moved(await append(bus, partition, line.sequence, [message]), place, hash_)
        line.contended = False

"""One writer per process and partition: group commit under the partition's lock row.

Commands queue in memory; the next batch is whatever queued while the last one committed. Before the lock the writer looks
up known command ids and loads the streams that are not cached. Under the lock it catches up on what other processes wrote
since, so that a cached state is never stale when it decides, then decides, appends and commits. Only after the commit are
states published and callers answered. The writer task is never cancelled; a caller who went away is skipped if the batch
has not been decided yet, and otherwise finds its answer under the same key.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg

from domain.kernel.decider import Decider
from eventstore.codec import Codec
from eventstore.deciding import Work
from eventstore.errors import Draining, Overloaded, Unavailable, UnknownEventType
from eventstore.log import Batch, Known, PartitionLog, Snapshot
from eventstore.requests import Item, Options, Outcome, Request, Stats
from eventstore.rows import Row
from eventstore.states import Cached, LostTail, States, TooFarBehind

__all__ = ["Cached", "Item", "Options", "Outcome", "Request", "Stats", "Writer"]

_REFUSED_BY_SERVER = (psycopg.DataError, psycopg.IntegrityError, psycopg.ProgrammingError, psycopg.NotSupportedError)
"""The server read the rows and said no: nothing is in doubt, and trying the same again is of no use."""


@dataclass(slots=True, eq=False)
class _Waiting:
    """A request and who waits for it. ``taken`` says that a batch has decided it: from then on it cannot be withdrawn."""

    request: Request
    future: asyncio.Future[Outcome]
    taken: bool = False


def _observed(future: asyncio.Future[Outcome]) -> None:
    """Nobody waits for this future any more; an exception in it is nobody's news."""
    if not future.cancelled():
        future.exception()


_Decided = tuple[Work, list[tuple[_Waiting, Outcome | Exception]], list[_Waiting], int]
"""The work, the answers it would give, what is left of the batch because time ran out, and how many rows are with the server already."""

_SHORT = 64
"""Commands of a batch whose ids are looked up under the lock: that costs nobody much, and spares a round trip."""
_SENT_AT_ONCE = 250
"""Rows that are worth a statement of their own, so that the server inserts them while the next are decided (measured: a sixth more)."""


class Writer:
    """Takes commands for one partition, in batches, and answers each exactly once."""

    def __init__(self, log: PartitionLog, codec: Codec, options: Options | None = None) -> None:
        self.log, self.codec, self.options = log, codec, options or Options()
        self.stats = Stats()
        self.wakers: list[asyncio.Event] = []
        self._states = States(log, codec, self.options.cached_streams)
        self._queue: deque[_Waiting] = deque()
        self._queued_bytes = 0
        self._inflight: dict[UUID, _Waiting] = {}
        self._draining = False
        self._task: asyncio.Task[None] | None = None
        self._snapshotting: set[asyncio.Task[None]] = set()

    # Callers

    @property
    def queued(self) -> int:
        """Commands waiting for the next batch."""
        return len(self._queue)

    @property
    def queued_bytes(self) -> int:
        """Bytes of the bodies of the commands that wait."""
        return self._queued_bytes

    async def submit(self, request: Request) -> Outcome:
        """Have the request decided and recorded, or learn what became of it before.

        Raises `Rejected` for refusals that leave nothing, `KeyReused`, and the retryable `StoreError` kinds. Cancelling the
        caller does not undo what a batch already took.
        """
        while (other := self._inflight.get(request.command_id)) is not None:
            await asyncio.wait([other.future])
            if other.future.cancelled() or other.future.exception() is not None:
                continue  # it left nothing that we know of: decide for ourselves
            if other.request.tenant_id == request.tenant_id and other.request.fingerprint == request.fingerprint:
                first = other.future.result()
                return Outcome(first.reply, first.refused, True, first.epoch, first.position)
            break  # another body: the log will say so
        if self._draining:
            raise Draining
        if len(self._queue) >= self.options.queue_commands or self._queued_bytes + request.size > self.options.queue_bytes:
            raise Overloaded
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        waiting = _Waiting(request, future)
        self._inflight[request.command_id] = waiting
        self._queue.append(waiting)
        self._queued_bytes += request.size
        if self._task is None:
            # In a context of its own: it outlives the request that begins it, and must not log under its name.
            self._task = asyncio.create_task(self._run(), name=f"writer-{self.log.partition}", context=Context())
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if waiting.taken:
                future.add_done_callback(_observed)
            else:
                future.cancel()
                self._forget(waiting)
            raise

    def refuse(self) -> None:
        """Take no more."""
        self._draining = True

    async def drain(self) -> None:
        """Take no more, finish and answer what was taken, and leave."""
        self.refuse()
        while self._task is not None:
            await asyncio.wait([self._task])
        if self._snapshotting:
            await asyncio.wait(self._snapshotting)

    async def load(self, streams: Sequence[str]) -> dict[str, Cached]:
        """Streams as of now, folded afresh from snapshot and log."""
        return await self._states.load(streams)

    def found(self, loaded: Mapping[str, Cached], decider: Decider[Any], tenant_id: UUID, stream: str) -> Cached:
        """A stream among those that were loaded; the initial state at version 0 when there is none of this tenant's."""
        if self._states.unreadable(stream):
            raise UnknownEventType(f"Stream {stream}.")
        cached = loaded.get(stream)
        return cached if cached is not None and cached.tenant_id == tenant_id else Cached(tenant_id, 0, decider.initial)

    # The writer's task

    async def _run(self) -> None:
        while self._queue:
            batch = self._next_batch()
            try:
                await self._commit(batch)
            except Exception as error:  # whatever happens to one batch, the next ones must be served
                for waiting in batch:
                    self._answer(waiting, error)
            await asyncio.sleep(0)
        self._task = None

    def _next_batch(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        size, queue = 0, self._queue
        while queue and len(batch) < self.options.batch_commands and (not batch or size < self.options.batch_bytes):
            waiting = queue.popleft()
            size += waiting.request.size
            if waiting.future.done():
                self._forget(waiting)
            else:
                batch.append(waiting)
        self._queued_bytes -= size
        return batch

    async def _commit(self, batch: list[_Waiting]) -> None:
        """Bring a batch to its end, through retries of whatever may be retried."""
        deadline = time.monotonic() + self.options.retry_seconds
        pause = 0.02
        while batch:
            try:
                batch = await self._attempt(batch)
                continue
            except _REFUSED_BY_SERVER as error:
                self._states.forget()
                if len(batch) == 1:
                    self._answer(batch[0], error)
                    return
                for waiting in batch:  # one bad command fails alone
                    await self._commit([waiting])
                return
            except (psycopg.Error, TimeoutError, OSError) as error:
                if time.monotonic() > deadline:
                    raise Unavailable from error
            await asyncio.sleep(pause)
            pause = min(pause * 2, 0.5)

    async def _attempt(self, batch: list[_Waiting]) -> list[_Waiting]:
        """Decide and append a batch; returns what is left to do: all of it when the attempt came to nothing.

        An exception of any kind while committing leaves the batch in doubt. The session is closed then, and the next attempt
        settles it: its lock waits for whatever is left of this transaction, and the rows it reads under the lock either hold our
        commands, which are answered from them, or never will.
        """
        command_ids = [waiting.request.command_id for waiting in batch]
        short = len(batch) <= _SHORT
        known = await self._prepare(batch, () if short else command_ids)
        began = time.perf_counter()
        states, most = self._states, self.options.catch_up_locked
        async with self.log.locked(max(states.position, 1), most + 2, command_ids if short else ()) as locked:
            known |= {row.command_id: row for row in locked.tail.known}
            try:
                caught_up = states.catch_up(locked.tail, most)
            except LostTail:
                self.stats.lost_tails += 1
                states.forget()
                await locked.raise_epoch()
                return batch
            except TooFarBehind:
                caught_up = None
            if caught_up is not None:
                self.stats.caught_up += len(caught_up)
                work, answers, left, sent = await self._decide(batch, known, caught_up, locked)
                if work.rows:
                    self.stats.in_doubt += 1
                    await locked.append(work.rows[sent:])
                    self.stats.in_doubt -= 1
        if caught_up is None:
            await states.catch_up_unlocked(self.options.catch_up_jump)
            return batch
        self.stats.committed(len(answers), time.perf_counter() - began)
        self._publish(work, answers)
        return left

    async def _prepare(self, batch: list[_Waiting], command_ids: Sequence[UUID]) -> dict[UUID, Known]:
        """Everything that can be read without the lock: known command ids, if asked for, and states that are not cached.

        In this order: whatever is recorded after the look-up lies behind the position folded before it, so the rows read
        under the lock show it.
        """
        await self._states.start()
        found = await self.log.known(command_ids) if command_ids else ()
        # What lies further on is found again under the lock, unless a failover lost it in between.
        known = {row.command_id: row for row in found if row.position <= self._states.position}
        streams = {item.stream for waiting in batch if waiting.request.command_id not in known for item in waiting.request.items}
        await self._states.need(streams | self._states.guards(waiting.request.tenant_id for waiting in batch))
        return known

    async def _decide(self, batch: list[_Waiting], known: dict[UUID, Known], caught_up: Iterable[Row], locked: Batch) -> _Decided:
        tail, sent = locked.tail, 0
        for row in caught_up:
            if row.ordinal == 0:
                known[row.command_id] = Known(row.command_id, row.position, row.tenant_id, row.type, row.reply, row.fingerprint)
        at = max(tail.now, tail.rows[-1].recorded_at) if tail.rows else tail.now
        work = Work(self.log.partition, self.codec, self._states, known, tail.epoch, at)
        answers: list[tuple[_Waiting, Outcome | Exception]] = []
        ends = time.perf_counter() + self.options.decide_seconds
        for index, waiting in enumerate(batch):
            if waiting.future.done():
                self._forget(waiting)
                continue
            waiting.taken = True
            answers.append((waiting, work.take(waiting.request)))
            if index % 64 == 63 and time.perf_counter() > ends:
                return work, answers, batch[index + 1 :], sent
            # The last rows stay here: what is left to append is never nothing.
            if len(work.rows) - sent > _SENT_AT_ONCE:
                await locked.send(work.rows[sent : sent + _SENT_AT_ONCE])
                sent += _SENT_AT_ONCE
        return work, answers, [], sent

    # After the commit

    def _publish(self, work: Work, answers: list[tuple[_Waiting, Outcome | Exception]]) -> None:
        due = self._due_snapshots(work)
        self._states.publish(work.states, work.position, work.digest)
        if work.rows:
            for waker in self.wakers:
                waker.set()
        if due:
            task = asyncio.create_task(self._save(due))
            self._snapshotting.add(task)
            task.add_done_callback(self._snapshotting.discard)
        self.stats.events += len(work.rows)
        for waiting, answer in answers:
            self._count(answer)
            self._answer(waiting, answer)

    def _count(self, answer: Outcome | Exception) -> None:
        self.stats.commands += 1
        if isinstance(answer, Outcome):
            self.stats.refused += answer.refused and not answer.replayed
            self.stats.replayed += answer.replayed

    def _due_snapshots(self, work: Work) -> list[Snapshot]:
        """Snapshots of the streams that passed a multiple of N events in this batch; frozen here, written off the lock."""
        every = self.options.snapshot_every
        if not every:
            return []
        firsts: dict[str, int] = {}
        hashes: dict[str, bytes] = {}
        for row in work.rows:
            firsts.setdefault(row.stream, row.version)
            hashes[row.stream] = row.hash
        due: list[Snapshot] = []
        for stream, cached in work.states.items():
            if cached.version // every > (firsts[stream] - 1) // every:
                decider = self.codec.decider_of(stream)
                assert decider is not None
                state = self.codec.freeze(decider, cached.state)
                due.append(Snapshot(stream, cached.version, decider.state_schema, hashes[stream], cached.tenant_id, state))
        return due

    async def _save(self, due: list[Snapshot]) -> None:
        try:
            await self.log.save(due)
            self.stats.snapshots += len(due)
        except (psycopg.Error, OSError):
            return  # a snapshot is a cache: the next one will do

    def _answer(self, waiting: _Waiting, answer: Outcome | Exception) -> None:
        self._forget(waiting)
        if waiting.future.done():
            return
        if isinstance(answer, Exception):
            waiting.future.set_exception(answer)
        else:
            waiting.future.set_result(answer)

    def _forget(self, waiting: _Waiting) -> None:
        if self._inflight.get(waiting.request.command_id) is waiting:
            del self._inflight[waiting.request.command_id]

"""One writer per process and partition: group commit under the partition's lock row.

Commands queue in memory; the next batch is whatever queued while the last one committed. Before the lock the writer looks
up known command ids and loads the streams that are not cached. Under the lock it catches up on what other processes wrote
since, so that a cached state is never stale when it decides, then decides, appends and commits. Only after the commit are
states published and callers answered. The writer task is never cancelled; a caller who went away is skipped if the batch
has not been decided yet, and otherwise finds its answer under the same key.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
import psycopg

from domain.kernel.decider import Command, Decider, Refused, Rejected
from eventstore.codec import Codec
from eventstore.errors import CorruptLog, Draining, KeyReused, Overloaded, StoreError, Unavailable, UnknownEventType
from eventstore.log import Batch, Known, PartitionLog, Snapshot, Tail
from eventstore.rows import GENESIS, Row, leaf_hash, microseconds

_encode = msgspec.json.Encoder().encode
NOBODY = UUID(int=0)
REFUSED = Refused.event_name


class Item(NamedTuple):
    """One command on one stream."""

    decider: Decider[Any]
    stream: str
    command: Command


@dataclass(slots=True, eq=False)
class Request:
    """One command, or an atomic batch of commands, of one tenant, under one command id.

    ``fingerprint`` is a digest of the body under a tenant's key; the same command id with another fingerprint is refused.
    ``occurred_at`` replaces the writer's time as the commands' ``at`` (operators' imports only). ``size`` is the body's size in
    bytes, for the bounds of queue and batch.
    """

    tenant_id: UUID
    command_id: UUID
    items: tuple[Item, ...]
    fingerprint: bytes
    actor: str | None = None
    cause: UUID | None = None
    trace: str | None = None
    occurred_at: datetime | None = None
    size: int = 256


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request. ``reply`` is JSON; of an atomic batch ``{"results": [...]}``; of a refusal what was refused and why."""

    reply: bytes
    refused: bool
    replayed: bool
    epoch: int
    position: int


class Cached(NamedTuple):
    """A stream's state in this process."""

    tenant_id: UUID
    version: int
    state: Any


@dataclass(slots=True, kw_only=True)
class Options:
    """Bounds of a writer. Sizes are in bytes, times in seconds."""

    queue_commands: int = 20_000
    queue_bytes: int = 64 * 2**20
    batch_commands: int = 1_000
    batch_bytes: int = 8 * 2**20
    decide_seconds: float = 0.5
    cached_streams: int = 50_000
    catch_up_locked: int = 1_000
    catch_up_jump: int = 20_000
    snapshot_every: int = 1_000
    retry_seconds: float = 8.0


@dataclass(slots=True)
class Stats:
    """What a writer did since it started."""

    commands: int = 0
    events: int = 0
    batches: int = 0
    refused: int = 0
    replayed: int = 0
    caught_up: int = 0
    in_doubt: int = 0
    snapshots: int = 0
    lost_tails: int = 0
    commit_seconds: float = 0.0


@dataclass(slots=True, eq=False)
class _Waiting:
    """A request and who waits for it. ``taken`` says that a batch has decided it: from then on it cannot be withdrawn."""

    request: Request
    future: asyncio.Future[Outcome]
    taken: bool = False


@dataclass(slots=True)
class _Work:
    """A batch under way: what would be appended, and what would be published if that commits."""

    position: int
    digest: bytes
    epoch: int
    at: datetime
    at_us: int
    known: dict[UUID, Known]
    rows: list[Row] = field(default_factory=list)
    states: dict[str, Cached] = field(default_factory=dict)
    answers: list[tuple[_Waiting, Outcome | Exception]] = field(default_factory=list)


def _observed(future: asyncio.Future[Outcome]) -> None:
    """Nobody waits for this future any more; an exception in it is nobody's news."""
    if not future.cancelled():
        future.exception()


def refusal_reply(rejected: Rejected) -> dict[str, Any]:
    """What the caller is told about a refusal, and what is kept for its key."""
    told: dict[str, Any] = {"code": rejected.code, "message": rejected.message, "kind": rejected.status}
    if rejected.field_name is not None:
        told["field"] = rejected.field_name
    if rejected.index is not None:
        told["index"] = rejected.index
    if rejected.details:
        told["details"] = dict(rejected.details)
    return told


class Writer:
    """Takes commands for one partition, in batches, and answers each exactly once."""

    def __init__(self, log: PartitionLog, codec: Codec, options: Options | None = None) -> None:
        self.log, self.codec, self.options = log, codec, options or Options()
        self.stats = Stats()
        self.wakers: list[asyncio.Event] = []
        self._queue: deque[_Waiting] = deque()
        self._queued_bytes = 0
        self._inflight: dict[UUID, _Waiting] = {}
        self._cache: OrderedDict[str, Cached] = OrderedDict()
        self._unreadable: set[str] = set()
        self._head, self._digest, self._epoch, self._started = 0, GENESIS, 0, False
        self._draining = False
        self._task: asyncio.Task[None] | None = None
        self._snapshotting: set[asyncio.Task[None]] = set()

    # Callers

    @property
    def queued(self) -> int:
        """Commands waiting for the next batch."""
        return len(self._queue)

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
            self._task = asyncio.create_task(self._run(), name=f"writer-{self.log.partition}")
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if waiting.taken:
                future.add_done_callback(_observed)
            else:
                future.cancel()
                self._forget(waiting)
            raise

    async def drain(self) -> None:
        """Take no more, finish and answer what was taken, and leave."""
        self._draining = True
        while self._task is not None:
            await asyncio.wait([self._task])
        if self._snapshotting:
            await asyncio.wait(self._snapshotting)

    async def state(self, decider: Decider[Any], tenant_id: UUID, stream: str) -> Cached:
        """The stream's state as of now, folded afresh from snapshot and log; the initial state at version 0 when there is none."""
        loaded = await self._load([stream])
        found = loaded.get(stream)
        return found if found is not None and found.tenant_id == tenant_id else Cached(tenant_id, 0, decider.initial)

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
            except (psycopg.DataError, psycopg.IntegrityError, psycopg.ProgrammingError, psycopg.NotSupportedError) as error:
                self._clear()
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
        """Decide and append a batch; returns what is left to do (a batch that would take too long is cut)."""
        known = await self._prepare(batch)
        began = time.perf_counter()
        doubt: Exception | None = None
        async with self.log.locked(max(self._head, 1), self.options.catch_up_locked + 2) as locked:
            tail = locked.tail
            if not await self._catch_up(locked, tail, known):
                return batch
            at = max(tail.now, tail.rows[-1].recorded_at) if tail.rows else tail.now
            work = _Work(self._head, self._digest, self._epoch, at, microseconds(at), known)
            left = self._decide_all(batch, work)
            if work.rows:
                try:
                    await locked.append(work.rows)
                except (psycopg.DataError, psycopg.IntegrityError, psycopg.ProgrammingError):
                    raise  # the server refused the rows themselves: nothing is in doubt
                except Exception as error:
                    doubt = error
        if doubt is not None and not await self._settle(work.rows[-1], doubt):
            return batch
        self.stats.batches += 1
        self.stats.commit_seconds += time.perf_counter() - began
        self._publish(work)
        return left

    async def _prepare(self, batch: list[_Waiting]) -> dict[UUID, Known]:
        """Everything that can be read without the lock: the log's new tail, known command ids, states that are not cached."""
        if not self._started:
            self._head, self._digest = await self.log.head()
            self._started = True
        found = await self.log.known([waiting.request.command_id for waiting in batch])
        known = {row.command_id: row for row in found}
        missing = {
            item.stream
            for waiting in batch
            if waiting.request.command_id not in known
            for item in waiting.request.items
            if item.stream not in self._cache
        }
        if missing:
            loaded = await self._load(sorted(missing))
            for stream in missing - self._unreadable:
                decider = self.codec.decider_of(stream)
                if decider is not None:  # an empty stream is cached too, so that catching up sees another process begin it
                    self._cache[stream] = loaded.get(stream) or Cached(NOBODY, 0, decider.initial)
        return known

    async def _load(self, streams: Sequence[str]) -> dict[str, Cached]:
        """Fold streams from their snapshots and the log. A stream with an event of an unknown type is marked unreadable."""
        states: dict[str, Cached] = {}
        for snapshot in await self.log.snapshots(streams):
            decider = self.codec.decider_of(snapshot.stream)
            if decider is not None and decider.state_schema == snapshot.state_schema:
                states[snapshot.stream] = Cached(snapshot.tenant_id, snapshot.version, self.codec.thaw(decider, snapshot.state))
        after = [(stream, states[stream].version if stream in states else 0) for stream in streams]
        self._unreadable.difference_update(streams)
        for row in await self.log.stream_rows(after):
            self._fold(states, row)
        return states

    def _fold(self, states: dict[str, Cached] | OrderedDict[str, Cached], row: Row) -> None:
        decider = self.codec.decider_of(row.stream)
        if decider is None or row.stream in self._unreadable:
            return
        found = states.get(row.stream)
        version, state = (found.version, found.state) if found is not None else (0, decider.initial)
        if row.version <= version:
            return
        if row.version != version + 1:
            raise CorruptLog(f"Stream {row.stream} goes from version {version} to {row.version} at position {row.position}.")
        try:
            event = self.codec.decode(row.type, row.payload)
        except UnknownEventType:
            self._unreadable.add(row.stream)
            states.pop(row.stream, None)
            return
        states[row.stream] = Cached(row.tenant_id, row.version, decider.evolve(state, event))

    async def _catch_up(self, locked: Batch, tail: Tail, known: dict[UUID, Known]) -> bool:
        """Fold what others wrote since; False when the attempt must begin anew."""
        rows = tail.rows
        if self._head:
            if not rows or rows[0].position != self._head or rows[0].hash != self._digest:
                await self._lost_tail(locked)
                return False
            rows = rows[1:]
        if len(rows) > self.options.catch_up_locked:
            await self._catch_up_unlocked()
            return False
        for row in rows:
            if row.position != self._head + 1:
                raise CorruptLog(f"Position {self._head + 1} of partition {self.log.partition} is missing.")
            if row.stream in self._cache:
                self._fold(self._cache, row)
            if row.ordinal == 0:
                known[row.command_id] = Known(row.command_id, row.position, row.tenant_id, row.type, row.reply, row.fingerprint)
            self._head, self._digest = row.position, row.hash
        self.stats.caught_up += len(rows)
        self._epoch = tail.epoch
        return True

    async def _catch_up_unlocked(self) -> None:
        """Far behind: read on without holding anybody up, or, when very far, start with empty caches at the present end."""
        head, digest = await self.log.head()
        if head - self._head > self.options.catch_up_jump:
            self._cache.clear()
            self._head, self._digest = head, digest
            return
        while rows := await self.log.read(self._head, 5_000):
            for row in rows:
                if row.stream in self._cache:
                    self._fold(self._cache, row)
                self._head, self._digest = row.position, row.hash
            self.stats.caught_up += len(rows)

    async def _lost_tail(self, locked: Batch) -> None:
        """The log is not the one that was folded: a failover lost its end. Forget everything and say so by a new epoch."""
        self.stats.lost_tails += 1
        self._clear()
        await locked.raise_epoch()

    def _clear(self) -> None:
        self._cache.clear()
        self._unreadable.clear()
        self._started, self._head, self._digest = False, 0, GENESIS

    # Deciding

    def _decide_all(self, batch: list[_Waiting], work: _Work) -> list[_Waiting]:
        ends = time.perf_counter() + self.options.decide_seconds
        for index, waiting in enumerate(batch):
            if waiting.future.done():
                self._forget(waiting)
                continue
            waiting.taken = True
            work.answers.append((waiting, self._decide_one(waiting.request, work)))
            if index % 64 == 63 and time.perf_counter() > ends:
                return batch[index + 1 :]
        return []

    def _decide_one(self, request: Request, work: _Work) -> Outcome | Exception:
        before = work.known.get(request.command_id)
        if before is not None:
            return self._replay(request, before, work.epoch)
        try:
            return self._decide(request, work)
        except Rejected as rejected:
            if not rejected.frozen:
                return rejected
            return self._refuse(request, rejected, work)
        except StoreError as error:
            return error
        except Exception as error:  # one bad command fails alone
            error.add_note(f"while deciding {type(request.items[0].command).__name__} on {request.items[0].stream}")
            return error

    def _replay(self, request: Request, before: Known, epoch: int) -> Outcome | Exception:
        if before.tenant_id != request.tenant_id or before.fingerprint != request.fingerprint:
            return KeyReused()
        self.stats.replayed += 1
        return Outcome((before.reply or "null").encode(), before.type == REFUSED, True, epoch, before.position)

    def _decide(self, request: Request, work: _Work) -> Outcome:
        at = work.at if request.occurred_at is None else request.occurred_at
        single = len(request.items) == 1
        states: dict[str, Cached] = {}
        replies: list[Mapping[str, Any]] = []
        decided: list[tuple[str, int, Any]] = []
        for index, (decider, stream, command) in enumerate(request.items):
            found = states.get(stream) or work.states.get(stream) or self._cache.get(stream)
            if found is None:
                if stream in self._unreadable:
                    raise UnknownEventType(f"Stream {stream}.")
                found = Cached(request.tenant_id, 0, decider.initial)
            if found.version and found.tenant_id != request.tenant_id:  # another tenant's stream does not exist for this one
                found = Cached(request.tenant_id, -1, decider.initial)
            command.at = at
            try:
                events = decider.decide(command, found.state)
            except Rejected as rejected:
                if not single:
                    rejected.index = index
                raise
            version, state = found.version, found.state
            if events and version < 0:
                raise CorruptLog(f"Stream {stream} belongs to another tenant.")
            for event in events:
                version += 1
                state = decider.evolve(state, event)
                decided.append((stream, version, event))
            replies.append(decider.reply(command, found.state, state, events))
            if events:
                states[stream] = Cached(request.tenant_id, version, state)
        reply = _encode(replies[0] if single else {"results": replies})
        if decided:
            self._record(request, decided, reply.decode(), work)
            work.states.update(states)
        self.stats.commands += 1
        return Outcome(reply, False, False, work.epoch, work.position)

    def _refuse(self, request: Request, rejected: Rejected, work: _Work) -> Outcome:
        item = request.items[rejected.index or 0]
        refused = Refused(code=rejected.code, command=type(item.command).__name__, stream=item.stream, index=rejected.index)
        reply = _encode(refusal_reply(rejected))
        self._record(request, [(f"refused-{request.command_id.hex}", 1, refused)], reply.decode(), work)
        self.stats.refused += 1
        return Outcome(reply, True, False, work.epoch, work.position)

    def _record(self, request: Request, decided: list[tuple[str, int, Any]], reply: str, work: _Work) -> None:
        encode, partition = self.codec.encode, self.log.partition
        salts = os.urandom(16 * len(decided))
        position, digest = work.position, work.digest
        tenant, command_id, cause, actor, trace = request.tenant_id, request.command_id, request.cause, request.actor, request.trace
        encoded = [(stream, version, *encode(event)) for stream, version, event in decided]
        told: str | None = reply
        fingerprint: bytes | None = request.fingerprint
        for ordinal, (stream, version, type_, payload) in enumerate(encoded):
            position += 1
            salt = salts[16 * ordinal : 16 * ordinal + 16]
            leaf = leaf_hash(
                partition, position, tenant, stream, version, command_id, ordinal, type_, work.at_us, cause, actor, trace, payload, told, fingerprint, salt
            )  # fmt: skip
            digest = sha256(digest + leaf).digest()
            work.rows.append(
                Row(position, tenant, stream, version, command_id, ordinal, type_, work.at, cause, actor, trace, payload, told, fingerprint, salt, digest)
            )  # fmt: skip
            told = fingerprint = None  # only the first event of a command carries them
        work.position, work.digest = position, digest

    # After the commit

    def _publish(self, work: _Work) -> None:
        self._head, self._digest = work.position, work.digest
        if work.rows:
            self._remember(work)
            for waker in self.wakers:
                waker.set()
        self.stats.events += len(work.rows)
        for waiting, answer in work.answers:
            self._answer(waiting, answer)

    def _remember(self, work: _Work) -> None:
        cache, every = self._cache, self.options.snapshot_every
        due: list[Snapshot] = []
        for stream, cached in work.states.items():
            old = cache.get(stream)
            cache[stream] = cached
            cache.move_to_end(stream)
            if every and cached.version // every > (old.version if old is not None else 0) // every:
                due.append(self._snapshot(stream, cached, work))
        while len(cache) > self.options.cached_streams:
            cache.popitem(last=False)
        if due:
            task = asyncio.create_task(self._save(due))
            self._snapshotting.add(task)
            task.add_done_callback(self._snapshotting.discard)

    def _snapshot(self, stream: str, cached: Cached, work: _Work) -> Snapshot:
        decider = self.codec.decider_of(stream)
        assert decider is not None
        digest = next(row.hash for row in reversed(work.rows) if row.stream == stream)
        state = self.codec.freeze(decider, cached.state)
        return Snapshot(stream, cached.version, decider.state_schema, digest, cached.tenant_id, state)

    async def _save(self, due: list[Snapshot]) -> None:
        try:
            await self.log.save(due)
            self.stats.snapshots += len(due)
        except (psycopg.Error, OSError):
            return  # a snapshot is a cache: the next one will do

    async def _settle(self, last: Row, error: Exception) -> bool:
        """In doubt: take the lock again (which waits for the zombie) and see whether our last event is there."""
        self.stats.in_doubt += 1
        deadline = time.monotonic() + self.options.retry_seconds
        while True:
            try:
                async with self.log.locked(last.position, 1) as locked:
                    rows = locked.tail.rows
                    return bool(rows) and rows[0].position == last.position and rows[0].hash == last.hash
            except (psycopg.Error, TimeoutError, OSError):
                if time.monotonic() > deadline:
                    raise Unavailable from error
            await asyncio.sleep(0.1)

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

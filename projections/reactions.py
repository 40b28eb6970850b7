"""Runs processes and effects: a consumer that queues one task for each event they are interested in, and the task's handler.

A task holds no more than where its event is. The handler reads the event again from the log and makes sure that it is the same
one: a failover may have taken it back. Every command that follows is submitted under an id made of the event's id and the
command's name, so that it is recorded once, however often the task is run.

The lane is the event's stream: what happens to one stream is reacted to in order, and a task that cannot be done holds up
that stream alone and not the whole tenant.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from uuid import UUID

import msgspec
import psycopg
import structlog
from prometheus_client.core import CounterMetricFamily, Metric
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from domain.identity.tenants import TenantDeleted, tenant_stream
from domain.kernel.decider import Event, Rejected
from domain.kernel.process import Effect, Happened, Named, Process, Tools, idempotency_key, process_command_id
from eventstore.codec import Codec, stored_type
from eventstore.errors import StoreError, Unavailable
from eventstore.postgres import open_pool
from eventstore.requests import Item, Request
from eventstore.store import Store
from projections.consumer import RECORDED, Connection, Consumer, Recorded
from projections.reading import FOLLOWER
from projections.tasks import Handler, Later, NewTask, Task, put

log = structlog.get_logger(__name__)

Reaction = Process | Effect


class Place(msgspec.Struct, frozen=True):
    """A task's payload: where the event is, and which one it is."""

    position: int
    command_id: UUID
    ordinal: int


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Place).decode


def consumer_name(reaction: Reaction) -> str:
    """Under which name its checkpoint and its tasks are kept."""
    return f"{'process' if isinstance(reaction, Process) else 'effect'}:{reaction.name}"


def stored_types(events: Iterable[type[Event]]) -> frozenset[str]:
    """Every type under which events of these classes were ever stored."""
    return frozenset(stored_type(cls.event_name, version) for cls in events for version in range(1, cls.event_version + 1))


class Reactions:
    """The consumer of one process or effect. ``wake`` is called when tasks were queued and committed."""

    generation, version = 1, 0

    def __init__(self, reaction: Reaction, wake: Callable[[], None] = lambda: None) -> None:
        self.name, self.starts_at_head = consumer_name(reaction), not reaction.from_start
        self._types, self._wake = stored_types(reaction.on), wake

    async def apply(self, conn: Connection, partition: int, rows: Sequence[Recorded]) -> Callable[[], None]:
        """See :class:`projections.consumer.Consumer`."""
        tasks = [self._task(row) for row in rows if row.type in self._types]
        await put(conn, partition, tasks)
        return self._wake if tasks else self.forget

    def _task(self, row: Recorded) -> NewTask:
        payload = _encode(Place(row.position, row.command_id, row.ordinal)).decode()
        return NewTask(self.name, row.stream, row.position, row.tenant_id, payload, row.trace)

    def forget(self) -> None:
        """Nothing is kept."""


class Backoff:
    """When to try again: after ``first`` seconds, each time twice as long up to ``longest``, by chance up to half of it sooner.

    Trouble of the store passes and is waited for without end. Anything else is given up after ``tries``.
    """

    def __init__(self, first: float = 0.5, longest: float = 300.0, tries: int = 12, chance: Callable[[], float] = random.random) -> None:
        self._first, self._longest, self._tries, self._chance = first, longest, tries, chance

    def __call__(self, task: Task, now: datetime, error: Exception) -> datetime | None:
        """None to give up."""
        passes = isinstance(error, StoreError) and error.retryable
        if not passes and task.attempts + 1 >= self._tries:
            return None
        seconds = min(self._first * 2 ** min(task.attempts, 30), self._longest)
        return now + timedelta(seconds=seconds * (1 - self._chance() / 2))


def request_of(reaction: Reaction, happened: Happened, named: Named) -> Request:
    """A command that follows from an event, as it is submitted."""
    return Request(
        named.tenant_id or happened.tenant_id,
        process_command_id(consumer_name(reaction), happened, named.name),
        (Item(named.decider, named.stream, named.command),),
        b"",  # the id alone says what it is: code that has changed since gives the same answer again
        actor=consumer_name(reaction),
        cause=happened.command_id,
        trace=happened.trace,
    )


class NameTwice(Exception):
    """A process or an effect gave two of one event's commands the same name: the second would never be recorded."""


async def follow_from(reaction: Reaction, happened: Happened, tools: Callable[[], Tools]) -> Sequence[Request]:
    """Everything that follows from an event. The same event gives the same ids."""
    if isinstance(reaction, Process):
        named = reaction.react(happened)
    else:
        named = await reaction.perform(happened, tools())
    if repeated := [name for name, count in Counter(each.name for each in named).items() if count > 1]:
        raise NameTwice(", ".join(repeated))
    return [request_of(reaction, happened, each) for each in named]


class Log:
    """Reads single events, as the followers' role."""

    _query = f"""
        select {RECORDED}, (select count(*) from event d where d.partition = %(partition)s and d.stream = %(tenant)s
                            and d.type = '{TenantDeleted.event_name}')
        from event where partition = %(partition)s and position = %(position)s"""

    def __init__(self, dsn: str) -> None:
        self._dsn, self._opening = dsn, asyncio.Lock()
        self._pool: AsyncConnectionPool[AsyncConnection[TupleRow]] | None = None

    async def close(self) -> None:
        """Close the connections, if there are any."""
        if self._pool is not None:
            await self._pool.close()

    async def _opened(self) -> AsyncConnectionPool[AsyncConnection[TupleRow]]:
        """Opened by whoever is first to read, because most programs have neither process nor effect."""
        async with self._opening:
            if self._pool is None:
                self._pool = await open_pool(self._dsn, size=4, options=f"-c role={FOLLOWER} -c statement_timeout=30s -c timezone=UTC")
        return self._pool

    async def event(self, partition: int, tenant_id: UUID, position: int) -> Recorded | None:
        """The event at a position of the tenant's; None when there is none, or the tenant was deleted.

        Raises `Unavailable` when the log cannot be read: that passes.
        """
        told = {"partition": partition, "tenant": tenant_stream(tenant_id), "position": position}
        try:
            async with (await self._opened()).connection() as conn:
                found = await (await conn.execute(self._query, told, binary=True)).fetchone()
        except (psycopg.OperationalError, PoolTimeout, OSError) as error:
            raise Unavailable from error
        if found is None or found[-1]:
            return None
        row = Recorded._make(found[:-1])
        return row if row.tenant_id == tenant_id else None


class Reacting:
    """The handler of one process's or effect's tasks."""

    def __init__(self, reaction: Reaction, store: Store, events: Log, retry_at: Backoff | None = None) -> None:
        self.consumer, self._reaction = consumer_name(reaction), reaction
        self._store, self._events, self._codec = store, events, store.codec
        self._types, self._backoff = stored_types(reaction.on), retry_at or Backoff()
        self.submitted, self.refused = 0, Counter[str]()

    def retry_at(self, task: Task, now: datetime, error: Exception) -> datetime | None:
        """See :class:`projections.tasks.Handler`."""
        return self._backoff(task, now, error)

    async def __call__(self, task: Task, now: datetime) -> Later | None:
        """Submit what follows from the task's event, if the log still has it."""
        place = _decode(task.payload)
        row = await self._events.event(task.partition, task.tenant_id, place.position)
        if row is None or (row.command_id, row.ordinal) != (place.command_id, place.ordinal) or row.type not in self._types:
            # A failover took it back, or its tenant was deleted: nothing that should be reacted to.
            log.warning("reaction.event_gone", consumer=self.consumer, partition=task.partition, position=place.position)
            return None
        happened = happened_of(self._codec, row)

        def tools() -> Tools:
            return Tools(idempotency_key(self._reaction.name, happened), task.attempts, now)

        for request in await follow_from(self._reaction, happened, tools):
            await self._submit(request)
        return None

    async def _submit(self, request: Request) -> None:
        """A refusal is an answer like any other."""
        try:
            outcome = await self._store.submit(request)
            code = msgspec.json.decode(outcome.reply)["code"] if outcome.refused else None
        except Rejected as rejected:
            code = rejected.code
        self.submitted += 1
        if code is not None:
            self.refused[code] += 1
            log.info("reaction.refused", consumer=self.consumer, code=code, command_id=str(request.command_id))


def happened_of(codec: Codec, row: Recorded) -> Happened:
    """An event of the log as processes see it."""
    event = codec.decode(row.type, row.payload)
    return Happened(
        row.tenant_id, row.stream, row.version, row.position, row.command_id, row.ordinal, row.recorded_at, row.actor, row.trace, event
    )


class Reactors:
    """Consumers and handlers of all processes and effects of a program."""

    def __init__(self, reactions: Sequence[Reaction], store: Store, dsn: str, retry_at: Backoff | None = None) -> None:
        names = [consumer_name(reaction) for reaction in reactions]
        if len(set(names)) != len(names):
            raise ValueError(f"two processes or effects have one name: {names}")
        self._reactions, self._log = reactions, Log(dsn)
        self._handlers = [Reacting(reaction, store, self._log, retry_at) for reaction in reactions]

    @property
    def handlers(self) -> list[Handler]:
        """For :class:`projections.tasks.Tasks`."""
        return list(self._handlers)

    def consumers(self, wake: Callable[[], None]) -> list[Consumer]:
        """For the follower; ``wake`` is that of the tasks' runner."""
        return [Reactions(reaction, wake) for reaction in self._reactions]

    def collect(self) -> Iterator[Metric]:
        """Metrics by process and effect."""
        submitted = CounterMetricFamily("holdbook_reactions_submitted", "Commands of processes and effects.", labels=("consumer",))
        refused = CounterMetricFamily("holdbook_reactions_refused", "Those that a rule refused.", labels=("consumer", "code"))
        for handler in self._handlers:
            submitted.add_metric((handler.consumer,), handler.submitted)
            for code, count in handler.refused.items():
                refused.add_metric((handler.consumer, code), count)
        yield from (submitted, refused)

    async def close(self) -> None:
        """Close the connections."""
        await self._log.close()

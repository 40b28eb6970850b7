"""Runs tasks: lanes side by side, each lane in order, each task at least once.

A worker claims lanes by a lease, runs what is due in them and gives them back. A worker that dies loses its lease within
seconds and another one runs the task again; a task is removed only after its handler returned. Leases are for economy: two
workers that run everything twice change nothing, because what a handler does is exactly-once by its ids.

A handler that fails is tried again when it says; when it gives up, its lane stands still, loudly, until an operator lets it go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, Protocol
from uuid import uuid4

import psycopg
import structlog
from prometheus_client.core import GaugeMetricFamily, Metric
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from eventstore.errors import Draining
from eventstore.postgres import open_pool
from projections import task_table as table
from projections.task_table import NewTask, Place, Task, put

__all__ = ["Figures", "Handler", "Later", "NewTask", "Place", "Task", "Tasks", "put"]

log = structlog.get_logger(__name__)

_TOGETHER = 16
"""Tasks of a lane that are read at once."""
_LOST = (psycopg.Error, PoolTimeout, OSError)


class Later(NamedTuple):
    """A handler's answer: not now. The task counts as tried and its lane waits."""

    at: datetime
    reason: str


class Handler(Protocol):
    """Does the tasks of one consumer. The same task may come twice, also at the same time, and must then change nothing more."""

    consumer: str

    async def __call__(self, task: Task, now: datetime) -> Later | None:
        """Do it; None when it is done. ``now`` is the queue's time."""
        ...

    def retry_at(self, task: Task, now: datetime, error: Exception) -> datetime | None:
        """When to try again after an error; None to give up, which stops the lane."""
        ...


class Figures(NamedTuple):
    """How one consumer's tasks stand, over all partitions of this worker, as of the last look."""

    waiting: int
    oldest_at: datetime | None
    stopped_lanes: int


class _Left(NamedTuple):
    """How a lane is left: to go on at a moment or at once, with a last task that was done and is still there."""

    at: datetime | None = None
    finished: Task | None = None


class Tasks:
    """The service that runs tasks of the given handlers' consumers until it is told to stop.

    ``clock`` replaces the database's clock, which otherwise counts because machines disagree. ``at_once`` is how many lanes of one
    consumer are worked on at the same time, so that slow receivers keep no process waiting; ``turn`` how many tasks of a lane before
    the next lane has its turn.
    """

    poll_seconds = 1.0
    figures_seconds = 10.0

    def __init__(
        self,
        dsn: str,
        partitions: Iterable[int],
        handlers: Sequence[Handler],
        *,
        clock: Callable[[], datetime] | None = None,
        at_once: int = 16,
        turn: int = 64,
        lease_seconds: float = 15.0,
        drain_seconds: float = 20.0,
    ) -> None:
        self._dsn, self._clock, self._drain_seconds = dsn, clock, drain_seconds
        self._handlers = {handler.consumer: handler for handler in handlers}
        self._at_once, self._turn, self._lease = at_once, turn, lease_seconds
        self._worker = uuid4()
        self._partitions = sorted(set(partitions))
        self._stopping, self._stirred = asyncio.Event(), asyncio.Event()
        self._woken = True
        self._ready: deque[int] = deque()
        self._held: set[Place] = set()
        self._running: set[asyncio.Task[None]] = set()
        self._busy = Counter[str]()
        self._told = (datetime.now(UTC), time.monotonic())
        self._renew_at = self._look_at = self._poll_at = 0.0
        self._pool: AsyncConnectionPool[AsyncConnection[TupleRow]]
        self.figures: dict[str, Figures] = {}
        self.trouble: str | None = "not started"

    # For others

    def wake(self) -> None:
        """Tasks were put and committed in this process."""
        self._woken = True
        self._stirred.set()

    def stop(self) -> None:
        """Have :meth:`run` finish the tasks under way, give the lanes back and return."""
        self._stopping.set()
        self._stirred.set()

    def collect(self) -> Iterator[Metric]:
        """Metrics by consumer."""
        waiting = GaugeMetricFamily("holdbook_tasks_waiting", "Tasks not done.", labels=("consumer",))
        oldest = GaugeMetricFamily("holdbook_tasks_oldest_seconds", "Age of the oldest task not done.", labels=("consumer",))
        stopped = GaugeMetricFamily("holdbook_tasks_stopped_lanes", "Lanes that wait for an operator.", labels=("consumer",))
        for consumer, figures in self.figures.items():
            waiting.add_metric((consumer,), figures.waiting)
            age = (self.now() - figures.oldest_at).total_seconds() if figures.oldest_at is not None else 0.0
            oldest.add_metric((consumer,), max(0.0, age))
            stopped.add_metric((consumer,), figures.stopped_lanes)
        yield from (waiting, oldest, stopped)

    def stopped(self) -> dict[str, int]:
        """How many lanes of each consumer wait for an operator, where there are any."""
        return {consumer: figures.stopped_lanes for consumer, figures in self.figures.items() if figures.stopped_lanes}

    def now(self) -> datetime:
        """The time that counts: the clock's, or the database's as last heard and what has passed since."""
        if self._clock is not None:
            return self._clock()
        told, when = self._told
        return told + timedelta(seconds=time.monotonic() - when)

    # The worker

    async def run(self) -> None:
        """Work until :meth:`stop`. Outlives restarts of the database."""
        pause = 0.05
        if not self._handlers:
            self.trouble = None
            await self._stopping.wait()
        while not self._stopping.is_set():
            try:
                self._pool = await open_pool(self._dsn, size=4, options=f"{table.OPTIONS} -c synchronous_commit=off")
                try:
                    pause = 0.05
                    await self._work()
                finally:
                    await self._drain()
                    await self._pool.close()
            except Exception as error:  # nobody awaits this task before the process ends, so whatever it is has to be told here
                self.trouble = type(error).__name__
                log.warning("tasks.retries", reason=_told(error), exc_info=None if isinstance(error, _LOST) else error)
                await _until(self._stopping, pause)
                pause = min(pause * 2, 1.0)

    async def _work(self) -> None:
        pause = 0.05
        while not self._stopping.is_set():
            self._stirred.clear()
            try:
                await self._once()
                self.trouble, pause = None, 0.05
            except _LOST as error:
                self.trouble = type(error).__name__
                log.warning("tasks.retries", reason=_told(error))
                self._woken = True
                await _until(self._stopping, pause)
                pause = min(pause * 2, 1.0)
                continue
            await _until(self._stirred, max(0.0, self._poll_at - time.monotonic()))

    async def _once(self) -> None:
        """Renew the leases, look what is ready, claim as much as there is room for."""
        now = time.monotonic()
        if self._running and now >= self._renew_at:
            await self._execute(table.RENEW)
            self._renew_at = now + self._lease / 3
        if (self._woken and not self._ready) or now >= self._poll_at:
            self._woken, self._poll_at = False, now + min(self.poll_seconds, self._lease / 3)
            found = {row[0] for row in await self._execute(table.READY)}
            # Those that are in the line keep their place in it.
            self._ready = deque([*(p for p in self._ready if p in found), *sorted(found.difference(self._ready))])
        while self._ready and (room := {name: left for name in self._handlers if (left := self._at_once - self._busy[name]) > 0}):
            await self._claim(self._ready.popleft(), room)
        if now >= self._look_at:
            self._look_at = now + self.figures_seconds
            await self._look()

    async def _claim(self, partition: int, room: dict[str, int]) -> None:
        share = max(1, min(room.values()) // (1 + len(self._ready)))
        rows = await self._execute(table.CLAIM, partition=partition, consumers=list(room), limit=share)
        if not self._running:
            self._renew_at = time.monotonic() + self._lease / 3
        for _, _, now in rows:
            self._told = (now, time.monotonic())
        # Those that are held, if the clock jumped, go on as they are under the new lease.
        claimed = [place for consumer, lane, _ in rows if (place := Place(partition, consumer, lane)) not in self._held]
        for place, tasks in (await self._heads(partition, claimed)).items():
            self._held.add(place)
            self._busy[place.consumer] += 1
            self._running.add(asyncio.create_task(self._run_lane(place, tasks), name=f"task {place.consumer} {place.lane}"))
        if len(rows) == share:
            self._ready.append(partition)
        elif len(room) < len(self._handlers):
            self._woken = True  # what the others have waiting here was not asked for

    async def _heads(self, partition: int, places: Sequence[Place]) -> dict[Place, list[Task]]:
        """The first tasks of each lane; none for one that has run empty."""
        found: dict[Place, list[Task]] = {place: [] for place in places}
        if places:
            names = {"consumers": [place.consumer for place in places], "lanes": [place.lane for place in places]}
            for row in await self._execute(table.HEADS, partition=partition, limit=_TOGETHER, **names):
                task = Task._make(row)
                found[Place(partition, task.consumer, task.lane)].append(task)
        return found

    async def _look(self) -> None:
        stopped = {row[0]: row[1] for row in await self._execute(table.STOPPED)}
        waiting = {consumer: (count, oldest) for consumer, count, oldest in await self._execute(table.FIGURES)}
        names = {*self._handlers, *stopped, *waiting}
        self.figures = {name: Figures(*waiting.get(name, (0, None)), stopped.get(name, 0)) for name in sorted(names)}

    async def _execute(self, query: str, **more: Any) -> list[tuple[Any, ...]]:
        told = {
            "partitions": self._partitions,
            "consumers": list(self._handlers),
            "worker": self._worker,
            "lease": self._lease,
            "now": self._clock() if self._clock is not None else None,
            **more,
        }
        async with self._pool.connection() as conn:
            cursor = await conn.execute(query, {name: value for name, value in told.items() if f"%({name})" in query})
            return await cursor.fetchall() if cursor.description else []

    async def _drain(self) -> None:
        """Let each lane finish the task it is at; what takes longer than it may is cut off, and run again by another worker."""
        if self._running:
            _, late = await asyncio.wait(self._running, timeout=self._drain_seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
            with contextlib.suppress(*_LOST):  # then the leases end by themselves
                await self._execute(table.RELEASE_ALL)

    # One lane

    async def _run_lane(self, place: Place, tasks: list[Task]) -> None:
        try:
            try:
                left = await self._turn_of(place, tasks)
            finally:
                self._held.discard(place)  # from the moment it is left we may claim it anew
            if left is not None:
                await self._leave(place, left)
        except _LOST as error:  # the lease ends by itself, and then somebody goes on
            log.warning("tasks.lane_left", consumer=place.consumer, lane=place.lane, reason=_told(error))
        except Exception as error:
            log.error("tasks.lane_failed", consumer=place.consumer, lane=place.lane, exc_info=error)
        finally:
            task = asyncio.current_task()
            assert task is not None
            self._running.discard(task)
            self._busy[place.consumer] -= 1
            self._stirred.set()

    async def _turn_of(self, place: Place, tasks: list[Task]) -> _Left | None:
        """Do what is due. How to leave the lane; None when it is not ours any more."""
        handler, done = self._handlers[place.consumer], 0
        while tasks:
            for number, task in enumerate(tasks, 1):
                if task.due_at > self.now():
                    return _Left(at=task.due_at)
                if self._stopping.is_set() or done == self._turn:
                    return _Left()
                if not await self._do(handler, task):
                    return _Left() if self._stopping.is_set() else None
                done += 1
                if number == len(tasks) < _TOGETHER:
                    return _Left(finished=task)  # most lanes hold one task: it is removed in one step with its lane
                async with self._pool.connection() as conn:
                    if not await table.finish(conn, task, self._worker):
                        return None
            tasks = [Task._make(row) for row in await self._execute(table.NEXT, **place._asdict(), limit=_TOGETHER)]
        return _Left()

    async def _leave(self, place: Place, left: _Left) -> None:
        now = self._clock() if self._clock is not None else None
        async with self._pool.connection() as conn:
            if left.finished is not None:
                remains = await table.finish_and_leave(conn, left.finished, self._worker, now)
            else:
                remains = await table.leave(conn, place, self._worker, now, left.at)
        if remains and left.at is None and place.partition not in self._ready:
            self._ready.append(place.partition)  # at the end of the line, so that every lane has its turn

    async def _do(self, handler: Handler, task: Task) -> bool:
        """Whether the task is done; one that is not was put back, unless the store is leaving."""
        try:
            later = await handler(task, self.now())
        except Draining:  # the store leaves before us: not this task's fault, and nobody's turn any more
            self.stop()
            return False
        except Exception as error:
            await self._failed(handler, task, error)
            return False
        if later is not None:
            async with self._pool.connection() as conn:
                await table.put_back(conn, task, self._worker, self.now(), later.at, later.reason)
        return later is None

    async def _failed(self, handler: Handler, task: Task, error: Exception) -> None:
        now, reason = self.now(), _told(error)
        at = handler.retry_at(task, now, error)
        told = {"consumer": task.consumer, "lane": task.lane, "number": task.number, "attempts": task.attempts + 1}
        if at is None:
            log.error("tasks.stopped", **told, exc_info=error)
        else:
            log.warning("tasks.failed", **told, reason=reason)
        async with self._pool.connection() as conn:
            await table.put_back(conn, task, self._worker, now, at, reason, stopped=reason if at is None else None)
        self._look_at = min(self._look_at, time.monotonic() + (0.0 if at is None else self.figures_seconds))


async def _until(event: asyncio.Event, seconds: float) -> None:
    if seconds > 0:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(event.wait(), seconds)


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:1_000]

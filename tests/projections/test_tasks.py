"""The queue: lanes side by side, each in order, each task at least once, and what stands still stands still loudly."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import psycopg
import pytest
from structlog.testing import capture_logs

from eventstore.errors import Draining
from projections import task_table
from projections.tasks import Later, NewTask, Place, Task, Tasks, put
from tests.projections.conftest import until

TENANT = UUID(int=7)
SOON = 60.0
"""The limit of every wait, in seconds."""
_STANDING = "select lane, claimed_by from task_lane"
"""For waiting until lanes were left, before a clock jumps: one just being left would lose its lease, and its task be run again."""


class Doing:
    """A handler that notes what it did, and does first what the test asks of it."""

    def __init__(self, act: Callable[[Task], Awaitable[Later | None]] | None = None, consumer: str = "test") -> None:
        self.consumer, self.act, self.tries = consumer, act, list[tuple[str, int]]()
        self.done: list[tuple[str, int]] = []
        self.gives_up_after = 10**6
        self.seen: list[Task] = []

    async def __call__(self, task: Task, now: datetime) -> Later | None:
        self.tries.append((task.lane, task.number))
        self.seen.append(task)
        later = await self.act(task) if self.act is not None else None
        if later is None:
            self.done.append((task.lane, task.number))
        return later

    def retry_at(self, task: Task, now: datetime, error: Exception) -> datetime | None:
        return None if task.attempts + 1 >= self.gives_up_after else now

    def lane(self, name: str) -> list[int]:
        return [number for lane, number in self.done if lane == name]


def task(lane: str, number: int, due_at: datetime | None = None, consumer: str = "test") -> NewTask:
    return NewTask(consumer, lane, number, TENANT, f'{{"n":{number}}}', None, due_at)


async def queue(dsn: str, *tasks: NewTask, partition: int = 3) -> None:
    """As a follower does: in pipeline mode, in a transaction."""
    async with await task_table.connect(dsn) as conn, conn.pipeline(), conn.transaction():
        await put(conn, partition, tasks)


@asynccontextmanager
async def working(dsn: str, *handlers: Any, **more: Any) -> AsyncIterator[Tasks]:
    tasks = Tasks(dsn, range(64), handlers, **more)
    tasks.poll_seconds = tasks.figures_seconds = 0.02
    running = asyncio.create_task(tasks.run())
    try:
        yield tasks
    finally:
        tasks.stop()
        await running


def rows(dsn: str, query: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn, autocommit=True) as conn:
        cursor = conn.execute(query, parameters)
        return cursor.fetchall() if cursor.description else []


def empty(dsn: str) -> bool:
    return rows(dsn, "select (select count(*) from task), (select count(*) from task_lane)") == [(0, 0)]


async def test_every_task_is_done_once_and_each_lane_in_order_and_nothing_is_left(database_dsn: str) -> None:
    names = [f"lane {number}" for number in range(10)]
    handler = Doing()
    for partition in (1, 2):
        await queue(database_dsn, *(task(name, n) for n in range(20) for name in names[partition % 2 :: 2]), partition=partition)

    async with working(database_dsn, handler, at_once=3, turn=7):
        await until(lambda: len(handler.done) == 200)
        await until(lambda: empty(database_dsn))

    assert {name: handler.lane(name) for name in names} == {name: list(range(20)) for name in names}


async def test_lanes_run_side_by_side_and_no_more_than_asked_for(database_dsn: str) -> None:
    together, most = set[str](), list[int]()
    enough = asyncio.Event()

    async def act(task: Task) -> None:
        together.add(task.lane)
        most.append(len(together))
        if len(together) == 3:
            enough.set()
        await asyncio.wait_for(enough.wait(), SOON)
        together.discard(task.lane)

    handler = Doing(act)
    await queue(database_dsn, *(task(f"lane {n}", 1) for n in range(9)))

    async with working(database_dsn, handler, at_once=3):
        await until(lambda: len(handler.done) == 9)

    assert max(most) == 3


async def test_a_consumer_that_is_slow_keeps_no_other_waiting(database_dsn: str) -> None:
    release = asyncio.Event()

    async def act(task: Task) -> None:
        await asyncio.wait_for(release.wait(), SOON)

    slow, quick = Doing(act, "slow"), Doing(None, "quick")
    await queue(database_dsn, *(task(f"lane {n}", 1, consumer="slow") for n in range(9)))

    async with working(database_dsn, slow, quick, at_once=2):
        await until(lambda: len(slow.tries) == 2)
        await queue(database_dsn, *(task(f"lane {n}", 1, consumer="quick") for n in range(9)))
        await until(lambda: len(quick.done) == 9)
        assert len(slow.tries) == 2
        release.set()
        await until(lambda: empty(database_dsn))

    assert len(slow.done) == 9


async def test_a_lane_with_much_to_do_lets_the_others_have_their_turn(database_dsn: str) -> None:
    handler = Doing()
    await queue(database_dsn, *(task("long", n) for n in range(100)))
    await queue(database_dsn, task("short", 1))

    async with working(database_dsn, handler, at_once=1, turn=10):
        await until(lambda: len(handler.done) == 101)

    assert handler.done.index(("short", 1)) == 10
    assert handler.lane("long") == list(range(100))


async def test_a_task_put_twice_is_there_once_and_keeps_its_place(database_dsn: str) -> None:
    handler = Doing()
    await queue(database_dsn, task("a", 2), task("a", 1), task("a", 2))
    await queue(database_dsn, task("a", 1), task("a", 3))

    async with working(database_dsn, handler):
        await until(lambda: empty(database_dsn))

    assert handler.lane("a") == [1, 2, 3]


async def test_what_is_put_and_rolled_back_is_not_there(database_dsn: str) -> None:
    async with await task_table.connect(database_dsn) as conn:
        await conn.execute("begin")
        await put(conn, 3, [task("a", 1)])
        await conn.execute("rollback")

    assert empty(database_dsn)


async def test_a_failing_task_holds_its_lane_and_no_other_and_counts_its_tries(database_dsn: str) -> None:
    failures = iter(range(3))

    async def act(task: Task) -> None:
        if task.lane == "bad" and next(failures, None) is not None:
            raise ValueError("not yet")

    handler = Doing(act)
    await queue(database_dsn, *(task(lane, n) for lane in ("bad", "good") for n in (1, 2)))

    async with working(database_dsn, handler):
        await until(lambda: empty(database_dsn))

    assert [number for lane, number in handler.tries if lane == "bad"] == [1, 1, 1, 1, 2]
    assert [task.attempts for task in handler.seen if task.lane == "bad"] == [0, 1, 2, 3, 0]
    assert handler.lane("good") == [1, 2]
    assert handler.seen[0].payload == '{"n":1}'
    assert handler.seen[0].tenant_id == TENANT


async def test_later_makes_the_lane_wait_by_the_clock(database_dsn: str) -> None:
    clock = [datetime(2027, 1, 1, tzinfo=UTC)]
    asked = [Later(clock[0] + timedelta(hours=3), "busy")]

    async def act(task: Task) -> Later | None:
        return asked.pop() if task.lane == "a" and asked else None

    handler = Doing(act)
    await queue(database_dsn, *(task("a", n, clock[0]) for n in (1, 2)), task("b", 1, clock[0]))

    async with working(database_dsn, handler, clock=lambda: clock[0]):
        await until(lambda: handler.tries.count(("a", 1)) == 1 and handler.done == [("b", 1)])
        await until(lambda: rows(database_dsn, _STANDING) == [("a", None)])
        clock[0] += timedelta(hours=3, microseconds=-1)
        await queue(database_dsn, task("b", 2, clock[0]))
        await until(lambda: handler.lane("b") == [1, 2])
        await queue(database_dsn, task("a", 3, clock[0]))  # what comes behind does not make the lane go on
        await queue(database_dsn, task("b", 3, clock[0]))
        await until(lambda: handler.lane("b") == [1, 2, 3])
        assert handler.lane("a") == []
        assert rows(database_dsn, "select lane, number, attempts, reason from task where lane = 'a' order by number") == [
            ("a", 1, 1, "busy"), ("a", 2, 0, None), ("a", 3, 0, None),
        ]  # fmt: skip
        clock[0] += timedelta(microseconds=1)
        await until(lambda: empty(database_dsn))

    assert handler.lane("a") == [1, 2, 3]


async def test_a_task_is_not_done_before_it_is_due(database_dsn: str) -> None:
    clock = [datetime(2027, 1, 1, tzinfo=UTC)]
    handler = Doing()
    await queue(
        database_dsn, task("a", 1, clock[0]), task("a", 2, clock[0] + timedelta(days=1)), task("b", 1, clock[0] + timedelta(days=2))
    )

    async with working(database_dsn, handler, clock=lambda: clock[0]):
        await until(lambda: rows(database_dsn, "select count(*) from task_lane where due_at > %s", (clock[0],)) == [(2,)])
        assert handler.done == [("a", 1)]
        clock[0] += timedelta(days=1)
        await until(lambda: handler.lane("a") == [1, 2])
        await until(lambda: rows(database_dsn, _STANDING) == [("b", None)])
        clock[0] += timedelta(days=1)
        await until(lambda: empty(database_dsn))

    assert handler.done == [("a", 1), ("a", 2), ("b", 1)]


async def test_a_lane_that_is_given_up_stands_still_loudly_until_an_operator_lets_it_go_on(database_dsn: str) -> None:
    broken = True

    async def act(task: Task) -> None:
        if broken and task.lane == "bad":
            raise ValueError("secret")

    handler = Doing(act)
    handler.gives_up_after = 2
    await queue(database_dsn, task("bad", 1), task("bad", 2), task("good", 1))

    with capture_logs() as logs:
        async with working(database_dsn, handler) as tasks:
            # Also until the good lane is gone.
            await until(lambda: tasks.stopped() == {"test": 1} and tasks.figures["test"].waiting == 2)
            async with await task_table.connect(database_dsn) as conn:
                (state,) = await task_table.states(conn, range(64), stopped=True)
                assert (state.lane, state.number, state.waiting, state.attempts) == ("bad", 1, 2, 2)
                assert state.stopped == state.reason == "ValueError: secret"
                assert handler.tries.count(("bad", 1)) == 2
                shown = {sample.name: sample.value for family in tasks.collect() for sample in family.samples}
                assert (shown["holdbook_tasks_waiting"], shown["holdbook_tasks_stopped_lanes"]) == (2, 1)
                assert 0 < shown["holdbook_tasks_oldest_seconds"] < SOON
                broken = False
                assert await task_table.retry(conn, Place(3, "test", "bad"), datetime.now(UTC))
            await until(lambda: empty(database_dsn))
            await until(lambda: tasks.stopped() == {})

    assert handler.lane("bad") == [1, 2]
    assert [entry["log_level"] for entry in logs if entry["event"] == "tasks.stopped"] == ["error"]


async def test_a_task_is_skipped_only_where_its_lane_stands_still_at_it(database_dsn: str) -> None:
    async def act(task: Task) -> None:
        if task.number == 1:
            raise ValueError("never")

    handler = Doing(act)
    handler.gives_up_after = 1
    await queue(database_dsn, task("bad", 1), task("bad", 2), task("waits", 5, datetime.now(UTC) + timedelta(days=1)))
    bad, waits, now = Place(3, "test", "bad"), Place(3, "test", "waits"), datetime.now(UTC)

    async with working(database_dsn, handler) as tasks, await task_table.connect(database_dsn) as conn:
        await until(lambda: tasks.stopped() == {"test": 1})
        assert not await task_table.skip(conn, waits, 5, now)
        assert not await task_table.skip(conn, bad, 7, now)
        assert handler.lane("bad") == []
        assert await task_table.skip(conn, bad, 1, now)
        await until(lambda: handler.lane("bad") == [2])
        assert not await task_table.skip(conn, bad, 1, now)

    assert rows(database_dsn, "select lane, number from task") == [("waits", 5)]


async def test_two_workers_do_not_work_on_one_lane_at_a_time(database_dsn: str) -> None:
    at_work, clashes = set[str](), list[str]()
    both = asyncio.Event()

    async def act(task: Task) -> None:
        if task.lane in at_work:
            clashes.append(task.lane)
        at_work.add(task.lane)
        if all(handler.tries for handler in handlers):
            both.set()
        await asyncio.wait_for(both.wait(), SOON)  # or one might do everything before the other is there
        await asyncio.sleep(0.001)
        at_work.discard(task.lane)

    handlers = [Doing(act), Doing(act)]
    await queue(database_dsn, *(task(f"lane {lane}", n) for lane in range(8) for n in range(30)))

    async with working(database_dsn, handlers[0], at_once=3, turn=5), working(database_dsn, handlers[1], at_once=3, turn=5):
        await until(lambda: empty(database_dsn))

    assert clashes == []
    assert min(len(handler.done) for handler in handlers) > 0
    assert sorted(handlers[0].done + handlers[1].done) == [(f"lane {lane}", n) for lane in range(8) for n in range(30)]


async def test_a_lease_is_renewed_while_its_task_is_at_work(database_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By clocks of the test's: a real lease of so few moments would end on a machine that is busy."""
    release, start, lease, passed = asyncio.Event(), datetime(2027, 1, 1, tzinfo=UTC), timedelta(seconds=0.6), [0.0]
    monkeypatch.setattr("projections.tasks.time", SimpleNamespace(monotonic=lambda: passed[0]))

    def clock() -> datetime:
        return start + timedelta(seconds=passed[0])

    async def act(task: Task) -> None:
        await asyncio.wait_for(release.wait(), SOON)

    first, second = Doing(act), Doing()
    await queue(database_dsn, task("a", 1, start))

    async with working(database_dsn, first, clock=clock, at_once=1, lease_seconds=lease.total_seconds()):
        await until(lambda: first.tries == [("a", 1)])
        async with working(database_dsn, second, clock=clock):
            for number in range(8):
                await queue(database_dsn, task("b", number, start))
                passed[0] += 0.25
                # The lease is renewed before it ends, and the other one has looked since, and taken what is free.
                await until(lambda: rows(database_dsn, "select lane, leased_until from task_lane") == [("a", clock() + lease)])
            release.set()
            await until(lambda: empty(database_dsn))

    assert (first.done, second.done) == ([("a", 1)], [("b", number) for number in range(8)])
    assert second.tries == second.done


async def test_who_lost_the_lease_neither_removes_nor_moves_the_task(database_dsn: str) -> None:
    taken_over = asyncio.Event()

    async def act(task: Task) -> Later | None:
        if task.number == 1:
            await asyncio.wait_for(taken_over.wait(), SOON)
        if task.lane == "fails":
            raise ValueError("too late")
        return Later(datetime.now(UTC) + timedelta(days=9), "too late") if task.lane == "waits" else None

    handler = Doing(act)
    await queue(database_dsn, *(task(lane, n) for lane in ("fails", "waits", "works") for n in (1, 2)))

    async with working(database_dsn, handler):
        await until(lambda: len(handler.tries) == 3)
        rows(database_dsn, "update task_lane set claimed_by = gen_random_uuid(), leased_until = now() + interval '25 s'")
        taken_over.set()
        await until(lambda: handler.done == [("works", 1)])

    assert len(handler.tries) == 3
    assert rows(database_dsn, "select count(*), sum(attempts) from task") == [(6, 0)]
    assert rows(database_dsn, "select count(*) from task_lane where claimed_by is null or due_at > now()") == [(0,)]


@pytest.mark.parametrize("jump", [timedelta(days=400), timedelta(days=-400)])
async def test_a_lease_left_behind_by_a_clock_that_jumped_ends_all_the_same(database_dsn: str, jump: timedelta) -> None:
    start = datetime(2027, 1, 1, tzinfo=UTC)
    handler = Doing()
    await queue(database_dsn, task("a", 1, start - timedelta(days=900)))
    rows(database_dsn, "update task_lane set claimed_by = gen_random_uuid(), leased_until = %s", (start + timedelta(seconds=15),))

    async with working(database_dsn, handler, clock=lambda: start + jump):
        await until(lambda: empty(database_dsn))

    assert handler.done == [("a", 1)]


async def test_a_lease_that_was_taken_a_moment_after_our_own_now_is_a_lease(database_dsn: str) -> None:
    """A claim that waited for another one's row sees one."""
    now = datetime(2027, 1, 1, tzinfo=UTC)
    handler = Doing()
    await queue(database_dsn, task("taken", 1, now), task("free", 1, now))
    leased_until = now + timedelta(seconds=15, milliseconds=1)
    rows(database_dsn, "update task_lane set claimed_by = gen_random_uuid(), leased_until = %s where lane = 'taken'", (leased_until,))

    async with working(database_dsn, handler, clock=lambda: now, lease_seconds=15):
        await until(lambda: handler.done == [("free", 1)])
        await queue(database_dsn, task("free", 2, now))
        await until(lambda: handler.lane("free") == [1, 2])

    assert handler.lane("taken") == []


async def test_stopping_finishes_the_task_under_way_begins_no_other_and_gives_the_lane_back(database_dsn: str) -> None:
    begun, release = asyncio.Event(), asyncio.Event()

    async def act(task: Task) -> None:
        begun.set()
        await asyncio.wait_for(release.wait(), SOON)

    handler = Doing(act)
    await queue(database_dsn, task("a", 1), task("a", 2))

    async with working(database_dsn, handler) as tasks:
        await asyncio.wait_for(begun.wait(), SOON)
        tasks.stop()
        release.set()

    assert handler.tries == handler.done == [("a", 1)]
    assert rows(database_dsn, "select number, attempts from task") == [(2, 0)]
    assert rows(database_dsn, "select claimed_by, leased_until, due_at <= now() from task_lane") == [(None, None, True)]


async def test_what_takes_too_long_to_finish_is_cut_off_and_left_to_others(database_dsn: str) -> None:
    begun = asyncio.Event()

    async def act(task: Task) -> None:
        begun.set()
        await asyncio.sleep(3600)

    stuck, other = Doing(act), Doing()
    await queue(database_dsn, task("a", 1))

    async with working(database_dsn, stuck, drain_seconds=0.05):
        await asyncio.wait_for(begun.wait(), SOON)
    async with working(database_dsn, other, lease_seconds=3600):
        await until(lambda: empty(database_dsn))

    assert other.done == [("a", 1)]


async def test_a_store_that_leaves_first_costs_the_task_no_try(database_dsn: str) -> None:
    async def act(task: Task) -> None:
        raise Draining

    handler = Doing(act)
    await queue(database_dsn, task("a", 1))

    async with asyncio.timeout(SOON), working(database_dsn, handler):
        await until(lambda: len(handler.tries) == 1)

    assert rows(database_dsn, "select attempts, reason, stopped, claimed_by from task join task_lane using (partition, lane)") == [
        (0, None, None, None)
    ]


async def test_lost_connections_delay_and_lose_nothing(database_dsn: str) -> None:
    handler = Doing()
    ours = "datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'"

    async with working(database_dsn, handler, lease_seconds=0.5):
        for round_ in range(5):
            await queue(database_dsn, *(task(f"lane {lane}", round_ * 100 + n) for lane in range(4) for n in range(100)))
            await until(lambda: len(set(handler.done)) > round_ * 400)  # noqa: B023  # awaited in this turn
            rows(database_dsn, f"select pg_terminate_backend(pid) from pg_stat_activity where {ours}")
        await until(lambda: empty(database_dsn), 120)

    for lane in range(4):
        firsts = list(dict.fromkeys(handler.lane(f"lane {lane}")))
        assert firsts == list(range(500))


async def test_tasks_put_while_lanes_run_empty_are_never_without_a_lane(database_dsn: str) -> None:
    handler, numbers = Doing(), itertools.count()

    async def putting() -> None:
        for _ in range(150):
            await queue(database_dsn, task("a", next(numbers)), task("b", next(numbers)))

    async with working(database_dsn, handler), working(database_dsn, handler):
        await asyncio.gather(putting(), putting())
        await until(lambda: empty(database_dsn))

    assert len(set(handler.done)) == 600


async def test_a_lane_is_not_removed_when_a_task_is_put_at_that_moment(database_dsn: str) -> None:
    """Both orders: the one that leaves waits for the one that puts, and sees what it put."""
    worker = UUID(int=1)
    place = Place(3, "test", "a")
    await queue(database_dsn, task("a", 1))
    rows(database_dsn, "update task_lane set claimed_by = %s; ", (worker,))
    rows(database_dsn, "delete from task")

    async with await task_table.connect(database_dsn) as putting, await task_table.connect(database_dsn) as leaving:
        async with putting.transaction():
            await put(putting, 3, [task("a", 2)])
            left = asyncio.create_task(task_table.leave(leaving, place, worker, None, None))
            waits = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
            await until(lambda: rows(database_dsn, waits) == [(1,)])
        assert await left

    assert rows(database_dsn, "select lane, claimed_by from task_lane") == [("a", None)]


async def test_tasks_of_consumers_that_this_program_does_not_know_are_left_alone(database_dsn: str) -> None:
    handler = Doing()
    await queue(database_dsn, task("a", 1, consumer="newer"), task("a", 1))

    async with working(database_dsn, handler) as tasks:
        await until(lambda: handler.done == [("a", 1)])
        await until(lambda: "newer" in tasks.figures)

    assert rows(database_dsn, "select consumer, claimed_by from task_lane") == [("newer", None)]


async def test_an_idle_worker_asks_about_once_a_second(database_dsn: str) -> None:
    tasks = Tasks(database_dsn, range(64), [Doing()])
    asked, execute = list[str](), tasks._execute

    async def counted(query: str, **more: Any) -> list[tuple[Any, ...]]:
        asked.append(query)
        return await execute(query, **more)

    tasks._execute = counted  # type: ignore[method-assign]  # to count
    running = asyncio.create_task(tasks.run())
    await until(lambda: asked.count(task_table.READY) == 3)
    tasks.stop()
    await running

    assert len(asked) <= 3 + 2

"""Processes and effects over a real log: each command once, whatever is run again, killed or taken back."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from domain.identity.tenants import TENANT as TENANTS
from domain.identity.tenants import CreateTenant, DeleteTenant, tenant_stream
from domain.kernel.process import Effect, Happened, Named, Process, Tools
from eventstore.errors import Unavailable
from eventstore.requests import Item, Outcome, Request
from eventstore.store import Store
from projections import schema, task_table
from projections.follower import Follower
from projections.reactions import Backoff, Reactors
from projections.tasks import Task, Tasks
from tests.projections.conftest import QUICK, until
from tests.support.reaction_process import ReactionProcess
from tests.support.till import TILL, Full, Open, Take
from tests.support.trial import TRIAL, Begin, Begun

DECIDERS = (TRIAL, TILL, TENANTS)
TENANT, OTHER = UUID(int=7), UUID(int=8)
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def opening(one: Happened) -> Sequence[Named]:
    return [Named("open", TILL, one.stream.replace("trial", "till"), Open(room=1))]


OPEN = Process("open", (Begun,), opening)


class World:
    """A store, and what tests ask of its log."""

    def __init__(self, dsn: str, store: Store) -> None:
        self.dsn, self.store = dsn, store

    async def begin(self, stream: str, days: int = 10, tenant: UUID = TENANT) -> Outcome:
        item = Item(TRIAL, stream, Begin(days=days))
        return await self.store.submit(Request(tenant, uuid4(), (item,), b"", trace=TRACE))

    def rows(self, query: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            cursor = conn.execute(query, parameters)
            return cursor.fetchall() if cursor.description else []

    def types(self, like: str) -> Counter[str]:
        query = "select stream || ' ' || type from event where stream like %s"
        return Counter(row[0] for row in self.rows(query, (like,)))

    def idle(self) -> bool:
        """Every consumer has seen everything, and no task is left."""
        behind = """select count(*) from checkpoint c
                    where c.position < (select coalesce(max(position), 0) from event e where e.partition = c.partition)"""
        return self.rows(f"select ({behind}), (select count(*) from task), (select count(*) from task_lane)") == [(0, 0, 0)]

    @asynccontextmanager
    async def running(self, *reactions: Process | Effect, backoff: Backoff | None = None) -> AsyncIterator[Reactors]:
        reactors = Reactors(reactions, self.store, self.dsn, backoff)
        tasks = Tasks(self.dsn, range(64), reactors.handlers)
        tasks.poll_seconds = tasks.figures_seconds = 0.02
        self.tasks = tasks
        follower = Follower(self.dsn, range(64), reactors.consumers(tasks.wake), None, QUICK)
        running = [asyncio.create_task(service.run()) for service in (follower, tasks)]
        await until(lambda: follower.health().trouble is None and tasks.trouble is None)
        try:
            yield reactors
        finally:
            for service in (tasks, follower):
                service.stop()
            await asyncio.gather(*running)
            await reactors.close()


@pytest.fixture
async def world(database_dsn: str) -> AsyncIterator[World]:
    schema.create(database_dsn)
    store = await Store.open(database_dsn, DECIDERS)
    yield World(database_dsn, store)
    await store.drain()


async def test_commands_follow_from_events_with_their_cause_actor_and_trace(world: World) -> None:
    async with world.running(OPEN):
        await world.begin("trial-a")
        await until(lambda: world.types("till-%") == {"till-a till.opened": 1})
        await until(world.idle)

    ((began,),) = world.rows("select command_id from event where type = 'trial.begun'")
    assert world.rows("select tenant_id, cause, actor, trace from event where type = 'till.opened'") == [
        (TENANT, began, "process:open", TRACE)
    ]


async def test_a_new_process_starts_with_what_happens_from_then_on_unless_it_says_otherwise(world: World) -> None:
    await world.begin("trial-old")
    second = Process("all", (Begun,), lambda one: [Named("x", TILL, f"till-all-{one.stream}", Open(room=1))], from_start=True)

    async with world.running(OPEN, second):
        await world.begin("trial-new")
        await until(lambda: len(world.types("till-%")) == 3)
        await until(world.idle)
    await world.begin("trial-later")  # while nobody runs
    async with world.running(OPEN, second):
        await until(lambda: len(world.types("till-%")) == 5)

    assert set(world.types("till-%").values()) == {1}
    assert "till-old till.opened" not in world.types("till-%")
    assert "till-later till.opened" in world.types("till-%")


async def test_a_reaction_from_its_start_and_two_workers_with_every_lease_ignored_record_everything_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leases are for economy only."""
    free = "or leased_until > now()"
    for name in ("READY", "CLAIM"):
        query = getattr(task_table, name)
        assert "or leased_until <= " in query
        monkeypatch.setattr(task_table, name, query.replace("(leased_until is null", f"({free[3:]} or leased_until is null"))
    runs: list[str] = []
    both_at_work, submit = asyncio.Event(), world.store.submit

    async def held(request: Request) -> Outcome:
        await both_at_work.wait()  # or the first might have done everything before the second is there
        return await submit(request)

    def slowly(one: Happened) -> Sequence[Named]:
        runs.append(one.stream)
        return [Named(f"open {n}", TILL, f"till-{one.stream[6:]}-{n}", Open(room=1)) for n in range(5)]

    process = Process("slow", (Begun,), slowly, from_start=True)
    for number in range(20):
        await world.begin(f"trial-{number}")

    monkeypatch.setattr(world.store, "submit", held)
    async with world.running(process), world.running(process):
        await until(lambda: len(runs) > 20)  # or the leases are in force, and this shows nothing
        both_at_work.set()
        await until(lambda: len(world.types("till-%")) == 100)
        await until(world.idle)

    assert set(world.types("till-%").values()) == {1}


async def test_refusals_are_answers_that_are_counted_and_the_lane_goes_on(world: World) -> None:
    greedy = Process("greedy", (Begun,), lambda one: [Named(str(n), TILL, "till-x", Take(take_id=f"{one.stream}{n}")) for n in range(2)])
    item = Item(TILL, "till-x", Open(room=1))
    await world.store.submit(Request(TENANT, uuid4(), (item,), b""))

    async with world.running(greedy) as reactors:
        await world.begin("trial-a")
        await until(lambda: world.rows("select count(*) from event where type = 'command.refused'") == [(1,)])
        await world.begin("trial-a", tenant=OTHER)
        await until(world.idle)
        shown = {tuple(sample.labels.values()): sample.value for family in reactors.collect() for sample in family.samples}

    assert shown == {("process:greedy",): 4, ("process:greedy", Full.code): 1, ("process:greedy", "till.not_open"): 2}


async def test_a_process_with_a_bug_stops_its_stream_alone_and_goes_on_when_it_is_mended(world: World) -> None:
    mended = False

    def buggy(one: Happened) -> Sequence[Named]:
        if one.stream == "trial-bad" and not mended:
            raise ZeroDivisionError
        return opening(one)

    process = Process("buggy", (Begun,), buggy)
    async with world.running(process, backoff=Backoff(first=0.001, tries=3)):
        await world.begin("trial-bad")
        await world.begin("trial-good")
        await until(lambda: world.tasks.stopped() == {"process:buggy": 1})
        await until(lambda: world.types("till-%") == {"till-good till.opened": 1})
        async with await task_table.connect(world.dsn) as conn:
            (state,) = await task_table.states(conn, range(64), stopped=True)
            assert (state.lane, state.attempts) == ("trial-bad", 3)
            mended = True
            await task_table.retry(conn, task_table.Place(state.partition, state.consumer, state.lane), datetime.now(UTC))
        await until(world.idle)

    assert set(world.types("till-%")) == {"till-good till.opened", "till-bad till.opened"}


async def test_an_effect_asks_again_under_the_same_key_and_its_commands_come_once(world: World) -> None:
    asked: list[Tools] = []

    async def billing(one: Happened, tools: Tools) -> Sequence[Named]:
        asked.append(tools)
        if len(asked) < 3:
            raise ConnectionError("the provider is away")
        return [Named("paid", TILL, "till-paid", Open(room=9))]

    async with world.running(Effect("bill", (Begun,), billing), backoff=Backoff(first=0.001)):
        await world.begin("trial-a")
        await until(lambda: world.types("till-%") == {"till-paid till.opened": 1})
        await until(world.idle)

    assert [tools.attempt for tools in asked] == [0, 1, 2]
    assert len({tools.idempotency_key for tools in asked}) == 1
    assert world.rows("select actor from event where type = 'till.opened'") == [("effect:bill",)]


async def test_events_that_a_failover_took_back_or_whose_tenant_was_deleted_are_not_reacted_to(world: World) -> None:
    await world.store.submit(Request(OTHER, uuid4(), (Item(TENANTS, tenant_stream(OTHER), CreateTenant(tenant_id=OTHER, name="B")),), b""))
    for stream in ("trial-lost", "trial-other-id", "trial-kept"):
        await world.begin(stream)
    await world.begin("trial-deleted", tenant=OTHER)
    process = Process("open", (Begun,), opening, from_start=True)
    reactors = Reactors([process], world.store, world.dsn)
    follower = Follower(world.dsn, range(64), reactors.consumers(lambda: None), None, QUICK)
    following = asyncio.create_task(follower.run())
    await until(lambda: world.rows("select count(*) from task") == [(4,)])
    follower.stop()
    await following
    changed = "update task set payload = (payload::jsonb || %s::jsonb)::json where lane = %s"
    world.rows(changed, ('{"position": 9999}', "trial-lost"))
    world.rows(changed, (f'{{"command_id": "{uuid4()}"}}', "trial-other-id"))
    delete = Item(TENANTS, tenant_stream(OTHER), DeleteTenant(tenant_id=OTHER))
    await world.store.submit(Request(OTHER, uuid4(), (delete,), b""))

    tasks = Tasks(world.dsn, range(64), reactors.handlers)
    with capture_logs() as logs:
        running = asyncio.create_task(tasks.run())
        await until(lambda: world.rows("select count(*) from task") == [(0,)])
        tasks.stop()
        await running
    await reactors.close()

    assert [entry["event"] for entry in logs].count("reaction.event_gone") == 3
    assert world.types("till-%") == {"till-kept till.opened": 1}


def test_two_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="process:open"):
        Reactors([OPEN, OPEN], Store.in_memory(DECIDERS), "")


# When to try again


def tried(attempts: int) -> Task:
    now = datetime(2027, 1, 1, tzinfo=UTC)
    return Task(0, "process:x", "lane", 1, TENANT, "{}", None, now, attempts, now)


@given(st.integers(0, 200), st.floats(0, 1, exclude_max=True))
def test_tries_come_later_and_later_up_to_a_bound_and_trouble_of_the_store_is_never_given_up(attempts: int, chance: float) -> None:
    now = datetime(2027, 1, 1, tzinfo=UTC)
    backoff = Backoff(first=0.5, longest=300, tries=12, chance=lambda: chance)

    patient = backoff(tried(attempts), now, Unavailable())
    impatient = backoff(tried(attempts), now, ZeroDivisionError())

    assert patient is not None
    full = min(0.5 * 2.0**attempts, 300.0)
    assert timedelta(seconds=full / 2) - timedelta(microseconds=1) <= patient - now <= timedelta(seconds=full)
    assert impatient == (patient if attempts < 11 else None)


# Killed

STREAMS = [f"trial-{number}" for number in range(12)]
EXPECTED = {
    **{f"{stream} {type_}": 1 for stream in STREAMS for type_ in ("trial.begun", "trial.reminded", "trial.ended")},
    **{f"{stream.replace('trial', 'till')} till.opened": 1 for stream in STREAMS},
    **{f"{stream.replace('trial', 'till')} till.taken": 3 for stream in STREAMS},
    **{f"{stream.replace('trial', 'till-bill')} till.opened": 1 for stream in STREAMS},
}


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.02)


def finished(world: World) -> bool:
    ended = world.rows("select count(*) from event where type = 'trial.ended'") == [(len(STREAMS),)]
    return ended and world.idle()


def all_of_it_once(world: World, calls: Path) -> None:
    assert world.types("%") == EXPECTED
    twice = world.rows("select command_id from event where ordinal = 0 group by command_id having count(*) > 1")
    assert twice == []
    keys = calls.read_text().split()
    assert len(set(keys)) == len(STREAMS), "the provider knows repetitions by their key"


@pytest.mark.parametrize("point", ["put", "claimed", "performed", "committed", "finished", "due"])
async def test_killed_at_a_named_point_and_started_again_everything_is_recorded_once(world: World, tmp_path: Path, point: str) -> None:
    for stream in STREAMS:
        await world.begin(stream, days=0)
    calls = tmp_path / "calls"

    dying = ReactionProcess(world.dsn, calls, point)
    try:
        await asyncio.to_thread(wait_for, lambda: dying.process.poll() is not None)
        assert dying.killed, dying.process.communicate()[1]
    finally:
        dying.end()
    living = ReactionProcess(world.dsn, calls, "never")
    try:
        await asyncio.to_thread(wait_for, lambda: finished(world))
    finally:
        living.end()

    assert living.process.returncode == 0
    all_of_it_once(world, calls)


async def test_killed_while_it_drains_the_task_under_way_is_done_by_another(world: World, tmp_path: Path) -> None:
    for stream in STREAMS:
        await world.begin(stream, days=0)
    calls = tmp_path / "calls"

    dying = ReactionProcess(world.dsn, calls, "drain")
    try:
        dying.says("ready")
        dying.says("under way")
        dying.process.terminate()
        await asyncio.to_thread(wait_for, lambda: dying.killed)
    finally:
        dying.end()
    assert calls.read_text().split()
    living = ReactionProcess(world.dsn, calls, "never")
    try:
        await asyncio.to_thread(wait_for, lambda: finished(world))
    finally:
        living.end()

    all_of_it_once(world, calls)


async def test_two_at_work_killed_at_random_again_and_again(world: World, tmp_path: Path) -> None:
    for stream in STREAMS:
        await world.begin(stream, days=0)
    calls, deaths, ends = tmp_path / "calls", 0, time.monotonic() + 120
    pair = [ReactionProcess(world.dsn, calls, "chance", seed) for seed in (1, 2)]
    try:
        while deaths < 6 and time.monotonic() < ends and not finished(world):
            for number, each in enumerate(pair):
                if each.killed:
                    each.end()
                    deaths += 1
                    pair[number] = ReactionProcess(world.dsn, calls, "chance", 10 + deaths)
            await asyncio.sleep(0.02)
    finally:
        for each in pair:
            each.end()
    living = ReactionProcess(world.dsn, calls, "never")
    try:
        await asyncio.to_thread(wait_for, lambda: finished(world))
    finally:
        living.end()

    assert deaths >= 2
    all_of_it_once(world, calls)

"""Deadlines over a real log: folded, found, turned into commands exactly once, whatever clocks and refusals do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from structlog.testing import capture_logs

from domain.identity.tenants import TENANT as TENANTS
from domain.identity.tenants import CreateTenant, DeleteTenant, tenant_stream
from domain.kernel.decider import Command
from domain.quota import QUOTA, Limit, Reserve, SetLimits, quota_stream
from eventstore.errors import Draining, Unavailable
from eventstore.requests import Item, Outcome, Request
from eventstore.store import Store
from projections import schema
from projections.deadlines import DeadlineReader, Deadlines
from projections.follower import Follower
from projections.quota_queries import DueReader
from projections.quotas import Quotas
from projections.scheduler import Reservations, Scheduler
from tests.projections.conftest import QUICK, until
from tests.support.till import TILL, Open
from tests.support.trial import NOTICE, TRIAL, Begin, Buy, End, Extend, Lock

DECIDERS = (TRIAL, TILL, QUOTA, TENANTS)
NOW = datetime(2027, 3, 1, 12, tzinfo=UTC)
END = NOW + timedelta(days=10)
TENANT = UUID(int=7)


@dataclass
class World:
    """A store whose events happen when the test says, and a follower that has the deadlines ready when asked."""

    dsn: str
    store: Store
    reader: DeadlineReader
    now: datetime = NOW
    submitted: list[Request] = field(default_factory=list)

    async def send(self, stream: str, command: Command, tenant: UUID = TENANT) -> Outcome:
        decider = self.store.codec.decider_of(stream)
        assert decider is not None
        return await self.store.submit(Request(tenant, uuid4(), (Item(decider, stream, command),), b"", occurred_at=self.now))

    async def submit(self, request: Request) -> Outcome:
        """As the scheduler's store: the moment is the test's."""
        self.submitted.append(request)
        request.occurred_at = self.now
        return await self.store.submit(request)

    def scheduler(self, *sources: Any, **more: Any) -> Scheduler:
        async def clock() -> datetime:
            return self.now

        return Scheduler(self, sources or (self.reader,), clock, **more)  # type: ignore[arg-type]  # submitting is all it asks of a store

    async def follow(self, *consumers: Any) -> None:
        follower = Follower(self.dsn, range(self.store.partitions), consumers or [Deadlines(self.store.codec)], None, QUICK)
        running = asyncio.create_task(follower.run())

        def done() -> bool:
            there = sum(head for head, _ in follower.heads.values()) == self.count()
            return there and follower.health().trouble is None and not any(follower.lag().values())

        await until(done)
        assert follower.health().ok, follower.health()
        follower.stop()
        await running

    def rows(self, query: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            cursor = conn.execute(query, parameters)
            return cursor.fetchall() if cursor.description else []

    def count(self) -> int:
        return int(self.rows("select count(*) from event")[0][0])

    def types(self, stream: str) -> list[str]:
        """The stream's events, and refusals of commands on it."""
        query = """select type from event where stream = %s or (type = 'command.refused' and payload->>'stream' = %s)
                   order by partition, position"""
        return [row[0] for row in self.rows(query, (stream, stream))]

    def waiting(self) -> list[tuple[Any, ...]]:
        return self.rows("select stream, name, due_at from deadline_1 order by due_at, stream, name")


@pytest.fixture
async def world(database_dsn: str) -> AsyncIterator[World]:
    schema.create(database_dsn)
    store = await Store.open(database_dsn, DECIDERS)
    reader = await DeadlineReader.open(database_dsn, store.codec)
    yield World(database_dsn, store, reader)
    await reader.close()
    await store.drain()


async def test_deadlines_are_set_moved_and_ended_by_events(world: World) -> None:
    await world.send("trial-a", Begin(days=10))
    await world.send("trial-b", Begin(days=10))
    await world.send("trial-c", Begin(days=10))
    await world.send("till-x", Open(room=1))
    await world.follow()
    assert len(world.waiting()) == 6

    await world.send("trial-a", Extend(days=5))
    await world.send("trial-b", Buy())
    await world.follow()

    everything = world.rows("select * from deadline_1 order by 1, 2, 3")
    world.rows("truncate deadline_1")
    world.rows("update checkpoint set position = 0")
    await world.follow()
    assert world.rows("select * from deadline_1 order by 1, 2, 3") == everything, "also the ids of the commands"
    moved = END + timedelta(days=5)
    assert world.waiting() == [
        ("trial-c", "remind", END - NOTICE), ("trial-c", "end", END), ("trial-a", "remind", moved - NOTICE), ("trial-a", "end", moved),
    ]  # fmt: skip


async def test_a_deadline_leads_to_its_command_once_however_many_ask_and_however_often(world: World) -> None:
    await world.send("trial-a", Begin(days=10))
    await world.follow()
    world.now = END - timedelta(microseconds=1)
    schedulers = [world.scheduler() for _ in range(3)]
    for scheduler in schedulers:
        await scheduler.once(world.now)
    assert world.types("trial-a") == ["trial.begun", "trial.reminded"]

    world.now = END
    await asyncio.gather(*(scheduler.once(world.now) for scheduler in schedulers * 2))
    assert world.types("trial-a") == ["trial.begun", "trial.reminded", "trial.ended"]
    ((actor, cause),) = world.rows("select actor, cause from event where type = 'trial.ended'")
    ((began,),) = world.rows("select command_id from event where type = 'trial.begun'")
    assert (actor, cause) == ("process:deadline", began)

    await world.follow()
    assert world.waiting() == []
    assert await world.scheduler().once(world.now) == 0


async def test_a_deadline_set_again_to_a_moment_that_it_had_before_comes_again(world: World) -> None:
    await world.send("trial-a", Begin(days=10))
    await world.follow()
    world.now = END
    await world.scheduler().once(END)
    await world.follow()
    assert world.types("trial-a")[-1] == "trial.ended"

    world.now = NOW
    await world.send("trial-a", Begin(days=10))
    await world.follow()
    world.now = END
    await world.scheduler().once(END)

    assert world.types("trial-a").count("trial.ended") == 2


async def test_a_clock_that_jumps_loses_nothing_and_doubles_nothing(world: World) -> None:
    for number in range(4):
        await world.send(f"trial-{number}", Begin(days=10 + number))
    await world.follow()
    scheduler = world.scheduler(seconds=1e-9)  # nothing rests

    for jump in (13, -400, 10, 500, -1, 11, 12, 13, 14, 500):
        world.now = NOW + timedelta(days=jump)
        await scheduler.once(world.now)
        if jump > 0:
            await world.follow()

    for number in range(4):
        assert world.types(f"trial-{number}") == ["trial.begun", "trial.reminded", "trial.ended"]
    assert world.waiting() == []


async def test_a_clock_that_falls_back_between_the_question_and_the_command_delays_it(world: World) -> None:
    await world.send("trial-a", Begin(days=10))
    await world.send("trial-a", Lock())
    await world.follow()
    scheduler = world.scheduler(seconds=1e-9)

    world.now = NOW
    await scheduler.once(END)  # the scheduler's clock is ahead of the writer's
    await world.follow()
    assert world.types("trial-a") == ["trial.begun", "trial.locked"]
    assert len(world.waiting()) == 2

    world.now = END
    await scheduler.once(END)
    await world.follow()
    assert world.types("trial-a") == ["trial.begun", "trial.locked", "trial.reminded", "command.refused"]


async def test_a_deadline_refused_for_good_is_over_also_when_built_anew(world: World) -> None:
    await world.send("trial-a", Begin(days=10))
    await world.send("trial-a", Lock())
    await world.follow()
    world.now = END
    await world.scheduler().once(END)

    await world.follow()
    assert world.waiting() == []
    world.rows("update checkpoint set position = 0 where consumer = 'deadlines'")
    await world.follow()
    assert world.waiting() == []

    await world.send("trial-a", Extend(days=1))  # another deadline, to be refused by itself
    await world.follow()
    assert [name for _, name, _ in world.waiting()] == ["remind", "end"]


async def test_a_refusal_of_something_else_ends_no_deadline(world: World) -> None:
    await world.send("trial-a", Begin(days=10))
    await world.send("trial-a", Lock())
    world.now = END
    outcome = await world.send("trial-a", End())
    assert outcome.refused

    await world.follow()

    assert len(world.waiting()) == 2


async def test_what_comes_to_nothing_rests_and_does_not_keep_others_from_their_turn(world: World) -> None:
    for name in "abcde":
        await world.send(f"trial-{name}", Begin(days=10))
    await world.send("trial-late", Begin(days=11))
    await world.follow()
    world.now = NOW  # the writer's clock stands still: nothing comes of what is submitted now
    scheduler = world.scheduler(at_once=5, seconds=600)  # a rest that outlasts the test

    for _ in range(3):
        await scheduler.once(END + timedelta(days=5))

    streams = [(request.items[0].stream, type(request.items[0].command).__name__) for request in world.submitted]
    assert len(streams) == 12, "each once, and none a second time yet"
    assert len(set(streams)) == 12
    await scheduler.once(END + timedelta(days=5))
    assert len(world.submitted) == 12


async def test_tenants_take_turns(world: World) -> None:
    many, few = UUID(int=1), UUID(int=2)
    for number in range(20):
        await world.send(f"trial-m{number:02}", Begin(days=5), many)
    await world.send("trial-f0", Begin(days=9), few)
    await world.send("trial-f1", Begin(days=9), few)
    await world.follow()

    due = await world.reader.due(NOW + timedelta(days=30), 4)

    assert [request.tenant_id for request in due] == [many, few, many, few]


async def test_deadlines_of_a_deleted_tenant_are_gone_and_none_comes_after(world: World) -> None:
    await world.send(tenant_stream(TENANT), CreateTenant(tenant_id=TENANT, name="Acme"))
    await world.send("trial-a", Begin(days=10))
    await world.follow()
    assert len(world.waiting()) == 2

    await world.send(tenant_stream(TENANT), DeleteTenant(tenant_id=TENANT))
    await world.follow()

    assert world.waiting() == []


async def test_trouble_of_the_store_is_waited_for_and_a_bug_is_one_commands_own(world: World) -> None:
    for name in "abc":
        await world.send(f"trial-{name}", Begin(days=1))
    await world.follow()
    world.now = END
    tries: list[str] = []
    submit = world.submit

    async def troubled(request: Request) -> Outcome:
        stream = request.items[0].stream
        tries.append(stream)
        if stream == "trial-a" and tries.count("trial-a") <= 2:
            raise Unavailable
        if stream == "trial-b":
            raise ZeroDivisionError
        return await submit(request)

    world.submit = troubled  # type: ignore[method-assign]  # in the way of the real one
    scheduler = world.scheduler(seconds=600)  # a rest that outlasts the test
    with capture_logs() as logs, pytest.raises(Unavailable):
        await scheduler.once(END)
    assert "trial.ended" in world.types("trial-c"), "others are not kept waiting"
    assert {entry["event"] for entry in logs if entry["log_level"] == "error"} == {"scheduler.failed"}
    await scheduler.once(END)

    assert "trial.ended" in world.types("trial-a")
    assert tries.count("trial-b") == 2, "its two deadlines, once each"
    assert tries.count("trial-a") == 4


async def test_the_service_runs_by_the_databases_clock_and_leaves_when_told_or_when_the_store_does(world: World) -> None:
    await world.send("trial-a", Begin(days=1))
    world.now = NOW - timedelta(days=4_000)  # that its day has come is known to the database alone
    await world.send("trial-b", Begin(days=1))
    await world.follow()
    scheduler = Scheduler(world.store, [world.reader], world.reader.now, seconds=0.01)
    running = asyncio.create_task(scheduler.run())
    await until(lambda: "trial.ended" in world.types("trial-b"))
    scheduler.stop()
    await running
    now = await world.reader.now()
    assert abs((now - datetime.now(UTC)).total_seconds()) < 60

    async def draining(request: Request) -> Outcome:
        raise Draining

    world.submit, world.now = draining, END  # type: ignore[method-assign]  # as above
    async with asyncio.timeout(60):
        await world.scheduler().run()


async def test_reservations_that_are_due_are_ended_once_by_one_command_for_each_quota(world: World) -> None:
    for subject, times in (("anna", 3), ("boris", 1)):
        stream = quota_stream(TENANT, subject, "tokens")
        await world.send(stream, SetLimits(subject=subject, meter="tokens", limits=(Limit("life", 100),)))
        for number in range(times):
            reserve = Reserve(subject=subject, meter="tokens", amount=1, reservation_id=f"{subject}-{number}", ttl_seconds=10 + number)
            await world.send(stream, reserve)
    await world.follow(Quotas(world.store.codec))
    due = await DueReader.open(world.dsn)
    world.now = NOW + timedelta(seconds=60)
    schedulers = [world.scheduler(Reservations(due.due)) for _ in range(2)]

    assert await schedulers[0].once(world.now) == 2
    await schedulers[1].once(world.now)
    await world.follow(Quotas(world.store.codec))
    left = await due.due(world.now, 10)
    await due.close()

    assert left == []
    assert world.rows("select count(*), count(distinct command_id) from event where type = 'quota.expired'") == [(4, 2)]
    assert world.rows("select distinct actor from event where type = 'quota.expired'") == [("process:expire",)]

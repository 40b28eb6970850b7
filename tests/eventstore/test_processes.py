"""Writers race, stop, die, lose their sessions and their callers; what was acknowledged is in the log exactly once."""

import asyncio
import json
import os
import signal
import time
import types
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
import pytest

from eventstore.embedded import EmbeddedPostgres
from eventstore.errors import StoreError
from eventstore.memory import MemoryLog
from eventstore.postgres import INSERT, PostgresBatch
from eventstore.rows import Row
from eventstore.schema import migrate
from eventstore.store import Store
from eventstore.writer import Options, Outcome, Request, Writer
from tests.support.till import Look, Open, Take
from tests.support.worlds import MemoryWorld, PostgresWorld, World, ask, broken
from tests.support.writer_process import WriterProcess, key_of

HOT = "till-hot"


@pytest.fixture
async def world(database_dsn: str) -> AsyncIterator[PostgresWorld]:
    made = PostgresWorld(database_dsn)
    yield made
    await made.close()


Start = Callable[..., WriterProcess]


@pytest.fixture
def start(world: PostgresWorld, tmp_path: Path) -> Iterator[Start]:
    """Starts a writer process on the world's database, ready to begin; none outlives the test."""
    started: list[WriterProcess] = []

    def starter(name: str, **plan: Any) -> WriterProcess:
        started.append(WriterProcess(tmp_path, name, world.dsn, stream=HOT, **plan))
        return started[-1]

    yield starter
    for process in started:
        process.end()


async def room_for(world: World, room: int, options: Options | None = None) -> Store:
    store = await world.open(options)
    await store.submit(ask((HOT, Open(room=room))))
    return store


def together(*processes: WriterProcess) -> None:
    for process in processes:
        process.ready()
    for process in processes:
        process.begin()


def locked(world: PostgresWorld) -> bool:
    """Whether somebody has the partition's lock now."""
    try:
        world.admin.execute("select from log_partition where partition = %s for update nowait", (world.partition,))
    except psycopg.errors.LockNotAvailable:
        return True
    return False


def taken(rows: list[Row]) -> Counter[str]:
    return Counter(json.loads(row.payload)["take_id"] for row in rows if row.type == "till.taken")


def check(world: World, noted: list[dict[str, Any]], room: int) -> None:
    """Every acknowledged outcome is in the log exactly once, as it was told; nothing refused took effect; the log is whole."""
    rows = world.rows()
    assert broken(world) is None
    assert [row.position for row in rows] == list(range(1, len(rows) + 1))
    assert [row.version for row in rows if row.stream == HOT] == list(range(1, 1 + sum(row.stream == HOT for row in rows)))
    firsts = {row.command_id: row for row in rows if row.ordinal == 0}
    assert len(firsts) == sum(row.ordinal == 0 for row in rows)
    effects = taken(rows)
    assert set(effects.values()) <= {1}, "something took effect twice"
    for note in noted:
        row = firsts[key_of(note["name"])]
        assert row.reply == note["reply"]
        assert row.position <= note["position"] if note["replayed"] else row.position == note["position"]
        assert note["refused"] == (row.type == "command.refused") == (note["name"] not in effects)
    assert len(effects) <= room


# Two and three processes


@pytest.mark.parametrize("count", [2, 3])
async def test_processes_fight_over_one_hot_stream(world: PostgresWorld, start: Start, count: int) -> None:
    commands, room = 400, 300 * count
    await room_for(world, room)
    processes = [start(f"p{n}", commands=commands) for n in range(count)]

    together(*processes)
    for process in processes:
        process.wait()

    noted = [note for process in processes for note in process.outcomes()]
    assert [process.errors() for process in processes] == [[]] * count
    assert len(noted) == commands * count
    assert sum(not note["refused"] for note in noted) == room == len(taken(world.rows()))
    check(world, noted, room)
    authors = [row.command_id for row in world.rows()]
    mine = {key_of(note["name"]) for note in processes[0].outcomes()}
    changes = sum((one in mine) != (two in mine) for one, two in pairwise(authors))
    assert changes > 4, "they never met"


async def test_a_storm_of_duplicates_from_three_processes_ends_in_one_outcome_each(world: PostgresWorld, start: Start) -> None:
    commands, room = 150, 100
    await room_for(world, room)
    processes = [start(f"p{n}", prefix="same", commands=commands) for n in range(3)]

    together(*processes)
    for process in processes:
        process.wait()

    told: dict[str, set[tuple[str, bool]]] = {}
    firsts = Counter[str]()
    for process in processes:
        assert process.errors() == []
        for note in process.outcomes():
            told.setdefault(note["name"], set()).add((note["reply"], note["refused"]))
            firsts[note["name"]] += not note["replayed"]
    assert len(told) == commands
    assert {len(answers) for answers in told.values()} == {1}
    assert set(firsts.values()) == {1}, "exactly one of the three was first"
    check(world, [note for process in processes for note in process.outcomes()], room)
    assert len(taken(world.rows())) == room


# One of them stopped


@pytest.mark.parametrize("hold", ["locked", "inserted", "pipelined", "committed"])
async def test_a_writer_stopped_with_the_lock_in_its_hands_holds_the_others_up_for_seconds_only(
    world: PostgresWorld, start: Start, hold: str
) -> None:
    await room_for(world, 1_000)
    stopped, other = start("stopped", commands=60, hold=hold, turn=3), start("other", commands=60)
    # Not in the loop's way: a connection that our own store only half made would hold up the dropping of the database.
    await asyncio.to_thread(other.ready)
    together(stopped)
    stopped.wait_until_stopped()
    assert locked(world) is (hold != "committed"), "this proves nothing"

    other.begin()
    other.wait()

    assert other.errors() == []
    assert len(other.outcomes()) == 60
    held_up = max(note["seconds"] for note in other.outcomes())
    assert held_up < 20, "the server ends a writer's transaction after five"
    assert stopped.process.poll() is None

    stopped.resume()
    stopped.wait()
    assert [error for error in stopped.errors() if not error["retryable"]] == []
    assert len(stopped.outcomes()) == 60
    check(world, stopped.outcomes() + other.outcomes(), 1_000)
    assert len(taken(world.rows())) == 120


# Killed, terminated


async def test_what_a_killed_writer_acknowledged_is_there_and_its_commands_may_be_sent_again(world: PostgresWorld, start: Start) -> None:
    await room_for(world, 500_000)
    killed, other = start("killed", commands=400_000), start("other", commands=300)
    together(killed, other)
    while len(killed.outcomes()) < 200:
        await asyncio.sleep(0.005)
        assert killed.process.poll() is None
    killed.process.kill()
    other.wait()
    killed.process.wait()

    acknowledged = killed.outcomes()
    assert 200 <= len(acknowledged) < 400_000, "it was killed too late: this proves nothing"
    assert (killed.errors(), other.errors(), len(other.outcomes())) == ([], [], 300)
    check(world, acknowledged + other.outcomes(), 500_000)

    again = start("again", prefix="killed", commands=600)
    together(again)
    again.wait()
    assert again.errors() == []
    told = {note["name"]: note["reply"] for note in again.outcomes()}
    assert len(told) == 600
    assert all(told.get(note["name"], note["reply"]) == note["reply"] for note in acknowledged)
    check(world, acknowledged + other.outcomes() + again.outcomes(), 500_000)


@pytest.mark.parametrize("moment", ["before the insert", "between insert and commit", "after the commit"])
async def test_a_session_that_dies_while_committing_leaves_one_outcome(
    world: PostgresWorld, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    store = await room_for(world, 20)
    append, turns = PostgresBatch.append, iter(range(1_000))

    async def dying(batch: PostgresBatch, rows: list[Row]) -> None:
        if next(turns) % 2:
            await append(batch, rows)
            return
        victim = batch._conn.info.backend_pid
        if moment == "between insert and commit":
            await batch._conn.execute(INSERT, (batch._partition, *([*column] for column in zip(*rows, strict=True))))
        if moment == "after the commit":
            await append(batch, rows)
            batch.ended = False
        world.admin.execute("select pg_terminate_backend(%s)", (victim,))
        if moment == "before the insert":
            await append(batch, rows)
        await batch._conn.execute("commit")

    monkeypatch.setattr(PostgresBatch, "append", dying)
    for burst in range(3):
        requests = [ask((HOT, Take(take_id=f"{burst}-{n}"))) for n in range(8)]
        outcomes = await asyncio.gather(*(store.submit(request) for request in requests))

        assert sum(outcome.refused for outcome in outcomes) == (0, 0, 4)[burst]
        all_there(world, {request.command_id: outcome for request, outcome in zip(requests, outcomes, strict=True)})
        for request, outcome in zip(requests, outcomes, strict=True):
            assert (await store.submit(request)).reply == outcome.reply
    assert len(taken(world.rows())) == 20
    assert set(taken(world.rows()).values()) == {1}
    assert broken(world) is None


async def test_sessions_terminated_again_and_again_under_traffic(world: PostgresWorld) -> None:
    store = await room_for(world, 400)
    other = await world.open()
    ended, progress = asyncio.Event(), asyncio.Event()
    kills = 0

    async def killer() -> None:
        nonlocal kills
        while not ended.is_set():
            others = "datname = current_database() and pid <> pg_backend_pid()"
            found = world.admin.execute(f"select count(pg_terminate_backend(pid)) from pg_stat_activity where {others}").fetchone()
            kills += found[0] if found else 0
            progress.clear()
            await asyncio.sleep(0.25)
            await progress.wait()  # where connecting takes longer than that, nothing would ever be done

    acknowledged: dict[Any, Outcome] = {}

    async def caller(number: int) -> None:
        for n in range(12):
            await asyncio.sleep(0.1)  # so that it lasts for some kills
            request = ask((HOT, Take(take_id=f"{number}-{n}")))
            acknowledged[request.command_id] = await persistently((store, other)[number % 2], request)
            progress.set()

    kill = asyncio.create_task(killer())
    await asyncio.gather(*(caller(number) for number in range(40)))
    ended.set()
    progress.set()
    await kill

    assert kills > 5
    assert sum(not outcome.refused for outcome in acknowledged.values()) == 400
    all_there(world, acknowledged)
    assert len(taken(world.rows())) == 400


async def persistently(store: Store, request: Request) -> Outcome:
    """What a well-behaved client does: the same key again while the error says so."""
    while True:
        try:
            return await store.submit(request)
        except StoreError as error:
            if not error.retryable:
                raise
            await asyncio.sleep(0.02)


def all_there(world: World, acknowledged: dict[Any, Outcome]) -> None:
    """Each outcome is in the log exactly once, and what was refused had no effect."""
    assert broken(world) is None
    rows = [row for row in world.rows() if row.ordinal == 0]
    firsts = {row.command_id: row for row in rows}
    assert len(firsts) == len(rows)
    for command_id, outcome in acknowledged.items():
        row = firsts[command_id]
        assert (row.reply or "").encode() == outcome.reply
        assert (row.position <= outcome.position) if outcome.replayed else (row.position == outcome.position)
        assert outcome.refused == (row.type == "command.refused")
    assert set(taken(world.rows()).values()) <= {1}


# Callers cancelled at every await


class Yielding(MemoryLog):
    """The twin with an await that really waits in every step, as a network has."""

    async def known(self, command_ids: Any) -> Any:
        await asyncio.sleep(0)
        return await super().known(command_ids)

    async def stream_rows(self, after: Any) -> Any:
        await asyncio.sleep(0)
        return await super().stream_rows(after)

    def locked(self, head: int, at_most: int, command_ids: Any = ()) -> Any:
        return _yielding(super().locked(head, at_most, command_ids))


@asynccontextmanager
async def _yielding(inner: AbstractAsyncContextManager[Any]) -> AsyncIterator[Any]:
    await asyncio.sleep(0)
    async with inner as batch:
        append = batch.append

        async def slow(rows: Any) -> None:
            await asyncio.sleep(0)
            await append(rows)
            await asyncio.sleep(0)

        batch.append = slow
        yield batch
        await asyncio.sleep(0)


@types.coroutine
def stepped(coroutine: Coroutine[Any, Any, Any], step: Callable[[], None]) -> Generator[Any, Any, Any]:
    """Run a coroutine and call ``step`` each time it waits."""
    while True:
        try:
            waits_for = coroutine.send(None)
        except StopIteration as end:
            return end.value
        step()
        yield waits_for


@pytest.mark.parametrize("callers", [1, 2])
@pytest.mark.parametrize("kind", ["memory", "postgres"])
async def test_callers_cancelled_at_every_await_and_tried_again_act_exactly_once(
    kind: str, callers: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    world: World
    if kind == "memory":
        world = MemoryWorld()
        world.make = Yielding
    else:
        world = PostgresWorld(request.getfixturevalue("database_dsn"))
    store = await room_for(world, 10_000, Options(cached_streams=1))
    run = Writer._run
    step: Callable[[], None] = lambda: None  # noqa: E731  # it is a variable
    monkeypatch.setattr(Writer, "_run", lambda writer: stepped(run(writer), lambda: step()))  # noqa: PLW0108  # as it is then
    interrupted, done = 0, 0

    for moment in range(200):
        command = ask((HOT, Take(take_id=f"{moment}")), ("till-second", Open(room=1)))
        await store.submit(ask(("till-third", Open(room=1))))  # pushes the others out of the cache
        steps = iter(range(10_000))
        tasks: list[asyncio.Task[Outcome]] = []

        def cancel_at(moment: int = moment, steps: Iterator[int] = steps, tasks: list[asyncio.Task[Outcome]] = tasks) -> None:
            if next(steps) == moment:
                tasks[0].cancel()

        step = cancel_at
        tasks += [asyncio.create_task(store.submit(command)) for _ in range(callers)]
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        step = lambda: None  # noqa: E731  # it is a variable
        again = await store.submit(command)

        assert all(isinstance(answer, Outcome) and answer.reply == again.reply for answer in answers[1:]), moment
        assert sum(row.command_id == command.command_id and row.ordinal == 0 for row in world.rows()) == 1
        if isinstance(answers[0], asyncio.CancelledError):
            interrupted += 1
        else:
            assert answers[0] == replace(again, replayed=False)
            done += 1
            if done == 3:
                break

    assert interrupted >= 3, "hardly any await was hit"
    assert len(taken(world.rows())) == interrupted + done
    assert set(taken(world.rows()).values()) == {1}
    assert broken(world) is None
    await world.close()


# Lost tails


@pytest.mark.parametrize("lost", [1, 7, 1_000_000])
async def test_a_tail_lost_under_living_writers(world: PostgresWorld, lost: int) -> None:
    stores = [await room_for(world, 60), await world.open()]
    epochs = [0]
    for generation in range(3):
        requests = [ask((HOT, Take(take_id=f"{generation}-{n}"))) for n in range(20)]
        if HOT not in {row.stream for row in world.rows()}:
            await stores[0].submit(ask((HOT, Open(room=60))))
        outcomes = await asyncio.gather(*(persistently(stores[n % 2], request) for n, request in enumerate(requests)))

        assert min(outcome.epoch for outcome in outcomes) >= epochs[-1]
        all_there(world, {request.command_id: outcome for request, outcome in zip(requests, outcomes, strict=True)})
        for store in (*stores, await world.open()):
            look = json.loads((await store.submit(ask((HOT, Look())))).reply)
            assert look["used"] == len(taken(world.rows()))
        world.lose_tail(lost)
        # What each of the two still believes is forgotten with its first command.
        for store in stores:
            await store.submit(ask(("till-else", Open(room=generation))))
        found = world.admin.execute("select epoch from log_partition where partition = %s", (world.partition,)).fetchone()
        assert found is not None
        assert found[0] > epochs[-1]
        epochs.append(found[0])
    assert broken(world) is None


# The server killed


async def more_of(acknowledged: dict[Any, Outcome]) -> None:
    """Wait until a hundred more are acknowledged."""
    wanted, deadline = len(acknowledged) + 100, time.monotonic() + 120
    while len(acknowledged) < wanted:
        assert time.monotonic() < deadline, "the store did not come back"
        await asyncio.sleep(0.01)


async def test_a_postmaster_killed_under_load_shows_retryable_errors_only_and_loses_nothing(home: Path) -> None:
    settings = {"shared_buffers": "32MB", "max_wal_size": "256MB", "wal_buffers": "1MB"}
    with EmbeddedPostgres(home / "data", settings=settings) as server:
        migrate(server.dsn)
        world = PostgresWorld(server.dsn)
        store = await room_for(world, 10_000, Options(retry_seconds=0.2))
        watching = asyncio.create_task(server.watch(lambda said: None, poll_seconds=0.02))
        acknowledged: dict[Any, Outcome] = {}
        errors, ended = Counter[str](), asyncio.Event()

        async def caller(number: int) -> None:
            n = 0
            while not ended.is_set():
                n += 1
                request = ask((HOT, Take(take_id=f"{number}-{n}")))
                while True:
                    try:
                        acknowledged[request.command_id] = await store.submit(request)
                        break
                    except StoreError as error:
                        errors[f"{type(error).__name__} {error.retryable}"] += 1
                        await asyncio.sleep(0.05)

        callers = [asyncio.create_task(caller(number)) for number in range(10)]
        for _ in range(2):
            await more_of(acknowledged)
            assert server.pid is not None
            os.kill(server.pid, signal.SIGKILL)
        await more_of(acknowledged)
        ended.set()
        await asyncio.gather(*callers)
        watching.cancel()

        world.admin.close()
        world.admin = psycopg.connect(server.dsn, autocommit=True)
        assert set(errors) <= {"Unavailable True"}
        all_there(world, acknowledged)
        await world.close()

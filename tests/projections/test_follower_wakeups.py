"""What one process appends is heard by another at once; where it is not, it is seen at the next look."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
import pytest

from eventstore.store import Store
from eventstore.wakeups import Listener
from projections.follower import Follower, Pace
from tests.projections.conftest import LIMITS, Ledger, administer, following, until
from tests.support.counting import Counting
from tests.support.till import TILL, Open
from tests.support.worlds import ask
from tests.support.writer_process import WriterProcess

ASLEEP = Pace(poll=600, poll_idle=600, rest=0.001)
ROOM = 1
"""Events that make room in the till."""


@pytest.fixture
def elsewhere(ledger: Ledger, tmp_path: Path) -> Iterator[WriterProcess]:
    """Another process, ready to append ten events."""
    process = WriterProcess(tmp_path, "elsewhere", ledger.dsn, stream="till-wake", commands=10, callers=1)
    yield process
    process.end()


async def make_room(ledger: Ledger) -> None:
    store = await Store.open(ledger.dsn, [TILL], wakeups=False)
    await store.submit(ask(("till-wake", Open(room=1_000))))
    await store.drain()


@asynccontextmanager
async def sleeping(ledger: Ledger, consumer: Counting) -> AsyncIterator[tuple[Follower, Listener]]:
    """A follower that looks every ten minutes, and a listener that wakes it."""
    waker = asyncio.Event()
    follower = Follower(ledger.dsn, range(ledger.store.partitions), [consumer], waker, ASLEEP)
    listener = Listener(ledger.dsn, [waker])
    tasks = [asyncio.create_task(follower.run()), asyncio.create_task(listener.run())]
    try:
        yield follower, listener
    finally:
        listener.stop()
        follower.stop()
        await asyncio.gather(*tasks)


def disconnect_wakeups(ledger: Ledger) -> int:
    """End all sessions that tell or hear of appends; how many there were."""
    sessions = "datname = current_database() and application_name = 'holdbook wake-ups'"
    return len(administer(ledger, f"select pg_terminate_backend(pid) from pg_stat_activity where {sessions}"))


async def test_a_follower_that_sleeps_is_woken_by_another_process(ledger: Ledger, elsewhere: WriterProcess) -> None:
    await make_room(ledger)
    consumer = Counting()
    async with sleeping(ledger, consumer) as (_, listener):
        await until(lambda: listener.listening and len(consumer.seen) == ROOM)
        await asyncio.to_thread(elsewhere.ready)
        elsewhere.begin()
        await until(lambda: len(consumer.seen) == ROOM + 10)


async def test_a_lost_listener_costs_nothing_but_haste(ledger: Ledger, elsewhere: WriterProcess) -> None:
    await make_room(ledger)
    consumer = Counting()
    async with sleeping(ledger, consumer) as (follower, listener):
        await until(lambda: listener.listening and len(consumer.seen) == ROOM)
        for _ in range(2):
            assert disconnect_wakeups(ledger) >= 1
            await until(lambda: not listener.listening)
            await until(lambda: listener.listening)
        assert follower.health().ok
        await asyncio.to_thread(elsewhere.ready)
        elsewhere.begin()
        await until(lambda: len(consumer.seen) == ROOM + 10)


async def test_what_was_told_while_nobody_listened_is_found_when_listening_begins(ledger: Ledger) -> None:
    await make_room(ledger)
    consumer = Counting()
    waker = asyncio.Event()
    follower = Follower(ledger.dsn, range(ledger.store.partitions), [consumer], waker, ASLEEP)
    following_ = asyncio.create_task(follower.run())
    await until(lambda: len(consumer.seen) == ROOM)
    silent = await Store.open(ledger.dsn, [TILL], wakeups=False)
    await silent.submit(ask(("till-wake", Open(room=2_000))))
    await silent.drain()

    listener = Listener(ledger.dsn, [waker])
    listening = asyncio.create_task(listener.run())
    await until(lambda: len(consumer.seen) == ROOM + 1)
    for each in (listener, follower):
        each.stop()
    await asyncio.gather(listening, following_)


async def test_without_any_wake_up_the_next_look_finds_it(ledger: Ledger) -> None:
    consumer = Counting()
    async with following(ledger, consumer):
        store = await Store.open(ledger.dsn, [TILL], wakeups=False)
        await store.submit(ask(("till-wake", Open(room=1_000))))
        await until(lambda: len(consumer.seen) == 1)
        await store.drain()


async def test_appends_are_told_together_and_outside_the_writers_transactions(ledger: Ledger) -> None:
    heard: list[str] = []
    with psycopg.connect(ledger.dsn, autocommit=True) as conn:
        conn.execute("listen holdbook_appended")
        began = asyncio.get_running_loop().time()
        for number in range(200):
            await ledger.set_limits(f"subject {number}", *LIMITS[:1])
        spent = asyncio.get_running_loop().time() - began
        await ledger.store.drain()
        heard += [notify.payload for notify in conn.notifies(timeout=0.5)]

    assert 1 <= len(heard) <= spent / 0.05 + 3
    assert len(set(heard)) == 1


async def test_a_notifier_that_lost_its_connection_tells_on_another_one(ledger: Ledger) -> None:
    def tellers() -> int:
        ((count,),) = administer(
            ledger, "select count(*) from pg_stat_activity where datname = current_database() and application_name = 'holdbook wake-ups'"
        )
        return int(count)

    with psycopg.connect(ledger.dsn, autocommit=True) as conn:
        conn.execute("listen holdbook_appended")
        for number in range(3):
            await ledger.set_limits(f"subject {number}", *LIMITS[:1])
            assert [each async for each in _heard(conn)]
            await until(lambda: tellers() == 1)
            assert disconnect_wakeups(ledger) == 1
            await until(lambda: tellers() == 0)


async def _heard(conn: psycopg.Connection[tuple[object, ...]]) -> AsyncIterator[psycopg.Notify]:
    for notify in await asyncio.to_thread(lambda: list(conn.notifies(timeout=20, stop_after=1))):
        yield notify


async def test_a_store_that_drains_leaves_nobody_connected(ledger: Ledger) -> None:
    store = await Store.open(ledger.dsn, [TILL])
    await store.submit(ask(("till-wake", Open(room=1))))
    await store.drain()

    gone = "select count(*) = 0 from pg_stat_activity where datname = current_database() and application_name = 'holdbook wake-ups'"
    await until(lambda: administer(ledger, gone) == [(True,)])


async def test_whoever_subscribes_is_woken_also_by_writers_that_were_there_before(ledger: Ledger) -> None:
    await ledger.set_limits("anna", *LIMITS[:1])
    early = ledger.store.subscribe()
    assert not early.is_set()

    await ledger.set_limits("boris", *LIMITS[:1])

    assert early.is_set()


class Counted(asyncio.Event):
    """Counts how often it was set."""

    def __init__(self) -> None:
        super().__init__()
        self.times = 0

    def set(self) -> None:
        """See asyncio."""
        super().set()
        self.times += 1


async def test_a_process_does_not_wake_itself_by_what_it_tells_others(ledger: Ledger) -> None:
    waker = Counted()
    listener = Listener(ledger.dsn, [waker])
    listening = asyncio.create_task(listener.run())
    await until(lambda: listener.listening)
    with psycopg.connect(ledger.dsn, autocommit=True) as conn:
        conn.execute("listen holdbook_appended")
        await ledger.set_limits("anna", *LIMITS[:1])
        assert [each async for each in _heard(conn)]
        assert waker.times == 1  # when it began to listen

        conn.execute("notify holdbook_appended, 'another process'")  # comes behind our own
        await until(lambda: waker.times > 1)
    listener.stop()
    await listening

    assert waker.times == 2

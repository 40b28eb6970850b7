"""Several followers: who feeds what, who takes over, and that it makes no difference to what is in the tables."""

import asyncio
import signal
from dataclasses import replace
from random import Random
from uuid import uuid4

import psycopg
import pytest

from projections import schema
from projections.follower import Follower, Pace
from projections.quotas import PROJECTION, Quotas
from tests.projections.conftest import CODEC, LIMITS, QUICK, Ledger, administer, caught_up, count_events, dump, follow, following, until
from tests.support.counting import Counting
from tests.support.follower_process import FollowerProcess

FOR_EVER = replace(QUICK, lease=600.0)


async def events(ledger: Ledger, count: int) -> None:
    for _ in range(count):
        await ledger.set_limits(f"subject {uuid4()}", *LIMITS[:1])


def all_applied(ledger: Ledger, consumer: str = "counting") -> bool:
    ((applied,),) = administer(ledger, "select coalesce(sum(position), 0) from checkpoint where consumer = %s", (consumer,))
    return bool(applied == count_events(ledger))


async def test_one_of_two_feeds_and_the_other_stands_by(ledger: Ledger) -> None:
    first, second = Counting(), Counting()
    async with following(ledger, first, pace=FOR_EVER) as feeding:
        await caught_up(ledger, feeding)
        async with following(ledger, second, pace=FOR_EVER) as standing_by:
            await until(lambda: standing_by.health().trouble is None)
            await events(ledger, 30)
            await until(lambda: len(first.seen) == 30 and not any(standing_by.lag().values()))

    assert second.seen == []
    assert standing_by.progress.lost == feeding.progress.lost == 0


async def test_followers_of_other_consumers_do_not_wait_for_each_other(ledger: Ledger) -> None:
    first, second = Counting("first"), Counting("second")
    async with following(ledger, first, pace=FOR_EVER) as older:
        await caught_up(ledger, older)
        async with following(ledger, first, second, pace=FOR_EVER):
            await events(ledger, 3)
            await until(lambda: len(second.seen) == 3)


async def test_who_leaves_lets_go_at_once(ledger: Ledger) -> None:
    first, second = Counting(), Counting()
    async with following(ledger, second, pace=replace(FOR_EVER, lease=30.0)) as waiting:
        async with following(ledger, first, pace=replace(FOR_EVER, lease=30.0)) as leaving:
            await caught_up(ledger, leaving)
        # Whichever of the two had the leases, the one that is left has all of them well before 30 seconds are over.
        await until(lambda: waiting.health().trouble is None)
        await events(ledger, 3)
        async with asyncio.timeout(15):
            await until(lambda: len(second.seen) == 3)
    assert administer(ledger, "select count(*) from follower_lease") == [(0,)]


async def test_another_one_takes_over_from_a_worker_that_was_killed(ledger: Ledger) -> None:
    pace = replace(QUICK, lease=8.0)
    worker = FollowerProcess(ledger.dsn, ledger.store.partitions, pace)
    try:
        await asyncio.to_thread(worker.ready)
        async with following(ledger, Quotas(CODEC), pace=pace) as other:
            await events(ledger, 5)
            await until(lambda: all_applied(ledger, "quotas"))
            assert other.progress.events == 0

            worker.process.send_signal(signal.SIGKILL)
            worker.process.wait()
            await events(ledger, 5)
            await until(lambda: other.progress.events == 5)
            assert all_applied(ledger, "quotas")
    finally:
        worker.end()


async def test_a_worker_told_to_stop_leaves_well(ledger: Ledger) -> None:
    worker = FollowerProcess(ledger.dsn, ledger.store.partitions, FOR_EVER)
    try:
        await asyncio.to_thread(worker.ready)
        assert administer(ledger, "select count(*) from follower_lease") == [(ledger.store.partitions,)]
        worker.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(worker.process.wait, 90) == 0
    finally:
        worker.end()
    assert administer(ledger, "select count(*) from follower_lease") == [(0,)]


@pytest.mark.parametrize("seed", range(2))
async def test_without_leases_two_followers_give_the_same_rows_as_one(ledger: Ledger, seed: int) -> None:
    careless = Pace(batch=20, poll=0.005, poll_idle=0.01, rest=0.001, retry=0.05, lease=0)
    async with following(ledger, Quotas(CODEC), pace=careless) as one, following(ledger, Quotas(CODEC), pace=careless) as two:
        for _ in range(5):
            await ledger.traffic(Random(seed), 80, ("anna", "boris"))
        await caught_up(ledger, one)
        await caught_up(ledger, two)
    with psycopg.connect(ledger.dsn) as conn:
        schema.create_tables(conn, PROJECTION, 2)
    await follow(ledger, Quotas(CODEC, 2))

    assert one.progress.events + two.progress.events == count_events(ledger)
    assert one.progress.lost + two.progress.lost > 0
    assert dump(ledger, 1) == dump(ledger, 2)


async def test_a_lease_made_before_the_clock_was_put_back_holds_up_nobody(ledger: Ledger) -> None:
    consumer = Counting()
    async with following(ledger, consumer, pace=FOR_EVER) as dying:
        await caught_up(ledger, dying)
        # As if its holder had died, and the clock had been put back by a day.
        administer(ledger, "update follower_lease set holder = gen_random_uuid(), until = until + interval '1 day'")
        dying.stop()
        await asyncio.sleep(0)
    assert administer(ledger, "select count(*) > 0 from follower_lease") == [(True,)]
    await events(ledger, 3)

    async with following(ledger, consumer, pace=FOR_EVER):
        await until(lambda: len(consumer.seen) == 3)


async def test_what_stands_still_is_fed_in_spite_of_a_lease(ledger: Ledger) -> None:
    await events(ledger, 3)
    consumer = Counting()
    pace = replace(QUICK, lease=1.0)
    async with following(ledger, consumer, pace=pace) as follower:
        await caught_up(ledger, follower)
        # Somebody holds the leases, keeps renewing them, and does nothing else.
        with psycopg.connect(ledger.dsn, autocommit=True) as holder:
            renew = "update follower_lease set holder = %s, until = clock_timestamp() + interval '1 second'"
            idle = uuid4()
            await events(ledger, 3)
            async with asyncio.timeout(60):
                while len(consumer.seen) < 6:
                    holder.execute(renew, (idle,))
                    await asyncio.sleep(0.01)


async def test_a_follower_with_nothing_to_feed_waits(ledger: Ledger) -> None:
    await events(ledger, 2)

    async def nobody(_: object) -> list[Counting]:
        return []

    follower = Follower(ledger.dsn, range(ledger.store.partitions), nobody, None, QUICK)
    task = asyncio.create_task(follower.run())
    await until(lambda: follower.health().ok)
    follower.stop()
    await task

    assert follower.lag() == {}
    assert follower.figures() == {}

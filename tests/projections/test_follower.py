"""What a follower does when something is wrong, and that it does not take the others along."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from structlog.testing import capture_logs

from domain.identity.tenants import TENANT, CreateTenant, tenant_stream
from eventstore.codec import Codec
from eventstore.requests import Item, Request
from projections.consumer import Connection, Recorded
from projections.follower import Follower, Pace
from projections.quotas import Quotas
from projections.tenants import Tenants, list_tenants
from tests.projections.conftest import CODEC, LIMITS, QUICK, Ledger, administer, caught_up, dump, follow, following, until
from tests.support.counting import Counting


def _saw(consumer: Counting, count: int) -> bool:
    return len(consumer.seen) >= count


def checkpoint(ledger: Ledger, consumer: str = "counting", partition: int | None = None) -> tuple[Any, ...]:
    place = ledger.partition if partition is None else partition
    (row,) = administer(ledger, "select position, stopped from checkpoint where partition = %s and consumer = %s", (place, consumer))
    return row


def disconnect_all(ledger: Ledger) -> None:
    others = "datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'"
    ended = administer(ledger, f"select pg_terminate_backend(pid) from pg_stat_activity where {others}")
    assert sum(told for (told,) in ended) >= 2, "one that is just leaving cannot be ended"


def elsewhere(ledger: Ledger) -> Ledger:
    """Another tenant, in another partition."""
    while True:
        other = Ledger(ledger.dsn, ledger.store, uuid4())
        if other.partition != ledger.partition:
            return other


async def reservations(ledger: Ledger, count: int) -> None:
    await ledger.set_limits("anna", *LIMITS[:1])
    for number in range(count - 1):
        await ledger.reserve("anna", f"r{number}")


async def test_events_come_once_in_order_and_without_gap(ledger: Ledger) -> None:
    other = elsewhere(ledger)
    await reservations(ledger, 25)
    await reservations(other, 12)
    consumer = Counting()

    follower = await follow(ledger, consumer, pace=Pace(batch=10, poll=0.02))
    again = await follow(ledger, consumer)

    for each, count in ((ledger, 25), (other, 12)):
        assert [position for partition, position in consumer.seen if partition == each.partition] == list(range(1, count + 1))
    assert follower.health().ok
    assert again.progress.events == 0
    assert set(again.lag().values()) == {0}


async def test_a_late_consumer_catches_up_and_then_shares_the_read(ledger: Ledger) -> None:
    await reservations(ledger, 30)
    await follow(ledger, Counting("early"))
    await ledger.reserve("anna", "more")
    early, late = Counting("early"), Counting("late")

    await follow(ledger, early, late, pace=Pace(batch=8, poll=0.02))

    assert [position for _, position in early.seen] == [31]
    assert [position for _, position in late.seen] == list(range(1, 32))


async def test_an_event_that_cannot_be_applied_stops_one_consumer_on_one_partition(ledger: Ledger) -> None:
    other = elsewhere(ledger)
    await reservations(ledger, 20)
    await reservations(other, 20)
    picky = Counting("picky", lambda row: row.position == 13 and row.tenant_id == ledger.tenant)
    easy = Counting("easy")

    with capture_logs() as logs:
        follower = await follow(ledger, picky, easy)

    position, stopped = checkpoint(ledger, "picky")
    assert position == 12
    assert "Position 13 (quota.reserved of quota-" in stopped
    assert "no taste for 13" in stopped
    assert checkpoint(ledger, "easy") == (20, None)
    assert checkpoint(ledger, "picky", other.partition) == (20, None)
    (halt,) = follower.health().halted
    assert (halt.consumer, halt.partition, halt.position, halt.recorded) == ("picky", ledger.partition, 12, True)
    assert not follower.health().ok
    assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == ["follower.poison", "follower.stopped"]


async def test_a_stopped_consumer_stays_stopped_until_it_is_released(ledger: Ledger) -> None:
    await reservations(ledger, 5)
    await follow(ledger, Counting(hates=lambda row: row.position == 3))
    fixed = Counting()

    async with following(ledger, fixed) as follower:
        await caught_up(ledger, follower)
        assert fixed.seen == []
        assert [halt.position for halt in follower.health().halted] == [2]

        administer(ledger, "update checkpoint set stopped = null")
        await until(lambda: follower.health().ok)
        await caught_up(ledger, follower)

    assert [position for _, position in fixed.seen] == [3, 4, 5]


async def test_a_gap_stops_the_partition(ledger: Ledger) -> None:
    other = elsewhere(ledger)
    await reservations(ledger, 10)
    await reservations(other, 10)
    administer(ledger, "delete from event where partition = %s and position = 6", (ledger.partition,))
    consumer = Counting()

    follower = await follow(ledger, consumer, Quotas(CODEC))

    assert [position for partition, position in consumer.seen if partition == ledger.partition] == [1, 2, 3, 4, 5]
    assert checkpoint(ledger, partition=other.partition) == (10, None)
    for name in ("counting", "quotas"):
        position, stopped = checkpoint(ledger, name)
        assert (position, stopped) == (5, f"Position 6 of partition {ledger.partition} is missing: the log is corrupt.")
    assert len(follower.health().halted) == 2


async def test_a_type_this_program_does_not_know_waits_for_one_that_does(ledger: Ledger) -> None:
    await reservations(ledger, 5)
    old_program = Quotas(Codec([TENANT]))

    follower = await follow(ledger, old_program)
    (halt,) = follower.health().halted
    assert "UnknownEventType" in halt.reason
    assert not halt.recorded
    assert checkpoint(ledger, "quotas") == (0, None)

    async with following(ledger, old_program) as old, following(ledger, Quotas(CODEC)) as new:
        await caught_up(ledger, new)
        await until(lambda: old.health().ok and not any(old.lag().values()))  # the newer one took what the older could not
    assert checkpoint(ledger, "quotas") == (5, None)


async def test_lost_connections_are_made_again(ledger: Ledger) -> None:
    await reservations(ledger, 5)
    consumer = Counting()
    async with following(ledger, consumer) as follower:
        await caught_up(ledger, follower)
        for number in range(3):
            disconnect_all(ledger)
            await ledger.reserve("anna", f"after {number}")
            await until(partial(_saw, consumer, 6 + number))

    assert [position for _, position in consumer.seen] == list(range(1, 9))


async def test_a_follower_that_begins_before_the_tables_are_there_waits_for_them(ledger: Ledger) -> None:
    await reservations(ledger, 3)
    administer(ledger, "alter table quota_1 rename to quota_away")

    async with following(ledger) as follower:
        await caught_up(ledger, follower)
        assert [halt.recorded for halt in follower.health().halted] == [False]
        administer(ledger, "alter table quota_away rename to quota_1")
        await until(lambda: follower.health().ok and not any(follower.lag().values()))

    assert len(dump(ledger)["quota_reservation"]) == 2


async def test_whoever_appends_wakes_the_follower(ledger: Ledger) -> None:
    consumer = Counting()
    asleep = Pace(poll=600, poll_idle=600, rest=0.001)
    follower = Follower(ledger.dsn, range(ledger.store.partitions), [consumer], ledger.store.waker, asleep)
    task = asyncio.create_task(follower.run())

    for count in (1, 2, 3):
        await ledger.set_limits(f"subject {count}", *LIMITS[:1])
        await until(partial(_saw, consumer, count))
    follower.stop()
    await task


async def test_tenants_are_listed_for_operators(ledger: Ledger) -> None:
    tenants = [uuid4() for _ in range(3)]
    for number, tenant in enumerate(tenants):
        command = CreateTenant(tenant_id=tenant, name=f"Tenant {number}", zone="Europe/Moscow")
        await ledger.store.submit(Request(tenant, uuid4(), (Item(TENANT, tenant_stream(tenant), command),), b"f"))

    await follow(ledger, Tenants(CODEC), Quotas(CODEC))
    found = await list_tenants(ledger.dsn)

    assert [(each.tenant_id, each.name, each.zone) for each in found] == [
        (tenant, f"Tenant {number}", "Europe/Moscow") for number, tenant in enumerate(tenants)
    ]


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_follower_told_to_stop_stops(ledger: Ledger, moment: str) -> None:
    follower = Follower(ledger.dsn, range(ledger.store.partitions), [Counting()], None, QUICK)
    if moment == "before":
        follower.stop()
    task = asyncio.create_task(follower.run())
    if moment == "after":
        await caught_up(ledger, follower)
        follower.stop()

    async with asyncio.timeout(60):
        await task


async def test_a_follower_told_to_stop_does_not_wait_for_a_database_that_is_not_there(database_dsn: str) -> None:
    follower = Follower("postgresql://nobody@127.0.0.1:1/nothing", range(4), [Counting()], None, QUICK)
    task = asyncio.create_task(follower.run())
    await asyncio.sleep(0.2)
    assert not task.done()
    follower.stop()

    async with asyncio.timeout(60):
        await task


async def test_a_follower_told_to_stop_finishes_its_batch_and_leaves_the_rest(ledger: Ledger) -> None:
    await reservations(ledger, 60)
    await reservations(elsewhere(ledger), 60)
    consumer = Counting()
    pace = Pace(batch=5, poll=0.01, rest=0.001, connections=1)
    follower = Follower(ledger.dsn, range(ledger.store.partitions), [consumer], None, pace)
    apply = consumer.apply

    async def apply_once(conn: Connection, partition: int, rows: Sequence[Recorded]) -> Callable[[], None]:
        follower.stop()
        return await apply(conn, partition, rows)

    consumer.apply = apply_once  # type: ignore[method-assign]  # it is told in the middle of its first batch
    async with asyncio.timeout(60):
        await follower.run()

    assert [position for _, position in consumer.seen] == [1, 2, 3, 4, 5]
    assert administer(ledger, "select sum(position) from checkpoint where consumer = 'counting'") == [(5,)]


async def test_a_stream_with_a_hole_is_not_folded(ledger: Ledger) -> None:
    await reservations(ledger, 5)
    administer(ledger, "update event set version = version + 1 where position = 5")

    await follow(ledger, Quotas(CODEC))

    position, stopped = checkpoint(ledger, "quotas")
    assert position == 4
    assert "goes to version 6 where 5 was to come" in stopped


async def test_a_checkpoint_held_by_a_paused_follower_holds_up_nobody_else(ledger: Ledger) -> None:
    other = elsewhere(ledger)
    await reservations(ledger, 5)
    await follow(ledger, Counting())
    await ledger.reserve("anna", "one more")
    await reservations(other, 5)
    consumer = Counting()

    with psycopg.connect(ledger.dsn) as paused:
        paused.execute("select from checkpoint where partition = %s for update", (ledger.partition,))
        async with following(ledger, consumer) as follower:
            await until(lambda: len(consumer.seen) == 5 and bool(follower.health().halted))
            (halt,) = follower.health().halted
            paused.rollback()
            await until(lambda: follower.health().ok and len(consumer.seen) == 6)

    assert (halt.partition, halt.recorded) == (ledger.partition, False)
    assert "LockNotAvailable" in halt.reason

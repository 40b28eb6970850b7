"""Which consumers a follower feeds: asked again and again, and from where they begin."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from uuid import uuid4

from projections.consumer import Connection, Consumer, Roster
from projections.follower import Follower
from tests.projections.conftest import LIMITS, QUICK, Ledger, administer, caught_up, count_events, follow, following, until
from tests.support.counting import Counting


async def events(ledger: Ledger, count: int) -> None:
    for _ in range(count):
        await ledger.set_limits(f"subject {uuid4()}", *LIMITS[:1])


@asynccontextmanager
async def asking(ledger: Ledger, roster: Roster) -> AsyncIterator[Follower]:
    follower = Follower(ledger.dsn, range(ledger.store.partitions), roster, None, QUICK)
    task = asyncio.create_task(follower.run())
    try:
        yield follower
    finally:
        follower.stop()
        await task


async def test_consumers_that_appear_are_begun_and_those_that_leave_are_dropped(ledger: Ledger) -> None:
    first, second = Counting("first"), Counting("second")
    present: list[Consumer] = [first]

    async def roster(_: Connection) -> Sequence[Consumer]:
        return list(present)

    await events(ledger, 5)
    async with asking(ledger, roster) as follower:
        await until(lambda: len(first.seen) == 5)
        present.append(second)
        await until(lambda: len(second.seen) == 5)
        present.remove(first)
        await until(lambda: set(follower.figures()) >= {"second"} and not _fed(follower, "first"))
        await events(ledger, 5)
        await until(lambda: len(second.seen) == 10)
        assert len(first.seen) == 5
        assert follower.health().ok

        present.append(first)
        await until(lambda: len(first.seen) == 10)

    assert first.positions(ledger.partition) == second.positions(ledger.partition) == list(range(1, 11))


def _fed(follower: Follower, name: str) -> bool:
    return any(consumer.name == name for consumer in follower._cursors.consumers)


async def test_one_made_anew_at_every_asking_goes_on_as_the_first(ledger: Ledger) -> None:
    made: list[Counting] = []

    async def roster(_: Connection) -> Sequence[Consumer]:
        made.append(Counting())
        return made[-1:]

    async with asking(ledger, roster):
        for count in (3, 6):
            await events(ledger, 3)
            await until(lambda count=count: sum(len(each.seen) for each in made) == count)  # type: ignore[misc]  # bound by default
            asked = len(made)
            await until(lambda asked=asked: len(made) > asked)  # type: ignore[misc]  # as above

    assert len(made[0].seen) == 6


async def test_a_roster_that_fails_is_asked_again(ledger: Ledger) -> None:
    consumer, failures = Counting(), [ValueError("not yet"), ValueError("not yet")]

    async def roster(_: Connection) -> Sequence[Consumer]:
        if failures:
            raise failures.pop()
        return [consumer]

    await events(ledger, 2)
    async with asking(ledger, roster):
        await until(lambda: len(consumer.seen) == 2)


async def test_one_that_starts_at_the_head_gets_what_comes_after_it_began(ledger: Ledger) -> None:
    await events(ledger, 5)
    first = Counting(starts_at_head=True)
    async with following(ledger, first) as follower:
        await caught_up(ledger, follower)
        await events(ledger, 2)
        await until(lambda: len(first.seen) == 2)
    await events(ledger, 2)
    again = Counting(starts_at_head=True)

    await follow(ledger, again)

    assert first.positions(ledger.partition) == [6, 7]
    assert again.positions(ledger.partition) == [8, 9]


async def test_two_that_begin_at_the_head_at_once_begin_at_one_place(ledger: Ledger) -> None:
    consumers = [Counting(starts_at_head=True) for _ in range(3)]

    async def write() -> None:
        while not any(consumer.seen for consumer in consumers):  # until they have begun, however long that takes
            await events(ledger, 1)
        await events(ledger, 30)

    writing = asyncio.create_task(write())
    async with following(ledger, consumers[0]), following(ledger, consumers[1]), following(ledger, consumers[2]) as last:
        await writing
        await caught_up(ledger, last)

    seen = sorted(position for consumer in consumers for position in consumer.positions(ledger.partition))
    assert seen == list(range(seen[0], count_events(ledger) + 1))


async def test_a_new_generation_is_fed_beside_the_old_one(ledger: Ledger) -> None:
    await events(ledger, 5)
    await follow(ledger, Counting(generation=1, version=1))
    newer = Counting(generation=2, version=2)

    await follow(ledger, Counting(generation=1, version=1), newer)

    assert newer.positions(ledger.partition) == [1, 2, 3, 4, 5]
    rows = administer(ledger, "select generation, position from checkpoint where partition = %s order by 1", (ledger.partition,))
    assert rows == [(1, 5), (2, 5)]

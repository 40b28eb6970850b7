"""A builder that is killed anywhere is gone on with, and nobody who reads or writes takes notice."""

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random

import psycopg
import pytest

from projections.follower import Follower
from projections.generations import Roster, all_generations
from projections.quota_queries import QuotaReader
from projections.quotas import PROJECTION
from projections.rebuilding import prove
from tests.projections.conftest import CODEC, QUICK, Ledger, administer, caught_up, dump
from tests.support.builder_process import POINTS, BuilderProcess

SUBJECTS = ("anna", "boris", "vera")


@asynccontextmanager
async def busy(ledger: Ledger, reader: QuotaReader) -> AsyncIterator[Callable[[], int]]:
    """The store with a follower, somebody who writes and somebody who reads; how many questions were answered so far."""
    done, reads, seen = asyncio.Event(), 0, 0
    query = """
        select coalesce(max(c.position), 0) from projection p left join checkpoint c
        on c.consumer = p.name and c.generation = p.generation and c.partition = %s where p.name = 'quotas'"""

    async def read() -> None:
        nonlocal reads, seen
        while not done.is_set():
            ((position,),) = await asyncio.to_thread(administer, ledger, query, (ledger.partition,))
            assert position >= seen, "a reader went back in time"
            seen = position
            assert await reader.list(ledger.tenant, ledger.now)
            reads += 1

    async def write() -> None:
        for seed in range(1_000_000):
            if done.is_set():
                return
            await ledger.traffic(Random(seed), 5, SUBJECTS)
            await asyncio.sleep(0.01)

    follower = Follower(ledger.dsn, range(ledger.store.partitions), Roster(CODEC, {"quotas": PROJECTION}), None, QUICK)
    following = asyncio.create_task(follower.run())
    try:
        await caught_up(ledger, follower)
        working = [asyncio.create_task(read()), asyncio.create_task(write())]
        try:
            yield lambda: reads
        finally:
            done.set()
            await asyncio.gather(*working)
        await caught_up(ledger, follower)
        assert follower.health().ok, follower.health()
    finally:
        follower.stop()
        await following


def known(ledger: Ledger) -> dict[int, str]:
    with psycopg.connect(ledger.dsn) as conn:
        return {each.generation: each.state for each in all_generations(conn) if each.name == "quotas"}


def answering(ledger: Ledger) -> int:
    ((generation,),) = administer(ledger, "select generation from projection where name = 'quotas'")
    return int(generation)


async def ended(process: BuilderProcess) -> int:
    return await asyncio.to_thread(process.ended)


async def proved(ledger: Ledger) -> bool:
    return (await prove(ledger.dsn, PROJECTION, CODEC, by="test")).equal


@pytest.mark.parametrize("point", [point for point in POINTS if point != "dropping"])
async def test_a_builder_killed_at_a_point_is_gone_on_with(ledger: Ledger, reader: QuotaReader, point: str) -> None:
    await ledger.traffic(Random(1), 300, SUBJECTS)
    turn = 3 if point in ("applied", "committed") else 1
    async with busy(ledger, reader) as reads:
        before = reads()
        assert await ended(BuilderProcess(ledger.dsn, point=point, turn=turn, range_events=40)) == -signal.SIGKILL
        assert answering(ledger) == (2 if point == "switched" else 1)
        if point == "committed":
            ((position,),) = administer(ledger, "select max(position) from checkpoint where consumer = 'quotas' and generation = 2")
            assert position == 120, "three ranges are done, and stay done"

        assert await ended(BuilderProcess(ledger.dsn)) == 0

        assert answering(ledger) == (3 if point == "switched" else 2), "the same generation was gone on with"
        assert reads() > before
        assert await proved(ledger)
    assert known(ledger) == ({1: "old", 2: "old", 3: "current"} if point == "switched" else {1: "old", 2: "current"})


@pytest.mark.parametrize("point", ["begun", "committed", "comparing", "dropping"])
async def test_a_proof_that_was_killed_is_gone_on_with_and_leaves_nothing(ledger: Ledger, reader: QuotaReader, point: str) -> None:
    await ledger.traffic(Random(2), 300, SUBJECTS)
    async with busy(ledger, reader):
        assert await ended(BuilderProcess(ledger.dsn, point=point, prove=True)) == -signal.SIGKILL
        assert known(ledger) == {1: "current", 2: "proof"}

        assert await ended(BuilderProcess(ledger.dsn, prove=True)) == 0

    assert known(ledger) == {1: "current"}
    assert administer(ledger, "select relname from pg_class where relname like 'quota%%\\_2'") == []
    assert administer(ledger, "select * from checkpoint where consumer = 'quotas' and generation = 2") == []


async def test_two_builders_one_of_which_is_killed(ledger: Ledger, reader: QuotaReader) -> None:
    await ledger.traffic(Random(3), 400, SUBJECTS)
    async with busy(ledger, reader):
        first = BuilderProcess(ledger.dsn, point="committed", turn=3, range_events=10)
        second = BuilderProcess(ledger.dsn, range_events=10)
        assert await ended(first) in (-signal.SIGKILL, 0), "the other one may have been so quick that nothing was left"
        assert await ended(second) == 0
        assert await proved(ledger)
    assert "current" in known(ledger).values()


async def test_builders_killed_again_and_again_at_any_moment(ledger: Ledger, reader: QuotaReader) -> None:
    await ledger.traffic(Random(4), 600, SUBJECTS)
    chance = random.Random(5)
    finished, killed = 0, 0
    async with busy(ledger, reader):
        async with asyncio.timeout(200):
            while killed < 6 or not finished:
                process = BuilderProcess(ledger.dsn, range_events=7)
                try:
                    await asyncio.wait_for(asyncio.to_thread(process.process.wait), chance.uniform(0.8, 2.5 + killed))
                    assert await ended(process) == 0
                    finished += 1
                except TimeoutError:
                    process.kill()
                    killed += 1
        assert await proved(ledger)
    generation = answering(ledger)
    states = known(ledger)
    assert states[generation] == "current"
    assert list(states.values()).count("current") == 1
    assert list(states.values()).count("building") <= 1
    assert len(dump(ledger, generation)["quota"]) == len(SUBJECTS)

"""The store itself, without HTTP: one process and two, spread out and on one hot stream, beside the library and the bare server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from statistics import median
from uuid import uuid4

from bench import library, member
from bench.rows import Measured, Row, rows
from bench.stage import Helper, Stage
from bench.traffic import Pick, Traffic, hot, together, uniform
from domain.quota import QUOTA
from eventstore.store import Store

HOT_OPEN = 1_000


@asynccontextmanager
async def opened(dsn: str) -> AsyncIterator[Store]:
    """A store with the product's own options."""
    store = await Store.open(dsn, [QUOTA])
    try:
        yield store
    finally:
        await store.drain()


def rates(found: Sequence[float], **more: object) -> dict[str, object]:
    """A detail entry for rates of commands a second."""
    return {"median": round(median(found)), "all": [round(rate) for rate in found], **more}


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Measured:
    """The ratio of the medians."""
    return Measured(median(ours) / median(theirs), {"ours": rates(ours), "theirs": rates(theirs)})


def driving(traffic: Traffic, pick: Pick, callers: int) -> Callable[[float], Awaitable[float]]:
    """The side that drives these callers."""

    async def side(seconds: float) -> float:
        return (await traffic.drive(pick, callers=callers, seconds=seconds)).rate

    return side


class Library:
    """The side of the `eventsourcing` library."""

    def __init__(self, dsn: str, threads: int) -> None:
        self._dsn, self._threads = dsn, threads
        self._rate = 200.0  # until it was measured

    async def side(self, seconds: float) -> float:
        """Its commands a second over about so many seconds."""
        commands = max(2 * self._threads, round(self._rate * seconds))
        self._rate = await asyncio.to_thread(library.library_rate, self._dsn, self._threads, commands)
        return self._rate


LIBRARY = "the library as in its tutorial"


@rows(
    Row("durable commands/s, one process, {callers:,} callers", f"{LIBRARY}, 8 threads", 15.0),
    Row("durable commands/s, one process, 32 callers", f"{LIBRARY}, 8 threads", 8.0),
)
async def one_process(stage: Stage) -> Sequence[Measured]:
    callers = stage.scale.callers
    with stage.database() as dsn, stage.database() as other:
        async with opened(dsn) as store:
            traffic = Traffic(store, uuid4(), max(callers, 32))
            await traffic.configure()
            theirs = Library(other, 8).side
            many, few, library_rates = await stage.in_turns(driving(traffic, uniform, callers), driving(traffic, uniform, 32), theirs)
    return [ratio(many, library_rates), ratio(few, library_rates)]


@rows(Row("durable commands/s, one process, {callers:,} callers, as rows", "the server's own insert of the same rows", 0.2))
async def ceiling(stage: Stage) -> Sequence[Measured]:
    callers = stage.scale.callers
    with stage.database() as dsn:
        async with opened(dsn) as store:
            traffic = Traffic(store, uuid4(), callers)
            await traffic.configure()

            async def ours(seconds: float) -> float:
                # Longer than elsewhere: into a small table the server inserts at a rate that nothing larger ever sees.
                return (await traffic.drive(uniform, callers=callers, seconds=2 * seconds)).rate

            async def theirs(_: float) -> float:
                return await asyncio.to_thread(library.ceiling, dsn)

            written, inserted = await stage.in_turns(ours, theirs)
    return [ratio(written, inserted)]


@rows(Row("one hot stream with 1,000 open reservations, one process", "each caller its own stream", 0.8))
async def hot_stream(stage: Stage) -> Sequence[Measured]:
    callers = stage.scale.callers
    with stage.database() as dsn:
        async with opened(dsn) as store:
            one, many = Traffic(store, uuid4(), 1), Traffic(store, uuid4(), callers)
            await one.configure()
            await many.configure()
            await one.leave_open(0, HOT_OPEN)
            ours, theirs = await stage.in_turns(driving(one, hot, callers), driving(many, uniform, callers))
    return [ratio(ours, theirs)]


@rows(Row("two processes on one hot stream with 1,000 open reservations, together", "one process on it", 1.0))
async def two_processes(stage: Stage) -> Sequence[Measured]:
    callers, tenant_id = stage.scale.callers, uuid4()
    errors = 0
    with stage.database() as dsn, Helper() as first, Helper() as second:
        async with opened(dsn) as store:
            traffic = Traffic(store, tenant_id, 1)
            await traffic.configure()
            await traffic.leave_open(0, HOT_OPEN)

        async def drive(seconds: float, *helpers: Helper) -> float:
            nonlocal errors
            starts = time.time() + stage.scale.lead_seconds
            work = [helper.call(member.hot_rate, dsn, tenant_id, callers, starts, seconds) for helper in helpers]
            done = together(await asyncio.gather(*work))
            errors += done.errors
            return done.rate

        both, alone = await stage.in_turns(lambda seconds: drive(seconds, first, second), lambda seconds: drive(seconds, first))
    found = ratio(both, alone)
    return [Measured(found.ratio, {**found.detail, "errors": errors}, f"{errors} errors reached callers" if errors else None)]


@rows(Row("one caller at a time", f"{LIBRARY}, 1 thread", 0.8))
async def one_caller(stage: Stage) -> Sequence[Measured]:
    with stage.database() as dsn, stage.database() as other:
        async with opened(dsn) as store:
            traffic = Traffic(store, uuid4(), 1)
            await traffic.configure()
            ours, theirs = await stage.in_turns(driving(traffic, uniform, 1), Library(other, 1).side)
    return [ratio(ours, theirs)]

"""What goes on beside the writing, and what it costs the writers: followers that read all of it, dumps, and old snapshots."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from uuid import uuid4

import psycopg

from bench.rows import Measured, Row, rows
from bench.server import PROJECT, surroundings
from bench.stage import Stage
from bench.store_rows import driving, opened, ratio
from bench.traffic import Traffic, uniform
from eventstore.embedded.binaries import bin_directory


@rows(Row("write rate with a worker process and every follower in it", "without", 0.6))
async def followed(stage: Stage) -> Sequence[Measured]:
    callers = stage.scale.callers
    with stage.database() as read, stage.database() as unread, _worker(read):
        async with opened(read) as store, opened(unread) as other:
            ours, theirs = Traffic(store, uuid4(), callers), Traffic(other, uuid4(), callers)
            await ours.configure()
            await theirs.configure()
            most = 0

            async def with_followers(seconds: float) -> float:
                nonlocal most
                rate = await driving(ours, uniform, callers)(seconds)
                most = max(most, await _behind(read))
                await _caught_up(read)  # or what is left to do would slow down the other side
                return rate

            found = ratio(*await stage.in_turns(with_followers, driving(theirs, uniform, callers)))
    return [Measured(found.ratio, {**found.detail, "most_events_behind": most})]


@contextmanager
def _worker(dsn: str) -> Iterator[None]:
    """``holdbook worker`` on that store."""
    arguments = [sys.executable, "-m", "api.cli", "worker"]
    with subprocess.Popen(arguments, env=surroundings(dsn), cwd=PROJECT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if not process.stdout.readline():
                raise RuntimeError(f"the worker did not start: it ended with {process.wait()}")
            yield
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


async def _caught_up(dsn: str) -> None:
    while await _behind(dsn):  # noqa: ASYNC110  # it is another process that works
        await asyncio.sleep(0.05)


async def _behind(dsn: str) -> int:
    """How many events the slowest consumer has not seen."""
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        cursor = await connection.execute("""
            select coalesce(max(e.position - c.position), 0) from checkpoint c join lateral
              (select max(position) as position from event where partition = c.partition) e on e.position is not null""")
        row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


@rows(
    Row("write rate while a snapshot is held open for {beside_seconds:g} s", "without", 0.9),
    Row("write rate while pg_dump runs for {beside_seconds:g} s", "without", 0.9),
)
async def long_readers(stage: Stage) -> Sequence[Measured]:
    callers, seconds = stage.scale.callers, stage.scale.beside_seconds
    with stage.database() as dsn:
        async with opened(dsn) as store:
            traffic = Traffic(store, uuid4(), callers)
            await traffic.configure()
            drive = driving(traffic, uniform, callers)
            await drive(stage.scale.warm_seconds)
            # The log grows all the while, so the side without is measured before and after, and in between.
            alone = [await drive(seconds)]
            async with _snapshot(dsn):
                held = await drive(seconds)
            alone.append(await drive(seconds))
            async with _dumping(dsn) as dumps:
                dumped = await drive(seconds)
            alone.append(await drive(seconds))
    while_held, while_dumped = ratio([held], alone[:2]), ratio([dumped], alone[1:])
    return [while_held, Measured(while_dumped.ratio, {**while_dumped.detail, "dumps_ended": sum(dumps)})]


@asynccontextmanager
async def _snapshot(dsn: str) -> AsyncIterator[None]:
    """A transaction that nothing dead may be removed for."""
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        await connection.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
        await connection.execute("select count(*) from log_partition")
        yield


@asynccontextmanager
async def _dumping(dsn: str) -> AsyncIterator[list[bool]]:
    """One pg_dump after the other, at the least priority, as a backup would be."""
    ended: list[bool] = []
    stop = asyncio.Event()

    async def dump() -> None:
        while not stop.is_set():
            process = await asyncio.create_subprocess_exec(
                str(Path(bin_directory()) / "pg_dump"),
                *("--format=custom", "--compress=none", "--no-sync", dsn),
                stdout=subprocess.DEVNULL,
                preexec_fn=_humble,
            )
            asked = asyncio.create_task(stop.wait())
            await asyncio.wait([asked, ending := asyncio.create_task(process.wait())], return_when=asyncio.FIRST_COMPLETED)
            asked.cancel()
            ended.append(ended_by_itself := ending.done())
            if not ended_by_itself:
                process.terminate()
            if await ending and ended_by_itself:
                raise RuntimeError(f"pg_dump ended with {process.returncode}")

    task = asyncio.create_task(dump())
    try:
        yield ended
    finally:
        stop.set()
        await task


def _humble() -> None:
    os.nice(19)

"""Whether a long log slows writing down."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from uuid import UUID, uuid4

import psycopg

from bench import member
from bench.rows import Measured, Row, rows
from bench.stage import Helper, Stage
from bench.store_rows import driving, opened, ratio
from bench.traffic import Traffic, uniform

EVENTS_OF_AN_ACCOUNT = 100
FILLING_CALLERS = 1_000


@rows(Row("write rate with {filled:,} events in the store", "the empty store", 0.8))
async def long_log(stage: Stage) -> Sequence[Measured]:
    callers, tenant_id = stage.scale.callers, uuid4()
    accounts = max(callers, stage.scale.filled // EVENTS_OF_AN_ACCOUNT)
    with stage.database() as long, stage.database() as empty:
        stage.say(f"writing {stage.scale.filled:,} events")
        await _fill(long, tenant_id, accounts, stage.scale.filled)
        events = _settle(long)
        async with opened(long) as store, opened(empty) as other:
            ours, theirs = Traffic(store, tenant_id, callers), Traffic(other, tenant_id, callers)
            await theirs.configure()
            measured = ratio(*await stage.in_turns(driving(ours, uniform, callers), driving(theirs, uniform, callers)))
    return [Measured(measured.ratio, {**measured.detail, "events": events})]


async def _fill(dsn: str, tenant_id: UUID, accounts: int, events: int) -> None:
    """A log such as clients write it, one command after the other, by two processes."""
    async with opened(dsn) as store:
        await Traffic(store, tenant_id, accounts).configure()
    callers, commands = min(FILLING_CALLERS, accounts // 2), (events - accounts) // 2
    with Helper() as first, Helper() as second:
        work = [helper.call(member.fill, dsn, tenant_id, accounts, callers, commands) for helper in (first, second)]
        await asyncio.gather(*work)


def _settle(dsn: str) -> int:
    """What autovacuum would do soon, done before anything is measured; returns how many events there are."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("vacuum analyze event")
        row = connection.execute("select count(*) from event").fetchone()
    assert row is not None
    return int(row[0])

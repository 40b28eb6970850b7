"""Whether the quota view keeps up with what arrives."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import psycopg

from bench import site
from bench.http_rows import BATCH, complaint
from bench.load import Loaded, load
from bench.rows import Measured, Row, rows
from bench.server import running
from bench.stage import Helper, Stage
from eventstore.store import partition_of
from projections import quotas

SAMPLE_SECONDS = 0.05
BATCH_SIZE = 10
_BEHIND = """
select (select position from event where partition = %(partition)s order by position desc limit 1),
       (select min(c.position) from checkpoint c join projection p on p.name = c.consumer and p.generation = c.generation
        where c.partition = %(partition)s and c.consumer = %(consumer)s)"""


@rows(Row("one second of traffic, {view_commands:,} commands/s", "the most the quota view was behind", 1.0))
async def view_keeps_up(stage: Stage) -> Sequence[Measured]:
    wanted = stage.scale.view_commands
    with stage.database() as dsn:
        place = await site.found(dsn)
        partition = partition_of(place.tenant_id, _partitions(dsn))
        with running(dsn, "up") as port, Helper() as helper:
            asked = place.batch(BATCH, "reserve", "consume", size=BATCH_SIZE, atomic=False)
            for seconds in (0.1, stage.scale.view_seconds):  # the first writes prepare statements and fill caches
                stage.say(f"watching for {seconds:g} seconds")
                arriving = helper.call(load, port, asked, site.CONNECTIONS, seconds, wanted / BATCH_SIZE)
                loaded, most = await _watched(dsn, partition, asyncio.ensure_future(arriving))
    detail = {
        "ours": {"median": wanted, "unit": " commands"},
        "theirs": {"median": most, "unit": " commands"},
        "arrived": round(loaded.rate),
    }
    broken = complaint([loaded]) or (f"only {loaded.rate:.0f} commands/s arrived" if loaded.rate < 0.95 * wanted else None)
    return [Measured(wanted / max(most, 1), detail, broken)]


async def _watched(dsn: str, partition: int, arriving: asyncio.Future[Loaded]) -> tuple[Loaded, int]:
    """The load, and how many commands the view was behind at most while it went on. Each command here makes one event."""
    most = 0
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        while not arriving.done():
            cursor = await connection.execute(_BEHIND, {"partition": partition, "consumer": quotas.NAME})
            row = await cursor.fetchone()
            assert row is not None
            most = max(most, row[0] - (row[1] or 0))
            await asyncio.sleep(SAMPLE_SECONDS)
    return await arriving, most


def _partitions(dsn: str) -> int:
    with psycopg.connect(dsn) as connection:
        row = connection.execute("select partitions from store").fetchone()
    assert row is not None
    return int(row[0])

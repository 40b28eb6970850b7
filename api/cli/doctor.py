"""``holdbook doctor``: is everything as it should be?"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import typer
from rich.table import Table

from api.cli.common import Database, database, out, settings, told
from api.settings import Settings
from eventstore.embedded import data_directory
from eventstore.errors import WrongSchema
from eventstore.postgres import PostgresLog, open_pool
from eventstore.rows import GENESIS, first_broken
from eventstore.schema import check

SAMPLE = 1_000


def doctor() -> None:
    """Check the server's settings, schema, clock, disk, read models, and a sample of each log's end; 1 when something is wrong."""
    chosen = settings()
    table = Table("check", "", "found")
    wrong = False
    with told(), database(chosen) as found:
        for name, examine in CHECKS.items():
            for well, said in _examined(examine, found, chosen):
                wrong = wrong or not well
                table.add_row(name, "[green]ok" if well else "[red]wrong", said)
    out.print(table)
    raise typer.Exit(int(wrong))


Finding = tuple[bool, str]

_AHEAD = """
select extract(epoch from max(last.recorded_at) - clock_timestamp())::float from log_partition p
cross join lateral (select recorded_at from event e where e.partition = p.partition order by position desc limit 1) last"""


def _examined(examine: Callable[[Database, Settings], Iterator[Finding]], found: Database, chosen: Settings) -> list[Finding]:
    try:
        return list(examine(found, chosen))
    except (psycopg.Error, WrongSchema, OSError) as error:
        return [(False, f"{type(error).__name__}: {error}".splitlines()[0])]


def _server(found: Database, _: Settings) -> Iterator[Finding]:
    with psycopg.connect(found.dsn, autocommit=True) as conn:
        version = conn.info.server_version
        note = "" if version >= 170_000 else " (before 17 a process that is stopped under a partition's lock keeps it)"
        yield version >= 150_000, f"PostgreSQL {version // 10000}.{version % 10000}{note}"
        for name in ("fsync", "full_page_writes", "synchronous_commit"):
            value = _one(conn, f"show {name}")
            yield value != "off", f"{name} = {value}"
        size = int(_one(conn, "select setting from pg_settings where name = 'max_wal_size'"))
        yield True, f"max_wal_size = {size} MB" + ("" if size >= 8192 else " (8 GB or more keeps checkpoints out of the way)")


def _schema(found: Database, _: Settings) -> Iterator[Finding]:
    yield True, f"{check(found.dsn)} partitions"


def _clock(found: Database, _: Settings) -> Iterator[Finding]:
    with psycopg.connect(found.dsn, autocommit=True) as conn:
        before = datetime.now(UTC)
        theirs = _one(conn, "select clock_timestamp()")
        middle = before + (datetime.now(UTC) - before) / 2
        apart = abs((theirs - middle).total_seconds())
        yield apart < 1, f"the server's clock is {apart * 1000:.0f} ms from ours"
        ahead = _one(conn, _AHEAD) or 0.0
        yield ahead < 1, "no event is from the future" if ahead < 1 else f"the last event is {ahead:.0f} s ahead of the clock"


def _log(found: Database, _: Settings) -> Iterator[Finding]:
    checked, broken = asyncio.run(_sample(found.dsn))
    yield not broken, f"{checked} events hashed, the chain holds" if not broken else "; ".join(broken)


async def _sample(dsn: str) -> tuple[int, list[str]]:
    """Hash the end of every partition's log again."""
    pool = await open_pool(dsn, size=1)
    try:
        async with pool.connection() as conn:
            partitions = [row[0] for row in await (await conn.execute("select partition from log_partition order by 1")).fetchall()]
        checked, broken = 0, []
        for partition in partitions:
            log = PostgresLog(pool, partition)
            head, _ = await log.head()
            rows = await log.read(max(0, head - SAMPLE - 1), SAMPLE + 1)
            previous = GENESIS
            if rows and rows[0].position > 1:
                previous, rows = rows[0].hash, rows[1:]
            bad = first_broken(partition, rows, rows[0].position - 1, previous, await log.leaves(rows)) if rows else None
            checked += len(rows)
            if bad is not None:
                broken.append(f"partition {partition} is broken at position {bad}")
        return checked, broken
    finally:
        await pool.close()


_FED = """(
  select c.* from checkpoint c left join projection_generation g on g.name = c.consumer and g.generation = c.generation
  where coalesce(g.state, 'current') = 'current') fed"""
"""Old generations are not fed any more, and those that are being built have a builder of their own."""
_STOPPED = f"select partition, consumer, stopped from {_FED} where stopped is not null order by consumer, partition"


def _projections(found: Database, _: Settings) -> Iterator[Finding]:
    with psycopg.connect(found.dsn, autocommit=True) as conn:
        for partition, consumer, reason in conn.execute(_STOPPED):
            yield False, f"{consumer} stopped in partition {partition}: {reason}"
        behind = _one(
            conn,
            "select coalesce(sum(greatest(0, h.head - coalesce(c.position, 0))), 0)::bigint from "
            "(select partition, max(position) as head from event group by partition) h "
            f"left join (select partition, min(position) as position from {_FED} group by partition) c using (partition)",
        )
        yield True, f"{behind} events behind the log"


def _disk(found: Database, chosen: Settings) -> Iterator[Finding]:
    if found.server is not None:
        free = shutil.disk_usage(data_directory(chosen.data)).free
        yield free > 2**30, f"{free / 2**30:.1f} GiB free"
    with psycopg.connect(found.dsn, autocommit=True) as conn:
        yield True, f"the database takes {_one(conn, 'select pg_size_pretty(pg_database_size(current_database()))')}"


CHECKS: dict[str, Callable[[Database, Settings], Iterator[Finding]]] = {
    "server": _server, "schema": _schema, "clock": _clock, "log": _log, "read models": _projections, "disk": _disk,
}  # fmt: skip


def _one(conn: psycopg.Connection[Any], query: str) -> Any:
    row = conn.execute(query).fetchone()
    return row[0] if row else None

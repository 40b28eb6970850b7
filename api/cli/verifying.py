"""``holdbook verify``: everything that is kept agrees with the log, and the log with itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import psycopg
import typer
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from api.cli.common import database, err, fail, out, settings, told
from api.cli.rebuilding import problems, shown
from domain.catalog import DECIDERS
from eventstore import verifying
from eventstore.codec import Codec
from eventstore.errors import CorruptLog, UnknownEventType, WrongSchema
from eventstore.schema import check
from projections.building import CannotBuild
from projections.catalog import PROJECTIONS
from projections.checking import has_registry, registry
from projections.rebuilding import Outdated, Report, prove, turn


def verify(
    log_only: Annotated[
        bool, typer.Option("--log-only", help="Leave out the read models: nothing is written then, and it is much quicker.")
    ] = False,
) -> None:
    """Prove that the log is whole and that everything kept beside it follows from it. Ends with 1 and says what is broken.

    Checks each partition's positions, hashes and stream versions, each snapshot, which generations answer, and, by building each read
    model anew beside the one that answers and comparing both, every row of every read model. Reading and writing go on.
    """
    chosen = settings()
    with told(), database(chosen) as (dsn, _):
        partitions = check(dsn)
        wrong = asyncio.run(_log(dsn, partitions))
        if not log_only:
            wrong += asyncio.run(_read_models(dsn))
    for line in wrong:
        err.print(line, soft_wrap=True, highlight=False, markup=False)
    if wrong:
        fail(f"{len(wrong)} thing{'s are' if len(wrong) > 1 else ' is'} broken.")
    out.print("The log is whole" + ("." if log_only else ", and the read models are its fold."), highlight=False)


async def _log(dsn: str, partitions: int) -> list[str]:
    async with _connected(dsn) as conn:
        heads = {partition: await verifying.head(conn, partition) for partition in range(partitions)}
        wrong = await verifying.elsewhere(conn, partitions)
    with shown("log") as report:
        report.expect(sum(heads.values()))
        for partition, upto in heads.items():
            wrong += [f"partition {partition}: {said}" for said in await _partition(dsn, partition, partitions, upto, report)]
    return wrong


async def _partition(dsn: str, partition: int, partitions: int, upto: int, report: Report) -> list[str]:
    async with _connected(dsn) as conn:
        report.say(f"partition {partition}: chain")
        wrong = await verifying.chain(conn, partition, partitions, upto, report.advance)
    async with _connected(dsn) as conn:
        report.say(f"partition {partition}: streams")
        wrong += await verifying.streams(conn, partition, upto)
        if not wrong:  # a snapshot is compared with a fold, and there is none of a log that is broken
            report.say(f"partition {partition}: snapshots")
            wrong += await verifying.snapshots(conn, partition, Codec(DECIDERS))
    return wrong


@asynccontextmanager
async def _connected(dsn: str) -> AsyncIterator[AsyncConnection[TupleRow]]:
    async with await AsyncConnection.connect(dsn, autocommit=True, options=verifying.OPTIONS) as conn:
        yield conn


async def _read_models(dsn: str) -> list[str]:
    wrong = []
    codec = Codec(DECIDERS)
    async with await AsyncConnection.connect(dsn, autocommit=True) as conn:
        if not await has_registry(conn):
            raise WrongSchema("The read models are of an earlier release.")
    for name, projection in PROJECTIONS.items():
        async with await AsyncConnection.connect(dsn, autocommit=True) as conn:
            broken = await registry(conn, projection)
        if broken:
            wrong += broken
            continue
        with shown(name) as report:
            try:
                async with turn(dsn, name):
                    wrong += problems(await prove(dsn, projection, codec, by="verify", report=report))
            except (CannotBuild, Outdated, CorruptLog, UnknownEventType, psycopg.errors.UndefinedTable) as error:
                wrong.append(f"{name}: {error}")
    return wrong

"""Building a read model anew, beside merely reading and decoding the same events, and whether its memory grows with the log."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Sequence
from uuid import UUID, uuid4

import psycopg
import uvloop
from psycopg import AsyncConnection

from api.server import collect_less_often
from bench import member
from bench.rows import Measured, Row, rows
from bench.stage import Helper, Stage
from bench.store_rows import opened, ratio
from bench.traffic import Traffic
from domain.catalog import DECIDERS
from eventstore.codec import Codec
from projections import generations, schema
from projections.building import OPTIONS, Builder, Effort
from projections.copying import ahead
from projections.quotas import PROJECTION

_TENANTS = 4
_ACCOUNTS = 2_500
_CALLERS = 500
_ROUNDS = 3
_PARTS = 20


@rows(
    Row("rebuild of the quota view from {rebuilt:,} events", "merely reading and decoding them by COPY", 0.35),
    Row("peak memory of a rebuild at a quarter of {rebuilt:,} events", "at their end", 0.9),
)
async def rebuilt(stage: Stage) -> Sequence[Measured]:
    events = stage.scale.rebuilt
    with stage.database() as dsn:
        stage.say(f"writing {events:,} events")
        await _fill(dsn, events)
        built, read = list[float](), list[float]()
        for turn in range(min(_ROUNDS, stage.scale.rounds)):
            stage.say(f"round {turn + 1} of {_ROUNDS}")
            with Helper() as helper:  # a process of its own for each: nothing is warm, and nobody else's memory counts
                read.append(await helper.call(reading_rate, dsn))
                built.append(await helper.call(building_rate, dsn))
        stage.say("memory")
        with Helper() as helper:
            quarter, whole = await helper.call(peak_memory, dsn, max(1, events // _PARTS))
    kilobytes = {"ours": {"median": quarter, "unit": " KB"}, "theirs": {"median": whole, "unit": " KB"}}
    return [ratio(built, read), Measured(quarter / whole, kilobytes)]


async def _fill(dsn: str, events: int) -> None:
    """Reservations that are made and committed, on accounts in turn, of a few tenants."""
    for _ in range(_TENANTS):
        tenant_id = uuid4()
        share = events // _TENANTS
        accounts = max(2, min(_ACCOUNTS, share // 10))
        async with opened(dsn) as store:
            await Traffic(store, tenant_id, accounts).configure()
        with Helper() as helper:
            await helper.call(_fill_tenant, dsn, tenant_id, accounts, share - accounts)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("vacuum analyze event")


def _fill_tenant(dsn: str, tenant_id: UUID, accounts: int, commands: int) -> int:
    return member.fill(dsn, tenant_id, accounts, min(_CALLERS, max(1, accounts // 2)), commands)


def reading_rate(dsn: str) -> float:
    """Events a second that are read by COPY, as a builder gets them, and decoded."""

    async def main() -> float:
        codec, count = Codec(DECIDERS), 0
        async with await AsyncConnection.connect(dsn, autocommit=True, options=OPTIONS) as conn:
            heads = await (await conn.execute("select partition, max(position) from event group by partition")).fetchall()
            began = time.perf_counter()
            for partition, head in heads:
                async with ahead(conn, partition, 0, head) as chunks:
                    async for found in chunks:
                        for row in found:
                            codec.decode(row.type, row.payload)
                        count += len(found)
            return count / (time.perf_counter() - began)

    collect_less_often()
    return uvloop.run(main())


def building_rate(dsn: str) -> float:
    """Events a second from nothing to a generation with everything in it, indexes included. The generation is dropped again."""
    return _built(dsn, Effort())[0]


def peak_memory(dsn: str, range_events: int) -> tuple[int, int]:
    """Kilobytes that the process has taken at most after a quarter of the events, and after all of them."""
    return _built(dsn, Effort(range_events=range_events))[1]


def _built(dsn: str, effort: Effort) -> tuple[float, tuple[int, int]]:
    async def main() -> tuple[float, tuple[int, int]]:
        began, count, quarter, whole = time.perf_counter(), 0, 0, 0

        def advanced(events: int) -> None:
            nonlocal count, quarter
            count += events
            if not quarter and 4 * count >= whole:
                quarter = _peak()

        made = await asyncio.to_thread(generations.begin, dsn, PROJECTION, "proof", "bench")
        async with Builder.open(dsn, PROJECTION, made, Codec(DECIDERS), effort, advanced) as builder:
            heads = await builder.heads()
            whole = sum(heads.values())
            await builder.advance(heads)
        with psycopg.connect(dsn) as conn:
            schema.create_indexes(conn, PROJECTION, made.generation)
        took, peak = time.perf_counter() - began, _peak()
        await asyncio.to_thread(generations.drop, dsn, PROJECTION.name, made.generation)
        return whole / took, (quarter, peak)

    collect_less_often()
    return uvloop.run(main())


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

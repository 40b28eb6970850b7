"""Reading the log by COPY says what reading it by SELECT says, and never runs far ahead of whoever folds it."""

import asyncio
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection

from eventstore.copying import copied
from eventstore.errors import CorruptLog
from projections import copying
from projections.building import OPTIONS
from projections.consumer import RECORDED, Recorded
from projections.copying import ahead, ranged
from tests.projections.conftest import Ledger, administer, count_events, until


@pytest.fixture
async def conn(ledger: Ledger) -> AsyncIterator[AsyncConnection[Any]]:
    async with await AsyncConnection.connect(ledger.dsn, autocommit=True, options=OPTIONS) as connection:
        yield connection


async def read(conn: AsyncConnection[Any], ledger: Ledger, after: int, upto: int, chunk: int) -> list[Recorded]:
    return [row async for rows in ranged(conn, ledger.partition, after, upto, chunk) for row in rows]


@pytest.mark.parametrize("range_events", [1, 7, 100_000])
async def test_what_is_copied_is_what_is_selected(
    ledger: Ledger, conn: AsyncConnection[Any], monkeypatch: pytest.MonkeyPatch, range_events: int
) -> None:
    monkeypatch.setattr(copying, "_RANGE_EVENTS", range_events)
    await ledger.traffic(Random(1), 150, ("anna", "Жанна", "o'neil\t\\N"))
    head = count_events(ledger)
    query = f"select {RECORDED} from event where partition = %s order by position"
    selected = await (await conn.execute(query, (ledger.partition,), binary=True)).fetchall()

    assert await read(conn, ledger, 0, head, 1_000) == selected
    assert await read(conn, ledger, 0, head, 3) == selected
    assert await read(conn, ledger, 20, 50, 11) == selected[20:50]
    assert await read(conn, ledger, head, head, 11) == []


@pytest.mark.parametrize("missing", [1, 30, 31, 60])
async def test_a_missing_position_is_told(ledger: Ledger, conn: AsyncConnection[Any], missing: int) -> None:
    await ledger.set_limits("anna")
    for number in range(70):
        await ledger.reserve("anna", f"r{number}")
    administer(ledger, "delete from event where partition = %s and position = %s", (ledger.partition, missing))

    with pytest.raises(CorruptLog, match=f"Position {missing} of"):
        await read(conn, ledger, 0, 60, 10)


async def test_an_error_in_the_middle_is_raised(conn: AsyncConnection[Any]) -> None:
    query = "select 1000 / (n - 5000) from generate_series(1, 9000) n"

    with pytest.raises(psycopg.errors.DivisionByZero):
        _ = [row async for rows in copied(conn, query, ("int4",)) for row in rows]
    assert await (await conn.execute("select 1")).fetchone() == (1,), "the connection is as good as before"


async def test_reading_ahead_stops_when_nobody_follows(ledger: Ledger, conn: AsyncConnection[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "_AHEAD", 3)
    made = 0
    make = Recorded._make

    def counted(row: Any) -> Recorded:
        nonlocal made
        made += 1
        return make(row)

    monkeypatch.setattr(Recorded, "_make", counted)
    await ledger.set_limits("anna")
    await asyncio.gather(*(ledger.reserve("anna", f"r{number}") for number in range(200)))

    async with ahead(conn, ledger.partition, 0, 200, 10) as chunks:
        got = len(await anext(chunks))
        await until(lambda: made >= 40)
        for _ in range(50):
            await asyncio.sleep(0.001)
        waiting = made
        async for rows in chunks:
            got += len(rows)

    assert waiting <= 60, "three chunks wait, one is taken, one is on its way"
    assert got == 200


async def test_leaving_early_leaves_no_copy_behind(ledger: Ledger, conn: AsyncConnection[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "_AHEAD", 1)
    await ledger.set_limits("anna")
    await asyncio.gather(*(ledger.reserve("anna", f"r{number}") for number in range(200)))

    async with ahead(conn, ledger.partition, 0, 200, 5) as chunks:
        await anext(chunks)

    assert conn.closed


async def test_what_goes_wrong_while_reading_is_raised_where_it_is_awaited(ledger: Ledger, conn: AsyncConnection[Any]) -> None:
    await ledger.set_limits("anna")

    async with ahead(conn, ledger.partition, 0, 9) as chunks:
        assert [row.position for row in await anext(chunks)] == [1]
        with pytest.raises(CorruptLog, match="Position 2 of"):
            await anext(chunks)

"""Batches so long that the server inserts their first rows while the last ones are still being decided."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from eventstore import deciding, writer
from eventstore.postgres import PostgresBatch
from eventstore.rows import Row, leaf_hash
from eventstore.store import Store
from eventstore.writer import Outcome, Request
from tests.support.till import Break, Open, Take
from tests.support.worlds import MemoryWorld, PostgresWorld, World, ask, broken

HOT = "till-hot"
MANY = 900
UNHURRIED = writer.Options(decide_seconds=600.0)
"""However slow the machine is, a batch is not cut short because deciding it takes too long."""


@pytest.fixture(params=["memory", "postgres"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    made: World = MemoryWorld() if request.param == "memory" else PostgresWorld(request.getfixturevalue("database_dsn"))
    yield made
    await made.close()


@pytest.fixture
async def real(database_dsn: str) -> AsyncIterator[PostgresWorld]:
    made = PostgresWorld(database_dsn)
    yield made
    await made.close()


async def many(store: Store) -> list[tuple[Request, Outcome | BaseException]]:
    """So many takes at once that all of them are one batch, of which half find room."""
    await store.submit(ask((HOT, Open(room=MANY // 2))))
    requests = [ask((HOT, Take(take_id=f"take-{number}"))) for number in range(MANY)]
    answers = await asyncio.gather(*(store.submit(request) for request in requests), return_exceptions=True)
    return list(zip(requests, answers, strict=True))


def all_there_once(world: World, answered: list[tuple[Request, Outcome | BaseException]]) -> None:
    rows = world.rows()
    firsts = {row.command_id: row for row in rows}
    assert len(firsts) == len(rows) == MANY + 1
    assert broken(world) is None
    for request, answer in answered:
        assert isinstance(answer, Outcome)
        assert (firsts[request.command_id].reply or "").encode() == answer.reply
        assert (firsts[request.command_id].type == "command.refused") is answer.refused
    assert sum(isinstance(answer, Outcome) and answer.refused for _, answer in answered) == MANY // 2


async def test_all_rows_of_a_long_batch_are_there_in_order(world: World) -> None:
    store = await world.open(UNHURRIED)
    answered = await many(store)

    all_there_once(world, answered)
    assert store.stats().batches <= 3, "not one batch"


async def test_more_than_one_statement_carries_a_long_batch(real: PostgresWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    send = PostgresBatch.send

    async def counted(batch: PostgresBatch, rows: Sequence[Row]) -> None:
        sent.append(len(rows))
        await send(batch, rows)

    monkeypatch.setattr(PostgresBatch, "send", counted)
    answered = await many(await real.open(UNHURRIED))

    all_there_once(real, answered)
    assert sent == [1, 250, 250, 250, 150]


@pytest.mark.parametrize("turn", [0, 1, 2, 3])
async def test_a_session_lost_between_two_statements_of_a_batch_leaves_nothing_of_it(
    real: PostgresWorld, monkeypatch: pytest.MonkeyPatch, turn: int
) -> None:
    store = await real.open(UNHURRIED)
    send, turns = PostgresBatch.send, iter(range(1_000))
    await store.submit(ask(("till-other", Open(room=1))))

    async def dying(batch: PostgresBatch, rows: Sequence[Row]) -> None:
        if next(turns) == turn:
            real.admin.execute("select pg_terminate_backend(%s)", (batch._conn.info.backend_pid,))
        await send(batch, rows)

    monkeypatch.setattr(PostgresBatch, "send", dying)
    requests = [ask(("till-other", Take(take_id=f"take-{number}"))) for number in range(MANY)]
    answers = await asyncio.gather(*(store.submit(request) for request in requests))

    rows = real.rows()
    assert len(rows) == MANY + 1
    assert broken(real) is None
    assert sum(not answer.refused for answer in answers) == 1
    assert next(turns) > 4, "the batch was sent again"


async def test_a_row_that_the_server_refuses_in_the_first_statement_fails_alone(real: PostgresWorld) -> None:
    store = await real.open(UNHURRIED)
    await store.submit(ask((HOT, Open(room=MANY))))
    real.admin.execute("alter table event add check (payload::text not like '%bad%')")
    requests = [ask((HOT, Take(take_id=f"take-{number}"))) for number in range(MANY)]
    requests[10] = ask((HOT, Take(take_id="bad")))

    answers = await asyncio.gather(*(store.submit(request) for request in requests), return_exceptions=True)

    assert isinstance(answers[10], psycopg.errors.CheckViolation)
    assert [number for number, answer in enumerate(answers) if isinstance(answer, BaseException)] == [10]
    assert len(real.rows()) == MANY
    assert broken(real) is None


async def test_a_decider_that_fails_after_rows_were_sent_fails_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_SENT_AT_ONCE", 5)
    store = await world.open()
    await store.submit(ask((HOT, Open(room=100))))
    requests = [ask((HOT, Break() if number == 30 else Take(take_id=str(number))), key=uuid4()) for number in range(60)]
    answers = await asyncio.gather(*(store.submit(request) for request in requests), return_exceptions=True)

    assert [number for number, answer in enumerate(answers) if isinstance(answer, BaseException)] == [30]
    assert len(world.rows()) == 60
    assert broken(world) is None


async def test_a_command_whose_second_row_cannot_be_made_leaves_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*columns: Any) -> bytes:
        if "bad+" in columns[12]:
            raise ValueError("no such row")
        return leaf_hash(*columns)

    monkeypatch.setattr(deciding, "leaf_hash", fails)
    store = await world.open()
    await store.submit(ask((HOT, Open(room=100))))
    requests = [ask((HOT, Take(take_id="bad" if number == 2 else str(number), twice=True))) for number in range(5)]
    answers = await asyncio.gather(*(store.submit(request) for request in requests), return_exceptions=True)

    assert [number for number, answer in enumerate(answers) if isinstance(answer, ValueError)] == [2]
    assert len(world.rows()) == 1 + 2 * 4
    assert not any("bad" in row.payload for row in world.rows())
    assert broken(world) is None


async def test_time_that_runs_out_after_rows_were_sent_leaves_the_rest_for_the_next_batch(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_SENT_AT_ONCE", 5)
    options = writer.Options(decide_seconds=0.0)
    store = await world.open(options)

    answered = await many(store)

    all_there_once(world, answered)
    assert store.stats().batches > MANY // 64

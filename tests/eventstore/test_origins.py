"""From where commands came: kept once, found again, gone with the person or with time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import psycopg
import pytest_asyncio

from domain.catalog import DECIDERS
from eventstore.origins import AGAIN_SECONDS, Origin, Origins, forget, purge, with_origin, without_origin
from eventstore.store import Store, partition_of

ACME, OTHER, ANNA, BORIS = UUID(int=1), UUID(int=2), UUID(int=11), UUID(int=12)
ADDRESS, AGENT = "203.0.113.77", "secret-agent/1.0"


@pytest_asyncio.fixture
async def store(database_dsn: str) -> AsyncIterator[Store]:
    opened = await Store.open(database_dsn, DECIDERS, wakeups=False)
    yield opened
    await opened.drain()


def test_an_actor_tells_who_and_from_where_in_one_column() -> None:
    assert with_origin("user:ab", "0a1b") == "user:ab@0a1b"
    assert with_origin("user:ab", None) == without_origin("user:ab@0a1b") == without_origin("user:ab") == "user:ab"


async def test_the_same_place_has_the_same_id_in_every_process_and_another_one_for_everybody_else(store: Store) -> None:
    other_process = Origins(store.pool, store.sealing, lambda tenant_id: partition_of(tenant_id, store.partitions))

    mine = await store.origins.of(ACME, ANNA, ADDRESS, AGENT)

    assert mine is not None
    assert await other_process.of(ACME, ANNA, ADDRESS, AGENT) == mine
    others = {
        await store.origins.of(ACME, BORIS, ADDRESS, AGENT),
        await store.origins.of(ACME, ANNA, ADDRESS, None),
        await store.origins.of(ACME, ANNA, "203.0.113.78", AGENT),
        await store.origins.of(OTHER, ANNA, ADDRESS, AGENT),
    }
    assert len(others) == 4
    assert mine not in others
    assert await store.origins.show(ACME, [mine, "unheardof"]) == {mine: Origin(ADDRESS, AGENT)}
    assert await store.origins.show(OTHER, [mine]) == {}


async def test_nothing_of_it_stands_in_the_table_in_clear(store: Store, database_dsn: str) -> None:
    await store.origins.of(ACME, ANNA, ADDRESS, AGENT)

    async with await psycopg.AsyncConnection.connect(database_dsn) as conn:
        text = str(await (await conn.execute("select o::text from origin o")).fetchall())

    assert ANNA.hex in text.replace("-", "")
    assert ADDRESS not in text
    assert AGENT not in text


async def test_a_person_who_was_erased_comes_from_nowhere(store: Store, database_dsn: str) -> None:
    origin_id = await store.origins.of(ACME, ANNA, ADDRESS, AGENT)
    assert origin_id is not None

    await store.sealing.shred(ACME, ANNA)

    assert await store.origins.show(ACME, [origin_id]) == {}
    assert await store.origins.of(ACME, ANNA, "203.0.113.1", AGENT) is None
    async with await psycopg.AsyncConnection.connect(database_dsn) as conn:
        assert await forget(conn, partition_of(ACME, store.partitions), ACME, ANNA) == 1
        assert await forget(conn, partition_of(ACME, store.partitions), ACME, ANNA) == 0


async def test_what_is_in_use_outlives_what_is_not(store: Store, database_dsn: str) -> None:
    now = 0.0
    origins = Origins(store.pool, store.sealing, lambda tenant_id: partition_of(tenant_id, store.partitions), lambda: now)
    used, left = await origins.of(ACME, ANNA, ADDRESS, AGENT), await origins.of(ACME, ANNA, "203.0.113.1", AGENT)
    assert used is not None
    assert left is not None
    partition = partition_of(ACME, store.partitions)
    async with await psycopg.AsyncConnection.connect(database_dsn, autocommit=True) as conn:
        await conn.execute("update origin set last_at = now() - interval '90 days'")
        await origins.of(ACME, ANNA, ADDRESS, AGENT)  # known, and not said again so soon
        now += AGAIN_SECONDS
        await origins.of(ACME, ANNA, ADDRESS, AGENT)

        removed = await purge(conn, partition, ACME, datetime.now(UTC) - timedelta(days=30))

    assert removed == 1
    assert await origins.show(ACME, [used, left]) == {used: Origin(ADDRESS, AGENT)}


async def test_a_long_agent_is_cut_and_memory_is_bounded(store: Store) -> None:
    origin_id = await store.origins.of(ACME, ANNA, ADDRESS, "x" * 5_000)

    assert origin_id is not None
    assert (await store.origins.show(ACME, [origin_id]))[origin_id] == Origin(ADDRESS, "x" * 200)
    assert await store.origins.of(ACME, uuid4(), ADDRESS, AGENT) != origin_id

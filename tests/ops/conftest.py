"""Stores to back up, and empty databases to restore into."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from uuid import UUID, uuid5

import psycopg
import pytest

from domain.catalog import DECIDERS
from domain.identity.tenants import TENANT, CreateTenant, DeleteTenant, tenant_stream
from eventstore.requests import Item, Outcome, Request
from eventstore.store import Store
from tests.conftest import administer, with_database
from tests.support.killed import Killer
from tests.support.till import TILL, Open, Take

TENANTS = [uuid5(UUID(int=0), str(number)) for number in range(6)]
Place = tuple[UUID, str]


def till_of(tenant_id: UUID) -> str:
    return f"till-{tenant_id.hex}"


def key_of(tenant_id: UUID, name: str) -> UUID:
    return uuid5(tenant_id, name)


async def ask(store: Store, tenant_id: UUID, command: Any, name: str) -> Outcome:
    item = Item(TILL, till_of(tenant_id), command)
    return await store.submit(Request(tenant_id, key_of(tenant_id, name), (item,), b"print"))


async def write(dsn: str, names: Sequence[str], tenants: Sequence[UUID] = TENANTS) -> dict[Place, Outcome]:
    """One event for each tenant and name."""
    store = await Store.open(dsn, [TILL])
    outcomes = {}
    for tenant_id in tenants:
        await store.tenant_key(tenant_id)
        await ask(store, tenant_id, Open(room=1_000_000), "open")
        for name in names:
            outcomes[tenant_id, name] = await ask(store, tenant_id, Take(take_id=name), name)
    await store.drain()
    return outcomes


async def delete_tenant(dsn: str, tenant_id: UUID, *, make: bool = True) -> None:
    store = await Store.open(dsn, [*DECIDERS, TILL])
    for number, command in enumerate(
        (CreateTenant(tenant_id=tenant_id, name="Acme"), DeleteTenant(tenant_id=tenant_id))[0 if make else 1 :]
    ):
        item = Item(TENANT, tenant_stream(tenant_id), command)
        outcome = await store.submit(Request(tenant_id, key_of(tenant_id, f"tenant-{number}"), (item,), b""))
        assert not outcome.refused, outcome.reply
    await store.drain()


def contents(dsn: str) -> dict[str, list[Any]]:
    """Everything that must come back, as text."""
    with psycopg.connect(dsn) as conn:
        return {
            table: [row[0] for row in conn.execute(f"select {table}::text from {table} order by 1")]
            for table in ("event", "store", "tenant_key", "task", "task_lane", "skipped_event")
        }


def epochs(dsn: str) -> set[int]:
    with psycopg.connect(dsn) as conn:
        return {row[0] for row in conn.execute("select epoch from log_partition")}


def await_alone(dsn: str) -> None:
    """Wait until the server has noticed that whoever was connected is gone: until then it holds their locks."""
    query = (
        "select from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'"
    )
    deadline = time.monotonic() + 60
    with psycopg.connect(dsn, autocommit=True) as conn:
        while conn.execute(query).fetchone() is not None:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture
def empty_database(postgres_dsn: str) -> Iterator[Callable[[], str]]:
    """Makes databases without anything in them."""
    made: list[str] = []

    def make() -> str:
        made.append(f"holdbook_empty_{secrets.token_hex(8)}")
        administer(postgres_dsn, f"CREATE DATABASE {made[-1]}")
        return with_database(postgres_dsn, made[-1])

    yield make
    for name in made:
        administer(postgres_dsn, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def killer() -> Iterator[Killer]:
    """Runs commands and kills them."""
    found = Killer()
    yield found
    found.end()

"""One tenant's reader sees nothing of another's, whatever the setting says; and nobody but the follower writes."""

from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import pytest_asyncio

from domain.catalog import DECIDERS
from domain.identity.service_accounts import SERVICE_ACCOUNT, IssueKey, service_account_stream
from domain.identity.sessions import SESSION, StartSession, session_stream
from domain.identity.tenants import TENANT, CreateTenant, tenant_stream
from domain.identity.users import USER, CreateUser, user_stream
from domain.sender_account import SENDER, RegisterSender, sender_stream
from eventstore.requests import Item, Request
from eventstore.store import Store
from projections import schema
from projections.catalog import PROJECTIONS
from projections.readers import Readers
from tests.projections.conftest import CODEC, LIMITS, Ledger, administer, follow

READABLE = [table.name for table in schema.tables(1).sorted_tables if table.info["readers"]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def populated(module_database: str) -> AsyncIterator[Ledger]:
    """No test changes anything in it."""
    schema.create(module_database)
    store = await Store.open(module_database, DECIDERS)
    ledger = Ledger(module_database, store, uuid4())
    await ledger.set_limits("anna", *LIMITS)
    await ledger.reserve("anna", "r")
    await ledger.set_limits(uuid4().hex, *LIMITS)  # a person's
    command = CreateTenant(tenant_id=ledger.tenant, name="Acme", zone="Europe/Moscow")
    await ledger.store.submit(Request(ledger.tenant, uuid4(), (Item(TENANT, tenant_stream(ledger.tenant), command),), b"f"))
    person, session = uuid4(), uuid4()
    start = StartSession(session_id=session, user_id=person, kind="token", device=None, lifetime_seconds=9_000, idle_seconds=900)
    key = IssueKey(key_id="0" * 8, secret_hash="0" * 64, scopes=("usage:read",), name="key")
    items = (
        Item(USER, user_stream(person), CreateUser(user_id=person, role="member", profile="sealed", login="ab" * 16)),
        Item(SESSION, session_stream(session), start),
        Item(SENDER, sender_stream(ledger.tenant, "sender"), RegisterSender(sender_id="sender", owner=person.hex)),
        Item(SERVICE_ACCOUNT, service_account_stream(person), key),
    )
    await ledger.store.submit(Request(ledger.tenant, uuid4(), items, b"f"))
    await follow(ledger, *(projection.consumer(CODEC, 1) for projection in PROJECTIONS.values()))
    yield ledger
    await store.drain()


@pytest.fixture
def as_reader(populated: Ledger) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(populated.dsn, autocommit=True, options="-c role=holdbook_reader") as conn:
        yield conn


def count(conn: psycopg.Connection[Any], table: str) -> int:
    row = conn.execute(f"select count(*) from {table}").fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize("table", READABLE)
def test_a_tenant_sees_its_own_rows(populated: Ledger, as_reader: psycopg.Connection[Any], table: str) -> None:
    as_reader.execute(f"set app.tenant_id = '{populated.tenant}'")

    assert count(as_reader, table) > 0


@pytest.mark.parametrize("table", READABLE)
@pytest.mark.parametrize("setting", ["another", "empty", "unset", "reset"])
def test_anybody_else_sees_nothing(populated: Ledger, as_reader: psycopg.Connection[Any], table: str, setting: str) -> None:
    match setting:
        case "another":
            as_reader.execute(f"set app.tenant_id = '{uuid4()}'")
        case "empty":
            as_reader.execute("set app.tenant_id = ''")
        case "reset":
            as_reader.execute(f"begin; set local app.tenant_id = '{populated.tenant}'; commit")
        case _:
            assert setting == "unset"

    assert count(as_reader, table) == 0


@pytest.mark.parametrize("table", READABLE)
@pytest.mark.parametrize("statement", ["delete from {}", "update {} set partition = 1", "insert into {} select * from {}", "truncate {}"])
def test_a_reader_cannot_write(populated: Ledger, as_reader: psycopg.Connection[Any], table: str, statement: str) -> None:
    as_reader.execute(f"set app.tenant_id = '{populated.tenant}'")

    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        as_reader.execute(statement.format(table, table))


@pytest.mark.parametrize(
    "table", ["event", "log_partition", "snapshot", "tenant_key", "subject_key", "signing_key", "master_key", "tenant_1"]
)
def test_a_reader_cannot_read_the_log_or_the_operators_tables(as_reader: psycopg.Connection[Any], table: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        as_reader.execute(f"select * from {table}")


async def test_a_readers_question_about_another_tenant_finds_nothing(populated: Ledger) -> None:
    readers = await Readers.open(populated.dsn)
    reader = readers.quotas
    stranger = Ledger(populated.dsn, populated.store, uuid4())
    while stranger.partition != populated.partition:  # even in the same partition
        stranger.tenant = uuid4()

    assert await reader.get(populated.tenant, "anna", "tokens", populated.now) is not None
    assert await reader.get(stranger.tenant, "anna", "tokens", populated.now) is None
    assert await reader.list(stranger.tenant, populated.now) == []
    assert await reader.reservations(stranger.tenant, "anna", "tokens") == []
    await readers.close()


def test_every_table_of_every_generation_forces_row_security(populated: Ledger) -> None:
    names = [table.name for table in schema.tables(1).sorted_tables]

    secured = administer(
        populated, "select relname from pg_class where relname = any(%s) and relrowsecurity and relforcerowsecurity", (names,)
    )

    assert len(names) >= 8
    assert {name for (name,) in secured} == set(names)


def test_even_the_owner_is_under_the_policies(populated: Ledger) -> None:
    owner = f"owner_{uuid4().hex[:8]}"
    administer(populated, f"create role {owner}")
    try:
        for table in READABLE:
            administer(populated, f"alter table {table} owner to {owner}")
        with psycopg.connect(populated.dsn, options=f"-c role={owner}") as conn:
            assert [count(conn, table) for table in READABLE] == [0] * len(READABLE)
    finally:
        for table in READABLE:
            administer(populated, f"alter table {table} owner to current_user")
        administer(populated, f"drop owned by {owner}; drop role {owner}")


def test_creating_is_safe_for_many_at_once_and_changes_nothing_that_is_there(database_dsn: str) -> None:
    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(schema.create, [database_dsn] * 6))
    with psycopg.connect(database_dsn) as conn:
        before = conn.execute("select oid, relname, relfilenode from pg_class order by 1").fetchall()
    again = schema.create(database_dsn)

    with psycopg.connect(database_dsn) as conn:
        assert conn.execute("select oid, relname, relfilenode from pg_class order by 1").fetchall() == before
    assert [*made, again] == [dict.fromkeys(PROJECTIONS, 1)] * 7


def test_the_partition_is_first_in_every_key() -> None:
    for table in schema.tables(7).sorted_tables:
        assert next(iter(table.primary_key)).name == "partition"
        assert all(next(iter(index.columns)).name == "partition" for index in table.indexes)
        assert table.name.endswith("_7")

"""Three tenants in one partition, and what is recorded for them, for tests of exports, deletion and replay."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID, uuid4, uuid5

import psycopg

from domain.catalog import DECIDERS
from domain.identity.service_accounts import SERVICE_ACCOUNT, IssueKey, service_account_stream
from domain.identity.tenants import TENANT, CreateTenant, DeleteTenant, tenant_stream
from domain.kernel.decider import Command, Decider
from eventstore.requests import Item, Options, Outcome, Request
from eventstore.rows import COLUMNS, Row
from eventstore.signing import SigningKey, make_key
from eventstore.store import Store, partition_of

ACME = UUID("7e7a7e57-0000-4000-8000-000000000001")
PARTITION = partition_of(ACME, 64)
_NEIGHBOURS = (other for other in (uuid5(ACME, str(n)) for n in range(10_000)) if partition_of(other, 64) == PARTITION)
OTHER, GONE = next(_NEIGHBOURS), next(_NEIGHBOURS)
"""In the same partition."""
ELSEWHERE = next(other for other in (uuid5(ACME, str(n)) for n in range(10_000)) if partition_of(other, 64) > PARTITION)
ACCOUNT = UUID(int=5)


@asynccontextmanager
async def opened(dsn: str, **options: int) -> AsyncIterator[Store]:
    """A store with every aggregate."""
    store = await Store.open(dsn, DECIDERS, Options(**options))
    try:
        yield store
    finally:
        await store.drain()


async def do(store: Store, tenant_id: UUID, decider: Decider[object], stream: str, command: Command, **more: object) -> Outcome:
    """One command."""
    request = Request(tenant_id, uuid4(), (Item(decider, stream, command),), b"print", **more)  # type: ignore[arg-type]  # its fields
    return await store.submit(request)


async def create(store: Store, tenant_id: UUID, name: str = "Acme") -> Outcome:
    return await do(store, tenant_id, TENANT, tenant_stream(tenant_id), CreateTenant(tenant_id=tenant_id, name=name))  # type: ignore[arg-type]  # of its own state


async def delete(store: Store, tenant_id: UUID) -> Outcome:
    return await do(store, tenant_id, TENANT, tenant_stream(tenant_id), DeleteTenant(tenant_id=tenant_id))  # type: ignore[arg-type]  # as above


async def issue(store: Store, tenant_id: UUID, number: int, name: str = "key", **more: object) -> Outcome:
    """Issue a key; each tenant has an account of its own."""
    command = IssueKey(key_id=f"{number:08x}", secret_hash=f"{number:064x}", scopes=("usage:read",), name=name)
    return await do(store, tenant_id, SERVICE_ACCOUNT, account_of(tenant_id), command, **more)  # type: ignore[arg-type]  # as above


def account_of(tenant_id: UUID) -> str:
    """The stream of the tenant's service account."""
    return service_account_stream(uuid5(ACCOUNT, tenant_id.hex))


async def record(store: Store) -> None:
    """Ten events in one partition, and one elsewhere. GONE is deleted at position 9, and not pruned."""
    await create(store, ACME, 'Äcme \u2028 \U0001f600 \\ "quoted"')  # 1
    await create(store, OTHER)  # 2
    await issue(store, ACME, 1, actor="operator:é", trace="00-0-0-0", cause=UUID(int=9))  # 3
    await create(store, GONE, "Zebra Ltd")  # 4
    await issue(store, GONE, 2, "of the zebra", actor="service:zebra")  # 5
    await issue(store, OTHER, 3)  # 6
    await issue(store, OTHER, 4)  # 7
    assert (await create(store, ACME, "another")).refused  # 8
    await delete(store, GONE)  # 9
    await issue(store, ACME, 5)  # 10
    await create(store, ELSEWHERE)


def rows(dsn: str, partition: int = PARTITION) -> list[Row]:
    """The log of a partition."""
    select = ", ".join(f"{name}::text" if name in ("payload", "reply") else name for name in COLUMNS)
    with psycopg.connect(dsn) as conn:
        query = f"select {select} from event where partition = %s order by position"
        return [Row._make(row) for row in conn.execute(query, (partition,), binary=True)]


def leaves(dsn: str, partition: int = PARTITION) -> dict[int, bytes]:
    """The leaves of pruned rows."""
    with psycopg.connect(dsn) as conn:
        query = "select position, leaf from event where partition = %s and leaf is not null"
        return dict(conn.execute(query, (partition,), binary=True).fetchall())


def some_key(directory: Path) -> SigningKey:
    """A signing key of the test's own."""
    path = directory / f"{uuid4().hex}.pem"
    assert make_key(path)
    return SigningKey(path.read_text())

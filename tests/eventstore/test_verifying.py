"""Whatever is done to the log behind its back is found, and what is right is not complained of."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import AsyncConnection

from domain.catalog import DECIDERS
from domain.identity.tenants import TENANT, CreateTenant, DeleteTenant, tenant_stream
from domain.quota import QUOTA, Limit, Reserve, SetLimits, Window, quota_stream
from eventstore import verifying
from eventstore.codec import Codec
from eventstore.pruning import prune
from eventstore.requests import Item, Options, Request
from eventstore.rows import COLUMNS, Row, leaf_hash, microseconds
from eventstore.store import Store, partition_of

PARTITIONS = 64
EVENTS = 120
CODEC = Codec(DECIDERS)


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[AsyncConnection[Any]]:
    async with await AsyncConnection.connect(dsn, autocommit=True, options=verifying.OPTIONS) as conn:
        yield conn


async def said(dsn: str, partition: int) -> list[str]:
    """All that is wrong with a partition."""
    async with connected(dsn) as conn:
        upto = await verifying.head(conn, partition)
        wrong = await verifying.chain(conn, partition, PARTITIONS, upto)
    async with connected(dsn) as conn:
        wrong += await verifying.streams(conn, partition, upto)
        wrong += await verifying.snapshots(conn, partition, CODEC)
        return wrong + await verifying.elsewhere(conn, PARTITIONS)


@pytest.fixture
async def tenant(database_dsn: str) -> UUID:
    """A tenant whose partition has some streams, refusals and snapshots."""
    return await filled(database_dsn, uuid4())


async def filled(dsn: str, tenant_id: UUID) -> UUID:
    store = await Store.open(dsn, DECIDERS, Options(snapshot_every=20))
    random = Random(1)

    async def send(stream: str, decider: Any, command: Any) -> None:
        await store.submit(Request(tenant_id, uuid4(), (Item(decider, stream, command),), b"f"))

    await send(tenant_stream(tenant_id), TENANT, CreateTenant(tenant_id=tenant_id, name="Acme", zone="UTC"))
    subjects = ("anna", "boris")
    limits = (Limit("month", 40, Window("month")), Limit("brief", 30, Window("rolling", seconds=60)))
    for subject in subjects:
        await send(quota_stream(tenant_id, subject, "tokens"), QUOTA, SetLimits(subject=subject, meter="tokens", limits=limits))
    for number in range(EVENTS - 3):
        subject = random.choice(subjects)
        reserve = Reserve(subject=subject, meter="tokens", amount=1, reservation_id=f"r{number}", ttl_seconds=900)
        await send(quota_stream(tenant_id, subject, "tokens"), QUOTA, reserve)
    await store.drain()
    return tenant_id


def harm(dsn: str, statement: str, partition: int) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        done = conn.execute(statement.format(p=partition).encode())
        assert done.rowcount, "the harm has to be done"


async def test_a_log_that_is_right_is_found_right(database_dsn: str, tenant: UUID) -> None:
    partition = partition_of(tenant, PARTITIONS)
    checked: list[int] = []

    async with connected(database_dsn) as conn:
        head = await verifying.head(conn, partition)
        assert await verifying.chain(conn, partition, PARTITIONS, head, checked.append) == []
        snapshots: list[int] = []
        assert await verifying.snapshots(conn, partition, CODEC, snapshots.append) == []

    assert sum(checked) == head >= EVENTS
    assert len(snapshots) >= 2
    assert [await said(database_dsn, each) for each in range(4)] == [[]] * 4
    assert await said(database_dsn, partition) == []


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("delete from event where partition = {p} and position = 40", "position 40 is missing"),
        ("delete from event where partition = {p} and position = 1", "position 1 is missing"),
        ("update event set payload = '{{}}' where partition = {p} and position = 33", "chain is broken at position 33"),
        ("update event set payload = (payload::text || ' ')::json where partition = {p} and position = 33", "position 33"),
        ("update event set recorded_at = recorded_at - interval '1 microsecond' where partition = {p} and position = 7", "position 7"),
        ("update event set actor = 'nobody' where partition = {p} and position = 7", "position 7"),
        ("update event set salt = sha256(salt) where partition = {p} and position = 9", "position 9"),
        ("update event set hash = sha256(hash) where partition = {p} and position = 9", "position 9"),
        ("update event set reply = null where partition = {p} and position = 20", "position 20"),
        ("update event set tenant_id = gen_random_uuid() where partition = {p} and position = 21", "position 21"),
        (
            "update event e set salt = o.salt, payload = o.payload, hash = o.hash, version = o.version + 1000 from event o "
            "where e.partition = {p} and o.partition = {p} and e.position = 51 and o.position = 50",
            "position 51",
        ),
        ("update event set partition = 77 where partition = {p} and position = (select max(position) from event)", "partition 77"),
        (
            "update event set leaf = sha256(salt), type = 'log.pruned', stream = 'pruned-60', version = 1, payload = 'null' "
            "where partition = {p} and position = 60",
            "position 60",
        ),
        ("update event set version = version + 500 where partition = {p} and position = 70", "has version 5"),
        (
            "update snapshot set state = replace(state::text, 'tokens', 'token_')::json where partition = {p} and stream like 'quota-%'",
            "is not its fold",
        ),
    ],
)
async def test_harm_is_found(database_dsn: str, tenant: UUID, statement: str, words: str) -> None:
    partition = partition_of(tenant, PARTITIONS)
    harm(database_dsn, statement, partition)

    wrong = await said(database_dsn, partition)

    assert any(words in each for each in wrong), wrong


async def test_a_forged_row_with_a_right_chain_is_found_by_its_stream(database_dsn: str, tenant: UUID) -> None:
    """Whoever can write the chain anew cannot leave out an event of a stream without its versions telling."""
    partition = partition_of(tenant, PARTITIONS)
    with psycopg.connect(database_dsn, autocommit=True) as conn:
        (stream,) = conn.execute(
            "select stream from event where partition = %s and stream like 'quota-%%' limit 1", (partition,)
        ).fetchall()
        versions = "update event set version = version + 1 where partition = %s and stream = %s and version > 3"
        conn.execute("drop index event_stream")
        conn.execute(versions, (partition, stream[0]))

    async with connected(database_dsn) as conn:
        wrong = await verifying.streams(conn, partition, EVENTS * 2)

    assert len(wrong) == 10, "the first ten are told"
    assert wrong[0].startswith(f"stream {stream[0]} has version 5 at position")
    assert "where 4 was to come" in wrong[0]


async def test_pruned_rows_are_right_where_their_tenant_was_deleted(database_dsn: str) -> None:
    gone = uuid4()
    stays = uuid4()
    while partition_of(stays, PARTITIONS) != partition_of(gone, PARTITIONS):
        stays = uuid4()
    await filled(database_dsn, gone)
    await filled(database_dsn, stays)
    store = await Store.open(database_dsn, DECIDERS)
    await store.submit(Request(gone, uuid4(), (Item(TENANT, tenant_stream(gone), DeleteTenant(tenant_id=gone)),), b"f"))
    await store.drain()
    partition = partition_of(gone, PARTITIONS)

    assert prune(database_dsn, gone) > 50
    assert await said(database_dsn, partition) == []

    harm(
        database_dsn, "update event set type = 'quota.reserved', leaf = null, salt = hash where partition = {p} and position = 5", partition
    )
    assert any("position 5" in each for each in await said(database_dsn, partition))


async def test_a_row_that_was_pruned_without_a_deletion_is_found(database_dsn: str, tenant: UUID) -> None:
    """Its leaf is right, so the chain holds."""
    partition = partition_of(tenant, PARTITIONS)
    columns = ", ".join(COLUMNS).replace("payload, reply", "payload::text, reply::text")
    query = f"select {columns} from event where position = 60 and partition = %s"
    with psycopg.connect(database_dsn, autocommit=True) as conn:
        (found,) = conn.execute(query.encode(), (partition,)).fetchall()
        row = Row._make(found)
        leaf = leaf_hash(partition, *row[:7], microseconds(row.recorded_at), *row[8:15])
        conn.execute(
            "update event set leaf = %s, type = 'log.pruned', stream = 'pruned-60', version = 1, payload = 'null', reply = null, "
            "fingerprint = null, actor = null, salt = %s where partition = %s and position = 60",
            (leaf, bytes(16), partition),
        )

    async with connected(database_dsn) as conn_:
        wrong = await verifying.chain(conn_, partition, PARTITIONS, 60)

    assert wrong == ["position 60 was pruned and its tenant is not deleted"]


async def test_a_tenant_in_the_wrong_partition_is_found(database_dsn: str, tenant: UUID) -> None:
    partition = partition_of(tenant, PARTITIONS)
    count = next(count for count in range(PARTITIONS + 1, 1_000) if partition_of(tenant, count) != partition)
    async with connected(database_dsn) as conn:
        wrong = await verifying.chain(conn, partition, count, 3)

    assert wrong == [f"position 1 is of a tenant that lives in partition {partition_of(tenant, count)}"]

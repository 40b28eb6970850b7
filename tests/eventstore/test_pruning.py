"""Deleting a tenant: nothing more is recorded for it, what it left is pruned to digests, and nobody else notices."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from eventsourcing import persistence
from eventsourcing.persistence import StoredEvent

from domain.identity.service_accounts import SERVICE_ACCOUNT, ServiceAccount
from domain.identity.tenants import TENANT, DeletedTenant, TenantIsDeleted, TenantNotFound, tenant_stream
from eventstore.errors import CorruptLog
from eventstore.postgres import WRITER_OPTIONS
from eventstore.pruning import NotDeleted, prune
from eventstore.recorder import PartitionRecorder, open_recorder_pool
from eventstore.rows import GENESIS, PRUNED, first_broken
from eventstore.store import Store
from tests.support.tenants import ACME, GONE, OTHER, PARTITION, account_of, create, delete, issue, leaves, opened, record, rows

ROOT = Path(__file__).parents[2]
PERSON = UUID(int=7)


def holds(dsn: str) -> bool:
    """Whether the partition's chain holds, pruned rows by their leaves."""
    return first_broken(PARTITION, rows(dsn), 0, GENESIS, leaves(dsn)) is None


def execute(dsn: str, query: str, *parameters: object) -> list[tuple[object, ...]]:
    with psycopg.connect(dsn) as conn:
        cursor = conn.execute(query, parameters)
        return cursor.fetchall() if cursor.description else []


async def fill(store: Store, keys: int) -> None:
    """GONE, OTHER, GONE, OTHER and so on, and at the end the deletion."""
    for tenant in (GONE, OTHER):
        await create(store, tenant, f"name of {tenant}")
    for number in range(keys):
        await asyncio.gather(*(issue(store, tenant, number, f"label of {tenant}") for tenant in (GONE, OTHER)))
    await delete(store, GONE)


async def test_of_a_deleted_tenant_only_digests_stay(database_dsn: str) -> None:
    async with opened(database_dsn, snapshot_every=1) as store:
        await record(store)
        await store.tenant_key(GONE)
        await store.tenant_key(ACME)
        for tenant_id in (GONE, ACME):
            await store.sealing.seal(tenant_id, PERSON, "test", "anna@example.org")
    before = rows(database_dsn)
    assert prune(database_dsn, GONE) == 2
    after = rows(database_dsn)

    assert holds(database_dsn)
    assert [row for row in after if row.position not in (4, 5)] == [row for row in before if row.position not in (4, 5)]
    for was, row in ((before[place], after[place]) for place in (3, 4)):
        assert row == was._replace(
            stream=f"pruned-{was.position}", version=1, type=PRUNED, cause=None, actor=None, trace=None, payload="null", reply=None,
            fingerprint=None, salt=bytes(16),
        )  # fmt: skip
    everything = "".join(
        str(execute(database_dsn, f"select t::text from {table} t")) for table in ("event", "snapshot", "tenant_key", "log_partition")
    )
    assert "zebra" not in everything.lower()
    assert [tenant for (tenant,) in execute(database_dsn, "select tenant_id from tenant_key")] == [ACME]
    assert [tenant for (tenant,) in execute(database_dsn, "select tenant_id from subject_key")] == [ACME]
    streams = {stream for (stream,) in execute(database_dsn, "select stream from snapshot")}
    assert account_of(ACME) in streams
    assert account_of(GONE) not in streams


async def test_pruning_again_changes_nothing(database_dsn: str) -> None:
    async with opened(database_dsn) as store:
        await record(store)
    assert prune(database_dsn, GONE) == 2
    before = rows(database_dsn)

    assert prune(database_dsn, GONE) == 0
    assert rows(database_dsn) == before


async def test_a_tenant_that_was_not_deleted_is_not_pruned(database_dsn: str) -> None:
    async with opened(database_dsn) as store:
        await record(store)
    before = rows(database_dsn)

    for tenant in (ACME, UUID(int=404)):
        with pytest.raises(NotDeleted):
            prune(database_dsn, tenant)
    assert rows(database_dsn) == before


@pytest.mark.parametrize("harm", ["payload = '{}'", "salt = ''", "hash = sha256(hash)", "recorded_at = recorded_at + '1us'"])
async def test_pruning_does_not_cover_up_what_somebody_changed(database_dsn: str, harm: str) -> None:
    async with opened(database_dsn) as store:
        await record(store)
    execute(database_dsn, f"update event set {harm} where partition = %s and position = 5", PARTITION)
    before = rows(database_dsn)

    with pytest.raises(CorruptLog, match="position 5"):
        prune(database_dsn, GONE)
    assert rows(database_dsn) == before


async def test_a_snapshot_saved_too_late_goes_with_the_next_run(database_dsn: str) -> None:
    async with opened(database_dsn) as store:
        await record(store)
    prune(database_dsn, GONE)
    execute(
        database_dsn,
        "insert into snapshot values (%s, %s, 1, 1, %s, '{\"label\":\"secret\"}')", PARTITION, account_of(GONE), rows(database_dsn)[4].hash,
    )  # fmt: skip

    prune(database_dsn, GONE)
    assert execute(database_dsn, "select * from snapshot") == []


async def test_the_writers_role_can_neither_prune_nor_pass_a_leaf_off(database_dsn: str) -> None:
    async with opened(database_dsn) as store:
        await record(store)
    insert = (
        "insert into event (partition, position, tenant_id, stream, version, command_id, ordinal, type, recorded_at, payload, salt, hash"
        "{leaf}) select partition, 11, tenant_id, 'x', 1, tenant_id, 0, {type}, recorded_at, payload, salt, hash{value} "
        "from event where partition = %s and position = 1"
    )
    with psycopg.connect(database_dsn, autocommit=True, options=WRITER_OPTIONS) as conn:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            conn.execute("update event set type = 'log.pruned' where partition = %s and position = 1", (PARTITION,))
        with pytest.raises(psycopg.errors.CheckViolation):
            conn.execute(insert.format(leaf=", leaf", type="'tenant.created'", value=", hash"), (PARTITION,))
        with pytest.raises(psycopg.errors.CheckViolation):
            conn.execute(insert.format(leaf="", type="'log.pruned'", value=""), (PARTITION,))


# Commands of a deleted tenant


async def test_nothing_is_recorded_for_a_deleted_tenant(database_dsn: str) -> None:
    """Not by the process that deleted it, not by one that has its states in memory, and not by one that begins afterwards."""
    async with opened(database_dsn) as deleting, opened(database_dsn) as warm:
        await create(deleting, GONE)
        await issue(warm, GONE, 1)
        await issue(deleting, GONE, 2)
        assert not (await delete(deleting, GONE)).refused
        end = len(rows(database_dsn))
        async with opened(database_dsn) as fresh:
            for pruned in (False, True):
                if pruned:
                    prune(database_dsn, GONE)
                for store in (deleting, warm, fresh):
                    for number in (3, 3):
                        with pytest.raises(TenantIsDeleted):
                            await issue(store, GONE, number)
                    with pytest.raises(TenantIsDeleted):
                        await create(store, GONE)
                    again = await delete(store, GONE)
                    assert (again.refused, again.reply) == (False, b'{"tenant_id":"%b","status":"deleted"}' % GONE.hex.encode())
                    assert isinstance((await store.state(TENANT, GONE, tenant_stream(GONE))).state, DeletedTenant)
        async with opened(database_dsn) as later:
            with pytest.raises(TenantIsDeleted):
                await issue(later, GONE, 3)
            assert (await later.state(SERVICE_ACCOUNT, GONE, account_of(GONE))).state == ServiceAccount()
    assert len(rows(database_dsn)) == end


async def test_commands_that_queue_beside_the_deletion_are_recorded_before_it_or_refused(database_dsn: str) -> None:
    async with opened(database_dsn) as one, opened(database_dsn) as two:
        await create(one, GONE)
        await create(one, OTHER)

        async def storm(store: Store, first: int) -> None:
            with suppress(TenantIsDeleted):
                for number in range(first, first + 40):
                    await issue(store, GONE, number)
                    await issue(store, OTHER, number)

        storms = [asyncio.create_task(storm(store, first)) for store, first in ((one, 0), (two, 50))]
        batch = [
            asyncio.create_task(issue(one, GONE, 95)),
            asyncio.create_task(delete(one, GONE)),
            asyncio.create_task(issue(one, GONE, 96)),
        ]
        await asyncio.gather(*storms)
        answers = await asyncio.gather(*batch, return_exceptions=True)

    log = rows(database_dsn)
    deleted = next(row.position for row in log if row.type == "tenant.deleted")
    assert max(row.position for row in log if row.tenant_id == GONE) == deleted
    assert isinstance(answers[2], TenantIsDeleted)
    assert log[-1].tenant_id == OTHER or deleted == len(log)
    assert holds(database_dsn)


async def test_a_tenant_that_never_was_cannot_be_deleted(database_dsn: str) -> None:
    async with opened(database_dsn) as store:
        with pytest.raises(TenantNotFound):
            await delete(store, GONE)
    assert rows(database_dsn) == []


async def test_a_process_that_does_not_know_tenants_writes_as_before(database_dsn: str) -> None:
    store = await Store.open(database_dsn, [SERVICE_ACCOUNT])
    try:
        for number in range(3):
            assert not (await issue(store, ACME, number)).refused
    finally:
        await store.drain()


# Beside others


async def test_neighbours_go_on_with_what_they_have_in_memory(database_dsn: str) -> None:
    async with opened(database_dsn) as store:
        await fill(store, 20)
        before = store.stats()
        prune(database_dsn, GONE)
        for number in range(30, 40):
            await issue(store, OTHER, number)
        after = store.stats()
        keys = (await store.state(SERVICE_ACCOUNT, OTHER, account_of(OTHER))).state.keys

    assert (after.lost_tails, after.caught_up) == (before.lost_tails, before.caught_up)
    assert len(keys) == 30
    assert holds(database_dsn)


async def test_neighbours_write_while_it_is_pruned(database_dsn: str) -> None:
    async with opened(database_dsn) as store, opened(database_dsn) as second:
        await fill(store, 60)
        stop, refusals = asyncio.Event(), asyncio.Queue[int]()
        written = 0

        async def write(by: Store) -> None:
            nonlocal written
            while not stop.is_set():
                outcome = await create(by, OTHER, "a refusal each time")
                assert outcome.refused
                written += 1
                refusals.put_nowait(outcome.position)

        writing = [asyncio.create_task(write(by)) for by in (store, second)]
        await refusals.get()
        pruning = asyncio.create_task(asyncio.to_thread(prune, database_dsn, GONE, at_once=2))
        while not pruning.done() or written < 20:
            await refusals.get()
        pruned = await pruning
        stop.set()
        await asyncio.gather(*writing)
        stats = store.stats()

    assert pruned == 61
    assert stats.lost_tails == 0
    assert holds(database_dsn)
    log = rows(database_dsn)
    assert {row.type for row in log if row.tenant_id == GONE} == {PRUNED, "tenant.deleted"}
    assert sum(row.tenant_id == OTHER for row in log) == 61 + written


async def test_several_at_once_prune_each_row_once(database_dsn: str) -> None:
    async with opened(database_dsn) as store:
        await fill(store, 60)
    together = threading.Barrier(3)

    def one() -> int:
        together.wait()
        return prune(database_dsn, GONE, at_once=5)

    with ThreadPoolExecutor(3) as pool:
        counts = [each.result() for each in [pool.submit(one) for _ in range(3)]]

    assert sum(counts) == 61
    assert holds(database_dsn)


KILLED = """
import os, signal, sys
from uuid import UUID
from eventstore.pruning import prune
def told(done, whole):
    if done >= 40:
        os.kill(os.getpid(), signal.SIGKILL)
prune(sys.argv[1], UUID(sys.argv[2]), told, at_once=10)
"""


async def test_a_run_that_was_killed_leaves_beginnings_of_streams_and_is_done_again(database_dsn: str) -> None:
    async with opened(database_dsn) as store:
        await fill(store, 60)
        killed = await asyncio.create_subprocess_exec(sys.executable, "-c", KILLED, database_dsn, str(GONE), cwd=ROOT)
        assert await asyncio.wait_for(killed.wait(), 120) == -signal.SIGKILL

        log = rows(database_dsn)
        mine = [row for row in log if row.tenant_id == GONE and row.type != "tenant.deleted"]
        kept = [row for row in mine if row.type != PRUNED]
        assert 0 < len(kept) < len(mine)
        assert mine[: len(kept)] == kept, "the beginning stays readable while later rows are gone"
        assert holds(database_dsn)
        with pytest.raises(TenantIsDeleted):
            await issue(store, GONE, 99)

    assert prune(database_dsn, GONE) == len(kept)
    assert holds(database_dsn)


# The recorder of the library


async def test_the_library_reads_over_what_was_pruned_and_writes_no_more(database_dsn: str) -> None:
    async with opened(database_dsn) as store:
        await fill(store, 10)
    prune(database_dsn, GONE)
    pool = open_recorder_pool(database_dsn, size=1)
    try:
        gone, other = (PartitionRecorder(pool, PARTITION, tenant) for tenant in (GONE, OTHER))
        log = rows(database_dsn)
        there = [row.position for row in log if row.type != PRUNED]
        for limit in (1, 3, 100):
            assert [note.id for note in other.select_notifications(None, limit)] == there[:limit]
        assert other.select_notifications(1, 0) == []
        assert gone.select_events(account_of(GONE)) == []
        assert other.max_notification_id() == len(log)

        with pytest.raises(persistence.IntegrityError, match="was deleted"):
            gone.insert_events([StoredEvent("dog-1", 1, "dog.born", b"{}")])
        with pytest.raises(persistence.ProgrammingError, match="pruned"):
            other.insert_events([StoredEvent("pruned-1", 1, "dog.born", b"{}")])
        assert other.insert_events([StoredEvent("dog-1", 1, "dog.born", b"{}")]) == [len(log) + 1]
    finally:
        pool.close()

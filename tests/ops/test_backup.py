"""What a backup holds, what it refuses, and what is left when it is killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest
from psycopg.types.json import Jsonb

from eventstore.backup import segments
from eventstore.backup.files import MANIFEST, BackupRefused, Directory, Manifest
from eventstore.backup.restoring import restore, verify
from eventstore.backup.saving import backup
from eventstore.backup.tables import DERIVED, LOG, OWN, SMALL
from eventstore.errors import CorruptLog
from eventstore.pruning import prune
from eventstore.schema import migrate
from eventstore.store import Store, partition_of
from projections import schema
from projections.catalog import PROJECTIONS
from tests.ops.conftest import TENANTS, contents, delete_tenant, epochs, write
from tests.support.killed import Killer
from tests.support.till import TILL

ROOT = Path(__file__).parents[2]
Empty = Callable[[], str]


def kept(path: Path) -> Manifest:
    manifest = Directory(path).manifest()
    assert manifest is not None
    return manifest


def files(path: Path) -> set[str]:
    return {found.relative_to(path).as_posix() for found in path.rglob("*.copy*")}


async def test_a_store_comes_back_row_for_row(database_dsn: str, tmp_path: Path, empty_database: Empty) -> None:
    await write(database_dsn, [str(n) for n in range(30)])
    restored = empty_database()

    saved = backup(database_dsn, tmp_path / "b")
    restore(restored, tmp_path / "b")

    assert saved.added == saved.manifest.events == 31 * len(TENANTS)
    assert contents(restored) == contents(database_dsn)
    assert (epochs(database_dsn), epochs(restored)) == ({0}, {1})


async def test_a_second_run_adds_what_is_new_and_many_runs_leave_few_files(
    database_dsn: str, tmp_path: Path, empty_database: Empty
) -> None:
    for n in range(12):
        await write(database_dsn, [f"{n}-{m}" for m in range(3)])
        saved = backup(database_dsn, tmp_path / "b")
        assert saved.added == (4 if n == 0 else 3) * len(TENANTS)

    assert saved.manifest.run == 12
    assert saved.manifest == verify(tmp_path / "b")
    assert files(tmp_path / "b") == {part.file for part in saved.manifest.parts()}
    assert max(len(log.segments) for log in saved.manifest.log) <= 4, "rows are gathered, or runs would leave a file each"
    restored = empty_database()
    restore(restored, tmp_path / "b")
    assert contents(restored) == contents(database_dsn)


async def test_a_run_without_news_reads_no_rows_again(database_dsn: str, tmp_path: Path) -> None:
    await write(database_dsn, ["a"])
    first = backup(database_dsn, tmp_path / "b")
    before = {name: (tmp_path / "b" / name).stat().st_mtime_ns for name in files(tmp_path / "b") if name.startswith("log/")}

    second = backup(database_dsn, tmp_path / "b")

    assert second.added == 0
    assert second.manifest.log == first.manifest.log
    assert {name: (tmp_path / "b" / name).stat().st_mtime_ns for name in before} == before


async def test_segments_are_bounded(database_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_database: Empty) -> None:
    monkeypatch.setattr(segments, "SEGMENT_ROWS", 10)
    await write(database_dsn, [str(n) for n in range(34)], TENANTS[:1])

    manifest = backup(database_dsn, tmp_path / "b").manifest

    (log,) = (log for log in manifest.log if log.segments)
    assert [(segment.first, segment.last) for segment in log.segments] == [(1, 10), (11, 20), (21, 30), (31, 35)]
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 1)
    again = backup(database_dsn, tmp_path / "b", full=True).manifest
    assert [segment.rows for log in again.log for segment in log.segments] == [1] * 35
    assert files(tmp_path / "b") == {part.file for part in again.parts()}, "what the new manifest does not name is gone"
    restored = empty_database()
    restore(restored, tmp_path / "b")
    assert contents(restored) == contents(database_dsn)


async def test_a_backup_under_load_is_a_beginning_of_the_log(database_dsn: str, tmp_path: Path, empty_database: Empty) -> None:
    await write(database_dsn, [str(n) for n in range(100)])
    done = threading.Event()

    async def load() -> None:
        n = 0
        while not done.is_set():
            await write(database_dsn, [f"load-{n}"])
            n += 1
        await write(database_dsn, ["behind the last"])

    writing = asyncio.create_task(load())
    try:
        added: list[int] = []
        while len(added) < 8 or not sum(added[1:]):  # until something was written meanwhile, or nothing would be tested
            added.append((await asyncio.to_thread(backup, database_dsn, tmp_path / "b")).added)
    finally:
        done.set()
        await writing

    restored = empty_database()
    await asyncio.to_thread(restore, restored, tmp_path / "b")
    assert set(contents(restored)["event"]) < set(contents(database_dsn)["event"])
    with psycopg.connect(restored) as conn:
        for (found,) in conn.execute("select array_agg(position order by position) from event group by partition"):
            assert found == list(range(1, len(found) + 1))


async def test_every_table_is_kept_or_known_to_be_a_fold(database_dsn: str) -> None:
    """A table that nobody has decided about would be lost by a restore."""
    await asyncio.to_thread(schema.create, database_dsn)
    with psycopg.connect(database_dsn) as conn:
        tables = {
            row[0]
            for row in conn.execute("select relname from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'p')")
        }
    folds = {table.name for projection in PROJECTIONS.values() for table in _defined(projection)}

    assert tables - folds - {*LOG, *SMALL, *DERIVED, *OWN} == set()
    assert set(SMALL) <= tables


def _defined(projection: Any) -> list[Any]:
    from sqlalchemy import MetaData

    metadata = MetaData()
    projection.define(metadata, 1)
    return list(metadata.sorted_tables)


async def test_checkpoints_come_back_but_for_those_of_read_models(database_dsn: str, tmp_path: Path, empty_database: Empty) -> None:
    await asyncio.to_thread(schema.create, database_dsn)
    await write(database_dsn, ["a", "b"])
    with psycopg.connect(database_dsn, autocommit=True) as conn:
        name = next(iter(PROJECTIONS))
        for consumer in (name, "process"):
            conn.execute("insert into checkpoint values (3, %s, 1, 2, 0, null)", (consumer,))
        conn.execute("insert into checkpoint values (4, 'process', 1, 2, 0, 'poison')")
    restored = empty_database()

    backup(database_dsn, tmp_path / "b")
    restore(restored, tmp_path / "b")

    with psycopg.connect(restored) as conn:
        found = conn.execute("select partition, consumer, position, epoch, stopped from checkpoint order by partition").fetchall()
    assert found == [(3, "process", 2, 1, None), (4, "process", 2, 1, "poison")], "they go on under the new epoch"


async def test_another_stores_backup_is_not_gone_on_with(database_dsn: str, tmp_path: Path, empty_database: Empty) -> None:
    await write(database_dsn, ["a"])
    backup(database_dsn, tmp_path / "b")
    other = empty_database()
    restore(other, tmp_path / "b")
    with psycopg.connect(other, autocommit=True) as conn:
        conn.execute("delete from event where partition = %s and position = 2", (partition_of(TENANTS[0], 64),))
    await write(other, ["b"], TENANTS[:1])

    with pytest.raises(BackupRefused, match="lost its end"):
        backup(other, tmp_path / "b")
    assert verify(tmp_path / "b").run == 1
    assert backup(other, tmp_path / "b", full=True).manifest.run == 2


async def test_a_log_that_lost_its_end_is_not_gone_on_with(database_dsn: str, tmp_path: Path) -> None:
    await write(database_dsn, ["a", "b"])
    backup(database_dsn, tmp_path / "b")
    with psycopg.connect(database_dsn, autocommit=True) as conn:
        conn.execute("delete from event where partition = %s and position = 3", (partition_of(TENANTS[0], 64),))

    with pytest.raises(BackupRefused, match="lost its end"):
        backup(database_dsn, tmp_path / "b")


@pytest.mark.parametrize(
    "harm",
    [
        "update event set payload = '{}' where position = 2",
        "update event set salt = decode('00', 'hex') where position = 2",
        "delete from event where position = 2",
        "update event set type = 'log.pruned', leaf = hash where position = 2",
    ],
)
async def test_a_log_whose_chain_is_broken_is_not_taken_for_a_backup(database_dsn: str, tmp_path: Path, harm: str) -> None:
    await write(database_dsn, ["a", "b"], TENANTS[:1])
    with psycopg.connect(database_dsn, autocommit=True) as conn:
        conn.execute(harm)

    with pytest.raises(CorruptLog, match="position 2"):
        backup(database_dsn, tmp_path / "b")
    assert not (tmp_path / "b" / MANIFEST).exists()


async def test_two_at_once_refuse_each_other(database_dsn: str, tmp_path: Path) -> None:
    await write(database_dsn, ["a"])
    directory = Directory(tmp_path / "b")

    with directory.held(writing=True), pytest.raises(BackupRefused, match="Another process"):
        backup(database_dsn, tmp_path / "b")
    backup(database_dsn, tmp_path / "b")
    with directory.held(writing=False):
        verify(tmp_path / "b")
        with pytest.raises(BackupRefused, match="Another process"):
            backup(database_dsn, tmp_path / "b")


async def test_it_is_for_its_owner_alone(database_dsn: str, tmp_path: Path) -> None:
    await write(database_dsn, ["a"])
    backup(database_dsn, tmp_path / "b")

    for found in (tmp_path / "b", *(tmp_path / "b").rglob("*")):
        assert found.stat().st_mode & 0o077 == 0, found


@pytest.mark.timeout(1200)  # dozens of backups
async def test_killed_anywhere_it_leaves_a_whole_backup(database_dsn: str, tmp_path: Path, empty_database: Empty, killer: Killer) -> None:
    path, before = tmp_path / "b", tmp_path / "before"
    await write(database_dsn, ["a", "b"], TENANTS[:1])
    first = backup(database_dsn, before).manifest
    (before / "notes of my own").write_text("kept")
    (before / "tables" / "store-0123456789abcdef.copy").write_text("left by a run that was killed")
    await write(database_dsn, ["c", "d", "e", "f"], TENANTS[:1])  # as much again, so that files are gathered into one and removed
    found = []

    for step in range(1, 1_000):
        shutil.copytree(before, path)
        killed = await asyncio.to_thread(killer.kills, step, "files", "backup", str(path), HOLDBOOK_DATABASE_URL=database_dsn)
        if not killed:
            break
        manifest = verify(path)
        found.append(manifest.run)
        assert manifest == first or (manifest.run, manifest.events) == (2, 7)
        backup(database_dsn, path)
        assert files(path) == {part.file for part in verify(path).parts()}, "nothing is left of what was killed"
        assert (path / "notes of my own").exists()
        shutil.rmtree(path)

    assert found == [1] * found.count(1) + [2] * found.count(2)
    assert found.count(1) > 10
    assert found.count(2) > 1, "also while it removed what the new manifest does not name"
    restored = empty_database()
    restore(restored, path)
    assert contents(restored) == contents(database_dsn)


async def test_it_goes_on_every_so_many_seconds_until_it_is_told_to_stop(database_dsn: str, tmp_path: Path) -> None:
    await write(database_dsn, ["a"])
    path = tmp_path / "b"
    command = [sys.executable, "-m", "api.cli", "backup", str(path), "--every", "1"]
    process = await asyncio.create_subprocess_exec(
        *command, env={**os.environ, "HOLDBOOK_DATABASE_URL": database_dsn, "PYTHONPATH": str(ROOT)}
    )
    try:
        await until(lambda: (path / MANIFEST).exists() and kept(path).run > 1)
        await write(database_dsn, ["b"])
        await until(lambda: kept(path).events == 3 * len(TENANTS))
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 120) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()


async def until(holds: Callable[[], bool]) -> None:
    """Wait for another process, with a limit."""
    async with asyncio.timeout(120):
        while not holds():  # noqa: ASYNC110  # there is no event between processes
            await asyncio.sleep(0.05)


async def test_what_a_deleted_tenant_said_leaves_the_backup_and_does_not_come_back(
    database_dsn: str, tmp_path: Path, empty_database: Empty
) -> None:
    path = tmp_path / "b"
    tenant_id = next(each for each in iter(uuid4, None) if partition_of(each, 64) == partition_of(TENANTS[0], 64))
    await write(database_dsn, ["said-in-confidence"], [tenant_id])
    await write(database_dsn, ["said"])
    backup(database_dsn, path)
    await delete_tenant(database_dsn, tenant_id)
    backup(database_dsn, path)
    assert holds(path, b"said-in-confidence"), "the store has it still"

    early = empty_database()
    restore(early, path)
    assert prune(database_dsn, tenant_id) > 0
    backup(database_dsn, path)

    assert not holds(path, b"said-in-confidence")
    assert verify(path).events == 2 * (1 + len(TENANTS)) + 2
    for restored in (early, late := empty_database()):
        if restored is late:
            restore(late, path)
        assert contents(restored)["event"] == contents(database_dsn)["event"]
        assert contents(restored)["tenant_key"] == contents(database_dsn)["tenant_key"]
    store = await Store.open(early, [TILL])
    await store.drain()


def holds(path: Path, text: bytes) -> bool:
    return any(text in found.read_bytes() for found in path.rglob("*.copy"))


async def test_a_login_without_all_rights_backs_up_and_restores_everything(
    database_dsn: str, tmp_path: Path, empty_database: Empty
) -> None:
    """Row security that is forced upon a table's owner too would hide rows from a backup without a word."""
    name, uuid = f"operator_{uuid4().hex}", str(uuid4())
    target = empty_database()
    roles = "holdbook_writer, holdbook_follower, holdbook_reader"
    with psycopg.connect(target, autocommit=True) as conn:
        database = conn.info.dbname
        conn.execute(f"create role {name} login createrole noinherit password 'p'")
        conn.execute(f"grant {roles} to {name} with admin option")
        conn.execute(f"alter database {database} owner to {name}")
    source = urlsplit(target)
    theirs = source._replace(netloc=f"{name}:p@{source.netloc.rpartition('@')[2]}").geturl()
    try:
        await asyncio.to_thread(migrate, theirs)
        await write(theirs, ["a"])
        with psycopg.connect(theirs) as conn:
            conn.execute("set role holdbook_follower")
            row = {"partition": 3, "endpoint_id": uuid, "number": 1, "tenant_id": uuid, "message_id": "m", "position": 1, "type": "t"}
            row |= {"state": "waiting", "attempts": 0, "created_at": "2026-01-01T00:00:00Z"}
            conn.execute("insert into webhook_delivery select (jsonb_populate_record(null::webhook_delivery, %s)).*", (Jsonb(row),))
        saved = await asyncio.to_thread(backup, theirs, tmp_path / "b")
        assert {table.name: table.rows for table in saved.manifest.tables}["webhook_delivery"] == 1

        with psycopg.connect(theirs, autocommit=True) as conn:
            conn.execute("drop schema public cascade")
            conn.execute("create schema public")
            conn.execute("grant usage on schema public to public")
        await asyncio.to_thread(restore, theirs, tmp_path / "b")

        with psycopg.connect(theirs) as conn:
            assert conn.execute("select relforcerowsecurity from pg_class where relname = 'webhook_delivery'").fetchone() == (True,)
            conn.execute("set role holdbook_follower")
            assert conn.execute("select count(*) from webhook_delivery").fetchone() == (1,)
    finally:
        with psycopg.connect(target, autocommit=True) as conn:
            conn.execute(f"reassign owned by {name} to current_user")
            conn.execute(f"drop owned by {name} cascade")
            conn.execute(f"alter database {database} owner to current_user")
            conn.execute(f"drop role {name}")

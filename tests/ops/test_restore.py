"""What a restore accepts, what it refuses, and what is left when it is killed."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import psycopg
import pytest

from eventstore.backup.files import MANIFEST, BackupDamaged, BackupRefused, Directory, Manifest
from eventstore.backup.restoring import restore, verify
from eventstore.backup.saving import backup
from eventstore.errors import WrongSchema
from eventstore.rows import COLUMNS, Row, leaf_hash, microseconds
from eventstore.schema import check, migrate
from eventstore.store import Store
from tests.ops.conftest import TENANTS, ask, await_alone, contents, epochs, write
from tests.support.killed import Killer
from tests.support.till import TILL, Take

Empty = Callable[[], str]
Harm = Callable[[Path, Manifest], None]


def _longest(manifest: Manifest) -> list[str]:
    return [log.segments[0].file for log in sorted(manifest.log, key=lambda log: -log.position) if log.segments]


def flip_a_bit(path: Path, manifest: Manifest) -> None:
    file = path / _longest(manifest)[0]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def cut_off(path: Path, manifest: Manifest) -> None:
    file = path / _longest(manifest)[0]
    file.write_bytes(file.read_bytes()[:-10])


def remove(path: Path, manifest: Manifest) -> None:
    (path / _longest(manifest)[0]).unlink()


def swap(path: Path, manifest: Manifest) -> None:
    one, other = (path / name for name in _longest(manifest)[:2])
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)


def lose_a_table(path: Path, manifest: Manifest) -> None:
    (path / next(table.file for table in manifest.tables if table.name == "tenant_key")).unlink()


def change_the_manifest(path: Path, manifest: Manifest) -> None:
    text = (path / MANIFEST).read_text()
    (path / MANIFEST).write_text(text.replace('"epoch": 0', '"epoch": 7', 1))


def tear_the_manifest(path: Path, manifest: Manifest) -> None:
    text = (path / MANIFEST).read_text()
    (path / MANIFEST).write_text(text[: len(text) // 2])


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (flip_a_bit, r"log/.*\.copy is not what was written"),
        (cut_off, r"log/.*\.copy is not what was written"),
        (remove, r"log/.*\.copy is missing"),
        (swap, r"log/.*\.copy is not what was written"),
        (lose_a_table, r"tables/tenant_key-.*\.copy is missing"),
        (change_the_manifest, "manifest.json does not have the digest"),
        (tear_the_manifest, "manifest.json cannot be read"),
    ],
)
async def test_a_damaged_backup_is_told_and_never_becomes_a_store(
    database_dsn: str, tmp_path: Path, empty_database: Empty, harm: Harm, told: str
) -> None:
    await write(database_dsn, ["a", "b", "c"])
    harm(tmp_path / "b", backup(database_dsn, tmp_path / "b").manifest)
    target = empty_database()

    with pytest.raises(BackupDamaged, match=told):
        verify(tmp_path / "b")
    with pytest.raises(BackupDamaged, match=told):
        restore(target, tmp_path / "b")
    with pytest.raises(WrongSchema):
        check(target)


async def test_who_forges_files_and_manifest_alike_is_told_by_the_chain(database_dsn: str, tmp_path: Path, empty_database: Empty) -> None:
    """Digests say that a file is what the manifest means; only the chain says that rows belong together."""
    await write(database_dsn, ["a", "b", "c"])
    path = tmp_path / "b"
    manifest = backup(database_dsn, path).manifest
    logs = [log for log in manifest.log if len(log.segments) == 1 and log.position == 4][:2]
    assert len(logs) == 2
    one, other = (log.segments[0] for log in logs)
    forged = {one: msgspec.structs.replace(other, partition=one.partition), other: msgspec.structs.replace(one, partition=other.partition)}
    data = {segment: (path / segment.file).read_bytes() for segment in forged}
    (path / forged[one].file).write_bytes(data[other])
    (path / forged[other].file).write_bytes(data[one])
    changed = tuple(
        msgspec.structs.replace(log, segments=tuple(forged.get(segment, segment) for segment in log.segments)) for log in manifest.log
    )
    Directory(path).publish(msgspec.structs.replace(manifest, log=changed))

    with pytest.raises(BackupDamaged, match=r"the chain breaks at position 1"):
        verify(path)
    with pytest.raises(BackupDamaged, match=r"the chain breaks at position 1"):
        restore(empty_database(), path)


async def test_only_an_empty_database_is_restored_into(database_dsn: str, tmp_path: Path, empty_database: Empty) -> None:
    await write(database_dsn, ["a"])
    backup(database_dsn, tmp_path / "b")
    before = contents(database_dsn)

    with pytest.raises(BackupRefused, match="not empty"):
        restore(database_dsn, tmp_path / "b")
    assert (contents(database_dsn), epochs(database_dsn)) == (before, {0})
    theirs = empty_database()
    with psycopg.connect(theirs, autocommit=True) as conn:
        conn.execute("create table somebody_elses (n int)")
    with pytest.raises(BackupRefused, match="somebody_elses"):
        restore(theirs, tmp_path / "b")
    with pytest.raises(BackupRefused, match="holds no backup"):
        restore(empty_database(), tmp_path)
    with pytest.raises(BackupRefused, match="not a directory"):
        restore(empty_database(), tmp_path / "nothing")


@pytest.mark.timeout(1200)  # a hundred restores and more
async def test_killed_anywhere_it_goes_on_to_the_same_store(tmp_path: Path, empty_database: Empty, killer: Killer) -> None:
    source, path = empty_database(), tmp_path / "b"
    await asyncio.to_thread(migrate, source, partitions=2)
    await write(source, ["a", "b"])
    backup(source, path)
    wanted = contents(source)
    begun = complete = 0

    for step in range(1, 1_000):
        target = empty_database()
        if not await asyncio.to_thread(killer.kills, step, "statements", "restore", str(path), HOLDBOOK_DATABASE_URL=target):
            break
        await asyncio.to_thread(await_alone, target)
        if await asyncio.to_thread(_is_store, target):
            await asyncio.to_thread(migrate, target)  # only read models were missing
            complete += 1
        else:
            if _has_begun(target):
                begun += 1
                with pytest.raises(WrongSchema, match="restore has begun"):
                    migrate(target)
            raised = (await asyncio.to_thread(restore, target, path)).raised
            assert epochs(target) == {raised}
        assert contents(target) == wanted

    assert begun > 15
    assert complete > 0


def _is_store(dsn: str) -> bool:
    try:
        check(dsn)
    except WrongSchema:
        return False
    return True


def _has_begun(dsn: str) -> bool:
    with psycopg.connect(dsn) as conn:
        return conn.execute("select to_regclass('holdbook_restore')").fetchone() != (None,)


async def test_a_half_restored_database_is_for_its_own_restore_alone(
    database_dsn: str, tmp_path: Path, empty_database: Empty, killer: Killer
) -> None:
    await write(database_dsn, ["a"])
    backup(database_dsn, tmp_path / "b")
    await write(database_dsn, ["b"])
    backup(database_dsn, tmp_path / "newer")
    target = empty_database()
    assert await asyncio.to_thread(killer.kills, 40, "statements", "restore", str(tmp_path / "b"), HOLDBOOK_DATABASE_URL=target)
    await asyncio.to_thread(await_alone, target)

    with pytest.raises(WrongSchema, match="restore has begun"):
        migrate(target)
    with pytest.raises(WrongSchema):
        await Store.open(target, [TILL])
    with pytest.raises(BackupRefused, match="another backup has begun"):
        restore(target, tmp_path / "newer")
    await asyncio.to_thread(await_alone, target)
    restore(target, tmp_path / "b")


async def test_two_restores_of_one_backup_have_epochs_of_their_own(database_dsn: str, tmp_path: Path, empty_database: Empty) -> None:
    await write(database_dsn, ["a"])
    backup(database_dsn, tmp_path / "b")
    first, second, third = empty_database(), empty_database(), empty_database()

    restore(first, tmp_path / "b")
    restore(second, tmp_path / "b")
    backup(second, tmp_path / "b")  # goes on where the restored store is
    restore(third, tmp_path / "b")

    assert [epochs(dsn) for dsn in (first, second, third)] == [{1}, {2}, {3}]


async def test_a_copy_that_cannot_be_written_can_be_restored(database_dsn: str, tmp_path: Path, empty_database: Empty) -> None:
    await write(database_dsn, ["a"])
    backup(database_dsn, tmp_path / "b")
    shutil.copytree(tmp_path / "b", tmp_path / "copy")
    (tmp_path / "copy" / "lock").unlink()
    (tmp_path / "copy" / "restores").mkdir()  # root may write anywhere; a directory is not a file for anybody
    target = empty_database()

    restore(target, tmp_path / "copy")

    assert contents(target) == contents(database_dsn)


async def test_the_restored_store_knows_every_key_and_takes_new_ones(database_dsn: str, tmp_path: Path, empty_database: Empty) -> None:
    outcomes = await write(database_dsn, ["a", "b"])
    backup(database_dsn, tmp_path / "b")
    target = empty_database()
    restore(target, tmp_path / "b")

    store = await Store.open(target, [TILL])
    again = {place: await ask(store, place[0], Take(take_id=place[1]), place[1]) for place in outcomes}
    new = [await ask(store, tenant_id, Take(take_id="c"), "c") for tenant_id in TENANTS]
    await store.drain()

    assert all(answer.replayed for answer in again.values())
    assert {place: answer.reply for place, answer in again.items()} == {place: answer.reply for place, answer in outcomes.items()}
    assert {answer.epoch for answer in new} == {1}
    assert not any(answer.replayed for answer in new)
    backup(target, tmp_path / "b")
    verify(tmp_path / "b")


async def test_a_newer_programs_backup_is_refused(database_dsn: str, tmp_path: Path, empty_database: Empty) -> None:
    await write(database_dsn, ["a"])
    manifest = backup(database_dsn, tmp_path / "b").manifest
    Directory(tmp_path / "b").publish(msgspec.structs.replace(manifest, schema="9999"))
    target = empty_database()

    with pytest.raises(BackupRefused, match="newer"):
        restore(target, tmp_path / "b")
    with psycopg.connect(target) as conn:
        assert conn.execute("select count(*) from pg_class where relnamespace = 'public'::regnamespace").fetchone() == (0,)
    with psycopg.connect(database_dsn, autocommit=True) as conn:
        conn.execute("update holdbook_schema set version_num = '9999'")
    with pytest.raises(WrongSchema):
        backup(database_dsn, tmp_path / "c")


async def test_rows_pruned_without_a_deletion_are_told(database_dsn: str, tmp_path: Path) -> None:
    """Nothing covers what a pruned row says of itself but the hash: whoever may write files could blank any tenant's events."""
    await write(database_dsn, ["a", "b"], TENANTS[:1])
    with psycopg.connect(database_dsn, autocommit=True) as conn:
        rows = conn.execute("select partition, position from event order by position").fetchall()
        partition, position = rows[-1]
        found = await asyncio.to_thread(_leaf, conn, partition, position)
        conn.execute(
            "update event set type = 'log.pruned', leaf = %s, payload = 'null', reply = null where partition = %s and position = %s",
            (found, partition, position),
        )
    backup(database_dsn, tmp_path / "b")

    with pytest.raises(BackupDamaged, match="it was not deleted"):
        verify(tmp_path / "b")


def _leaf(conn: psycopg.Connection[tuple[object, ...]], partition: int, position: int) -> bytes:
    columns = ", ".join(f"{name}::text" if name in ("payload", "reply") else name for name in COLUMNS)
    found = conn.execute(f"select {columns} from event where partition = %s and position = %s", (partition, position)).fetchone()
    assert found is not None
    row = Row._make(found)
    return leaf_hash(partition, *row[:7], microseconds(row.recorded_at), *row[8:15])

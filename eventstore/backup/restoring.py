"""A store made of a backup, in an empty database.

A partition is loaded in one transaction, and the row of ``store`` comes last, so that until everything is there no process takes
the database for a store. After a kill the same restore goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
from psycopg import Connection
from psycopg.sql import SQL, Identifier

from domain.identity.tenants import TenantDeleted, tenant_stream
from eventstore.backup.files import BackupDamaged, BackupRefused, Directory, Log, Manifest, Table
from eventstore.backup.saving import SESSION, is_forced
from eventstore.backup.segments import LEAF, Chain
from eventstore.errors import CorruptLog
from eventstore.pruning import prune_range
from eventstore.rows import COLUMNS, GENESIS
from eventstore.schema import is_known, migrate, upgrade

_RESTORING = 0x686F6C66  # an advisory lock's number: one restore at a time
_TABLES = """
select c.relname from pg_class c where c.relnamespace = current_schema()::regnamespace and c.relkind in ('r', 'p')
and c.relname <> 'holdbook_restore' order by 1 limit 5"""
_BEGIN = """
create table if not exists holdbook_restore (manifest text primary key, raised int not null);
insert into holdbook_restore select '{manifest}', {raised} where not exists (select from holdbook_restore);"""
_HEAD = "select position, hash from event where partition = %s order by position desc limit 1"

_FORGET_KEYS = """
delete from tenant_key k where exists (
  select from event e where e.partition = k.partition and e.stream = %s || replace(k.tenant_id::text, '-', '') and e.type = %s)"""
_FORGET_PEOPLE = _FORGET_KEYS.replace("delete from tenant_key", "delete from subject_key")
_STREAM_PREFIX = tenant_stream(UUID(int=0)).removesuffix(UUID(int=0).hex)


class Restored(NamedTuple):
    """The manifest that was restored, and by how much every partition's epoch was raised."""

    manifest: Manifest
    raised: int


def verify(path: Path, progress: Callable[[int, int], None] = lambda _done, _all: None) -> Manifest:
    """Read every file of a backup and check digests, density and the whole chain. Raises :class:`BackupDamaged`."""
    directory = Directory(path)
    with directory.held(writing=False):
        manifest = _manifest(directory)
        done = 0
        for log in manifest.log:
            chain = Chain(log.partition)
            for segment in log.segments:
                _check(chain, directory.read(segment), segment.file)
                done += segment.rows
                progress(done, manifest.events)
            _ends(log, chain)
        for table in manifest.tables:
            directory.read(table)
    return manifest


def restore(dsn: str, path: Path, progress: Callable[[int, int], None] = lambda _done, _all: None) -> Restored:
    """Load a backup into an empty database and raise every partition's epoch.

    The epoch tells readers, read models and buses that answers given after the backup are gone. Raises
    :class:`BackupRefused` when the database is not empty or another restore has begun in it, :class:`BackupDamaged` when a file is
    not what it was; then nothing can take the database for a store, and it may be dropped.
    """
    directory = Directory(path)
    with directory.held(writing=False), psycopg.connect(dsn, autocommit=True, options=SESSION) as conn:
        manifest = _manifest(directory)
        if not is_known(manifest.schema):
            raise BackupRefused(f"The backup has schema {manifest.schema}, which this program does not know: a newer one made it.")
        if conn.execute("select pg_try_advisory_lock(%s)", (_RESTORING,)).fetchone() != (True,):
            raise BackupRefused("Another process restores into this database.")
        raised = _begin(conn, directory, manifest)
        upgrade(dsn, manifest.schema)
        done = 0
        for log in manifest.log:
            _load_log(conn, directory, log, raised)
            done += log.position
            progress(done, manifest.events)
        _finish(conn, directory, manifest)
    migrate(dsn)
    return Restored(manifest, raised)


def _manifest(directory: Directory) -> Manifest:
    manifest = directory.manifest()
    if manifest is None:
        raise BackupRefused(f"{directory.path} holds no backup.")
    for log in manifest.log:
        last = 0
        for segment in log.segments:
            if segment.partition != log.partition or segment.first != last + 1:
                raise BackupDamaged(f"The segments of partition {log.partition} do not follow one another.")
            last = segment.last
        if last != log.position:
            raise BackupDamaged(f"The segments of partition {log.partition} end at {last}, not at {log.position}.")
    return manifest


def _begin(conn: Connection[Any], directory: Directory, manifest: Manifest) -> int:
    """Mark the database as one that is being restored; says by how much epochs are raised, the same after a kill."""
    if conn.execute("select to_regclass('holdbook_restore')").fetchone() == (None,):
        if found := [row[0] for row in conn.execute(_TABLES)]:
            raise BackupRefused(f"The database is not empty, it has {', '.join(found)}: restore into a new one.")
        # Twice from one backup, with answers in between: these must not get the same epoch as those that are given now.
        conn.execute(_BEGIN.format(manifest=manifest.digest(), raised=directory.count_restore(manifest)))
    row = conn.execute("select manifest, raised from holdbook_restore").fetchone()
    assert row is not None, "table and row were made in one transaction"
    if row[0] != manifest.digest():
        raise BackupRefused("A restore of another backup has begun in this database: drop it and restore into a new one.")
    return int(row[1])


def _load_log(conn: Connection[Any], directory: Directory, log: Log, raised: int) -> None:
    """Load one partition, unless an earlier attempt has: all of it is there or nothing."""
    if conn.execute("select from log_partition where partition = %s", (log.partition,)).fetchone() is not None:
        position, digest = conn.execute(_HEAD, (log.partition,)).fetchone() or (0, GENESIS)
        if (position, bytes(digest).hex()) != (log.position, log.hash):
            raise BackupRefused(f"Partition {log.partition} was written to: drop the database and restore into a new one.")
        return
    chain = Chain(log.partition)
    with conn.transaction():
        for segment in log.segments:
            data = directory.read(segment)
            columns = _check(chain, data, segment.file)
            names = ("partition", *COLUMNS, LEAF)[:columns]
            into = SQL("copy event ({}) from stdin (format binary)").format(SQL(", ").join(map(Identifier, names)))
            with conn.cursor() as cursor, cursor.copy(into) as copy:
                copy.write(data)
        _ends(log, chain)
        for tenant_id in sorted(chain.deleted & chain.telling):  # what was deleted does not come back
            prune_range(conn, log.partition, tenant_id, 0, log.position)
        conn.execute("insert into log_partition values (%s, %s)", (log.partition, log.epoch + raised))


def _check(chain: Chain, data: bytes, file: str) -> int:
    try:
        return chain.add_all(data)
    except CorruptLog as broken:
        raise BackupDamaged(f"{file}: {broken}") from broken


def _ends(log: Log, chain: Chain) -> None:
    try:
        chain.end()
    except CorruptLog as broken:
        raise BackupDamaged(str(broken)) from broken
    if (chain.position, chain.hash.hex()) != (log.position, log.hash):
        raise BackupDamaged(f"Partition {log.partition} ends at position {chain.position} with another hash than the manifest's.")


def _finish(conn: Connection[Any], directory: Directory, manifest: Manifest) -> None:
    """Load the small tables; with ``store`` among them the database becomes a store, and the mark goes, in one transaction."""
    with conn.transaction():
        for table in manifest.tables:
            _load_table(conn, directory, table)
        # Their positions are of the same moment as the log's, so they go on where they were; the epoch is the new log's.
        conn.execute("update checkpoint c set epoch = p.epoch from log_partition p where p.partition = c.partition")
        for forget in (_FORGET_KEYS, _FORGET_PEOPLE) if "subject_key" in {table.name for table in manifest.tables} else (_FORGET_KEYS,):
            conn.execute(forget, (_STREAM_PREFIX, TenantDeleted.event_name))
        conn.execute("drop table holdbook_restore")


def _load_table(conn: Connection[Any], directory: Directory, table: Table) -> None:
    into = SQL("copy {} ({}) from stdin").format(Identifier(table.name), SQL(", ").join(map(Identifier, table.columns)))
    forced = is_forced(conn, table.name)
    if forced:  # a COPY into a table is refused under row security; nobody else sees the table before the commit
        conn.execute(SQL("alter table {} no force row level security").format(Identifier(table.name)))
    with conn.cursor() as cursor:
        with cursor.copy(into) as copy:
            copy.write(directory.read(table))
        if cursor.rowcount != table.rows:
            raise BackupDamaged(f"{table.file} holds {cursor.rowcount} rows, not {table.rows}.")
    if forced:
        conn.execute(SQL("alter table {} force row level security").format(Identifier(table.name)))

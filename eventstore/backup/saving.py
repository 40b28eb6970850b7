"""One run of a backup: what is new in the log since the last one, and the small tables, as of one moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, LiteralString, NamedTuple

import psycopg
from psycopg import Connection
from psycopg.sql import SQL, Composed, Identifier

from domain.identity.tenants import TenantDeleted
from eventstore.backup.files import FORMAT, BackupRefused, Directory, Log, Manifest, Segment, Table
from eventstore.backup.segments import LEAF, SEGMENT_ROWS, Chain, cut
from eventstore.backup.tables import REGISTRIES, SMALL
from eventstore.errors import CorruptLog, WrongSchema
from eventstore.rows import COLUMNS, GENESIS, PRUNED
from eventstore.schema import check

SESSION = (
    "-c timezone=UTC -c datestyle=ISO -c intervalstyle=postgres -c bytea_output=hex -c extra_float_digits=3 -c client_encoding=UTF8 "
    "-c statement_timeout=0 -c lock_timeout=10s -c row_security=off"
)
"""Values are written and read in forms that no server's settings change, and a row that a policy would hide is an error."""

_HEADS = """
select p.partition, p.epoch, coalesce((select max(e.position) from event e where e.partition = p.partition), 0)
from log_partition p order by p.partition"""
_ROWS = """
copy (select {} from event where partition = {} and position > {} and position <= {} order by position) to stdout (format binary)"""
_TELLING = """
select exists (select from event where partition = %s and tenant_id = any(%s::uuid[]) and type not in (%s, %s))"""
_HASH = "select hash from event where partition = %s and position = %s"


class Head(NamedTuple):
    """The end of a partition's log as of the run's moment."""

    partition: int
    epoch: int
    position: int
    hash: bytes


class Saved(NamedTuple):
    """What a run did: the manifest it left, and how many rows it read anew."""

    manifest: Manifest
    added: int


def backup(dsn: str, path: Path, *, full: bool = False, progress: Callable[[int, int], None] = lambda _done, _all: None) -> Saved:
    """Bring the backup in ``path`` up to date, beginning it where there is none; ``full`` reads everything again.

    Whatever happens meanwhile, the directory holds a complete backup: the earlier one, then this one. Raises
    :class:`BackupRefused` when the directory is in use or holds another store's backup or one of a log that has lost its end,
    `CorruptLog` when the log's chain is broken. ``progress`` hears how many of how many new rows are read.
    """
    check(dsn, newer=False)
    directory = Directory(path)
    with directory.held(writing=True), psycopg.connect(dsn, autocommit=True, options=SESSION) as conn:
        earlier = directory.manifest()
        directory.clear(earlier)
        base = None if full else earlier
        conn.execute("begin transaction isolation level repeatable read, read only")
        taken_at, schema, partitions = _store(conn)
        heads = [
            Head(partition, epoch, position, _hash_at(conn, partition, position) or GENESIS)
            for partition, epoch, position in conn.execute(_HEADS).fetchall()
        ]
        if base is not None:
            _same_store(conn, base, heads, taken_at=taken_at, partitions=partitions)
        tables = tuple(_table(conn, directory, name, where) for name, where in SMALL.items() if _exists(conn, name))
        # What is read from here on never changes, so no snapshot has to be held for it.
        conn.execute("commit")
        log = _logs(conn, directory, heads, base, progress)
        manifest = Manifest(FORMAT, earlier.run + 1 if earlier else 1, taken_at, schema, partitions, log, tables)
        directory.sync()
        directory.publish(manifest)
        directory.clear(manifest)
    return Saved(manifest, manifest.events - (base.events if base else 0))


def _store(conn: Connection[Any]) -> tuple[str, str, int]:
    row = conn.execute(
        "select to_char(now() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), version_num, partitions from holdbook_schema, store"
    ).fetchone()
    if row is None:
        raise WrongSchema("The store was never initialised.")
    return row[0], row[1], row[2]


def _exists(conn: Connection[Any], table: str) -> bool:
    return conn.execute("select to_regclass(%s) is not null", (table,)).fetchone() == (True,)


def _hash_at(conn: Connection[Any], partition: int, position: int) -> bytes | None:
    row = conn.execute(_HASH, (partition, position)).fetchone()
    return None if row is None else bytes(row[0])


def _same_store(conn: Connection[Any], base: Manifest, heads: list[Head], *, taken_at: str, partitions: int) -> None:
    """Refuse to go on with another store's backup, or behind a log that no longer holds what was backed up."""
    if base.partitions != partitions:
        raise BackupRefused(f"The directory's backup is of a store with {base.partitions} partitions, this one has {partitions}.")
    for kept, head in zip(base.log, heads, strict=True):
        found = _hash_at(conn, kept.partition, kept.position) if kept.position else GENESIS
        if found is None or found.hex() != kept.hash or head.epoch < kept.epoch:
            raise BackupRefused(
                f"Partition {kept.partition} does not hold position {kept.position} as it was backed up in run {base.run}: it is "
                "another store's log, or it has lost its end. Back up into another directory, or begin anew here with --full."
            )


def _table(conn: Connection[Any], directory: Directory, name: str, where: LiteralString) -> Table:
    """Write a table as text, its columns named."""
    columns = tuple(
        row[0]
        for row in conn.execute(
            "select attname from pg_attribute where attrelid = %s::regclass and attnum > 0 and not attisdropped order by attnum", (name,)
        )
    )
    conditions = [SQL(where).format(Identifier(registry)) for registry in REGISTRIES if where and _exists(conn, registry)]
    listed = SQL(", ").join(map(Identifier, columns))
    query = SQL("copy (select {} from {} where {}) to stdout").format(
        listed, Identifier(name), SQL(" and ").join([SQL("true"), *conditions])
    )
    with conn.cursor() as cursor, _seeing_all(conn, name):
        with cursor.copy(query) as copy:
            data = b"".join(map(bytes, copy))
        rows = cursor.rowcount
    table = Table(name, columns, rows, len(data), sha256(data).hexdigest())
    directory.write(table.file, data)
    return table


@contextmanager
def _seeing_all(conn: Connection[Any], table: str) -> Iterator[None]:
    """Be who sees all rows: a table under forced row security has a policy for the followers' role, and none for its owner."""
    if not is_forced(conn, table):
        yield
        return
    conn.execute("set local role holdbook_follower; set local row_security = on")
    yield
    conn.execute("set local row_security = off; reset role")


def is_forced(conn: Connection[Any], table: str) -> bool:
    """Whether row security is forced upon the table's owner too."""
    return conn.execute("select relforcerowsecurity from pg_class where oid = %s::regclass", (table,)).fetchone() == (True,)


def _logs(
    conn: Connection[Any], directory: Directory, heads: list[Head], base: Manifest | None, progress: Callable[[int, int], None]
) -> tuple[Log, ...]:
    kept = {each.partition: each for each in base.log} if base else {}
    columns = _columns(conn)
    work: list[tuple[Head, list[Segment]]] = []
    for head in heads:
        before = kept.get(head.partition)
        if before and before.unpruned and _pruned(conn, before):
            before = None  # read all of it again, so that the backup forgets what the store has forgotten
            kept.pop(head.partition)
        work.append((head, _keep(before, head)))
    total = sum(head.position - (segments[-1].last if segments else 0) for head, segments in work)
    done = 0
    logs = []
    for head, segments in work:
        chain = Chain(head.partition, segments[-1].last, bytes.fromhex(segments[-1].hash)) if segments else Chain(head.partition)
        if chain.position < head.position:
            rows = SQL(_ROWS).format(columns, head.partition, chain.position, head.position)
            with conn.cursor() as cursor, cursor.copy(rows) as copy:
                for piece in cut(chain, copy):
                    segment = Segment(
                        head.partition, piece.first, piece.last, len(piece.data), piece.hash.hex(), sha256(piece.data).hexdigest()
                    )
                    directory.write(segment.file, piece.data)
                    segments.append(segment)
                    done += segment.rows
                    progress(done, total)
        if chain.position != head.position or chain.hash != head.hash:
            raise CorruptLog(f"Partition {head.partition} ends at position {chain.position}, not at {head.position} with its hash.")
        unpruned = chain.deleted
        if (before := kept.get(head.partition)) is None:
            unpruned &= chain.telling
        else:
            unpruned |= set(before.unpruned)
        logs.append(Log(head.partition, head.epoch, head.position, head.hash.hex(), tuple(segments), tuple(sorted(unpruned))))
    return tuple(logs)


def _pruned(conn: Connection[Any], log: Log) -> bool:
    """Whether the store has pruned everything that the segments hold of deleted tenants."""
    return conn.execute(_TELLING, (log.partition, list(log.unpruned), PRUNED, TenantDeleted.event_name)).fetchone() == (False,)


def _columns(conn: Connection[Any]) -> SQL | Composed:
    names = ["partition", *COLUMNS]
    if (
        conn.execute(
            "select from pg_attribute where attrelid = 'event'::regclass and attname = %s and not attisdropped", (LEAF,)
        ).fetchone()
        is not None
    ):
        names.append(LEAF)
    return SQL(", ").join(map(Identifier, names))


def _keep(kept: Log | None, head: Head) -> list[Segment]:
    """The segments that stay as they are. The last ones are written anew together with the new rows while they hold no more rows
    than these: so a row is copied a few times at most, and many small runs do not leave many small files."""
    segments = list(kept.segments) if kept else []
    while segments and (new := head.position - segments[-1].last) and segments[-1].rows <= new < SEGMENT_ROWS:
        segments.pop()
    return segments

"""Pruning a deleted tenant's rows to their leaves.

The log keeps position, hash, leaf, tenant, command id, ordinal and time of each row, and the ``tenant.deleted`` itself; everything that
was said in them is gone, and the salt too, so that a leaf cannot be guessed back into its row. The chain holds as before.

Pruning goes from the log's end to its beginning, a short range and transaction at a time: whoever reads meanwhile finds the beginning of
every stream, never a later part without an earlier one. A run that was interrupted is done again from the end and passes over what is
pruned. The writers' role may not change events, so this runs as the operator's own login.

What PostgreSQL keeps of an updated row until it is vacuumed, and what backups and WAL archives hold, is not reached from here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

import psycopg

from domain.identity.tenants import TenantDeleted, tenant_stream
from eventstore.errors import CorruptLog, StoreError
from eventstore.rows import COLUMNS, GENESIS, PRUNED, Row, leaf_hash, microseconds, pruned_stream, row_hash
from eventstore.store import partition_of

AT_ONCE = 2_000
"""Positions looked at in one transaction."""

_OPTIONS = "-c lock_timeout=10s -c statement_timeout=60s -c idle_in_transaction_session_timeout=60s -c timezone=UTC -c jit=off"
_SELECT = ", ".join(f"{name}::text" if name in ("payload", "reply") else name for name in COLUMNS)
_DELETION = "select position from event where partition = %s and stream = %s and type = %s"
_HEAD = "select max(position) from event where partition = %s"
_ROWS = f"""
select {_SELECT} from event
where partition = %s and position > %s and position <= %s and tenant_id = %s and type <> %s and not (stream = %s and type = %s)
order by position"""
_HASHES = "select position, hash from event where partition = %s and position = any(%s::bigint[])"
_PRUNE = """
update event e set leaf = u.leaf, type = %s, stream = u.stream, version = 1, payload = 'null', reply = null, fingerprint = null,
       cause = null, actor = null, trace = null, salt = %s
from unnest(%b::bigint[], %b::bytea[], %b::bytea[], %b::text[]) as u(position, hash, leaf, stream)
where e.partition = %s and e.position = u.position and e.hash = u.hash and e.type <> %s"""
_FORGET = "delete from snapshot where partition = %s and stream = any(%b::text[])"
_FORGET_ORPHANS = """
delete from snapshot s where s.partition = %s
and not exists (select from event e where e.partition = %s and e.stream = s.stream and e.version = s.version)"""
"""A writer may have saved one while the rows it was folded from were pruned."""
_FORGET_KEY = "delete from tenant_key where partition = %s and tenant_id = %s"
_FORGET_PEOPLE = "delete from subject_key where partition = %s and tenant_id = %s"
_FORGET_ORIGINS = "delete from origin where partition = %s and tenant_id = %s"
_FORGET_REFUSALS = "delete from door_refusal where partition = %s and tenant_id = %s"
_FORGET_KEY_USE = "delete from key_use where partition = %s and tenant_id = %s"
_FORGET_TELEMETRY = "delete from telemetry where partition = %s and tenant_id = %s"


class NotDeleted(StoreError):
    """Only what a deleted tenant left behind may be pruned."""


def prune(dsn: str, tenant_id: UUID, told: Callable[[int, int], None] = lambda _done, _whole: None, *, at_once: int = AT_ONCE) -> int:
    """Prune what the log holds of a deleted tenant, drop its snapshots, its key and its people's; returns how many rows were pruned now.

    May be run again, and several at once. ``told`` hears how many positions were looked at, of how many. Raises `NotDeleted`, and
    `CorruptLog` when a row is not what its hash says: a harm that was done to the log must not be covered up by pruning it.
    """
    with psycopg.connect(dsn, autocommit=True, options=_OPTIONS) as conn:
        store = conn.execute("select partitions from store").fetchone()
        assert store is not None
        partition = partition_of(tenant_id, store[0])
        if not conn.execute(_DELETION, (partition, tenant_stream(tenant_id), TenantDeleted.event_name)).fetchone():
            raise NotDeleted(str(tenant_id))
        conn.execute(_FORGET_KEY, (partition, tenant_id))
        conn.execute(_FORGET_PEOPLE, (partition, tenant_id))
        conn.execute(_FORGET_ORIGINS, (partition, tenant_id))
        conn.execute(_FORGET_REFUSALS, (partition, tenant_id))
        conn.execute(_FORGET_KEY_USE, (partition, tenant_id))
        conn.execute(_FORGET_TELEMETRY, (partition, tenant_id))
        head, pruned = _one(conn, _HEAD, (partition,)) or 0, 0
        for last in range(head, 0, -at_once):
            first = max(0, last - at_once)
            with conn.transaction():
                pruned += prune_range(conn, partition, tenant_id, first, last)
            told(head - first, head)
        conn.execute(_FORGET_ORPHANS, (partition, partition))
        return pruned


def prune_range(conn: psycopg.Connection[Any], partition: int, tenant_id: UUID, after: int, last: int) -> int:
    """Prune a deleted tenant's rows behind ``after`` up to ``last``, in the connection's transaction; how many there were."""
    wanted = (partition, after, last, tenant_id, PRUNED, tenant_stream(tenant_id), TenantDeleted.event_name)
    rows = [Row._make(row) for row in conn.execute(_ROWS, wanted, binary=True).fetchall()]
    if not rows:
        return 0
    _check(conn, partition, rows)
    leaves = [leaf_hash(partition, *row[:7], microseconds(row.recorded_at), *row[8:15]) for row in rows]
    places = [row.position for row in rows]
    columns = (places, [row.hash for row in rows], leaves, [pruned_stream(position) for position in places])
    conn.execute(_FORGET, (partition, sorted({row.stream for row in rows})))
    return conn.execute(_PRUNE, (PRUNED, bytes(16), *columns, partition, PRUNED)).rowcount


def _check(conn: psycopg.Connection[Any], partition: int, rows: Sequence[Row]) -> None:
    """Each row must be what its hash and that of the row before it say."""
    before = [row.position - 1 for row in rows]
    hashes = {0: GENESIS, **dict(conn.execute(_HASHES, (partition, before), binary=True).fetchall())}
    for row in rows:
        previous = hashes.get(row.position - 1)
        if previous is None or len(row.salt) != 16 or row_hash(partition, previous, row) != row.hash:
            raise CorruptLog(f"Partition {partition} is broken at position {row.position}: pruning stopped there.")


def _one(conn: psycopg.Connection[Any], query: str, parameters: Sequence[Any]) -> Any:
    row = conn.execute(query, parameters).fetchone()
    return None if row is None else row[0]

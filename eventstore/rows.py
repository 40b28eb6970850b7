"""A row of the log, and the hash chain over its columns.

``leaf = sha256(salt, then every other column)`` and ``hash = sha256(previous hash || leaf)``, the hash before position 1 being
32 zero bytes. Every column goes in behind its length in bytes (4 bytes, big-endian; 0xFFFFFFFF for null): salt, partition
(4), position (8), tenant_id (16), version (8), command_id (16), ordinal (4), recorded_at (8, microseconds since 1970
UTC), all integers big-endian and signed; then stream, type, cause, actor, trace, payload, reply, fingerprint as stored (text in UTF-8).

A row of a deleted tenant is pruned to its leaf: that stands in a column of its own, and the chain goes on over it. The row keeps
its position, hash, tenant, command id, ordinal and time; its stream is its own (:func:`pruned_stream`), its type :data:`PRUNED`, and
everything else is gone. Nothing covers what it keeps but the position and the hash, and it is only right where the partition has a
``tenant.deleted`` of its tenant.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from struct import Struct
from typing import NamedTuple
from uuid import UUID

GENESIS = bytes(32)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_FIXED = Struct(">I16sIiIqI16sIqI16sIiIq").pack
_NULL = b"\xff\xff\xff\xff"

PRUNED = "log.pruned"
"""The type of a row of which only the leaf is left. It is no event: nobody decodes it."""


def pruned_stream(position: int) -> str:
    """The stream that a pruned row stands in, alone and at version 1."""
    return f"pruned-{position}"


class Row(NamedTuple):
    """One event of a partition's log, exactly as stored."""

    position: int
    tenant_id: UUID
    stream: str
    version: int
    command_id: UUID
    ordinal: int
    type: str
    recorded_at: datetime
    cause: UUID | None
    actor: str | None
    trace: str | None
    payload: str
    reply: str | None
    fingerprint: bytes | None
    salt: bytes
    hash: bytes


COLUMNS = Row._fields
"""The log's columns after ``partition``, in the order of :class:`Row`."""


def microseconds(moment: datetime) -> int:
    """Microseconds since 1970-01-01 UTC."""
    return (moment - _EPOCH) // _MICROSECOND


def leaf_hash(
    partition: int,
    position: int,
    tenant_id: UUID,
    stream: str,
    version: int,
    command_id: UUID,
    ordinal: int,
    type_: str,
    recorded_us: int,
    cause: UUID | None,
    actor: str | None,
    trace: str | None,
    payload: str,
    reply: str | None,
    fingerprint: bytes | None,
    salt: bytes,
) -> bytes:
    """The leaf of one event: a digest of the salt and of every column, each behind its length."""
    parts = [_FIXED(16, salt, 4, partition, 8, position, 16, tenant_id.bytes, 8, version, 16, command_id.bytes, 4, ordinal, 8, recorded_us)]
    add = parts.append
    for text in (stream, type_, None if cause is None else cause.bytes, actor, trace, payload, reply, fingerprint):
        if text is None:
            add(_NULL)
        else:
            value = text if isinstance(text, bytes) else text.encode()
            add(len(value).to_bytes(4, "big"))
            add(value)
    return sha256(b"".join(parts)).digest()


def row_hash(partition: int, previous: bytes, row: Row) -> bytes:
    """What ``row.hash`` must be when the row before it has the hash ``previous``."""
    leaf = leaf_hash(partition, *row[:7], microseconds(row.recorded_at), *row[8:15])
    return sha256(previous + leaf).digest()


def first_broken(
    partition: int, rows: list[Row], position: int = 0, previous: bytes = GENESIS, leaves: Mapping[int, bytes] | None = None
) -> int | None:
    """The first position where density or the chain breaks, reading on from ``position``; None when all holds.

    ``leaves`` are those of the pruned rows by position. Whether their tenants were deleted is for the caller to look up.
    """
    for row in rows:
        if row.position != position + 1 or len(row.salt) != len(GENESIS) // 2:
            return position + 1
        if row.type == PRUNED:
            wanted = sha256(previous + (leaves or {}).get(row.position, b"")).digest()
        else:
            wanted = row_hash(partition, previous, row)
        if wanted != row.hash:
            return position + 1
        position, previous = row.position, row.hash
    return None

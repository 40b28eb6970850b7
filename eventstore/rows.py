"""A row of the log, and the hash chain over its columns.

``leaf = sha256(salt, then every other column)`` and ``hash = sha256(previous hash || leaf)``, the hash before position 1 being
32 zero bytes. Every column goes in behind its length in bytes (4 bytes, big-endian; 0xFFFFFFFF for null): salt, partition
(4), position (8), tenant_id (16), version (8), command_id (16), ordinal (4), recorded_at (8, microseconds since 1970
UTC), all integers big-endian and signed; then stream, type, cause, actor, trace, payload, reply, fingerprint as stored (text in UTF-8).
"""

from __future__ import annotations

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


def first_broken(partition: int, rows: list[Row], position: int = 0, previous: bytes = GENESIS) -> int | None:
    """The first position where density or the chain breaks, reading on from ``position``; None when all holds."""
    for row in rows:
        if row.position != position + 1 or len(row.salt) != len(GENESIS) // 2 or row_hash(partition, previous, row) != row.hash:
            return position + 1
        position, previous = row.position, row.hash
    return None

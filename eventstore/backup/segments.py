"""Rows of the log as PostgreSQL's binary COPY writes them, read and checked without a server.

The types of the log's columns have had the same binary form in every PostgreSQL for many years: integers big-endian, text in
UTF-8, ``json`` as its text, UUIDs as 16 bytes, moments as microseconds since 2000-01-01 UTC. The chain is checked on these
bytes, so a segment is proven by itself, before a server has seen it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from struct import Struct, error
from uuid import UUID

from domain.identity.tenants import TenantDeleted
from eventstore.errors import CorruptLog
from eventstore.rows import COLUMNS, GENESIS, PRUNED, Row, row_hash

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"
LEAF = "leaf"
"""The column that a pruned row keeps in place of its content."""

SEGMENT_ROWS = 20_000
SEGMENT_BYTES = 16 * 2**20

_INT2, _INT4, _INT8 = Struct(">h").unpack_from, Struct(">i").unpack_from, Struct(">q").unpack_from
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)

Field = bytes | None


class Chain:
    """The log of one partition as far as it has been checked, and the tenants of which it holds pruned
    rows, the deletion, or rows that tell something."""

    def __init__(self, partition: int, position: int = 0, digest: bytes = GENESIS) -> None:
        self.partition, self.position, self.hash = partition, position, digest
        self.pruned: set[UUID] = set()
        self.deleted: set[UUID] = set()
        self.telling: set[UUID] = set()

    def add(self, fields: Sequence[Field]) -> None:
        """Check the next row. Raises :class:`CorruptLog` when it is not the one that must follow."""
        try:
            partition, row, leaf = _decode(fields)
        except (error, ValueError, TypeError, AttributeError) as wrong:
            raise CorruptLog(f"Partition {self.partition}: what follows position {self.position} is no row of the log.") from wrong
        expected = row_hash(partition, self.hash, row) if leaf is None else sha256(self.hash + leaf).digest()
        right = partition == self.partition and row.position == self.position + 1 and (leaf is not None) == (row.type == PRUNED)
        if not right or expected != row.hash:
            raise CorruptLog(f"Partition {self.partition}: the chain breaks at position {self.position + 1}.")
        self.position, self.hash = row.position, row.hash
        if leaf is not None:
            self.pruned.add(row.tenant_id)
        elif row.type == TenantDeleted.event_name:
            self.deleted.add(row.tenant_id)
        else:
            self.telling.add(row.tenant_id)

    def end(self) -> None:
        """The whole log was added. Raises :class:`CorruptLog` when a tenant was pruned that was never deleted."""
        if wrong := self.pruned - self.deleted:
            raise CorruptLog(f"Partition {self.partition}: events of tenant {min(wrong)} are pruned, but it was not deleted.")

    def add_all(self, data: bytes) -> int:
        """Check a whole segment; says how many columns its rows have."""
        columns = 0
        if not data.startswith(HEADER) or not data.endswith(TRAILER):
            raise CorruptLog(f"Partition {self.partition}: the segment behind position {self.position} is cut off.")
        at, end = len(HEADER), len(data) - len(TRAILER)
        while at < end:
            found = _fields_at(data, at)
            if found is None:
                raise CorruptLog(f"Partition {self.partition}: the segment behind position {self.position} is cut off.")
            fields, at = found
            self.add(fields)
            columns = columns or len(fields)
            if len(fields) != columns:
                raise CorruptLog(f"Partition {self.partition}: position {self.position} has other columns than the rows before it.")
        return columns


class Cut:
    """A piece of a COPY that is a COPY of its own: rows from ``first`` to ``last``, and the last one's hash."""

    def __init__(self, first: int, last: int, digest: bytes, data: bytes) -> None:
        self.first, self.last, self.hash, self.data = first, last, digest, data


def cut(chain: Chain, chunks: Iterable[bytes | bytearray | memoryview]) -> Iterator[Cut]:
    """Check the rows of a binary COPY as they come, and cut it into pieces of bounded size."""
    pending = b""
    piece, first = bytearray(HEADER), chain.position + 1
    started = False
    for chunk in chunks:
        pending += chunk
        if not started:
            if len(pending) < len(HEADER):
                continue
            if not pending.startswith(HEADER):
                raise CorruptLog("The server's COPY does not begin as one.")
            pending, started = pending[len(HEADER) :], True
        at = 0
        while (found := _fields_at(pending, at)) is not None:
            fields, after = found
            chain.add(fields)
            piece += pending[at:after]
            at = after
            if chain.position - first + 1 >= SEGMENT_ROWS or len(piece) >= SEGMENT_BYTES:
                yield Cut(first, chain.position, chain.hash, bytes(piece + TRAILER))
                piece, first = bytearray(HEADER), chain.position + 1
        pending = pending[at:]
    if pending != TRAILER:
        raise CorruptLog("The server's COPY does not end as one.")
    if chain.position >= first:
        yield Cut(first, chain.position, chain.hash, bytes(piece + TRAILER))


def _fields_at(data: bytes, at: int) -> tuple[list[Field], int] | None:
    """The row that begins here and where the next one does; None at the end, or when not all of it is there."""
    if len(data) < at + 2:
        return None
    (count,) = _INT2(data, at)
    if count < 0:
        return None
    at += 2
    fields: list[Field] = []
    for _ in range(count):
        if len(data) < at + 4:
            return None
        (length,) = _INT4(data, at)
        at += 4
        if length < 0:
            fields.append(None)
            continue
        if len(data) < at + length:
            return None
        fields.append(data[at : at + length])
        at += length
    return fields, at


def _decode(fields: Sequence[Field]) -> tuple[int, Row, Field]:
    """The partition, the row, and the leaf of one that was pruned."""
    partition, position, tenant, stream, version, command, ordinal, type_, recorded, *rest = fields
    cause, actor, trace, payload, reply, fingerprint, salt, digest, *leaf = rest
    assert len(fields) - 1 - len(leaf) == len(COLUMNS)
    row = Row(
        _INT8(position)[0],  # type: ignore[arg-type]  # null in a column that has none is an error, and told as one
        UUID(bytes=tenant),
        stream.decode(),  # type: ignore[union-attr]  # as above, here and below
        _INT8(version)[0],  # type: ignore[arg-type]
        UUID(bytes=command),
        _INT4(ordinal)[0],  # type: ignore[arg-type]
        type_.decode(),  # type: ignore[union-attr]
        _EPOCH + timedelta(microseconds=_INT8(recorded)[0]),  # type: ignore[arg-type]
        None if cause is None else UUID(bytes=cause),
        _text(actor),
        _text(trace),
        _text(payload),  # type: ignore[arg-type]  # null where it was pruned
        _text(reply),
        fingerprint,
        salt,  # type: ignore[arg-type]
        digest,  # type: ignore[arg-type]
    )
    return _INT4(partition)[0], row, leaf[0] if leaf else None  # type: ignore[arg-type]


def _text(field: Field) -> str | None:
    return None if field is None else field.decode()

"""Writing an audit export from the log, by binary COPY in short ranges of positions.

What a row's leaf is made of are its columns behind their lengths, and so are the rows of a binary COPY: with the columns asked for in
the leaf's order a row is hashed as it comes, without being decoded, all but its time, which PostgreSQL counts from another year.

The chain is checked while it is written, so an export that was finished verifies. No snapshot is held for longer than a range takes,
and a range is in memory before anybody reads of it: a slow reader holds up nobody.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from struct import Struct
from typing import Any
from uuid import UUID

import psycopg

from domain.identity.tenants import TenantDeleted, tenant_stream
from eventstore.auditing import FORMAT, VERSION, AsOf, Checker, Event, Head, Header, Leaves, Pruned, Section, encode, signed_text
from eventstore.errors import CorruptLog, StoreError
from eventstore.rows import microseconds
from eventstore.signing import SigningKey
from eventstore.store import partition_of

READER_OPTIONS = (
    "-c role=holdbook_follower -c default_transaction_read_only=on -c statement_timeout=60s -c timezone=UTC -c jit=off "
    "-c enable_seqscan=off -c enable_bitmapscan=off -c client_encoding=UTF8"
)
RANGE = 2_000
"""Rows read in one statement."""
RUN = 1_000
"""Leaves in one line, at most."""

_COPY = """
copy (select hash, leaf, salt, partition, position, tenant_id, version, command_id, ordinal, recorded_at,
             stream, type, cause, actor, trace, payload, reply, fingerprint
      from event where partition = %s and position > %s and position <= %s order by position)
to stdout (format binary)"""
_SIGNATURE = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"
_COLUMNS = (18).to_bytes(2, "big")
_FIXED = Struct(">I16sIiIqI16sIqI16sIiIq")
_LENGTHS = (16, 4, 8, 16, 8, 16, 4, 8)
_SINCE_1970 = microseconds(datetime(2000, 1, 1, tzinfo=UTC))
_NULL = -1

_HEAD = "select position, recorded_at from event where partition = %s order by position desc limit 1"
_EPOCH = "select epoch from log_partition where partition = %s"
_AT = "select recorded_at from event where partition = %s and position = %s"
_HASH = "select hash from event where partition = %s and position = %s"
_DELETION = "select position from event where partition = %s and stream = %s and type = %s"


class CannotExport(StoreError):
    """This cannot be exported."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to export: the whole store, or what is one tenant's; up to a position of one partition, or to a moment, or all."""

    tenant_id: UUID | None = None
    position: tuple[int, int] | None = None
    moment: datetime | None = None


class Exporter:
    """Writes one export on a connection opened with :data:`READER_OPTIONS` and autocommit."""

    def __init__(
        self, conn: psycopg.Connection[Any], key: SigningKey, wanted: Wanted, now: datetime, partial: Checker | None = None
    ) -> None:
        self._conn, self._key, self._wanted, self._partial = conn, key, wanted, partial
        partitions = self._partitions()
        if partial is None or partial.header is None:
            as_of = None
            if wanted.position is not None:
                as_of = AsOf(position=wanted.position[1])
            elif wanted.moment is not None:
                as_of = AsOf(recorded_at=microseconds(wanted.moment))
            tenant = None if wanted.tenant_id is None else wanted.tenant_id.hex
            self.header = Header(FORMAT, VERSION, tenant, partitions, as_of, microseconds(now), key.public.hex())
            self._header_digest = b""
            self._partial = None
        else:
            self.header, self._header_digest = partial.header, partial.header_digest
            self._same(partitions)

    @staticmethod
    def connect(dsn: str) -> psycopg.Connection[Any]:
        """A connection that can read the log and change nothing."""
        return psycopg.connect(dsn, autocommit=True, options=READER_OPTIONS)

    def blocks(self) -> Iterator[bytes]:
        """The export, or what is missing of it, in pieces of whole lines. Raises `CorruptLog` where the log contradicts itself."""
        done, section = 0, None
        if self._partial is None:
            line = _line(self.header)
            self._header_digest = sha256(line).digest()
            yield line
        else:
            done, section = len(self._partial.finished), self._partial.section
        for partition in self.header.partitions[done:]:
            yield from self._section(section or Section(partition))
            section = None

    def _partitions(self) -> list[int]:
        wanted, tenant_id = self._wanted, self._wanted.tenant_id
        count = self._one("select partitions from store", ())
        if wanted.position is None:
            return list(range(count)) if tenant_id is None else [partition_of(tenant_id, count)]
        partition, position = wanted.position
        if tenant_id is not None and partition != partition_of(tenant_id, count):
            raise CannotExport(f"The tenant lives in partition {partition_of(tenant_id, count)}, not {partition}.")
        if not 0 <= partition < count:
            raise CannotExport(f"There is no partition {partition}.")
        head = (self._one(_HEAD, (partition,)) or 0) if position else 0
        if position > head:
            raise CannotExport(f"Partition {partition} ends at position {head}.")
        return [partition]

    def _same(self, partitions: list[int]) -> None:
        """The partial export must be one of the same, on the same log, for the same key."""
        header, wanted = self.header, self._wanted
        as_of = None
        if wanted.position is not None:
            as_of = AsOf(position=wanted.position[1])
        elif wanted.moment is not None:
            as_of = AsOf(recorded_at=microseconds(wanted.moment))
        tenant = None if wanted.tenant_id is None else wanted.tenant_id.hex
        if (header.tenant_id, header.partitions, header.as_of) != (tenant, partitions, as_of):
            raise CannotExport("The file that was begun is of another tenant, partition or moment.")
        if header.public_key != self._key.public.hex():
            raise CannotExport("The file that was begun is for another key.")
        assert self._partial is not None
        section = self._partial.section
        places = [(head.partition, head.position, bytes.fromhex(head.hash)) for head in self._partial.finished]
        if section is not None:
            places.append((section.partition, section.position, section.hash))
        for partition, position, digest in places:
            if position and self._one(_HASH, (partition, position)) != digest:
                raise CannotExport(f"The file that was begun is of another log: position {position} of partition {partition} differs.")

    def _section(self, section: Section) -> Iterator[bytes]:
        partition = section.partition
        epoch = self._one(_EPOCH, (partition,))
        until = self._end(partition)
        while True:
            while section.position < until:
                # Borders that do not depend on where an earlier attempt ended: one log has one export, to the byte.
                block = b"".join(self._range(section, min(until, (section.position // RANGE + 1) * RANGE)))
                section.content.update(block)
                yield block
            # Where rows were pruned for a deletion behind the asked end, the export goes on to that: it is what makes them right.
            missing = [self._deletion(section, tenant_id, at) for tenant_id, at in section.undeleted().items()]
            if not missing:
                break
            until = max(missing)
        if self._one(_EPOCH, (partition,)) != epoch:
            raise CorruptLog(f"Partition {partition} lost its end meanwhile; begin anew.")
        head = section.head(epoch)
        yield _line(self._signed(head))

    def _signed(self, head: Head) -> Head:
        head.signature = self._key.sign(signed_text(self._header_digest, head)).hex()
        return head

    def _end(self, partition: int) -> int:
        """The last position to export."""
        found = self._conn.execute(_HEAD, (partition,)).fetchone()
        head, latest = found or (0, None)
        if self._wanted.position is not None:
            return self._wanted.position[1]
        moment = self._wanted.moment
        if moment is None or latest is None or latest <= moment:
            return int(head)
        return first_after(self._conn, partition, head, moment) - 1

    def _deletion(self, section: Section, tenant_id: str, pruned_at: int) -> int:
        found = self._one(_DELETION, (section.partition, tenant_stream(UUID(tenant_id)), TenantDeleted.event_name))
        if found is None or found <= section.position:
            raise CorruptLog(f"Partition {section.partition}, position {pruned_at}: pruned, although its tenant was not deleted.")
        return int(found)

    def _one(self, query: str, parameters: tuple[Any, ...]) -> Any:
        row = self._conn.execute(query, parameters, binary=True).fetchone()
        return None if row is None else row[0]

    def _range(self, section: Section, until: int) -> list[bytes]:
        """The lines of the rows behind the section's position, up to ``until``."""
        out = _Lines(section, None if self._wanted.tenant_id is None else self._wanted.tenant_id.bytes)
        with self._conn.cursor().copy(_COPY, (section.partition, section.position, until)) as copy:
            for data in copy:
                row = bytes(data)
                if row.startswith(_SIGNATURE):
                    row = row[len(_SIGNATURE) :]
                if row and row != _TRAILER:
                    out.take(row)
        out.flush()
        if section.position != until:
            raise CorruptLog(f"Position {section.position + 1} of partition {section.partition} is missing.")
        return out.lines


def first_after(conn: psycopg.Connection[Any], partition: int, head: int, moment: datetime) -> int:
    """The first position recorded after a moment; ``head + 1`` when there is none. Times never go back within a partition."""
    low, high = 1, head + 1
    while low < high:
        middle = (low + high) // 2
        row = conn.execute(_AT, (partition, middle)).fetchone()
        if row is None:
            raise CorruptLog(f"Position {middle} of partition {partition} is missing.")
        low, high = (low, middle) if row[0] > moment else (middle + 1, high)
    return low


class _Lines:
    """Turns rows of :data:`_COPY` into lines, and checks the chain over them."""

    __slots__ = ("_first", "_mine", "_run", "_run_tenant", "_section", "lines")

    def __init__(self, section: Section, mine: bytes | None) -> None:
        self._section, self._mine = section, mine
        self.lines: list[bytes] = []
        self._run: list[bytes] = []
        self._run_tenant: bytes | None = None
        """Whose pruned rows the run is of; None for other tenants' leaves."""

    def take(self, row: bytes) -> None:
        section, pruned = self._section, row[38:42] != b"\xff\xff\xff\xff"
        at = 74 if pruned else 42
        salt, fixed, recorded_us = _fixed(row, at)
        position, tenant = fixed[0], fixed[1]
        if position != section.position + 1 or salt is None or row[:2] != _COLUMNS:
            raise CorruptLog(f"Position {section.position + 1} of partition {section.partition} is missing or no row of the log.")
        # All but the time is as the leaf wants it, lengths included.
        leaf = row[42:74] if pruned else sha256(row[at : at + 104] + recorded_us.to_bytes(8, "big", signed=True) + row[at + 112 :]).digest()
        digest = sha256(section.hash + leaf).digest()
        if digest != row[6:38]:
            raise CorruptLog(f"Partition {section.partition} is broken at position {position}.")
        own = self._mine is None or tenant == self._mine
        if own and not pruned:
            self.flush()
            self._event(row, at + 112, salt, fixed, recorded_us, digest)
        else:
            self._leaf(leaf, tenant if own else None)
        section.position, section.hash = position, digest

    def _leaf(self, leaf: bytes, tenant: bytes | None) -> None:
        if self._run and (self._run_tenant != tenant or len(self._run) == RUN):
            self.flush()
        self._run_tenant = tenant
        self._run.append(leaf)

    def flush(self) -> None:
        """End the run of leaves, if there is one."""
        run, section = self._run, self._section
        if not run:
            return
        first, leaves, digest = section.position - len(run) + 1, b"".join(run).hex(), section.hash.hex()
        if self._run_tenant is None:
            section.leaves += len(run)
            self.lines.append(_line(Leaves(first, leaves, digest)))
        else:
            tenant_id = self._run_tenant.hex()
            section.pruned += len(run)
            section.pruned_tenants.setdefault(tenant_id, first)
            self.lines.append(_line(Pruned(first, tenant_id, leaves, digest)))
        self._run = []

    def _event(self, row: bytes, at: int, salt: bytes, fixed: tuple[int, bytes, int, bytes, int], recorded_us: int, digest: bytes) -> None:
        position, tenant, version, command, ordinal = fixed
        texts: list[bytes | None] = []
        for _ in range(8):
            length = int.from_bytes(row[at : at + 4], "big", signed=True)
            at += 4
            if length == _NULL:
                texts.append(None)
            else:
                texts.append(row[at : at + length])
                at += length
        stream, type_, cause, actor, trace, payload, reply, fingerprint = texts
        section, tenant_id = self._section, tenant.hex()
        assert stream is not None and type_ is not None and payload is not None  # noqa: PT018  # columns that are not null
        event = Event(
            section.partition, position, tenant_id, stream.decode(), version, command.hex(), ordinal, type_.decode(), recorded_us,
            None if cause is None else cause.hex(), None if actor is None else actor.decode(), None if trace is None else trace.decode(),
            payload.decode(), None if reply is None else reply.decode(), None if fingerprint is None else fingerprint.hex(),
            salt.hex(), digest.hex(),
        )  # fmt: skip  # the columns in their order
        self.lines.append(_line(event))
        section.events += 1
        section.noted(tenant_id, event.stream, event.type)


def _fixed(row: bytes, at: int) -> tuple[bytes | None, tuple[int, bytes, int, bytes, int], int]:
    """The salt, then position, tenant, version, command and ordinal, and the time; no salt where a length is not what it must be."""
    if len(row) < at + 112:
        return None, (0, b"", 0, b"", 0), 0
    found = _FIXED.unpack_from(row, at)
    _, salt, _, _, _, position, _, tenant, _, version, _, command, _, ordinal, _, recorded = found
    right = found[::2] == _LENGTHS
    return salt if right else None, (position, tenant, version, command, ordinal), recorded + _SINCE_1970


def _line(line: Header | Event | Leaves | Pruned | Head) -> bytes:
    return encode(line) + b"\n"

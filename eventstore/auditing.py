"""The audit export: its lines, and the check that needs nothing but them and a public key.

``docs/audit-format.md`` describes the format to the byte. In short: a header; for each partition its rows in order, own events in full,
everybody else's and pruned ones as leaves; then the partition's head, signed over its position and hash, how many rows of each kind there
are, and a digest of the section's very bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any
from uuid import UUID

import msgspec

from domain.identity.tenants import TenantDeleted, tenant_stream
from eventstore.rows import GENESIS, PRUNED, leaf_hash
from eventstore.signing import genuine

FORMAT, VERSION = "holdbook-audit", 1
_DELETED = TenantDeleted.event_name


class AsOf(msgspec.Struct, omit_defaults=True):
    """Where the export ends: a position of the one partition that is exported, or a moment in microseconds since 1970 UTC."""

    position: int | None = None
    recorded_at: int | None = None


class Header(msgspec.Struct, tag="header", tag_field="kind"):
    """The first line. ``tenant_id`` is null for the whole store; ``partitions`` are those that follow, in this order."""

    format: str
    version: int
    tenant_id: str | None
    partitions: list[int]
    as_of: AsOf | None
    exported_at: int
    public_key: str


class Event(msgspec.Struct, tag="event", tag_field="kind"):
    """A row in full: what was hashed, and the hash. UUIDs and bytes in hex, the time in microseconds."""

    partition: int
    position: int
    tenant_id: str
    stream: str
    version: int
    command_id: str
    ordinal: int
    type: str
    recorded_at: int
    cause: str | None
    actor: str | None
    trace: str | None
    payload: str
    reply: str | None
    fingerprint: str | None
    salt: str
    hash: str


class Leaves(msgspec.Struct, tag="leaves", tag_field="kind"):
    """Rows of other tenants from ``position`` on: their leaves, 64 hex digits each, and the hash behind the last one."""

    position: int
    leaves: str
    hash: str


class Pruned(msgspec.Struct, tag="pruned", tag_field="kind"):
    """Rows of a deleted tenant from ``position`` on, of which only the leaves are left."""

    position: int
    tenant_id: str
    leaves: str
    hash: str


class Head(msgspec.Struct, tag="head", tag_field="kind"):
    """The end of a partition's section."""

    partition: int
    epoch: int
    position: int
    hash: str
    events: int
    leaves: int
    pruned: int
    content: str
    signature: str


Line = Header | Event | Leaves | Pruned | Head
decode = msgspec.json.Decoder(Line).decode
encode = msgspec.json.Encoder().encode


def signed_text(header: bytes, head: Head) -> bytes:
    """What a head's signature is made over; ``header`` is the SHA-256 of the header's line, its line end included."""
    names = ("partition", "epoch", "position", "hash", "events", "leaves", "pruned", "content")
    told = {"version": VERSION, "header": header.hex(), **{name: getattr(head, name) for name in names}}
    return "".join(line + "\n" for line in (f"{FORMAT}-head", *(f"{name}={value}" for name, value in told.items()))).encode()


class Broken(Exception):
    """The export contradicts itself, or its signature. ``position`` is the first that does not hold, as far as that can be told."""

    def __init__(self, reason: str, partition: int | None = None, position: int | None = None) -> None:
        super().__init__(reason)
        self.reason, self.partition, self.position = reason, partition, position

    def __str__(self) -> str:
        place = "" if self.partition is None else f"partition {self.partition}, position {self.position}: "
        return f"{place}{self.reason}"


@dataclass(slots=True, eq=False)
class Section:
    """A partition's part of an export, as far as it has been written or read."""

    partition: int
    position: int = 0
    hash: bytes = GENESIS
    events: int = 0
    leaves: int = 0
    pruned: int = 0
    content: Any = field(default_factory=sha256)
    pruned_tenants: dict[str, int] = field(default_factory=dict)
    """In hex, with the first position that was pruned of each."""
    deleted: set[str] = field(default_factory=set)

    def noted(self, tenant_id: str, stream: str, type_: str) -> None:
        """Remember a deletion, which is what makes pruned rows right."""
        if type_ == _DELETED and stream == tenant_stream(UUID(tenant_id)):
            self.deleted.add(tenant_id)

    def undeleted(self) -> dict[str, int]:
        """Tenants of whom rows were pruned, and no deletion is in the section."""
        return {tenant_id: position for tenant_id, position in self.pruned_tenants.items() if tenant_id not in self.deleted}

    def head(self, epoch: int) -> Head:
        """The head of what was taken so far, not signed yet."""
        counts = self.events, self.leaves, self.pruned
        return Head(self.partition, epoch, self.position, self.hash.hex(), *counts, self.content.hexdigest(), "")


class Checker:
    """Reads an export line by line. Raises :class:`Broken` at the first line that is not what it must be."""

    def __init__(self, public: bytes | None = None) -> None:
        self.header: Header | None = None
        self.header_digest = b""
        self.finished: list[Head] = []
        self.section: Section | None = None
        self._public = public

    def take(self, raw: bytes) -> None:
        """The next line, with its line end."""
        if not raw.endswith(b"\n"):
            raise self._broken("the file ends in the middle of a line")
        try:
            line: Line = decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._broken(f"this is no line of an audit export: {error}") from None
        if self.header is None:
            self._begin(line, raw)
            return
        if self.section is None or isinstance(line, Header):
            raise self._broken("a line that does not belong here")
        match line:
            case Event():
                self._event(self.section, line)
            case Leaves() | Pruned():
                self._run(self.section, line)
            case Head():
                self._end(self.section, line, raw)
                return
        self.section.content.update(raw)

    def finish(self) -> None:
        """Say that there are no more lines."""
        if self.header is None or self.section is not None:
            raise self._broken("the file ends before its last head")

    def _broken(self, reason: str) -> Broken:
        if self.section is not None:
            return Broken(reason, self.section.partition, self.section.position + 1)
        return Broken(reason) if not self.finished else Broken(reason, self.finished[-1].partition, self.finished[-1].position + 1)

    def _begin(self, line: Line, raw: bytes) -> None:
        if not isinstance(line, Header) or (line.format, line.version) != (FORMAT, VERSION):
            raise Broken("this is no audit export of a format that is known here")
        one = line.tenant_id is not None
        if not line.partitions or sorted(set(line.partitions)) != line.partitions or (one and len(line.partitions) != 1):
            raise Broken("the header's partitions are not in order")
        if self._public is not None and line.public_key != self._public.hex():
            raise Broken("signed with another key")
        self.header, self.header_digest = line, sha256(raw).digest()
        self.section = Section(line.partitions[0])

    def _event(self, section: Section, line: Event) -> None:
        assert self.header is not None
        position, tenant_id = section.position + 1, line.tenant_id
        if line.partition != section.partition or line.position != position:
            raise self._broken(f"position {line.position} of partition {line.partition} does not belong here")
        if self.header.tenant_id not in (None, tenant_id):
            raise self._broken("an event of another tenant")
        try:
            digest = sha256(section.hash + _leaf(line)).digest()
        except (ValueError, OverflowError):
            raise self._broken("a value that its column cannot hold") from None
        if line.type == PRUNED or digest.hex() != line.hash:
            raise self._broken("the event is not the one that was hashed")
        section.position, section.hash = position, digest
        section.events += 1
        section.noted(tenant_id, line.stream, line.type)

    def _run(self, section: Section, line: Leaves | Pruned) -> None:
        assert self.header is not None
        wanted = self.header.tenant_id
        if line.position != section.position + 1:
            raise self._broken(f"position {line.position} does not belong here")
        # The whole store is exported in full; others' rows are leaves for a tenant, and its own only when they were pruned.
        misplaced = wanted is None if isinstance(line, Leaves) else wanted not in (None, line.tenant_id)
        if misplaced:
            raise self._broken("an event that must be given in full is a hash only")
        try:
            leaves = bytes.fromhex(line.leaves)
        except ValueError:
            leaves = b""
        digest = section.hash
        for at in range(0, len(leaves), 32):
            digest = sha256(digest + leaves[at : at + 32]).digest()
        if not leaves or len(leaves) % 32 or digest.hex() != line.hash:
            raise self._broken(f"among the {len(line.leaves) // 64} hashes from here on one is not right")
        count = len(leaves) // 32
        if isinstance(line, Leaves):
            section.leaves += count
        else:
            section.pruned += count
            section.pruned_tenants.setdefault(line.tenant_id, line.position)
        section.position, section.hash = section.position + count, digest

    def _end(self, section: Section, line: Head, raw: bytes) -> None:
        assert self.header is not None
        if line.partition != section.partition or line.position != section.position:
            raise self._broken(f"a head of partition {line.partition}, position {line.position}, is not due yet")
        for position in section.undeleted().values():
            raise Broken("pruned, although its tenant was not deleted", section.partition, position)
        wanted = section.head(line.epoch)
        wanted.signature = line.signature
        if line != wanted or raw != encode(line) + b"\n":
            raise Broken("something before the head was changed, or the head was", section.partition, section.position)
        if not genuine(_hex(self.header.public_key), _hex(line.signature), signed_text(self.header_digest, line)):
            raise Broken("the head's signature is wrong", section.partition, section.position)
        self.finished.append(line)
        after = self.header.partitions[len(self.finished) :]
        self.section = Section(after[0]) if after else None


def _leaf(line: Event) -> bytes:
    """The leaf of an event's columns. Raises ValueError for what its column cannot hold."""
    salt, fingerprint, cause = bytes.fromhex(line.salt), line.fingerprint, line.cause
    if len(salt) != 16:
        raise ValueError
    try:
        return leaf_hash(
            line.partition, line.position, UUID(line.tenant_id), line.stream, line.version, UUID(line.command_id), line.ordinal, line.type,
            line.recorded_at, None if cause is None else UUID(cause), line.actor, line.trace, line.payload, line.reply,
            None if fingerprint is None else bytes.fromhex(fingerprint), salt,
        )  # fmt: skip  # the columns in their order
    except struct.error as error:
        raise ValueError from error


def _hex(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b""

"""Folding the log again, up to any place in it: what each stream's state was then.

Nothing but the events and the aggregates' own folds is used, no snapshot and no read model. The log is read in short ranges. Of one
stream a single state is in memory; of a tenant or a partition one state for each of its streams, so that many need memory to match.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
import psycopg

from domain.identity.tenants import TenantDeleted
from eventstore.codec import Codec
from eventstore.errors import CorruptLog, StoreError, UnknownEventType
from eventstore.rows import PRUNED

RANGE = 5_000
"""Events read in one statement."""

_TYPES = ("int8", "uuid", "text", "int8", "text", "timestamptz", "text")
_COLUMNS = "position, tenant_id, stream, version, type, recorded_at, payload::text"
_OF_STREAM = f"""
copy (select {_COLUMNS} from event where partition = %s and stream = %s and version > %s order by version limit %s)
to stdout (format binary)"""
_OF_PARTITION = f"""
copy (select {_COLUMNS} from event where partition = %s and position > %s and position <= %s {{tenant}} order by position)
to stdout (format binary)"""
_HEAD = "select coalesce(max(position), 0) from event where partition = %s"
_TENANT_DELETED = TenantDeleted.event_name


class NoSuchStream(StoreError):
    """The log holds no such stream, or none of an aggregate that this program knows."""


@dataclass(slots=True, eq=False)
class Folded:
    """A stream's state behind an event of it."""

    partition: int
    tenant_id: UUID
    stream: str
    version: int
    position: int
    recorded_at: datetime
    state: Any


@dataclass(frozen=True, slots=True)
class Until:
    """Where to stop: behind a position, a moment of recording, or the log's present end."""

    position: int | None = None
    moment: datetime | None = None

    def passed(self, position: int, recorded_at: datetime) -> bool:
        """Whether an event there is no longer taken."""
        return (self.position is not None and position > self.position) or (self.moment is not None and recorded_at > self.moment)


_Event = tuple[int, UUID, str, int, str, datetime, str]


def replay_stream(conn: psycopg.Connection[Any], codec: Codec, partition: int, stream: str, until: Until) -> Folded | None:
    """One stream; None when it had not begun by then."""
    if codec.decider_of(stream) is None:
        raise NoSuchStream(stream)
    folds: dict[str, Folded] = {}
    after = 0
    while True:
        events = _copied(conn, _OF_STREAM, (partition, stream, after, RANGE))
        for event in events:
            after = event[3]
            if until.passed(event[0], event[5]):
                return folds.get(stream)
            _fold(codec, partition, folds, event)
        if len(events) < RANGE:
            return folds.get(stream)


def replay(conn: psycopg.Connection[Any], codec: Codec, partition: int, until: Until, tenant_id: UUID | None = None) -> list[Folded]:
    """Every stream of a partition, or of one tenant in it, in the order in which they began.

    Streams that hold no aggregate, refusals for example, and what was pruned are left out. Raises `UnknownEventType` and `CorruptLog`.
    """
    row = conn.execute(_HEAD, (partition,)).fetchone()
    assert row is not None
    folds: dict[str, Folded] = {}
    end: int = row[0] if until.position is None else min(row[0], until.position)
    query = _OF_PARTITION.format(tenant="" if tenant_id is None else "and tenant_id = %s")
    for after in range(0, end, RANGE):
        parameters = (partition, after, min(end, after + RANGE), *(() if tenant_id is None else (tenant_id,)))
        for count, event in enumerate(_copied(conn, query, parameters), 1):
            if tenant_id is None and event[0] != after + count:
                raise CorruptLog(f"Position {after + count} of partition {partition} is missing.")
            if until.passed(event[0], event[5]):
                return list(folds.values())
            if event[4] != PRUNED and codec.decider_of(event[2]) is not None:
                _fold(codec, partition, folds, event)
    return list(folds.values())


def partition_of_stream(conn: psycopg.Connection[Any], stream: str) -> int:
    """Where a stream is, whoever's it is. Raises `NoSuchStream`."""
    query = "select partition from log_partition p where exists (select from event e where e.partition = p.partition and e.stream = %s)"
    found = conn.execute(query, (stream,)).fetchone()
    if found is None:
        raise NoSuchStream(stream)
    return int(found[0])


def _fold(codec: Codec, partition: int, folds: dict[str, Folded], event: _Event) -> None:
    position, tenant_id, stream, version, type_, recorded_at, payload = event
    decider = codec.decider_of(stream)
    assert decider is not None
    found = folds.get(stream)
    before = found.version if found is not None else 0
    # What a tenant's stream held before its deletion may have been pruned.
    if version != before + 1 and (before or type_ != _TENANT_DELETED):
        raise CorruptLog(f"Stream {stream} goes from version {before} to {version} at position {position} of partition {partition}.")
    try:
        decoded = codec.decode(type_, payload)
    except UnknownEventType:
        raise UnknownEventType(f"{type_} in {stream}, position {position} of partition {partition}.") from None
    except msgspec.DecodeError as error:
        raise CorruptLog(f"{type_} in {stream}, position {position} of partition {partition}, cannot be read: {error}") from error
    if found is None:
        folds[stream] = Folded(partition, tenant_id, stream, version, position, recorded_at, decider.evolve(decider.initial, decoded))
    else:
        found.version, found.position, found.recorded_at = version, position, recorded_at
        found.state = decider.evolve(found.state, decoded)


def _copied(conn: psycopg.Connection[Any], query: str, parameters: tuple[Any, ...]) -> list[_Event]:
    with conn.cursor().copy(query, parameters) as copy:
        copy.set_types(_TYPES)
        return list(copy.rows())

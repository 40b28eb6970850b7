"""A partition's log as a recorder of the ``eventsourcing`` library, so that what is built on the library can read it.

A notification id is the position. A stream's name is the originator id; UUIDs stand in the log in their text form. What
is read is the whole partition, of all its tenants; what is written belongs to the one tenant given.

The log's payload is JSON text. A state that is JSON text is stored as it is, so that our events and a library transcoder's
are readable with psql alone; any other bytes are stored as ``{"$bytes":"<base64>"}``, and so is a JSON text
that begins like that, which makes the way back exact.

Importing this module imports ``eventsourcing.domain``, which patches ``dataclasses`` for the whole process: nothing
on the way of a command may import it.
"""

from __future__ import annotations

import os
from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from threading import Event
from typing import Any, Final, NamedTuple
from uuid import UUID, uuid4

import msgspec
import psycopg
from eventsourcing import persistence
from eventsourcing.persistence import ApplicationRecorder, Notification, StoredEvent, Subscription
from psycopg import Connection
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool

from domain.identity.tenants import TenantDeleted, tenant_stream
from eventstore.errors import CorruptLog, UnsafeServer
from eventstore.postgres import INSERT, LOCK, WRITER_OPTIONS
from eventstore.rows import GENESIS, PRUNED, Row, pruned_stream, row_hash

Pool = ConnectionPool[Connection[TupleRow]]

_ENVELOPE: Final = '{"$bytes":"'
_HEAD = "select position, hash, recorded_at from event where partition = %s order by position desc limit 1"
_LAST = """
select u.stream, last.version, last.tenant_id from unnest(%b::text[]) as u(stream) cross join lateral (
  select version, tenant_id from event where partition = %s and stream = u.stream order by version desc limit 1) last"""
_STREAM = """
select version, type, payload::text from event
where partition = %s and stream = %s and version > %s and version <= %s order by version {order} limit %s"""
_POSITIONS = """
select position, stream, version, type, payload::text from event
where partition = %s and position >= %s and position <= %s {types} order by position limit %s"""
_DELETED = "select 1 from event where partition = %s and stream = %s and type = %s"
_STREAM_UP, _STREAM_DOWN = _STREAM.format(order="asc"), _STREAM.format(order="desc")
_ALL_POSITIONS, _POSITIONS_OF_TYPES = _POSITIONS.format(types=""), _POSITIONS.format(types="and type = any(%s::text[])")
_EVER: Final = 2**63 - 1
_PRUNED_STREAMS: Final = pruned_stream(0)[:-1]

# The first that fits; psycopg and the library both follow PEP 249, and IntegrityError and the like are DatabaseErrors.
_TRANSLATED: Final[tuple[tuple[type[psycopg.Error], type[persistence.PersistenceError]], ...]] = (
    (psycopg.InterfaceError, persistence.InterfaceError),
    (psycopg.DataError, persistence.DataError),
    (psycopg.OperationalError, persistence.OperationalError),
    (psycopg.IntegrityError, persistence.IntegrityError),
    (psycopg.InternalError, persistence.InternalError),
    (psycopg.ProgrammingError, persistence.ProgrammingError),
    (psycopg.NotSupportedError, persistence.NotSupportedError),
    (psycopg.DatabaseError, persistence.DatabaseError),
    (psycopg.Error, persistence.PersistenceError),
)


@contextmanager
def _as_library_errors() -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        translated = next(theirs for ours, theirs in _TRANSLATED if isinstance(error, ours))
        raise translated(str(error)) from error


def to_payload(state: bytes) -> str:
    """The JSON text under which a library event's state is stored."""
    try:
        text = state.decode()
        msgspec.json.decode(text)
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError):
        pass
    else:
        if not text.startswith(_ENVELOPE):
            return text
    return f'{_ENVELOPE}{b64encode(state).decode()}"}}'


def to_state(payload: str) -> bytes:
    """The state that :func:`to_payload` stored; the payload itself, in UTF-8, where a writer stored it."""
    return b64decode(payload[len(_ENVELOPE) : -2]) if payload.startswith(_ENVELOPE) else payload.encode()


def to_stream(originator_id: UUID | str) -> str:
    """The stream of an originator."""
    return str(originator_id)


def to_originator(stream: str) -> UUID | str:
    """The originator of a stream: a UUID where the name is the canonical text of one, else the name."""
    if len(stream) == 36:
        try:
            found = UUID(stream)
        except ValueError:
            return stream
        return found if str(found) == stream else stream
    return stream


def open_recorder_pool(dsn: str, *, size: int = 4) -> Pool:
    """A pool for recorders, with the writer's role and time-outs. Refuses a server that could lose what it acknowledged."""
    pool: Pool = ConnectionPool(
        dsn, min_size=1, max_size=size, open=False, timeout=30, kwargs={"autocommit": True, "options": WRITER_OPTIONS, "connect_timeout": 5}
    )
    try:
        pool.open(wait=True, timeout=30)
        with pool.connection() as conn:
            for setting in ("synchronous_commit", "fsync", "full_page_writes"):
                if conn.execute("select current_setting(%s)", (setting,)).fetchone() == ("off",):
                    raise UnsafeServer(f"{setting} is off; turn it on in the server's or the role's settings.")
    except BaseException:
        pool.close()
        raise
    return pool


class _Locked(NamedTuple):
    """The end of the log while it is ours: last position and hash, the time of the next event, the last event of some streams."""

    position: int
    digest: bytes
    at: datetime
    last: dict[str, tuple[int, UUID]]
    """Version and tenant by stream."""


class PartitionRecorder(ApplicationRecorder):
    """Appends to and reads one partition's log. Threads may share it; processes, and our own writers, may append beside it.

    It writes library aggregates, which keep their own rules. A stream that a decider owns is written by its writer alone,
    because only that one decides on a state nobody has moved since.
    """

    def __init__(self, pool: Pool, partition: int, tenant_id: UUID, actor: str | None = None) -> None:
        self._pool, self.partition, self.tenant_id, self.actor = pool, partition, tenant_id, actor

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> Sequence[int] | None:
        """Append all events or none, under one command id of their own, and return their positions.

        Raises the library's IntegrityError when a version is taken or does not follow the stream's last one, or when the
        stream is another tenant's, or when the tenant was deleted. OperationalError and InterfaceError leave open whether the
        events were recorded. Nothing is tried twice here: after a commit that was not confirmed, a repeated insert would
        conflict with itself.
        """
        if refused := sorted(name for name, value in kwargs.items() if value is not None):
            # The library hands over tracking records here. Dropping them would cost its projections their exactly-once.
            raise persistence.NotSupportedError(f"a partition's log records events only, not {', '.join(refused)}")
        if not stored_events:
            return None
        streams = [self._written_as(event.originator_id) for event in stored_events]
        # Whatever is raised in here, the pool rolls the transaction back, or closes a session that cannot.
        with _as_library_errors(), self._pool.connection() as conn:
            locked = self._lock(conn, sorted(set(streams)))
            self._check_versions(streams, stored_events, locked.last)
            rows = self._rows(streams, stored_events, locked)
            columns = [list(column) for column in zip(*rows, strict=True)]
            with conn.pipeline():
                conn.execute(INSERT, (self.partition, *columns))
                conn.execute("commit")
        return [row.position for row in rows]

    def select_events(
        self, originator_id: UUID | str, *, gt: int | None = None, lte: int | None = None, desc: bool = False, limit: int | None = None
    ) -> Sequence[StoredEvent]:
        """The events of a stream, by version: behind ``gt``, up to and with ``lte``."""
        # Versions begin at 0 for some library aggregates, so everything is what comes behind -1.
        parameters = (self.partition, to_stream(originator_id), -1 if gt is None else gt, _EVER if lte is None else lte, limit)
        rows = self._select(_STREAM_DOWN if desc else _STREAM_UP, parameters)
        return [StoredEvent(originator_id, version, topic, to_state(payload)) for version, topic, payload in rows]

    def select_notifications(
        self, start: int | None, limit: int, stop: int | None = None, topics: Sequence[str] = (), *, inclusive_of_start: bool = True
    ) -> Sequence[Notification]:
        """At most ``limit`` events in the order of their positions; ``topics`` are stored types such as ``quota.reserved``.

        Raises CorruptLog at a missing position: the log is dense, and committed in order, so a gap is never a
        transaction that is still under way.
        """
        first = 1 if start is None else max(1, start if inclusive_of_start else start + 1)
        last = _EVER if stop is None else stop
        if topics:
            rows = self._select(_POSITIONS_OF_TYPES, (self.partition, first, last, list(topics), limit))
        else:
            rows = self._dense(first, last, limit)
        return [
            Notification(to_originator(stream), version, topic, to_state(payload), position)
            for position, stream, version, topic, payload in rows
        ]

    def _dense(self, first: int, last: int, limit: int) -> list[TupleRow]:
        """Whatever is no longer an event is passed over, and does not count: fewer than asked for means that there is no more."""
        found: list[TupleRow] = []
        while True:
            wanted = limit - len(found)
            rows = self._select(_ALL_POSITIONS, (self.partition, first, last, wanted))
            for expected, row in enumerate(rows, first):
                if row[0] != expected:
                    raise CorruptLog(f"Position {expected} of partition {self.partition} is missing.")
            found += [row for row in rows if row[3] != PRUNED]
            if len(rows) < wanted or len(found) == limit:
                return found
            first = rows[-1][0] + 1

    def max_notification_id(self) -> int | None:
        """The last position; None while the partition is empty."""
        rows = self._select(_HEAD, (self.partition,))
        return int(rows[0][0]) if rows else None

    def subscribe(self, gt: int | None = None, topics: Sequence[str] = ()) -> PollingSubscription:
        """Everything behind position ``gt``, and then whatever is appended, until it is stopped."""
        return PollingSubscription(self, gt, topics)

    def _select(self, query: str, parameters: tuple[Any, ...]) -> list[TupleRow]:
        with _as_library_errors(), self._pool.connection() as conn:
            return conn.execute(query, parameters, binary=True).fetchall()

    @staticmethod
    def _written_as(originator_id: UUID | str) -> str:
        stream = to_stream(originator_id)
        if type(to_originator(stream)) is not type(originator_id):
            raise persistence.ProgrammingError(f"the originator id {stream!r} would be read back as a UUID: give it as one")
        if stream.startswith(_PRUNED_STREAMS):
            raise persistence.ProgrammingError(f"the originator id {stream!r} is one that the log gives to what it has pruned")
        return stream

    def _lock(self, conn: Connection[TupleRow], streams: list[str]) -> _Locked:
        """Begin a transaction that holds the partition's lock row, and read what the lock protects, in one round trip."""
        with conn.pipeline():
            conn.execute("begin")
            lock = conn.execute(LOCK, (self.partition,))
            heads = conn.execute(_HEAD, (self.partition,), binary=True)
            lasts = conn.execute(_LAST, (streams, self.partition), binary=True)
            deleted = conn.execute(_DELETED, (self.partition, tenant_stream(self.tenant_id), TenantDeleted.event_name))
        row = lock.fetchone()
        if row is None:
            raise persistence.ProgrammingError(f"partition {self.partition} was never initialised")
        if deleted.fetchone() is not None:
            raise persistence.IntegrityError(f"tenant {self.tenant_id} was deleted")
        now = row[1]
        position, digest, recorded_at = heads.fetchone() or (0, GENESIS, now)
        last = {stream: (version, tenant_id) for stream, version, tenant_id in lasts.fetchall()}
        return _Locked(position, digest, max(now, recorded_at), last)

    def _check_versions(self, streams: list[str], stored_events: Sequence[StoredEvent], last: dict[str, tuple[int, UUID]]) -> None:
        expected: dict[str, int] = {}
        for stream, (version, tenant_id) in last.items():
            if tenant_id != self.tenant_id:
                raise persistence.IntegrityError(f"stream {stream} is another tenant's")
            expected[stream] = version + 1
        for stream, event in zip(streams, stored_events, strict=True):
            version = event.originator_version
            if stream not in expected and version not in (0, 1):
                raise persistence.IntegrityError(f"stream {stream} does not exist, so it cannot go on with version {version}")
            if version != expected.setdefault(stream, version):
                raise persistence.IntegrityError(f"stream {stream} goes on with version {expected[stream]}, not {version}")
            expected[stream] = version + 1

    def _rows(self, streams: list[str], stored_events: Sequence[StoredEvent], locked: _Locked) -> list[Row]:
        command_id, digest = uuid4(), locked.digest
        rows = []
        for ordinal, (stream, event) in enumerate(zip(streams, stored_events, strict=True)):
            row = Row(
                locked.position + 1 + ordinal, self.tenant_id, stream, event.originator_version, command_id, ordinal, event.topic,
                locked.at, None, self.actor, None, to_payload(event.state), None, None, os.urandom(16), b"",
            )  # fmt: skip
            digest = row_hash(self.partition, digest, row)
            rows.append(row._replace(hash=digest))
        return rows


class PollingSubscription(Subscription[PartitionRecorder]):
    """Asks for new events ten times a second while there are none. Another thread may stop it at any time.

    A NOTIFY inside the write transaction would wake it sooner, and make all writers of the server commit one after the other.
    """

    INTERVAL_SECONDS = 0.1
    AT_ONCE = 500

    def __init__(self, recorder: PartitionRecorder, gt: int | None = None, topics: Sequence[str] = ()) -> None:
        super().__init__(recorder, gt, topics)
        self._wake = Event()
        self._ready: Iterator[Notification] = iter(())
        self._read_to = gt or 0

    def stop(self) -> None:
        """End the iteration, also one that waits at this moment."""
        super().stop()
        self._wake.set()

    def __next__(self) -> Notification:
        """The next event; waits for it."""
        while not self._has_been_stopped:
            if (notification := next(self._ready, None)) is not None:
                self._last_notification_id = notification.id
                return notification
            if not self._read_on():
                self._wake.wait(self.INTERVAL_SECONDS)
        raise StopIteration

    def _read_on(self) -> bool:
        """Whether the head was ahead. Reads no further than it, so that events of other topics are passed over once only."""
        head = self._recorder.max_notification_id() or 0
        if head <= self._read_to:
            return False
        found = self._recorder.select_notifications(self._read_to, self.AT_ONCE, head, self._topics, inclusive_of_start=False)
        self._ready = iter(found)
        self._read_to = found[-1].id if len(found) == self.AT_ONCE else head
        return True

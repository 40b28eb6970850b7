"""What this process knows of a partition: the position it has folded to, and the states of streams it has lately used.

A cached state is never stale when a command is decided, however many processes write: under the lock the rows behind the
folded position are read and folded first, and the row at that position must still have the hash it had.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from domain.identity.tenants import TENANT, DeletedTenant, TenantDeleted, tenant_stream
from domain.kernel.decider import Decider
from eventstore.codec import Codec
from eventstore.errors import CorruptLog, UnknownEventType
from eventstore.log import PartitionLog, Tail
from eventstore.rows import GENESIS, Row

NOBODY = UUID(int=0)
_TENANT_DELETED = TenantDeleted.event_name


class Cached(NamedTuple):
    """A stream's state at a version; version 0 is the initial state of a stream that nobody has begun."""

    tenant_id: UUID
    version: int
    state: Any


class LostTail(Exception):
    """The log is not the one that was folded: a failover lost its end."""


class TooFarBehind(Exception):
    """More was written by others than may be folded while the lock is held."""


class States:
    """A bounded cache of stream states, and the log's position they stand at."""

    def __init__(self, log: PartitionLog, codec: Codec, limit: int) -> None:
        self._log, self._codec, self._limit = log, codec, limit
        self._cache: OrderedDict[str, Cached] = OrderedDict()
        self._unreadable: set[str] = set()
        self._started = False
        self.position, self.digest = 0, GENESIS
        self._seen = (0, GENESIS)
        """The furthest row that was loaded: states may be ahead of the folded position until the next catching up."""

    def get(self, stream: str, tenant_id: UUID) -> Cached | None:
        """The cached state of a stream that :meth:`need` was asked for.

        Raises `UnknownEventType` when the stream cannot be read. None when the stream belongs to another tenant: for this
        one it does not exist.
        """
        found = self._cache.get(stream)
        if found is None:
            raise UnknownEventType(f"Stream {stream}.")
        return found if found.tenant_id == tenant_id or not found.version else None

    def guards(self, tenants: Iterable[UUID]) -> set[str]:
        """The streams that :meth:`deleted` must be able to look at, to be needed with those that commands are for."""
        return {tenant_stream(tenant_id) for tenant_id in set(tenants)} if TENANT.category in self._codec.deciders else set()

    def deleted(self, tenant_id: UUID, working: Mapping[str, Cached]) -> bool:
        """Whether the tenant was deleted, in the log or in the batch under way.

        Said under the lock, this is final: no row of a tenant lies behind its ``tenant.deleted``. A tenant's stream that cannot be
        read counts as there, because a newer program may have written what we do not know yet.
        """
        stream = tenant_stream(tenant_id)
        found = working.get(stream) or self._cache.get(stream)
        return found is not None and type(found.state) is DeletedTenant

    async def start(self) -> None:
        """Begin at the log's present end, with nothing cached."""
        if not self._started:
            self.position, self.digest = await self._log.head()
            self._started = True

    def forget(self) -> None:
        """Know nothing any more."""
        self._cache.clear()
        self._unreadable.clear()
        self._started, self.position, self.digest, self._seen = False, 0, GENESIS, (0, GENESIS)

    async def need(self, streams: Iterable[str]) -> None:
        """Load those streams that are not cached. An empty stream is cached too, so that catching up sees another process begin it."""
        cache = self._cache
        missing = {stream for stream in streams if stream not in cache}
        if not missing:
            return
        loaded = await self.load(sorted(missing))
        for stream in missing - self._unreadable:
            decider = self._codec.decider_of(stream)
            if decider is not None:
                cache[stream] = loaded.get(stream) or Cached(NOBODY, 0, decider.initial)

    async def load(self, streams: Sequence[str]) -> dict[str, Cached]:
        """Fold streams from their snapshots and the log, past the cache. A stream with an event of an unknown type is left out."""
        states: dict[str, Cached] = {}
        for snapshot in await self._log.snapshots(streams):
            decider = self._codec.decider_of(snapshot.stream)
            if decider is not None and decider.state_schema == snapshot.state_schema:
                states[snapshot.stream] = Cached(snapshot.tenant_id, snapshot.version, self._codec.thaw(decider, snapshot.state))
        # With the event that the snapshot ends with, so that its place in the log is seen too.
        after = [(stream, states[stream].version - 1 if stream in states else 0) for stream in streams]
        rows = await self._log.stream_rows(after)
        # In one go with the folding, or another who reads the same now would take it for a stream that is not there.
        self._unreadable.difference_update(streams)
        for row in rows:
            self._fold(states, row)
            self._seen = max(self._seen, (row.position, row.hash))
        return states

    def unreadable(self, stream: str) -> bool:
        """Whether the stream, when it was last read, held an event of an unknown type."""
        return stream in self._unreadable

    def catch_up(self, tail: Tail, at_most: int) -> list[Row]:
        """Fold what others wrote since, and return it. Raises `LostTail` and `TooFarBehind`, having changed nothing."""
        rows = tail.rows
        if self.position:
            if not rows or rows[0].position != self.position or rows[0].hash != self.digest:
                raise LostTail
            rows = rows[1:]
        if len(rows) > at_most:
            raise TooFarBehind
        seen, digest = self._seen
        if seen > self.position and (seen - self.position > len(rows) or rows[seen - self.position - 1].hash != digest):
            raise LostTail  # after a stream was loaded, before the lock was taken
        self._fold_all(rows)
        return rows

    async def catch_up_unlocked(self, jump: int) -> None:
        """Read on without holding anybody up; when further behind than ``jump``, start with an empty cache at the present end."""
        head, digest = await self._log.head()
        if head - self.position > jump:
            self._cache.clear()
            self.position, self.digest = head, digest
            return
        while rows := await self._log.read(self.position, 5_000):
            self._fold_all(rows)

    def _fold_all(self, rows: Sequence[Row]) -> None:
        for row in rows:
            if row.position != self.position + 1:
                raise CorruptLog(f"Position {self.position + 1} is missing from the log.")
            if row.stream in self._cache:
                self._fold(self._cache, row)
            self.position, self.digest = row.position, row.hash

    def _fold(self, states: MutableMapping[str, Cached], row: Row) -> None:
        decider: Decider[Any] | None = self._codec.decider_of(row.stream)
        if decider is None or row.stream in self._unreadable:
            return
        found = states.get(row.stream)
        version, state = (found.version, found.state) if found is not None else (0, decider.initial)
        if row.version <= version:
            return
        # What a tenant's stream held before its deletion may have been pruned.
        if row.version != version + 1 and (version or row.type != _TENANT_DELETED):
            raise CorruptLog(f"Stream {row.stream} goes from version {version} to {row.version} at position {row.position}.")
        try:
            event = self._codec.decode(row.type, row.payload)
        except (UnknownEventType, msgspec.DecodeError):  # the latter: a value that a newer program allows, or harm
            self._unreadable.add(row.stream)
            states.pop(row.stream, None)
            self._cache.pop(row.stream, None)  # from now on its rows are not folded
            return
        states[row.stream] = Cached(row.tenant_id, row.version, decider.evolve(state, event))

    def publish(self, states: Mapping[str, Cached], position: int, digest: bytes) -> None:
        """Take over the states that a committed batch ended with."""
        cache = self._cache
        for stream, cached in states.items():
            cache[stream] = cached
            cache.move_to_end(stream)
        while len(cache) > self._limit:
            cache.popitem(last=False)
        self.position, self.digest = position, digest

"""The in-memory twin of the log: the same promises inside one process, for tests and for trying things out."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from uuid import UUID

from eventstore.log import Known, Snapshot, Tail
from eventstore.rows import GENESIS, Row


class MemoryLog:
    """One partition's log in a list."""

    def __init__(self, partition: int = 0, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.partition, self.rows, self.epoch = partition, list[Row](), 0
        self._clock, self._lock = clock, asyncio.Lock()
        self._snapshots: dict[str, Snapshot] = {}

    async def head(self) -> tuple[int, bytes]:
        """See :class:`eventstore.log.PartitionLog`, here and below."""
        return (self.rows[-1].position, self.rows[-1].hash) if self.rows else (0, GENESIS)

    async def known(self, command_ids: Sequence[UUID]) -> list[Known]:  # told in the protocol
        asked = set(command_ids)
        return [
            Known(row.command_id, row.position, row.tenant_id, row.type, row.reply, row.fingerprint)
            for row in self.rows
            if row.ordinal == 0 and row.command_id in asked
        ]

    async def read(self, after: int, limit: int) -> list[Row]:  # told in the protocol
        start = bisect_right(self.rows, after, key=lambda row: row.position)
        return self.rows[start : start + limit]

    async def rows_at(self, tenant_id: UUID, positions: Sequence[int]) -> list[Row]:  # told in the protocol
        asked = set(positions)
        return [row for row in self.rows if row.position in asked and row.tenant_id == tenant_id]

    async def snapshots(self, streams: Sequence[str]) -> list[Snapshot]:  # told in the protocol
        kept = [self._snapshots[stream] for stream in streams if stream in self._snapshots]
        hashes = {row.hash for row in self.rows}
        return [snapshot for snapshot in kept if snapshot.hash in hashes]

    async def stream_rows(self, after: Sequence[tuple[str, int]]) -> list[Row]:  # told in the protocol
        asked = dict(after)
        found = [row for row in self.rows if row.stream in asked and row.version > asked[row.stream]]
        return sorted(found, key=lambda row: (row.stream, row.version))

    async def save(self, snapshots: Iterable[Snapshot]) -> None:  # told in the protocol
        self._snapshots |= {snapshot.stream: snapshot for snapshot in snapshots}

    @asynccontextmanager
    async def locked(  # told in the protocol
        self, head: int, at_most: int, command_ids: Sequence[UUID] = ()
    ) -> AsyncIterator[MemoryBatch]:
        async with self._lock:
            known = await self.known(command_ids) if command_ids else []
            yield MemoryBatch(self, Tail(self.epoch, self._clock(), await self.read(head - 1, at_most), known))


class MemoryBatch:
    """The lock of a :class:`MemoryLog`, held."""

    def __init__(self, log: MemoryLog, tail: Tail) -> None:
        self._log, self.tail = log, tail
        self._sent: list[Row] = []

    async def raise_epoch(self) -> None:
        """See :class:`eventstore.log.Batch`."""
        self._log.epoch += 1

    async def send(self, rows: Sequence[Row]) -> None:
        """See :class:`eventstore.log.Batch`."""
        self._sent += rows

    async def append(self, rows: Sequence[Row]) -> None:
        """See :class:`eventstore.log.Batch`."""
        self._log.rows += (*self._sent, *rows)

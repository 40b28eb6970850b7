"""What a writer needs of a partition's log. PostgreSQL and the in-memory twin both offer it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import NamedTuple, Protocol
from uuid import UUID

from eventstore.rows import Row


class Known(NamedTuple):
    """The first event of a command that was recorded before."""

    command_id: UUID
    position: int
    tenant_id: UUID
    type: str
    reply: str | None
    fingerprint: bytes | None


class Snapshot(NamedTuple):
    """A cached fold of a stream up to a version; ``hash`` is that of the event it ends with."""

    stream: str
    version: int
    state_schema: int
    hash: bytes
    tenant_id: UUID
    state: str


class Tail(NamedTuple):
    """What the partition looked like when the lock was taken."""

    epoch: int
    now: datetime
    rows: list[Row]
    """From the asked position, inclusive, in order; at most as many as asked for."""
    known: list[Known]
    """Those of the asked commands that are in the log."""


class Batch(Protocol):
    """A transaction that holds the partition's lock row."""

    tail: Tail

    async def raise_epoch(self) -> None:
        """Say that the log lost a tail: add one to the epoch and commit."""
        ...

    async def send(self, rows: Sequence[Row]) -> None:
        """Hand over the first rows while later ones are still being decided; nothing is appended before :meth:`append`."""
        ...

    async def append(self, rows: Sequence[Row]) -> None:
        """Append what was sent, and these rows behind it, and commit. Any exception from here is in doubt."""
        ...


class PartitionLog(Protocol):
    """One partition's log."""

    partition: int

    async def head(self) -> tuple[int, bytes]:
        """The last position and its hash; (0, GENESIS) when empty."""
        ...

    async def known(self, command_ids: Sequence[UUID]) -> list[Known]:
        """Those of the commands that are in the log."""
        ...

    async def read(self, after: int, limit: int) -> list[Row]:
        """Rows behind a position, in order, without the lock."""
        ...

    async def rows_at(self, tenant_id: UUID, positions: Sequence[int]) -> list[Row]:
        """Those of the rows at these positions that are the tenant's, in order."""
        ...

    async def snapshots(self, streams: Sequence[str]) -> list[Snapshot]:
        """The streams' snapshots that still agree with the log."""
        ...

    async def stream_rows(self, after: Sequence[tuple[str, int]]) -> list[Row]:
        """Rows of several streams, each behind a version of its own, ordered by stream and version."""
        ...

    async def save(self, snapshots: Iterable[Snapshot]) -> None:
        """Keep snapshots, replacing older ones of the same stream."""
        ...

    def locked(self, head: int, at_most: int, command_ids: Sequence[UUID] = ()) -> AbstractAsyncContextManager[Batch]:
        """Take the lock row, read from ``head`` on, inclusive, and look up these commands; leaving without append rolls back."""
        ...

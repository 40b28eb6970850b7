"""What a follower feeds: consumers of the log, each with a checkpoint for every partition."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Protocol
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from sqlalchemy import MetaData

from eventstore.codec import Codec

Connection = AsyncConnection[TupleRow]


class Recorded(NamedTuple):
    """One event as the log has it: the columns that consumers need. Its id is (command_id, ordinal)."""

    position: int
    tenant_id: UUID
    stream: str
    version: int
    type: str
    recorded_at: datetime
    payload: str
    command_id: UUID
    ordinal: int
    cause: UUID | None
    actor: str | None
    trace: str | None


RECORDED = "position, tenant_id, stream, version, type, recorded_at, payload::text, command_id, ordinal, cause, actor, trace"


SKIPPED = "consumer.skipped"
"""The type under which a consumer gets an event that an operator had it skip, with ``null`` as payload: it changes nothing but the
version that a fold may count."""


class Consumer(Protocol):
    """A fold of the log into tables. The same consumer of two generations is two consumers."""

    name: str
    generation: int
    version: int
    """Of the fold: raised whenever it gives other rows for the same events. 0 for what is no projection."""
    starts_at_head: bool
    """Whether it begins, when it is fed for the first time, at the log's present end instead of its beginning."""

    async def apply(self, conn: Connection, partition: int, rows: Sequence[Recorded]) -> Callable[[], None]:
        """Write what the rows change, all of one partition, in order and without gap.

        The connection is in pipeline mode and inside the transaction that has already moved the checkpoint, so whoever
        runs this is alone with the partition. Statements may be left unanswered. The returned function is called after
        the commit; nothing that outlives the transaction may be changed before. Any exception undoes everything.
        """
        ...

    def forget(self) -> None:
        """Drop everything that is kept in memory."""
        ...


Roster = Callable[[Connection], Awaitable[Sequence[Consumer]]]
"""Says which consumers are to be fed at present. One of the same name, generation and version as before may be made anew: it
goes on as the one that was."""


@dataclass(frozen=True, slots=True)
class Projection:
    """A read model: its name, its tables by generation, and the consumer that fills them.

    ``version`` is raised whenever the fold gives other rows for the same events, ``shape`` whenever the tables or what the
    queries expect of them change. Either makes a new generation be built beside the old one.
    """

    name: str
    version: int
    shape: int
    define: Callable[[MetaData, int], None]
    consumer: Callable[[Codec, int], Consumer]


class ProjectionBehind(Exception):
    """The read model has not reached the asked position in time; ask again shortly."""

    def __init__(self, position: int, wanted: int, stopped: str | None = None) -> None:
        super().__init__(f"at position {position} of {wanted}" + (f", stopped: {stopped}" if stopped else ""))
        self.position, self.wanted, self.stopped = position, wanted, stopped

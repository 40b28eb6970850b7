"""Consumers that can put many events together before they write anything.

What is written costs more than what is folded, so whoever has a whole log to go through writes each row once for many events
instead of once for each batch, and holds no more of the log than is being folded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from projections.consumer import Connection, Recorded


class Gathered(Protocol):
    """Events of one partition that were folded and not written yet."""

    @property
    def streams(self) -> int:
        """How many streams it changes: what it takes in memory."""
        ...

    async def take(self, conn: Connection, rows: Sequence[Recorded]) -> None:
        """Fold the next events. Reads what it needs, outside of a transaction: if somebody else goes on meanwhile, the checkpoint
        tells, and nothing of this is written."""
        ...

    async def write(self, conn: Connection) -> Callable[[], None]:
        """As `Consumer.apply` of all that was taken."""
        ...


@runtime_checkable
class Gathers(Protocol):
    """A consumer that can do so."""

    def gather(self, partition: int) -> Gathered:
        """Begin behind what the tables have."""
        ...

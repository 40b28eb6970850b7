"""Where each consumer stands on each partition, in memory and in the checkpoints' table."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256

from projections.consumer import Connection, Consumer

_BEGIN = """
insert into checkpoint (partition, consumer, generation, position, epoch)
select p.partition, %s, %s::int, {start}, p.epoch from log_partition p where p.partition = any(%b::int[])
on conflict do nothing"""
_FROM_START = _BEGIN.format(start="0")
_FROM_HEAD = _BEGIN.format(start="coalesce((select max(e.position) from event e where e.partition = p.partition), 0)")
"""In one statement, so that of two that begin at once the second one finds the place of the first."""
_CHECKPOINTS = """
select c.partition, c.consumer, c.generation, c.position, c.epoch, c.stopped,
       array(select array[s.version::bigint, s.position] from skipped_event s where s.partition = c.partition and s.consumer = c.consumer)
from checkpoint c where c.partition = any(%b::int[]) and c.consumer = any(%b::text[])"""

Identity = tuple[str, int, int]
"""(name, generation, version)"""


def identity_of(consumer: Consumer) -> Identity:
    """What makes two consumers the same one."""
    return consumer.name, consumer.generation, consumer.version


@dataclass(slots=True, eq=False)
class Cursor:
    """One consumer on one partition. Times are monotonic, but for ``fresh_at``, which is the database's."""

    consumer: Consumer
    partition: int
    position: int = 0
    epoch: int = 0
    stopped: str | None = None
    failed: str | None = None
    retry_at: float = 0.0
    skips: frozenset[int] = frozenset()
    behind_since: float | None = None
    """Since when it has been seen behind and standing still."""
    fresh_at: datetime | None = None
    """Whatever was recorded up to then has been applied."""

    @property
    def active(self) -> bool:
        """Whether it may be fed now."""
        return self.stopped is None and time.monotonic() >= self.retry_at

    @property
    def place(self) -> tuple[int, str, int]:
        """The key of its checkpoint."""
        return self.partition, self.consumer.name, self.consumer.generation

    def stands(self, seconds: float) -> bool:
        """Whether it has been behind for so long without anybody feeding it."""
        return self.behind_since is not None and time.monotonic() - self.behind_since > seconds

    def take(self, position: int, epoch: int, stopped: str | None) -> None:
        """Believe the database."""
        if (position, epoch, stopped) != (self.position, self.epoch, self.stopped):
            self.failed, self.retry_at = None, 0.0  # somebody went on, or allowed it
            self.behind_since = None
        self.position, self.epoch, self.stopped = position, epoch, stopped

    def moved(self, position: int, recorded_at: datetime) -> None:
        """It applied what is up to that position."""
        self.position, self.failed, self.behind_since = position, None, None
        self.fresh_at = recorded_at if self.fresh_at is None else max(self.fresh_at, recorded_at)

    def seen(self, head: int, at: datetime) -> None:
        """The log ended there at that moment."""
        if self.position >= head:
            self.behind_since, self.fresh_at = None, at if self.fresh_at is None else max(self.fresh_at, at)
        elif self.behind_since is None:
            self.behind_since = time.monotonic()


class Cursors:
    """The cursors of all consumers on all partitions."""

    def __init__(self, partitions: Sequence[int]) -> None:
        self._partitions = list(partitions)
        self._of: dict[Identity, list[Cursor]] = {}
        self.by_partition: dict[int, list[Cursor]] = {}
        self.group = ""
        """A short name of the set of consumers, equal in all processes that feed the same ones."""

    @property
    def consumers(self) -> list[Consumer]:
        """Those that are fed at present."""
        return [cursors[0].consumer for cursors in self._of.values()]

    async def refresh(self, conn: Connection, consumers: Sequence[Consumer]) -> None:
        """Take the checkpoints of these consumers from the database, and begin those that are not there."""
        self._enrol(consumers)
        names = sorted({consumer.name for consumer in consumers})
        if not names:
            return
        for _ in range(2):
            cursor = await conn.execute(_CHECKPOINTS, (self._partitions, names), binary=True)
            found = {row[:3]: row[3:] for row in await cursor.fetchall()}
            missing = [cursors[0].consumer for cursors in self._of.values() if any(each.place not in found for each in cursors)]
            if not missing:
                break
            for consumer in missing:
                begin = _FROM_HEAD if consumer.starts_at_head else _FROM_START
                await conn.execute(begin, (consumer.name, consumer.generation, self._partitions))
        for each in self.all():
            if each.place in found:
                *standing, skipped = found[each.place]
                each.take(*standing)
                each.skips = frozenset(position for version, position in skipped if version == each.consumer.version)

    def _enrol(self, consumers: Sequence[Consumer]) -> None:
        wanted = {identity_of(consumer): consumer for consumer in consumers}
        if wanted.keys() == self._of.keys():
            return
        for identity in self._of.keys() - wanted.keys():
            self._of.pop(identity)[0].consumer.forget()
        for identity, consumer in wanted.items():
            if identity not in self._of:
                self._of[identity] = [Cursor(consumer, partition) for partition in self._partitions]
        self.by_partition = {partition: [] for partition in self._partitions}
        for cursors in self._of.values():
            for each in cursors:
                self.by_partition[each.partition].append(each)
        self.group = sha256(repr(sorted(self._of)).encode()).hexdigest()[:16]

    def all(self) -> list[Cursor]:
        """Every cursor."""
        return [each for cursors in self._of.values() for each in cursors]

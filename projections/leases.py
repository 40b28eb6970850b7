"""Who feeds a partition at present, so that several workers do not all do all the work.

A lease is for economy alone. What keeps a range of the log from being applied twice is the checkpoint, which moves by
compare-and-set; two workers that both believe they hold a lease waste work and change nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import uuid4

from projections.consumer import Connection

_STATE = "select partition, holder, until from follower_lease where partition = any(%b::int[]) and follower = %b"
_TAKE = """
insert into follower_lease as l (partition, follower, holder, until)
select u.partition, %b::text, %b::uuid, %b::timestamptz from unnest(%b::int[]) as u(partition)
on conflict (partition, follower) do update set holder = excluded.holder, until = excluded.until
where l.holder = excluded.holder or l.until <= %b::timestamptz or l.until > %b::timestamptz
returning partition"""
_RELEASE = "delete from follower_lease where partition = any(%b::int[]) and follower = %b and holder = %b"
_TIDY = "delete from follower_lease where partition = any(%b::int[]) and until < %b"


class Leases:
    """This follower's leases on partitions. ``seconds`` is how long one lasts that is not renewed; 0 leaves everything to everybody.

    Followers that feed the same consumers share a name. Those with other consumers, as before and after an upgrade, do not, so
    that none waits for one that does not do its work.
    """

    def __init__(self, partitions: Sequence[int], seconds: float) -> None:
        self._partitions, self._seconds = list(partitions), seconds
        self._holder, self._name, self._tidied = uuid4(), "", False
        self._held: frozenset[int] = frozenset()
        self._until = self._asked_at = self._due_at = 0.0

    def holds(self, partition: int) -> bool:
        """Whether feeding the partition is this follower's business."""
        return not self._seconds or (partition in self._held and time.monotonic() < self._until)

    def due(self, *, wanting: bool = False) -> bool:
        """Whether it is time to renew, or, ``wanting`` what another one holds, to look whether it has been let go."""
        if not self._seconds:
            return False
        return time.monotonic() >= (min(self._due_at, self._asked_at + self._seconds / 12) if wanting else self._due_at)

    async def renew(self, conn: Connection, name: str, at: datetime) -> None:
        """Keep what is held and take what nobody holds. ``at`` is the database's time."""
        if name != self._name:
            await self.release(conn)
            self._name = name
        self._asked_at = began = time.monotonic()
        self._due_at = began + self._seconds / 2
        if not self._tidied:
            await conn.execute(_TIDY, (self._partitions, at - timedelta(days=1)))
            self._tidied = True
        lasting = timedelta(seconds=self._seconds)
        open_to_us = self._partitions if len(self._held) == len(self._partitions) else await self._open_to_us(conn, at, lasting)
        if open_to_us:
            # One that ends later than any could was made before a clock was put back.
            bounds = (at, at + 2 * lasting)
            cursor = await conn.execute(_TAKE, (name, self._holder, at + lasting, open_to_us, *bounds))
            self._held = frozenset(row[0] for row in await cursor.fetchall())
        else:
            self._held = frozenset()
        self._until = began + self._seconds

    async def _open_to_us(self, conn: Connection, at: datetime, lasting: timedelta) -> list[int]:
        # Reading first: an insert that comes to nothing would lock, and thereby write, every row that somebody else holds.
        cursor = await conn.execute(_STATE, (self._partitions, self._name), binary=True)
        others = {row[0] for row in await cursor.fetchall() if row[1] != self._holder and at < row[2] <= at + 2 * lasting}
        return [partition for partition in self._partitions if partition not in others]

    async def release(self, conn: Connection) -> None:
        """Let everything go, so that others need not wait until it ends."""
        if self._held:
            await conn.execute(_RELEASE, (self._partitions, self._name, self._holder))
        self._held = frozenset()
        self._due_at = 0.0

    def forget(self) -> None:
        """Believe to hold nothing, until it was asked again."""
        self._held, self._due_at = frozenset(), 0.0

"""Events that an operator had a consumer skip.

The log records each as ``consumer.event_skipped``. The table says the same where it can be asked in a moment, by fold version: a
read model that is built anew by the same fold leaves out the same events, a newer fold gets them all.
"""

from __future__ import annotations

from collections.abc import Sequence

from projections.consumer import SKIPPED, Connection, Recorded

_OF_ONE = "select position from skipped_event where partition = %s and consumer = %s and version = %s"
_KEEP = "insert into skipped_event (partition, consumer, version, position) values (%s, %s, %s, %s) on conflict do nothing"


async def skipped(conn: Connection, partition: int, consumer: str, version: int) -> frozenset[int]:
    """The positions that a fold of this version leaves out of a partition."""
    cursor = await conn.execute(_OF_ONE, (partition, consumer, version), binary=True)
    return frozenset(row[0] for row in await cursor.fetchall())


def without(rows: Sequence[Recorded], positions: frozenset[int]) -> Sequence[Recorded]:
    """The rows as a consumer gets them that skips these positions."""
    if not positions or positions.isdisjoint(range(rows[0].position, rows[-1].position + 1)):
        return rows
    return [row._replace(type=SKIPPED, payload="null") if row.position in positions else row for row in rows]


async def keep(conn: Connection, partition: int, consumer: str, version: int, position: int) -> None:
    """Leave this event out from now on. Belongs into the transaction that lets the consumer go on."""
    await conn.execute(_KEEP, (partition, consumer, version, position))

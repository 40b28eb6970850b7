"""What operators ask and do about consumers: how they stand, trying again what stopped, going on without an event.

Everything here needs a connection that may act as the followers' role.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

import msgspec

from domain.consumers import EventSkipped
from projections import skips
from projections.consumer import Connection
from projections.halts import poisoned_at

OPTIONS = "-c role=holdbook_follower -c lock_timeout=5s -c idle_in_transaction_session_timeout=60s -c statement_timeout=60s"

_HEADS = """
select p.partition, coalesce((select max(e.position) from event e where e.partition = p.partition), 0) from log_partition p"""
_CHECKPOINTS = "select consumer, generation, partition, position, stopped from checkpoint order by 1, 2, 3"
_GENERATIONS = "select name, generation, version, state from projection_generation where state <> 'dropped' order by 1, 2"
_RELEASE = "update checkpoint set stopped = null where partition = any(%s) and consumer = %s and stopped is not null"
_RESTART = """
update checkpoint c set stopped = null, epoch = p.epoch, position = %s,
  hash = (select e.hash from event e where e.partition = %s and e.position = %s)
from log_partition p
where p.partition = c.partition and c.partition = %s and c.consumer = %s and c.position >= %s
  and %s <= (select coalesce(max(e.position), 0) from event e where e.partition = c.partition)
  and not exists (select from projection_generation g where g.name = c.consumer)
returning c.position"""
_STOPPED = """
select generation, position, stopped from checkpoint where partition = %s and consumer = %s and stopped is not null
order by generation for update"""
_GO_ON = """
update checkpoint set stopped = null
where partition = %s and consumer = %s and generation = any(%s) and position = %s and stopped is not null"""
_TENANT = "select tenant_id from event where partition = %s and position = %s"
_KNOWN = "select version from skipped_event where partition = %s and consumer = %s and position = %s"
_RECORDED = "select payload::text from event where partition = %s and type = %s order by position"


class StoppedAt(NamedTuple):
    """A partition on which a consumer waits for an operator, behind ``position``."""

    partition: int
    position: int
    reason: str


@dataclass(slots=True)
class Standing:
    """How one generation of a consumer stands. ``state`` is that of a read model's generation; of what is none, empty."""

    consumer: str
    generation: int
    version: int | None
    state: str
    lag: int
    stopped: list[StoppedAt]


async def standings(conn: Connection) -> list[Standing]:
    """All consumers that have begun, and all generations of read models."""
    heads: dict[int, int] = dict(await (await conn.execute(_HEADS)).fetchall())
    found: dict[tuple[str, int], Standing] = {}
    for name, generation, version, state in await (await conn.execute(_GENERATIONS)).fetchall():
        found[name, generation] = Standing(name, generation, version, state, 0, [])
    for name, generation, partition, position, stopped in await (await conn.execute(_CHECKPOINTS)).fetchall():
        standing = found.setdefault((name, generation), Standing(name, generation, None, "", 0, []))
        standing.lag = max(standing.lag, heads.get(partition, 0) - position)
        if stopped is not None:
            standing.stopped.append(StoppedAt(partition, position, stopped))
    return [found[place] for place in sorted(found)]


async def release(conn: Connection, consumer: str, partitions: Sequence[int]) -> int:
    """Have followers try again what the consumer stopped at; on how many partitions it did."""
    return (await conn.execute(_RELEASE, (list(partitions), consumer))).rowcount


class CannotRestart(Exception):
    """The consumer cannot be restarted there; the text says why."""


async def restart(conn: Connection, consumer: str, partition: int, position: int) -> None:
    """Have a consumer that is no read model go on behind a position that is not ahead of where it stands. Raises `CannotRestart`.

    For a consumer that had acted on events which the log then lost. What it sees again it does again under the same ids: commands
    change nothing the second time, and messages keep their id.
    """
    row = await (await conn.execute(_RESTART, (position, partition, position, partition, consumer, position, position))).fetchone()
    if row is not None:
        return
    if any(each.consumer == consumer and each.state for each in await standings(conn)):
        raise CannotRestart(f"{consumer} is a read model: rebuild it.")
    raise CannotRestart(f"{consumer} does not stand at or behind position {position} of partition {partition}, or the log ends before.")


class CannotSkip(Exception):
    """The event cannot be skipped; the text says why."""


class Poison(NamedTuple):
    """An event that stopped a consumer."""

    tenant_id: UUID
    consumer: str
    version: int
    partition: int
    position: int


async def skip(
    conn: Connection,
    consumer: str,
    partition: int,
    position: int,
    record: Callable[[Poison], Awaitable[None]],
    generation: int | None = None,
) -> bool:
    """Have the consumer go on without the event that stopped it; False when it already did. Raises `CannotSkip`.

    ``record`` writes it into the log, and does nothing when it stands there already. It is called while the checkpoint is locked, so
    that nobody can apply the event meanwhile. Whatever dies in between leaves the consumer stopped, and the same again completes it.
    The checkpoint itself is moved by whoever feeds the consumer next, who gives it the event as a skipped one, just as a rebuild does.
    """
    async with conn.transaction():
        rows = await (await conn.execute(_STOPPED, (partition, consumer))).fetchall()
        stopped = [row for row in rows if generation in (None, row[0]) and row[1] == position - 1 and poisoned_at(row[2]) == position]
        if not stopped:
            if await (await conn.execute(_KNOWN, (partition, consumer, position))).fetchall():
                return False
            raise CannotSkip(f"{consumer} is not stopped by the event at position {position} of partition {partition}.")
        versions = await _versions(conn, consumer)
        generations = [row[0] for row in stopped]
        version = versions.get(generations[0], 0)
        if any(versions.get(each, 0) != version for each in generations):
            raise CannotSkip(f"Generations {', '.join(map(str, generations))} of {consumer} are stopped there: name one.")
        found = await (await conn.execute(_TENANT, (partition, position))).fetchone()
        if found is None:
            raise CannotSkip(f"There is no event at position {position} of partition {partition}.")
        await record(Poison(found[0], consumer, version, partition, position))
        await conn.execute(_GO_ON, (partition, consumer, generations, position - 1))
        await skips.keep(conn, partition, consumer, version, position)
    return True


async def _versions(conn: Connection, consumer: str) -> dict[int, int]:
    rows = await (await conn.execute(_GENERATIONS)).fetchall()
    return {generation: version for name, generation, version, _ in rows if name == consumer}


async def recorded_skips(conn: Connection, partition: int) -> list[EventSkipped]:
    """What the log says was skipped on a partition. Reads all of it."""
    rows = await (await conn.execute(_RECORDED, (partition, EventSkipped.event_name))).fetchall()
    return [msgspec.json.decode(payload, type=EventSkipped) for (payload,) in rows]


async def restore_skips(conn: Connection, partition: int) -> int:
    """Write the table of skipped events again from the log, where it has been lost; how many the log holds."""
    recorded = await recorded_skips(conn, partition)
    for each in recorded:
        await skips.keep(conn, partition, each.consumer, each.version, each.position)
    return len(recorded)

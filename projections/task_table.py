"""The queue of tasks: what awaits the world, put there together with the checkpoint of whoever asked for it.

Two tables. ``task`` holds the work; of a lane only the lowest number is ever run. ``task_lane`` has one row per lane that is
not empty: from when it may go on, who is at work on it and until when, and why it stands still. Whoever puts a task touches
its lane's row first, and a lane's row is removed only under its lock and when no task is seen then: so no task is ever
without its lane.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from psycopg import AsyncConnection

from projections.consumer import Connection


class NewTask(NamedTuple):
    """Work to be done once the transaction that puts it has committed.

    ``number`` orders the lane and identifies the task in it; the position of an event does. ``payload`` is JSON. Without ``due_at``
    it may be done at once.
    """

    consumer: str
    lane: str
    number: int
    tenant_id: UUID
    payload: str
    trace: str | None
    due_at: datetime | None = None


class Task(NamedTuple):
    """Work to be done now. ``attempts`` is how often it was tried before without coming to its end."""

    partition: int
    consumer: str
    lane: str
    number: int
    tenant_id: UUID
    payload: str
    trace: str | None
    due_at: datetime
    attempts: int
    created_at: datetime


class Place(NamedTuple):
    """A lane."""

    partition: int
    consumer: str
    lane: str


class LaneState(NamedTuple):
    """A lane for operators, with its first task: ``reason`` is why its last try failed, ``stopped`` why there is no other."""

    partition: int
    consumer: str
    lane: str
    tenant_id: UUID
    number: int
    waiting: int
    attempts: int
    due_at: datetime
    created_at: datetime
    reason: str | None
    stopped: str | None
    running: bool


OPTIONS = (
    "-c role=holdbook_follower -c idle_in_transaction_session_timeout=10s -c lock_timeout=5s -c statement_timeout=30s "
    "-c plan_cache_mode=force_custom_plan -c jit=off -c timezone=UTC -c tcp_user_timeout=10000"
)
"""Of every session that works on the tables."""

_PUT_LANES = """
insert into task_lane (partition, consumer, lane, tenant_id, due_at)
select %s::int, u.consumer, u.lane, u.tenant_id, coalesce(u.due_at, now())
from unnest(%b::text[], %b::text[], %b::uuid[], %b::timestamptz[]) as u(consumer, lane, tenant_id, due_at)
on conflict (partition, consumer, lane) do update set tenant_id = excluded.tenant_id"""
# Nothing changes where the lane exists: what counts is the row's lock, which whoever empties the lane has to wait for.
_PUT_TASKS = """
insert into task (partition, consumer, lane, number, tenant_id, payload, trace, due_at, attempts, created_at)
select %s::int, u.consumer, u.lane, u.number, u.tenant_id, u.payload::json, u.trace, coalesce(u.due_at, now()), 0, now()
from unnest(%b::text[], %b::text[], %b::bigint[], %b::uuid[], %b::text[], %b::text[], %b::timestamptz[])
  as u(consumer, lane, number, tenant_id, payload, trace, due_at)
on conflict (partition, consumer, lane, number) do nothing"""


async def put(conn: Connection, partition: int, tasks: Sequence[NewTask]) -> None:
    """Queue tasks in the connection's transaction; one whose number the lane already has is there once.

    For :meth:`projections.consumer.Consumer.apply`: the tasks come with its checkpoint, so exactly once. Have the runner's ``wake`` called
    after the commit.
    """
    if not tasks:
        return
    lanes: dict[tuple[str, str], NewTask] = {}
    for task in tasks:
        first = lanes.setdefault((task.consumer, task.lane), task)
        if task.number < first.number:
            lanes[task.consumer, task.lane] = task
    ordered = [lanes[place] for place in sorted(lanes)]  # everybody locks lanes in this order
    heads = [(task.consumer, task.lane, task.tenant_id, task.due_at) for task in ordered]
    await conn.execute(_PUT_LANES, (partition, *_columns(heads)))
    await conn.execute(_PUT_TASKS, (partition, *_columns(tasks)))


def _columns(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]


# What a worker does. ``now`` is null where the database's clock counts.

_NOW = "coalesce(%(now)s::timestamptz, now())"
_LEASE = "make_interval(secs => %(lease)s::float8)"
_FREE = f"""stopped is null and consumer = any(%(consumers)b::text[]) and due_at <= {_NOW}
  and (leased_until is null or leased_until <= {_NOW} or leased_until > {_NOW} + 2 * {_LEASE})"""
# A lease that lasts longer than any can is one that a clock which has jumped back has left behind. Twice, because a claim that
# waited for another one's row sees a lease that was taken after its own now.
READY = f"select distinct partition from task_lane where partition = any(%(partitions)b::int[]) and {_FREE}"
CLAIM = f"""
with free as materialized (
  select consumer, lane from task_lane where partition = %(partition)s and {_FREE} order by due_at limit %(limit)s for update skip locked)
update task_lane t set claimed_by = %(worker)s, leased_until = {_NOW} + {_LEASE} from free
where t.partition = %(partition)s and t.consumer = free.consumer and t.lane = free.lane
returning t.consumer, t.lane, {_NOW}"""
RENEW = f"""
update task_lane set leased_until = {_NOW} + {_LEASE}
where partition = any(%(partitions)b::int[]) and claimed_by = %(worker)s"""
RELEASE_ALL = """
update task_lane set claimed_by = null, leased_until = null where partition = any(%(partitions)b::int[]) and claimed_by = %(worker)s"""
FIGURES = """
select consumer, count(*), min(created_at) from task where partition = any(%(partitions)b::int[]) group by consumer"""
STOPPED = """
select consumer, count(*) from task_lane where partition = any(%(partitions)b::int[]) and stopped is not null group by consumer"""

_LANE = "partition = %(partition)s and consumer = %(consumer)s and lane = %(lane)s"
_TASK = f"{_LANE} and number = %(number)s"
_OURS = f"exists (select from task_lane where {_LANE} and claimed_by = %(worker)s)"
HEADS = """
select t.* from unnest(%(consumers)b::text[], %(lanes)b::text[]) as u(consumer, lane) cross join lateral (
  select partition, consumer, lane, number, tenant_id, payload::text, trace, due_at, attempts, created_at from task
  where partition = %(partition)s and consumer = u.consumer and lane = u.lane order by number limit %(limit)s) t"""
NEXT = f"""
select partition, consumer, lane, number, tenant_id, payload::text, trace, due_at, attempts, created_at from task
where {_LANE} order by number limit %(limit)s"""
_FINISH = f"delete from task where {_TASK} and {_OURS}"
_TRIED = f"update task set attempts = attempts + 1, due_at = %(at)s, reason = %(reason)s where {_TASK} and {_OURS}"
_FREED = f"""
update task_lane set claimed_by = null, leased_until = null, due_at = coalesce(%(at)s::timestamptz, {_NOW}), stopped = %(stopped)s
where {_LANE} and claimed_by = %(worker)s"""
_EMPTIED = """
delete from task_lane l where l.partition = %(partition)s and l.consumer = %(consumer)s and l.lane = %(lane)s
  and l.claimed_by is null and not exists (
    select from task t where t.partition = %(partition)s and t.consumer = l.consumer and t.lane = l.lane)"""


def _named(task: Task, worker: UUID) -> dict[str, Any]:
    return {"partition": task.partition, "consumer": task.consumer, "lane": task.lane, "number": task.number, "worker": worker}


async def finish(conn: Connection, task: Task, worker: UUID) -> bool:
    """Remove a task that was done. False when the lane is not the worker's any more."""
    return (await conn.execute(_FINISH, _named(task, worker))).rowcount == 1


async def finish_and_leave(conn: Connection, task: Task, worker: UUID, now: datetime | None) -> bool:
    """Remove a lane's last known task and give the lane back, in one round trip. Whether the lane is still there."""
    told = {**_named(task, worker), "now": now, "at": None, "stopped": None}
    async with conn.pipeline(), conn.transaction():
        await conn.execute(_FINISH, told)
        await conn.execute(_FREED, told)
        emptied = await conn.execute(_EMPTIED, told)
    return emptied.rowcount == 0


async def leave(conn: Connection, place: Place, worker: UUID, now: datetime | None, at: datetime | None) -> bool:
    """Give a lane back, to go on at ``at`` or at once; an empty one ends. Whether it is still there.

    The second statement begins after the first has the row's lock, so it sees every task that was put before.
    """
    told = {**place._asdict(), "worker": worker, "now": now, "at": at, "stopped": None}
    async with conn.pipeline(), conn.transaction():
        await conn.execute(_FREED, told)
        emptied = await conn.execute(_EMPTIED, told)
    return emptied.rowcount == 0


async def put_back(
    conn: Connection, task: Task, worker: UUID, now: datetime, at: datetime | None, reason: str, stopped: str | None = None
) -> None:
    """The task was tried and did not come to its end: the lane goes on with it at ``at``, or stands still when ``stopped`` says why."""
    told = {**_named(task, worker), "now": now, "at": at or now, "reason": reason, "stopped": stopped}
    async with conn.pipeline(), conn.transaction():
        await conn.execute(_TRIED, told)
        await conn.execute(_FREED, told)


# What an operator does

_STATES = """
select l.partition, l.consumer, l.lane, l.tenant_id, t.number, c.waiting, t.attempts, l.due_at, t.created_at, t.reason, l.stopped,
       l.leased_until is not null and l.leased_until > now()
from task_lane l
join (select partition, consumer, lane, min(number) as first, count(*) as waiting from task
      where partition = any(%(partitions)b::int[]) group by partition, consumer, lane) c
  on c.partition = l.partition and c.consumer = l.consumer and c.lane = l.lane
join task t on t.partition = c.partition and t.consumer = c.consumer and t.lane = c.lane and t.number = c.first
where l.partition = any(%(partitions)b::int[]) and (%(consumer)s::text is null or l.consumer = %(consumer)s)
  and (l.stopped is not null or not %(stopped)s::boolean) and (%(lane)s::text is null or l.lane = %(lane)s)
order by l.stopped is null, l.consumer, t.created_at, l.lane limit %(limit)s"""
_RETRY = """
update task_lane set stopped = null, due_at = %(at)s
where partition = %(partition)s and consumer = %(consumer)s and lane = %(lane)s
  and (leased_until is null or leased_until <= now())"""
_RETRY_TASK = """
update task set due_at = %(at)s
where partition = %(partition)s and consumer = %(consumer)s and lane = %(lane)s and due_at > %(at)s
  and number = (select min(number) from task where partition = %(partition)s and consumer = %(consumer)s and lane = %(lane)s)"""
_SKIP = """
delete from task where partition = %(partition)s and consumer = %(consumer)s and lane = %(lane)s and number = %(number)s
  and exists (select from task_lane l where l.partition = %(partition)s and l.consumer = %(consumer)s and l.lane = %(lane)s
              and l.stopped is not null)"""


async def connect(dsn: str) -> Connection:
    """A session of an operator: what it does is on disk when it is told."""
    return await AsyncConnection.connect(dsn, options=OPTIONS, autocommit=True)


async def states(
    conn: Connection,
    partitions: Sequence[int],
    *,
    consumer: str | None = None,
    lane: str | None = None,
    stopped: bool = False,
    limit: int = 100,
) -> list[LaneState]:
    """Lanes with something in them, those that stand still first."""
    told = {"partitions": list(partitions), "consumer": consumer, "lane": lane, "stopped": stopped, "limit": limit}
    cursor = await conn.execute(_STATES, told)
    return [LaneState._make(row) for row in await cursor.fetchall()]


async def retry(conn: Connection, place: Place, at: datetime) -> bool:
    """Have a lane go on at a moment, also one that stands still. False when it is being worked on, or is empty."""
    told = {**place._asdict(), "at": at}
    async with conn.transaction():
        freed = (await conn.execute(_RETRY, told)).rowcount == 1
        if freed:
            await conn.execute(_RETRY_TASK, told)
    return freed


async def skip(conn: Connection, place: Place, number: int, at: datetime) -> bool:
    """Remove a task of a lane that stands still, and have the lane go on. False, and nothing is changed, when there is none."""
    async with conn.transaction():
        removed = (await conn.execute(_SKIP, {**place._asdict(), "number": number})).rowcount == 1
        if removed:
            await retry(conn, place, at)
    return removed

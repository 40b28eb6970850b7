"""What is asked of the quota read model.

The view is computed by the domain from the stored state for the moment asked for, so what a reader sees after a deadline does
not wait for anybody to expire it. For that a reader needs only the reservations that are due, and of a rolling limit
only its oldest second and the sum of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple
from uuid import UUID

from domain.quota import FrozenQuota, Open, Quota, quota_stream
from domain.quota.limits import epoch_second
from domain.quota.view import QuotaView, view
from projections.consumer import Connection
from projections.quota_tables import (
    FIELDS,
    MODEL,
    OF_STREAMS,
    Count,
    by_incarnation,
    columns,
    decode_state,
    grouped,
    names,
    opened_of,
    seconds_of,
    whole,
)
from projections.reading import FOLLOWER, Reading, asks_again


@dataclass(frozen=True, slots=True)
class OpenReservation:
    """A reservation that has not ended; ``used`` of ``amount`` was booked in parts."""

    reservation_id: str
    amount: int
    used: int
    reserved_at: datetime
    expires_at: datetime


Views = list[QuotaView]
OpenReservations = list[OpenReservation]


class DueReservation(NamedTuple):
    """A reservation whose time is over and that nobody has ended yet."""

    tenant_id: UUID
    stream: str
    subject: str
    meter: str
    reservation_id: str
    expires_at: datetime


class _Row(NamedTuple):
    stream: str
    open: int
    state: FrozenQuota


class _Statements:
    """The questions over the tables of one generation."""

    def __init__(self, generation: int) -> None:
        quota, reservation, second = names(generation)
        row = "stream, open, state::text"
        self.one = f"select {row} from {quota} where partition = %s and stream = %s"
        self.page = f"""
            select {row} from {quota}
            where partition = %s and tenant_id = %s and (meter, subject) > (%s, %s)
            order by meter, subject limit %s"""
        self.page_of_meter = f"""
            select {row} from {quota}
            where partition = %s and tenant_id = %s and meter = %s and subject > %s
            order by subject limit %s"""
        self.page_of_subject = f"""
            select {row} from {quota}
            where partition = %s and tenant_id = %s and subject = %s and meter > %s and (%s::text is null or meter = %s)
            order by meter limit %s"""
        self.due_of = f"select stream, {FIELDS} from {reservation} {OF_STREAMS} and expires_at <= %s"
        self.seconds_of = seconds_of(generation)
        self.sums_of = f"""
            with u as (select * from unnest(%b::text[], %b::int[], %b::bigint[]) as u(stream, born, gone)),
            w as (
              select s.stream, s.born, min(s.second) filter (where s.used <> 0 or s.reserved <> 0) as oldest,
                     max(s.second) as newest, sum(s.used) as used, sum(s.reserved) as reserved
              from u join {second} s on s.partition = %s and s.stream = u.stream and s.born = u.born and s.second > u.gone
              group by s.stream, s.born)
            select w.stream, w.born, w.oldest, o.used, o.reserved, w.newest, w.used - o.used, w.reserved - o.reserved
            from w join {second} o on o.partition = %s and o.stream = w.stream and o.born = w.born and o.second = w.oldest"""
        self.open_page = f"""
            select reservation_id, amount, booked, reserved_at, expires_at from {reservation}
            where partition = %s and stream = %s and reservation_id > %s order by reservation_id limit %s"""
        self.due = f"""
            select r.tenant_id, r.stream, q.subject, q.meter, r.reservation_id, r.expires_at
            from (select * from {reservation} where partition = any(%b::int[]) and expires_at <= %s order by expires_at limit %s) r
            join {quota} q on q.partition = r.partition and q.stream = r.stream
            order by r.expires_at, r.reservation_id"""


_statements = lru_cache(maxsize=4)(_Statements)


class QuotaReader:
    """Asks for quotas of one tenant at a time."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    @asks_again
    async def get(
        self,
        tenant_id: UUID,
        subject: str,
        meter: str,
        at: datetime,
        min_position: int | None = None,
        timeout_seconds: float = 5,
    ) -> QuotaView | None:
        """A quota as it stands at a moment that is not before its last event; None when there is none.

        With ``min_position`` only after the read model has applied that position of the tenant's partition; raises
        `ProjectionBehind` when it has not in time.
        """
        partition = self._reading.partition_of(tenant_id)
        await self._reading.reach(MODEL, tenant_id, min_position, timeout_seconds)
        async with self._reading.begin(MODEL, tenant_id) as (conn, generation):
            sql = _statements(generation)
            rows = await self._rows(conn, sql.one, (partition, quota_stream(tenant_id, subject, meter)))
            views = await self._views(conn, sql, partition, rows, at)
        return views[0] if views else None

    @asks_again
    async def list(
        self,
        tenant_id: UUID,
        at: datetime,
        meter: str | None = None,
        after: tuple[str, str] | None = None,
        limit: int = 50,
        *,
        subject: str | None = None,
    ) -> Views:
        """The tenant's quotas by meter and subject, or one subject's, behind a (meter, subject)."""
        partition = self._reading.partition_of(tenant_id)
        async with self._reading.begin(MODEL, tenant_id) as (conn, generation):
            sql = _statements(generation)
            if subject is not None:
                start = after[0] if after is not None else ""
                rows = await self._rows(conn, sql.page_of_subject, (partition, tenant_id, subject, start, meter, meter, limit))
            elif meter is None:
                rows = await self._rows(conn, sql.page, (partition, tenant_id, *(after or ("", "")), limit))
            else:
                start = "" if after is None or after[0] < meter else after[1]
                rows = await self._rows(conn, sql.page_of_meter, (partition, tenant_id, meter, start, limit))
            return await self._views(conn, sql, partition, rows, at)

    @asks_again
    async def reservations(self, tenant_id: UUID, subject: str, meter: str, after: str | None = None, limit: int = 50) -> OpenReservations:
        """A quota's open reservations by id, behind an id. One that is due is open until somebody ends it."""
        place = self._reading.partition_of(tenant_id), quota_stream(tenant_id, subject, meter)
        async with self._reading.begin(MODEL, tenant_id) as (conn, generation):
            cursor = await conn.execute(_statements(generation).open_page, (*place, after or "", limit), binary=True)
            rows = await cursor.fetchall()
        return [OpenReservation(row[0], row[1], int(row[2]), row[3], row[4]) for row in rows]

    @staticmethod
    async def _rows(conn: Connection, query: str, place: tuple[Any, ...]) -> Sequence[_Row]:
        cursor = await conn.execute(query, place, binary=True)
        return [_Row(stream, opened, decode_state(state)) for stream, opened, state in await cursor.fetchall()]

    async def _views(self, conn: Connection, sql: _Statements, partition: int, rows: Sequence[_Row], at: datetime) -> Views:
        due: dict[str, list[tuple[str, Open]]] = {}
        if any(row.open for row in rows):
            cursor = await conn.execute(sql.due_of, (partition, [row.stream for row in rows if row.open], at), binary=True)
            due = grouped((stream, opened_of(row)) for stream, *row in await cursor.fetchall())
        rolling = [row for row in rows if any(limit.limit.window.kind == "rolling" for limit in row.state.limits)]
        counts: dict[str, dict[int, list[Count]]] = {}
        if rolling:
            exact = [row.stream for row in rolling if row.stream in due]  # what expires changes single seconds
            counts = await _exact_seconds(conn, sql, partition, exact) if exact else {}
            counts |= await _summed_seconds(conn, sql, partition, [row for row in rolling if row.stream not in due], at)
        views = []
        for row in rows:
            ended = due.get(row.stream, ())
            state = whole(row.state, ended, counts.get(row.stream, {}))
            assert isinstance(state, Quota)
            # Of the open reservations only those that are due are in this state, and the view is without them.
            views.append(replace(view(state, at), open_reservations=row.open - len(ended)))
        return views


async def _exact_seconds(conn: Connection, sql: _Statements, partition: int, streams: Sequence[str]) -> dict[str, dict[int, list[Count]]]:
    cursor = await conn.execute(sql.seconds_of, (partition, streams), binary=True)
    return by_incarnation(await cursor.fetchall())


async def _summed_seconds(
    conn: Connection, sql: _Statements, partition: int, rows: Sequence[_Row], at: datetime
) -> dict[str, dict[int, list[Count]]]:
    """Of each rolling limit the oldest second that counts, and all later ones as if they were the newest."""
    wanted = [
        (row.stream, tally.born, max(tally.mark, epoch_second(at)) - seconds)
        for row in rows
        for tally in row.state.limits
        if (seconds := tally.limit.window.seconds) is not None
    ]
    if not wanted:
        return {}
    cursor = await conn.execute(sql.sums_of, (*columns(wanted), partition, partition), binary=True)
    summed: dict[str, dict[int, list[Count]]] = {}
    for stream, born, oldest, used, reserved, newest, *others in await cursor.fetchall():
        counts = summed.setdefault(stream, {})[born] = [(oldest, int(used), int(reserved))]
        if newest != oldest and any(others):
            counts.append((newest, int(others[0]), int(others[1])))
    return summed


class DueReader:
    """Asks for what is due over all tenants, for whoever ends it: as the followers' role."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    @classmethod
    async def open(cls, dsn: str) -> DueReader:
        """Connect."""
        return cls(await Reading.open(dsn, FOLLOWER, 1))

    async def close(self) -> None:
        """Close the connection."""
        await self._reading.close()

    @asks_again
    async def due(self, at: datetime, limit: int) -> list[DueReservation]:
        """Open reservations whose time is over by then, soonest first."""
        async with self._reading.begin(MODEL) as (conn, generation):
            everywhere = list(range(self._reading.partitions))
            cursor = await conn.execute(_statements(generation).due, (everywhere, at, limit), binary=True)
            return [DueReservation._make(row) for row in await cursor.fetchall()]

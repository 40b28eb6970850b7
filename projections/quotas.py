"""The quota read model: how each quota stands, and its open reservations.

A quota is one row with its state as JSON. What may be many is kept in rows of its own and changed one by one: open reservations,
and the seconds of rolling limits. So a batch costs what it changed, not what there is. Reservations that ended are not kept,
since nothing that is asked here depends on them.

The view is computed by the domain from that state for the moment asked for, so what a reader sees after a deadline does
not wait for anybody to expire it. For that a reader needs only the reservations that are due, and of a rolling limit
only its oldest second and the sum of the others.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from psycopg_pool import AsyncConnectionPool
from sqlalchemy import JSON, BigInteger, Column, DateTime, Index, Integer, MetaData, Numeric, Table, Text, Uuid

from domain.kernel.persistent import Map
from domain.quota import (
    QUOTA,
    Adjusted,
    Committed,
    Consumed,
    Expired,
    FrozenQuota,
    LimitsSet,
    Open,
    Progressed,
    Quota,
    Reserved,
    RolledBack,
    State,
    quota_stream,
)
from domain.quota.credits import CreditUse
from domain.quota.limits import FrozenTally, RollingTally, epoch_second
from domain.quota.view import QuotaView, view
from eventstore.codec import Codec
from eventstore.errors import CorruptLog
from eventstore.postgres import open_pool
from eventstore.store import partition_of
from projections.consumer import Connection, Projection, ProjectionBehind, Recorded

NAME = "quotas"


def define(metadata: MetaData, generation: int) -> None:
    """The tables of one generation."""
    Table(
        f"quota_{generation}",
        metadata,
        Column("partition", Integer, primary_key=True),
        Column("stream", Text(collation="C"), primary_key=True),
        Column("tenant_id", Uuid, nullable=False),
        Column("subject", Text(collation="C"), nullable=False),
        Column("meter", Text(collation="C"), nullable=False),
        Column("version", BigInteger, nullable=False),
        Column("position", BigInteger, nullable=False, comment="the last event in it"),
        Column("open", Integer, nullable=False, comment="how many reservations are open"),
        Column("state", JSON, nullable=False),
        Index(f"quota_{generation}_by_name", "partition", "tenant_id", "meter", "subject"),
        info={"readers": True},
    )
    Table(
        f"quota_reservation_{generation}",
        metadata,
        Column("partition", Integer, primary_key=True),
        Column("stream", Text(collation="C"), primary_key=True),
        Column("reservation_id", Text(collation="C"), primary_key=True),
        Column("tenant_id", Uuid, nullable=False),
        Column("amount", BigInteger, nullable=False),
        Column("booked", Numeric, nullable=False),
        Column("reserved_at", DateTime(timezone=True), nullable=False),
        Column("expires_at", DateTime(timezone=True), nullable=False),
        Column("counted", JSON, nullable=False, comment="in which windows, and from which credits"),
        Index(f"quota_reservation_{generation}_due", "partition", "expires_at"),
        info={"readers": True},
    )
    Table(
        f"quota_second_{generation}",
        metadata,
        Column("partition", Integer, primary_key=True),
        Column("stream", Text(collation="C"), primary_key=True),
        Column("born", Integer, primary_key=True, comment="which incarnation of a limit"),
        Column("second", BigInteger, primary_key=True, autoincrement=False),
        Column("tenant_id", Uuid, nullable=False),
        Column("used", Numeric, nullable=False),
        Column("reserved", Numeric, nullable=False),
        info={"readers": True},
    )


# State to rows and back


Count = tuple[int, int, int]
"""(second, used, reserved)"""
Counted = tuple[tuple[tuple[int, int, int], ...], tuple[CreditUse, ...]]

_encode = msgspec.json.Encoder().encode
_decode_state = msgspec.json.Decoder(FrozenQuota).decode
_decode_counted = msgspec.json.Decoder(Counted).decode


def _summary(state: Quota) -> FrozenQuota:
    """The state without what is kept in rows of its own."""
    terms = state.terms
    limits = tuple(
        [
            FrozenTally(tally.born, tally.limit, tally.latest, (), tally.crossed) if isinstance(tally, RollingTally) else tally.freeze()
            for tally in state.limits
        ]
    )
    return FrozenQuota(
        terms.subject, terms.meter, terms.zone, terms.overdraft, terms.max_open, terms.next_born, limits, state.grants,
        used=state.used, reserved=state.reserved,
    )  # fmt: skip


def _whole(frozen: FrozenQuota, opened: Iterable[tuple[str, Open]], counts: dict[int, list[Count]]) -> State:
    """The state again; ``counts`` are the seconds of rolling limits by incarnation."""
    limits = tuple([replace(tally, counts=tuple(counts[tally.born])) if tally.born in counts else tally for tally in frozen.limits])
    return QUOTA.thaw(replace(frozen, open=tuple(opened), limits=limits))


def _opened(row: Sequence[Any]) -> tuple[str, Open]:
    """(reservation_id, amount, booked, reserved_at, expires_at, counted) as stored."""
    parts, uses = _decode_counted(row[5])
    return row[0], Open(row[1], int(row[2]), row[3], row[4], parts, uses)


def _grouped(pairs: Iterable[tuple[str, tuple[str, Open]]]) -> dict[str, list[tuple[str, Open]]]:
    groups: dict[str, list[tuple[str, Open]]] = {}
    for stream, pair in pairs:
        groups.setdefault(stream, []).append(pair)
    return groups


def _by_incarnation(rows: Iterable[Sequence[Any]]) -> dict[str, dict[int, list[Count]]]:
    """(stream, born, second, used, reserved) as stored, by stream and incarnation."""
    counts: dict[str, dict[int, list[Count]]] = {}
    for stream, born, second, used, reserved in rows:
        counts.setdefault(stream, {}).setdefault(born, []).append((second, int(used), int(reserved)))
    return counts


# Apply


class Held(NamedTuple):
    """A state in memory that is as the tables have it."""

    tenant_id: UUID
    version: int
    state: State
    weight: int


class _Fold:
    """A quota under way through a batch, and which rows it will change."""

    __slots__ = ("changed", "ended", "limits_set", "position", "seconds", "state", "tenant_id", "version")

    def __init__(self, tenant_id: UUID, version: int, state: State) -> None:
        self.tenant_id, self.version, self.state, self.position = tenant_id, version, state, 0
        self.changed: dict[str, bool] = {}
        """Reservations that began (True) or changed (False) in this batch."""
        self.ended: list[str] = []
        self.seconds: set[int] | None = _rolling_seconds(state)
        self.limits_set = False

    def take(self, event: Any) -> None:
        kind, seconds = type(event), self.seconds
        if kind is Reserved:
            self.changed[event.reservation_id] = True
            if seconds is not None:
                seconds.add(epoch_second(event.at))
        elif kind is Committed or kind is Expired or kind is RolledBack:
            if seconds is not None:
                self._touch(event.reservation_id, seconds)
            if not self.changed.pop(event.reservation_id, False):  # the tables have not seen one that began in this batch
                self.ended.append(event.reservation_id)
        elif kind is Progressed:
            self.changed.setdefault(event.reservation_id, False)
            if seconds is not None:
                self._touch(event.reservation_id, seconds)
        elif (kind is Consumed or kind is Adjusted) and seconds is not None:
            seconds.add(epoch_second(event.at))
        self.state = QUOTA.evolve(self.state, event)
        if kind is LimitsSet:
            self.limits_set = True
            self.seconds = _rolling_seconds(self.state)

    def _touch(self, reservation_id: str, seconds: set[int]) -> None:
        assert isinstance(self.state, Quota)
        held: Open | None = self.state.open.get(reservation_id)
        if held is not None:
            seconds.update(part[1] for part in held.parts)


def _rolling_seconds(state: State) -> set[int] | None:
    if isinstance(state, Quota):
        for tally in state.limits:
            if type(tally) is RollingTally:
                return set()
    return None


class _Rows:
    """What a batch writes, by column."""

    def __init__(self) -> None:
        self.quotas: list[tuple[Any, ...]] = []
        self.ended: list[tuple[str, str]] = []
        self.opened: list[tuple[Any, ...]] = []
        self.emptied: list[str] = []
        self.floors: list[tuple[str, int, int]] = []
        self.seconds: list[tuple[Any, ...]] = []

    def add(self, stream: str, fold: _Fold) -> None:
        state, tenant_id = fold.state, fold.tenant_id
        assert isinstance(state, Quota), "a quota begins with its limits or a grant"
        terms, opened = state.terms, state.open
        text = _encode(_summary(state)).decode()
        self.quotas.append((stream, tenant_id, terms.subject, terms.meter, fold.version, fold.position, len(opened), text))
        self.ended += [(stream, identity) for identity in fold.ended]
        for identity in fold.changed:
            held: Open | None = opened.get(identity)
            if held is not None:
                counted = _encode((held.parts, held.credits)).decode()
                self.opened.append((stream, identity, tenant_id, held.amount, held.booked, held.at, held.expires_at, counted))
        if fold.limits_set:
            self.emptied.append(stream)
        for tally in state.limits if fold.seconds is not None else ():
            if isinstance(tally, RollingTally):
                self._add_seconds(stream, fold, tally)

    def _add_seconds(self, stream: str, fold: _Fold, tally: RollingTally) -> None:
        assert fold.seconds is not None
        oldest = tally.order.least
        if not fold.limits_set:
            self.floors.append((stream, tally.born, tally.latest + 1 if oldest is None else oldest))
        for second in tally.buckets if fold.limits_set else fold.seconds:
            counts = tally.buckets.get(second)
            if counts is not None:
                self.seconds.append((stream, tally.born, second, fold.tenant_id, *counts))


_CHUNK = 256
"""After so many events others on the event loop get their turn."""


class Quotas:
    """The consumer. States of quotas that were touched last stay in memory, at most ``cached`` units of about half a kilobyte."""

    name = NAME

    def __init__(self, codec: Codec, generation: int = 1, cached: int = 400_000) -> None:
        self.generation, self._decode, self._capacity, self._weight = generation, codec.decode, cached, 0
        self._cache: OrderedDict[tuple[int, str], Held] = OrderedDict()
        self._sql = _Statements(generation)

    def forget(self) -> None:
        """Drop all states."""
        self._cache.clear()
        self._weight = 0

    async def apply(self, conn: Connection, partition: int, rows: Sequence[Recorded]) -> Callable[[], None]:
        """See :class:`projections.consumer.Consumer`."""
        folds = await self._begin(conn, partition, rows)
        decode = self._decode
        for start in range(0, len(rows), _CHUNK):
            for row in rows[start : start + _CHUNK]:
                fold = folds.get(row.stream)
                if fold is None:
                    continue
                fold.version += 1
                if row.version != fold.version:
                    raise CorruptLog(f"Stream {row.stream} goes to version {row.version} where {fold.version} was to come.")
                fold.position = row.position
                fold.take(decode(row.type, row.payload))
            await asyncio.sleep(0)
        written = _Rows()
        for stream, fold in folds.items():
            written.add(stream, fold)
        await self._write(conn, partition, written)
        return lambda: self._publish(partition, folds)

    async def _begin(self, conn: Connection, partition: int, rows: Sequence[Recorded]) -> dict[str, _Fold]:
        """The states before the batch, from memory or else from the tables."""
        folds: dict[str, _Fold] = {}
        missing: dict[str, UUID] = {}
        for row in rows:
            stream = row.stream
            if stream in folds or stream in missing or not stream.startswith("quota-"):
                continue
            held = self._cache.get((partition, stream))
            if row.version == 1:
                folds[stream] = _Fold(row.tenant_id, 0, QUOTA.initial)
            elif held is not None and held.version == row.version - 1:
                folds[stream] = _Fold(held.tenant_id, held.version, held.state)
            else:  # not in memory, or another follower went on since
                missing[stream] = row.tenant_id
        for stream, (version, state) in (await self._load(conn, partition, list(missing))).items():
            folds[stream] = _Fold(missing[stream], version, state)
        return folds

    async def _load(self, conn: Connection, partition: int, streams: list[str]) -> dict[str, tuple[int, State]]:
        if not streams:
            return {}
        sql, place = self._sql, (partition, streams)
        cursors = [await conn.execute(query, place, binary=True) for query in (sql.states, sql.open_of, sql.seconds_of)]
        states, reservations, seconds = [await cursor.fetchall() for cursor in cursors]
        opened = _grouped((stream, _opened(row)) for stream, *row in reservations)
        counts = _by_incarnation(seconds)
        loaded: dict[str, tuple[int, State]] = dict.fromkeys(streams, (0, QUOTA.initial))
        for stream, version, state in states:
            whole = _whole(_decode_state(state), opened.get(stream, ()), counts.get(stream, {}))
            loaded[stream] = version, whole
        return loaded

    async def _write(self, conn: Connection, partition: int, rows: _Rows) -> None:
        sql = self._sql
        if rows.quotas:
            await conn.execute(sql.put_states, (partition, *_columns(rows.quotas)))
        # Removals first: an id, or a second, may end and begin again in one batch.
        if rows.ended:
            await conn.execute(sql.end, (*_columns(rows.ended), partition))
        if rows.opened:
            await conn.execute(sql.put_open, (partition, *_columns(rows.opened)))
        if rows.floors:
            await conn.execute(sql.drop_seconds, (*_columns(rows.floors), partition))
        if rows.emptied:
            await conn.execute(sql.empty_seconds, (partition, rows.emptied))
        if rows.seconds:
            await conn.execute(sql.put_seconds, (partition, *_columns(rows.seconds)))

    def _publish(self, partition: int, folds: dict[str, _Fold]) -> None:
        cache = self._cache
        for stream, fold in folds.items():
            assert isinstance(fold.state, Quota)
            state = _without_ended(fold.state)
            weight = 4 + len(state.open) + len(state.grants)
            for tally in state.limits:
                weight += 1 + len(tally.buckets if isinstance(tally, RollingTally) else tally.past)
            place = partition, stream
            old = cache.pop(place, None)
            self._weight += weight - (old.weight if old is not None else 0)
            cache[place] = Held(fold.tenant_id, fold.version, state, weight)
        while self._weight > self._capacity and cache:
            self._weight -= cache.popitem(last=False)[1].weight


def _without_ended(state: Quota) -> Quota:
    """Reservations that ended are of use to nobody here, and there are more with every command."""
    if not state.closed and not state.closed_before:
        return state
    return Quota(state.terms, state.limits, state.grants, state.open, state.expiries, Map(), Map(), state.used, state.reserved)


def _columns(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]


class _Statements:
    """The statements over the tables of one generation."""

    def __init__(self, generation: int) -> None:
        self.generation = generation
        quota, reservation, second = (f"quota_{generation}", f"quota_reservation_{generation}", f"quota_second_{generation}")
        fields = "reservation_id, amount, booked, reserved_at, expires_at, counted::text"
        streams = "where partition = %s and stream = any(%b::text[])"
        self.states = f"select stream, version, state::text from {quota} {streams}"
        self.open_of = f"select stream, {fields} from {reservation} {streams}"
        self.seconds_of = f"select stream, born, second, used, reserved from {second} {streams} order by stream, born, second"
        self.put_states = f"""
            insert into {quota} as q (partition, stream, tenant_id, subject, meter, version, position, open, state)
            select %s::int, u.stream, u.tenant_id, u.subject, u.meter, u.version, u.position, u.open, u.state::json
            from unnest(%b::text[], %b::uuid[], %b::text[], %b::text[], %b::bigint[], %b::bigint[], %b::int[], %b::text[])
              as u(stream, tenant_id, subject, meter, version, position, open, state)
            on conflict (partition, stream) do update
            set version = excluded.version, position = excluded.position, open = excluded.open, state = excluded.state,
                subject = excluded.subject, meter = excluded.meter"""
        self.end = f"""
            delete from {reservation} r using unnest(%b::text[], %b::text[]) as u(stream, reservation_id)
            where r.partition = %s and r.stream = u.stream and r.reservation_id = u.reservation_id"""
        self.put_open = f"""
            insert into {reservation} (partition, stream, reservation_id, tenant_id, amount, booked, reserved_at, expires_at, counted)
            select %s::int, u.stream, u.reservation_id, u.tenant_id, u.amount, u.booked, u.reserved_at, u.expires_at, u.counted::json
            from unnest(%b::text[], %b::text[], %b::uuid[], %b::bigint[], %b::numeric[], %b::timestamptz[], %b::timestamptz[], %b::text[])
              as u(stream, reservation_id, tenant_id, amount, booked, reserved_at, expires_at, counted)
            on conflict (partition, stream, reservation_id) do update
            set amount = excluded.amount, booked = excluded.booked, reserved_at = excluded.reserved_at,
                expires_at = excluded.expires_at, counted = excluded.counted"""
        self.empty_seconds = f"delete from {second} {streams}"
        self.drop_seconds = f"""
            delete from {second} s using unnest(%b::text[], %b::int[], %b::bigint[]) as u(stream, born, second)
            where s.partition = %s and s.stream = u.stream and s.born = u.born and s.second < u.second"""
        self.put_seconds = f"""
            insert into {second} (partition, stream, born, second, tenant_id, used, reserved)
            select %s::int, u.* from unnest(%b::text[], %b::int[], %b::bigint[], %b::uuid[], %b::numeric[], %b::numeric[])
              as u(stream, born, second, tenant_id, used, reserved)
            on conflict (partition, stream, born, second) do update set used = excluded.used, reserved = excluded.reserved"""
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
        self.due_of = f"select stream, {fields} from {reservation} {streams} and expires_at <= %s"
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


# Queries


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


_OPTIONS = "-c plan_cache_mode=force_custom_plan -c jit=off -c timezone=UTC -c statement_timeout=30s -c role="
_GENERATION = "select generation from projection where name = %s"
_REACHED = """
select c.position, c.stopped from checkpoint c
where c.partition = %s and c.consumer = %s and c.generation = (select generation from projection where name = %s)"""


class _Reader:
    """Reads from the generation that the registry names at that moment."""

    def __init__(self, pool: AsyncConnectionPool[Connection], partitions: int) -> None:
        self._pool, self._partitions, self._statements = pool, partitions, _Statements(1)

    @classmethod
    async def _open(cls, dsn: str, role: str, size: int) -> tuple[AsyncConnectionPool[Connection], int]:
        pool = await open_pool(dsn, size=size, options=_OPTIONS + role)
        async with pool.connection() as conn:
            row = await (await conn.execute("select partitions from store")).fetchone()
        assert row is not None
        return pool, row[0]

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.close()

    @asynccontextmanager
    async def _begin(self, tenant_id: UUID | None = None) -> AsyncIterator[tuple[Connection, _Statements]]:
        """A transaction that sees one moment of everything, as the tenant, if there is one."""
        async with self._pool.connection() as conn:
            async with conn.pipeline():
                await conn.execute("begin isolation level repeatable read, read only")
                if tenant_id is not None:
                    # A literal, because Citus hands on SET LOCAL and not set_config(); a UUID needs no quoting.
                    await conn.execute(f"set local app.tenant_id = '{UUID(int=tenant_id.int)}'")
                found = await (await conn.execute(_GENERATION, (NAME,))).fetchone()
            assert found is not None
            if found[0] != self._statements.generation:
                self._statements = _Statements(found[0])
            yield conn, self._statements
            await conn.execute("commit")


class QuotaReader(_Reader):
    """Asks for quotas of one tenant at a time, as a role that row-level security shows that tenant alone."""

    @classmethod
    async def open(cls, dsn: str, connections: int = 4) -> QuotaReader:
        """Connect."""
        return cls(*await cls._open(dsn, "holdbook_reader", connections))

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
        partition = partition_of(tenant_id, self._partitions)
        if min_position:
            await self._reach(partition, min_position, timeout_seconds)
        async with self._begin(tenant_id) as (conn, sql):
            rows = await self._rows(conn, sql.one, (partition, quota_stream(tenant_id, subject, meter)))
            views = await self._views(conn, sql, partition, rows, at)
        return views[0] if views else None

    async def list(
        self, tenant_id: UUID, at: datetime, meter: str | None = None, after: tuple[str, str] | None = None, limit: int = 50
    ) -> Views:
        """The tenant's quotas by meter and subject, behind a (meter, subject)."""
        partition = partition_of(tenant_id, self._partitions)
        async with self._begin(tenant_id) as (conn, sql):
            if meter is None:
                rows = await self._rows(conn, sql.page, (partition, tenant_id, *(after or ("", "")), limit))
            else:
                start = "" if after is None or after[0] < meter else after[1]
                rows = await self._rows(conn, sql.page_of_meter, (partition, tenant_id, meter, start, limit))
            return await self._views(conn, sql, partition, rows, at)

    async def reservations(self, tenant_id: UUID, subject: str, meter: str, after: str | None = None, limit: int = 50) -> OpenReservations:
        """A quota's open reservations by id, behind an id. One that is due is open until somebody ends it."""
        place = partition_of(tenant_id, self._partitions), quota_stream(tenant_id, subject, meter)
        async with self._begin(tenant_id) as (conn, sql):
            cursor = await conn.execute(sql.open_page, (*place, after or "", limit), binary=True)
            rows = await cursor.fetchall()
        return [OpenReservation(row[0], row[1], int(row[2]), row[3], row[4]) for row in rows]

    async def _reach(self, partition: int, wanted: int, timeout_seconds: float) -> None:
        deadline, pause = time.monotonic() + timeout_seconds, 0.005
        while True:
            async with self._pool.connection() as conn:
                found = await (await conn.execute(_REACHED, (partition, NAME, NAME))).fetchone()
            position, stopped = found or (0, None)
            if position >= wanted:
                return
            if stopped is not None or time.monotonic() + pause > deadline:
                raise ProjectionBehind(position, wanted, stopped)
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 0.1)

    @staticmethod
    async def _rows(conn: Connection, query: str, place: tuple[Any, ...]) -> Sequence[_Row]:
        cursor = await conn.execute(query, place, binary=True)
        return [_Row(stream, opened, _decode_state(state)) for stream, opened, state in await cursor.fetchall()]

    async def _views(self, conn: Connection, sql: _Statements, partition: int, rows: Sequence[_Row], at: datetime) -> Views:
        due: dict[str, list[tuple[str, Open]]] = {}
        if any(row.open for row in rows):
            cursor = await conn.execute(sql.due_of, (partition, [row.stream for row in rows if row.open], at), binary=True)
            due = _grouped((stream, _opened(row)) for stream, *row in await cursor.fetchall())
        rolling = [row for row in rows if any(limit.limit.window.kind == "rolling" for limit in row.state.limits)]
        counts: dict[str, dict[int, list[Count]]] = {}
        if rolling:
            exact = [row.stream for row in rolling if row.stream in due]  # what expires changes single seconds
            counts = await _exact_seconds(conn, sql, partition, exact) if exact else {}
            counts |= await _summed_seconds(conn, sql, partition, [row for row in rolling if row.stream not in due], at)
        views = []
        for row in rows:
            ended = due.get(row.stream, ())
            state = _whole(row.state, ended, counts.get(row.stream, {}))
            assert isinstance(state, Quota)
            # Of the open reservations only those that are due are in this state, and the view is without them.
            views.append(replace(view(state, at), open_reservations=row.open - len(ended)))
        return views


async def _exact_seconds(conn: Connection, sql: _Statements, partition: int, streams: Sequence[str]) -> dict[str, dict[int, list[Count]]]:
    cursor = await conn.execute(sql.seconds_of, (partition, streams), binary=True)
    return _by_incarnation(await cursor.fetchall())


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
    cursor = await conn.execute(sql.sums_of, (*_columns(wanted), partition, partition), binary=True)
    summed: dict[str, dict[int, list[Count]]] = {}
    for stream, born, oldest, used, reserved, newest, *others in await cursor.fetchall():
        counts = summed.setdefault(stream, {})[born] = [(oldest, int(used), int(reserved))]
        if newest != oldest and any(others):
            counts.append((newest, int(others[0]), int(others[1])))
    return summed


class DueReader(_Reader):
    """Asks for what is due over all tenants, for whoever ends it: as the followers' role."""

    @classmethod
    async def open(cls, dsn: str) -> DueReader:
        """Connect."""
        return cls(*await cls._open(dsn, "holdbook_follower", 1))

    async def due(self, at: datetime, limit: int) -> list[DueReservation]:
        """Open reservations whose time is over by then, soonest first."""
        async with self._begin() as (conn, sql):
            cursor = await conn.execute(sql.due, (list(range(self._partitions)), at, limit), binary=True)
            return [DueReservation._make(row) for row in await cursor.fetchall()]


PROJECTION = Projection(NAME, version=1, shape=1, define=define, consumer=Quotas)

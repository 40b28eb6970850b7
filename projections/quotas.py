"""The quota read model: how each quota stands, and its open reservations.

Here events are folded into rows; ``quota_tables`` has the rows and ``quota_queries`` what is asked of them.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from domain.quota import (
    QUOTA,
    Adjusted,
    Committed,
    Consumed,
    Expired,
    Granted,
    LimitsSet,
    Open,
    Progressed,
    Quota,
    Reserved,
    RolledBack,
    State,
)
from domain.quota.limits import RollingTally, epoch_second
from eventstore.codec import Codec
from eventstore.errors import CorruptLog
from projections.consumer import SKIPPED, Connection, Projection, Recorded
from projections.deleted import deleted
from projections.quota_bare import bare
from projections.quota_tables import (
    FIELDS,
    MODEL,
    OF_STREAMS,
    by_incarnation,
    columns,
    decode_state,
    define,
    encode,
    grouped,
    names,
    opened_of,
    seconds_of,
    summary,
    whole,
)

NAME = MODEL.name
VERSION = 1


_evolve = QUOTA.evolve


class Held(NamedTuple):
    """A state in memory that is as the tables have it."""

    tenant_id: UUID
    version: int
    state: State
    weight: int


class _Fold:
    """A quota under way through a batch, and which rows it will change."""

    __slots__ = ("begun", "changed", "ended", "limits_set", "position", "seconds", "state", "tenant_id", "version")

    def __init__(self, tenant_id: UUID, version: int, state: State) -> None:
        self.tenant_id, self.version, self.state, self.position = tenant_id, version, state, 0
        self.changed: dict[str, bool] = {}
        """Reservations that began (True) or changed (False) in this batch."""
        self.ended: list[str] = []
        self.begun = version > 0
        self.seconds: set[int] | None = _rolling_seconds(state)
        self.limits_set = False

    def take(self, event: Any) -> None:
        kind, seconds = type(event), self.seconds
        self.begun = True
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
        self.state = _evolve(self.state, event)
        if kind is LimitsSet or kind is Granted:  # either may begin a quota
            self.state = bare(self.state)
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
        if not isinstance(state, Quota):
            raise CorruptLog(f"Stream {stream} begins with neither limits nor a grant.")
        terms, opened = state.terms, state.open
        text = encode(summary(state)).decode()
        self.quotas.append((stream, tenant_id, terms.subject, terms.meter, fold.version, fold.position, len(opened), text))
        self.ended += [(stream, identity) for identity in fold.ended]
        for identity in fold.changed:
            held: Open | None = opened.get(identity)
            if held is not None:
                counted = encode((held.parts, held.credits)).decode()
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

    name, version, starts_at_head = NAME, VERSION, False

    def __init__(self, codec: Codec, generation: int = 1, cached: int = 400_000) -> None:
        self.generation, self.decode, self._capacity, self._weight = generation, codec.decode, cached, 0
        self._cache: OrderedDict[tuple[int, str], Held] = OrderedDict()
        self._sql = _Statements(generation)

    def forget(self) -> None:
        """Drop all states."""
        self._cache.clear()
        self._weight = 0

    async def apply(self, conn: Connection, partition: int, rows: Sequence[Recorded]) -> Callable[[], None]:
        """See :class:`projections.consumer.Consumer`."""
        batch = self.gather(partition)
        await batch.take(conn, rows)
        return await batch.write(conn)

    def gather(self, partition: int) -> Batch:
        """See :class:`projections.gathering.Gathers`."""
        return Batch(self, partition)

    def take_out(self, partition: int, stream: str) -> Held | None:
        """The state in memory, if it is there; it is not any more. Another follower may have gone on since.

        Were it kept while later states are made of it, its maps would hold on to every version in between.
        """
        held = self._cache.pop((partition, stream), None)
        if held is not None:
            self._weight -= held.weight
        return held

    async def load(self, conn: Connection, partition: int, streams: list[str]) -> dict[str, tuple[int, State]]:
        """The states as the tables have them, with their versions."""
        if not streams:
            return {}
        sql, place = self._sql, (partition, streams)
        cursors = [await conn.execute(query, place, binary=True) for query in (sql.states, sql.open_of, sql.seconds_of)]
        states, reservations, seconds = [await cursor.fetchall() for cursor in cursors]
        opened = grouped((stream, opened_of(row)) for stream, *row in reservations)
        counts = by_incarnation(seconds)
        loaded: dict[str, tuple[int, State]] = dict.fromkeys(streams, (0, QUOTA.initial))
        for stream, version, state in states:
            loaded[stream] = version, bare(whole(decode_state(state), opened.get(stream, ()), counts.get(stream, {})))
        return loaded

    async def write(self, conn: Connection, partition: int, rows: _Rows, ended: Iterable[UUID]) -> None:
        """Send what changes the tables, and what removes the tenants that have ended."""
        sql = self._sql
        if rows.quotas:
            await conn.execute(sql.put_states, (partition, *columns(rows.quotas)))
        # Removals first: an id, or a second, may end and begin again in one batch.
        if rows.ended:
            await conn.execute(sql.end, (*columns(rows.ended), partition))
        if rows.opened:
            await conn.execute(sql.put_open, (partition, *columns(rows.opened)))
        if rows.floors:
            await conn.execute(sql.drop_seconds, (*columns(rows.floors), partition))
        if rows.emptied:
            await conn.execute(sql.empty_seconds, (partition, rows.emptied))
        if rows.seconds:
            await conn.execute(sql.put_seconds, (partition, *columns(rows.seconds)))
        for tenant_id in ended:
            for statement in sql.drop_tenant:
                await conn.execute(statement, {"partition": partition, "tenant_id": tenant_id})

    def publish(self, partition: int, folds: Mapping[str, _Fold]) -> None:
        """Keep the states in memory, now that they are what the tables have."""
        cache = self._cache
        for stream, fold in folds.items():
            state = fold.state
            assert isinstance(state, Quota)
            weight = 4 + len(state.open) + len(state.grants)
            for tally in state.limits:
                weight += 1 + len(tally.buckets if isinstance(tally, RollingTally) else tally.past)
            place = partition, stream
            old = cache.pop(place, None)
            self._weight += weight - (old.weight if old is not None else 0)
            cache[place] = Held(fold.tenant_id, fold.version, state, weight)
        while self._weight > self._capacity and cache:
            self._weight -= cache.popitem(last=False)[1].weight


class Batch:
    """Events of one partition folded into states, and not written yet."""

    def __init__(self, consumer: Quotas, partition: int) -> None:
        self._consumer, self._partition = consumer, partition
        self._folds: dict[str, _Fold] = {}
        self._ended: list[UUID] = []

    @property
    def streams(self) -> int:
        """How many quotas it changes."""
        return len(self._folds)

    async def take(self, conn: Connection, rows: Sequence[Recorded]) -> None:
        """See :class:`projections.gathering.Gathered`."""
        gone = await deleted(conn, self._partition, rows)
        await self._begin(conn, rows, gone.silent)
        folds, decode = self._folds, self._consumer.decode
        for start in range(0, len(rows), _CHUNK):
            # Unpacked, because this runs once for every event, and looking fields up by name takes longer than all of this.
            for position, _, stream, version, kind, _, payload, _, _, _, _, _ in rows[start : start + _CHUNK]:
                fold = folds.get(stream)
                if fold is None:
                    continue
                wanted = fold.version + 1 if fold.begun else 1
                if version != wanted:
                    raise CorruptLog(f"Stream {stream} goes to version {version} where {wanted} was to come.")
                fold.version, fold.position = wanted, position
                if kind != SKIPPED:
                    fold.take(decode(kind, payload))
            await asyncio.sleep(0)
        self._ended += gone.ending  # what is written of them goes right after

    async def _begin(self, conn: Connection, rows: Sequence[Recorded], silent: Collection[UUID]) -> None:
        """Have the states that these rows go on from, out of memory or else out of the tables."""
        folds, take_out = self._folds, self._consumer.take_out
        missing: dict[str, UUID] = {}
        new = {row.stream for row in rows}.difference(folds)
        for row in rows if new else ():
            stream = row.stream
            if stream not in new:
                continue
            new.remove(stream)  # its first event has been come to
            if not stream.startswith("quota-") or (silent and row.tenant_id in silent):
                continue
            held = take_out(self._partition, stream)
            if row.version == 1:
                folds[stream] = _Fold(row.tenant_id, 0, QUOTA.initial)
            elif held is not None and held.version == row.version - 1:
                folds[stream] = _Fold(held.tenant_id, held.version, held.state)
            else:  # not in memory, or another follower went on since
                missing[stream] = row.tenant_id
        for stream, (version, state) in (await self._consumer.load(conn, self._partition, list(missing))).items():
            folds[stream] = _Fold(missing[stream], version, state)

    async def write(self, conn: Connection) -> Callable[[], None]:
        """See :class:`projections.gathering.Gathered`."""
        # An operator may have had the first event of one skipped, and there is nothing to keep.
        folds = {stream: fold for stream, fold in self._folds.items() if fold.begun}
        rows = _Rows()
        for stream, fold in folds.items():
            rows.add(stream, fold)
        await self._consumer.write(conn, self._partition, rows, self._ended)
        return lambda: self._consumer.publish(self._partition, folds)


class _Statements:
    """The statements over the tables of one generation."""

    def __init__(self, generation: int) -> None:
        quota, reservation, second = names(generation)
        self.states = f"select stream, version, state::text from {quota} {OF_STREAMS}"
        self.open_of = f"select stream, {FIELDS} from {reservation} {OF_STREAMS}"
        self.seconds_of = seconds_of(generation)
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
        self.empty_seconds = f"delete from {second} {OF_STREAMS}"
        self.drop_seconds = f"""
            delete from {second} s using unnest(%b::text[], %b::int[], %b::bigint[]) as u(stream, born, second)
            where s.partition = %s and s.stream = u.stream and s.born = u.born and s.second < u.second"""
        self.put_seconds = f"""
            insert into {second} (partition, stream, born, second, tenant_id, used, reserved)
            select %s::int, u.* from unnest(%b::text[], %b::int[], %b::bigint[], %b::uuid[], %b::numeric[], %b::numeric[])
              as u(stream, born, second, tenant_id, used, reserved)
            on conflict (partition, stream, born, second) do update set used = excluded.used, reserved = excluded.reserved"""
        self.drop_tenant = (
            f"delete from {reservation} where {_OF_TENANT.format(quota=quota)}",
            f"delete from {second} where {_OF_TENANT.format(quota=quota)}",
            f"delete from {quota} where partition = %(partition)s and tenant_id = %(tenant_id)s",
        )


_OF_TENANT = """partition = %(partition)s and stream in (
  select stream from {quota} where partition = %(partition)s and tenant_id = %(tenant_id)s)"""


PROJECTION = Projection(NAME, version=VERSION, shape=MODEL.shape, define=define, consumer=Quotas)

"""The license read model: a person's license, devices and quotas as they stand.

Here events are folded, by the domain's own folds, into the rows of ``license_tables``; ``license_queries`` has what is asked of them. A
quota counts as a person's when its subject reads as a person's id, which its first event tells; the others are not kept. When a person is
erased their rows go, and what is recorded of those streams later begins none anew.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from domain.identity.licenses import licensed_person
from domain.identity.users import UserErased
from domain.quota import Granted, LimitsSet
from eventstore.codec import Codec
from eventstore.errors import CorruptLog
from projections.consumer import SKIPPED, Connection, Projection, Recorded
from projections.deleted import deleted
from projections.license_tables import MODEL, PARTS, Person, category_of, define, frozen, table_of, thawed
from projections.quota_bare import bare
from projections.quota_tables import columns

NAME = MODEL.name
VERSION = 1
_CHUNK = 256
"""After so many events others on the event loop get their turn."""


class Held(NamedTuple):
    """A state in memory that is as the table has it."""

    person: Person
    version: int
    state: Any


class _Fold:
    """A stream under way through a batch."""

    __slots__ = ("begun", "changed", "evolve", "person", "state", "version")

    def __init__(self, stream: str, person: Person, version: int, state: Any) -> None:
        self.evolve = PARTS[category_of(stream)].evolve
        self.person, self.version, self.state, self.changed, self.begun = person, version, state, False, version == 0

    def take(self, stream: str, version: int, event: Any) -> None:
        if version != self.version + 1:
            raise CorruptLog(f"Stream {stream} goes to version {version} where {self.version + 1} was to come.")
        self.version, self.changed = version, True
        if event is not None:
            self.state = self.evolve(self.state, event)
            if type(event) is LimitsSet or type(event) is Granted:  # either may begin a quota
                self.state = bare(self.state)


class Licenses:
    """The consumer. ``cached`` streams stay in memory, and the names of so many quotas that are nobody's."""

    name, version, starts_at_head = NAME, VERSION, False

    def __init__(self, codec: Codec, generation: int = 1, cached: int = 20_000) -> None:
        self.generation, self._codec, self._capacity = generation, codec, cached
        self._held: OrderedDict[tuple[int, str], Held] = OrderedDict()
        self._foreign: OrderedDict[tuple[int, str], None] = OrderedDict()
        table = table_of(generation)
        self._load = (
            f"select stream, tenant_id, user_id, version, state::text from {table} where partition = %s and stream = any(%b::text[])"
        )
        self._put = f"""
            insert into {table} (partition, tenant_id, user_id, stream, version, state)
            select %s::int, u.tenant_id, u.user_id, u.stream, u.version, u.state::json
            from unnest(%b::uuid[], %b::uuid[], %b::text[], %b::bigint[], %b::text[]) as u(tenant_id, user_id, stream, version, state)
            on conflict (partition, tenant_id, user_id, stream) do update set version = excluded.version, state = excluded.state"""
        # Only a stream's first event makes a row: a state that was remembered from before its person was erased brings none back.
        self._change = f"""
            update {table} l set version = u.version, state = u.state::json
            from unnest(%b::uuid[], %b::uuid[], %b::text[], %b::bigint[], %b::text[]) as u(tenant_id, user_id, stream, version, state)
            where l.partition = %s and l.tenant_id = u.tenant_id and l.user_id = u.user_id and l.stream = u.stream"""
        self._erase = f"delete from {table} where partition = %s and tenant_id = %s and user_id = %s"
        self._end = f"delete from {table} where partition = %s and tenant_id = %s"

    def forget(self) -> None:
        """Drop all states."""
        self._held.clear()
        self._foreign.clear()

    async def apply(self, conn: Connection, partition: int, rows: Sequence[Recorded]) -> Callable[[], None]:
        """See :class:`projections.consumer.Consumer`."""
        gone = await deleted(conn, partition, rows)
        folds = await self._begin(conn, partition, rows, gone.silent)
        foreign: set[str] = set()
        erased: list[Person] = []
        for start in range(0, len(rows), _CHUNK):
            for row in rows[start : start + _CHUNK]:
                if row.tenant_id in gone.silent:
                    continue
                if row.type == UserErased.event_name:
                    erased += self._erased(folds, row)
                elif row.stream in folds:
                    self._take(folds, foreign, row)
            await asyncio.sleep(0)
        for person in erased:
            await conn.execute(self._erase, (partition, *person))
        await self._write(conn, partition, folds)
        for tenant_id in gone.ending:
            await conn.execute(self._end, (partition, tenant_id))
        return lambda: self._publish(partition, folds, foreign)

    async def _begin(self, conn: Connection, partition: int, rows: Sequence[Recorded], silent: Collection[UUID]) -> dict[str, _Fold | None]:
        """The streams of these rows that are looked at: with their states, or None of those that are nobody's so far."""
        folds: dict[str, _Fold | None] = {}
        missing: list[str] = []
        for row in rows:
            stream = row.stream
            if stream in folds or category_of(stream) not in PARTS or row.tenant_id in silent:
                continue
            place = partition, stream
            if place in self._foreign:
                continue
            # Taken out, because of a quota's states only the newest may be read for long; see the maps they are made of.
            held = self._held.pop(place, None)
            folds[stream] = None
            if held is not None and held.version == row.version - 1:
                folds[stream] = _Fold(stream, *held)
            elif row.version > 1:  # not in memory, or another follower went on since
                missing.append(stream)
        if missing:
            cursor = await conn.execute(self._load, (partition, missing), binary=True)
            for stream, tenant_id, user_id, version, state in await cursor.fetchall():
                folds[stream] = _Fold(stream, Person(tenant_id, user_id), version, bare(thawed(stream, state)))
        return folds

    def _take(self, folds: dict[str, _Fold | None], foreign: set[str], row: Recorded) -> None:
        stream, fold = row.stream, folds[row.stream]
        if fold is None and row.version > 1:
            foreign.add(stream)
            return
        event = None if row.type == SKIPPED else self._codec.decode(row.type, row.payload)
        if fold is None:
            user_id = _whose(stream, event)
            if user_id is None:
                foreign.add(stream)
                return
            fold = folds[stream] = _Fold(stream, Person(row.tenant_id, user_id), 0, PARTS[category_of(stream)].initial)
        fold.take(stream, row.version, event)

    @staticmethod
    def _erased(folds: dict[str, _Fold | None], row: Recorded) -> list[Person]:
        user_id = licensed_person(row.stream.partition("-")[2])
        if user_id is None:
            return []
        person = Person(row.tenant_id, user_id)
        for stream, fold in folds.items():
            if fold is not None and fold.person == person:
                folds[stream] = None
        return [person]

    async def _write(self, conn: Connection, partition: int, folds: Mapping[str, _Fold | None]) -> None:
        begun: list[tuple[Any, ...]] = []
        changed: list[tuple[Any, ...]] = []
        for stream, fold in folds.items():
            if fold is not None and fold.changed:
                row = (*fold.person, stream, fold.version, frozen(stream, fold.state))
                (begun if fold.begun else changed).append(row)
        if begun:
            await conn.execute(self._put, (partition, *columns(begun)))
        if changed:
            await conn.execute(self._change, (*columns(changed), partition))

    def _publish(self, partition: int, folds: Mapping[str, _Fold | None], foreign: Iterable[str]) -> None:
        """Keep the states in memory, now that they are what the table has."""
        for stream, fold in folds.items():
            if fold is not None:
                self._held[partition, stream] = Held(fold.person, fold.version, fold.state)
        for stream in foreign:
            if folds[stream] is None:
                self._foreign[partition, stream] = None
        for kept, most in ((self._held, self._capacity), (self._foreign, self._capacity)):
            while len(kept) > most:
                kept.popitem(last=False)


def _whose(stream: str, first: Any) -> UUID | None:
    """The person whose stream begins with this event."""
    if category_of(stream) != PARTS["quota"].category:
        return licensed_person(stream.partition("-")[2])
    return licensed_person(first.subject) if isinstance(first, LimitsSet | Granted) else None


PROJECTION = Projection(NAME, version=VERSION, shape=MODEL.shape, define=define, consumer=Licenses)

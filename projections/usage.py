"""Usage by day: what a subject used of a meter on each day of its tenant's calendar.

A day is the one in the tenant's time zone that holds the event's moment; UTC until the tenant says where it lives, and in another
zone what is recorded after it said so. Of a
reservation the reserved units count on the day it began and what becomes of them on the day that happens. Sums are only ever added
to, so a batch writes what it adds, and how the log was cut into batches leaves no trace.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import lru_cache
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

from domain.identity.tenants import TenantCreated, TenantSettingsChanged
from domain.kernel.decider import Refused
from domain.kernel.periods import Period, period
from domain.quota import Adjusted, Committed, Consumed, Expired, Progressed, Reserved, RolledBack
from eventstore.codec import Codec
from eventstore.errors import CorruptLog
from projections.consumer import SKIPPED, Connection, Projection, Recorded
from projections.deleted import deleted
from projections.usage_tables import AMOUNTS, COUNTS, MODEL, SUMS, define

VERSION = 1


# What an event adds, in the order of SUMS


def _reserved(sums: list[int], event: Reserved) -> None:
    sums[2] += event.amount
    sums[4] += 1


def _progressed(sums: list[int], event: Progressed) -> None:
    sums[0] += event.used


def _committed(sums: list[int], event: Committed) -> None:
    sums[0] += event.used  # not ``total``: what was booked in parts before was counted when it was booked
    sums[3] += event.freed
    sums[5] += 1


def _rolled_back(sums: list[int], event: RolledBack) -> None:
    sums[3] += event.freed
    sums[6] += 1


def _expired(sums: list[int], event: Expired) -> None:
    sums[3] += event.freed
    sums[7] += 1


def _consumed(sums: list[int], event: Consumed) -> None:
    sums[0] += event.amount
    sums[8] += 1


def _adjusted(sums: list[int], event: Adjusted) -> None:
    sums[1] += event.amount


_REFUSALS = SUMS.index("refusals")
_ADD: dict[type, Callable[[list[int], Any], None]] = {
    Reserved: _reserved,
    Progressed: _progressed,
    Committed: _committed,
    RolledBack: _rolled_back,
    Expired: _expired,
    Consumed: _consumed,
    Adjusted: _adjusted,
}


# Apply


class Calendar:
    """The days of one time zone."""

    def __init__(self, zone: str) -> None:
        self._zone = zone
        self._today: Period | None = None
        self._date = date.max

    def day(self, at: datetime) -> date:
        """The day that holds a moment, as quotas' windows of a day have it."""
        today = self._today
        if today is None or not today.start <= at < today.end:  # most events are of the same day as the one before
            today = self._today = period("day", at, self._zone)
            self._date = today.start.astimezone(ZoneInfo(self._zone)).date()
        return self._date


_calendar = lru_cache(maxsize=1024)(Calendar)


class Place(NamedTuple):
    """Whose a quota's stream is."""

    tenant_id: UUID
    meter: str
    subject: str


class _Line:
    """What a batch adds to one quota's days."""

    __slots__ = ("calendar", "days", "place")

    def __init__(self, place: Place, calendar: Calendar) -> None:
        self.place, self.calendar, self.days = place, calendar, dict[date, list[int]]()

    def on(self, at: datetime) -> list[int]:
        """The sums of the day that holds the moment."""
        day = self.calendar.day(at)
        sums = self.days.get(day)
        if sums is None:
            sums = self.days[day] = [0] * len(SUMS)
        return sums


@dataclass(slots=True)
class _Batch:
    """What was known before, and what a batch adds to it."""

    lines: dict[str, _Line] = field(default_factory=dict)
    zones: dict[UUID, str] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)
    """By position: which stream's aggregate said no."""
    new_lines: dict[str, _Line] = field(default_factory=dict)
    new_zones: dict[UUID, str] = field(default_factory=dict)

    def say_zone(self, tenant_id: UUID, zone: str) -> None:
        self.zones[tenant_id] = self.new_zones[tenant_id] = zone
        for line in self.lines.values():
            if line.place.tenant_id == tenant_id:
                line.calendar = _calendar(zone)

    def line(self, stream: str, place: Place) -> _Line:
        line = self.lines[stream] = _Line(place, _calendar(self.zones.get(place.tenant_id, "UTC")))
        return line


class _Memory(OrderedDict[Any, Any]):
    """What was used last, at most so many."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def keep(self, found: Mapping[Any, Any]) -> None:
        for key, value in found.items():
            self[key] = value
            self.move_to_end(key)
        while len(self) > self._most:
            self.popitem(last=False)


_CHUNK = 256
"""After so many events others on the event loop get their turn."""


class Usage:
    """The consumer. Names of ``cached`` streams, and zones of as many tenants, stay in memory; a zone changes in the log alone."""

    name, version, starts_at_head = MODEL.name, VERSION, False

    def __init__(self, codec: Codec, generation: int = 1, cached: int = 50_000) -> None:
        self.generation, self._decode, self._sql = generation, codec.decode, _Statements(generation)
        self._places, self._zones = _Memory(cached), _Memory(cached)

    def forget(self) -> None:
        """Drop the names and zones."""
        self._places.clear()
        self._zones.clear()

    async def apply(self, conn: Connection, partition: int, rows: Sequence[Recorded]) -> Callable[[], None]:
        """See :class:`projections.consumer.Consumer`."""
        gone = await deleted(conn, partition, rows)
        batch = await self._begin(conn, partition, rows)
        lines, silent, decode = batch.lines, gone.silent, self._decode
        for start in range(0, len(rows), _CHUNK):
            for row in rows[start : start + _CHUNK]:
                if row.type == SKIPPED or (silent and row.tenant_id in silent):
                    continue
                line = lines.get(row.stream)
                if line is not None:
                    event: Any = decode(row.type, row.payload)
                    add = _ADD.get(type(event))
                    if add is not None:
                        add(line.on(event.at), event)
                else:
                    self._take(row, batch)
            await asyncio.sleep(0)
        await self._write(conn, partition, batch)
        for tenant_id in gone.ending:
            for statement in self._sql.drop_tenant:
                await conn.execute(statement, (partition, tenant_id))
        return lambda: self._publish(batch)

    def _take(self, row: Recorded, batch: _Batch) -> None:
        """A row that is not of a quota that is known."""
        if row.position in batch.refused:
            line = batch.lines.get(batch.refused[row.position])
            if line is not None and line.place.tenant_id == row.tenant_id:
                line.on(row.recorded_at)[_REFUSALS] += 1
        elif row.stream.startswith("tenant-"):
            said = self._decode(row.type, row.payload)
            if isinstance(said, TenantCreated | TenantSettingsChanged):
                batch.say_zone(row.tenant_id, said.zone)
        elif row.stream.startswith("quota-"):
            event: Any = self._decode(row.type, row.payload)
            if not hasattr(event, "meter"):
                raise CorruptLog(f"Stream {row.stream} does not say whose it is before version {row.version}.")
            line = batch.new_lines[row.stream] = batch.line(row.stream, Place(row.tenant_id, event.meter, event.subject))
            if type(event) in _ADD:
                _ADD[type(event)](line.on(event.at), event)

    async def _begin(self, conn: Connection, partition: int, rows: Sequence[Recorded]) -> _Batch:
        """Names and zones as they were before the batch, from memory or else from the tables."""
        batch, unknown, places = _Batch(), dict[str, UUID](), dict[str, Place]()
        for row in rows:
            stream = row.stream
            if row.type == Refused.event_name:
                stream = batch.refused[row.position] = self._refused(row)
            if stream in places or stream in unknown or not stream.startswith("quota-"):
                continue
            known = self._places.get(stream)
            if known is not None:
                places[stream] = known
            else:
                unknown[stream] = row.tenant_id
        if unknown:
            found = await conn.execute(self._sql.places, (list(unknown.values()), list(unknown), partition), binary=True)
            places |= {stream: Place._make(place) for stream, *place in await found.fetchall()}
        tenants = {place.tenant_id for place in places.values()} | set(unknown.values())
        batch.zones = {tenant_id: self._zones[tenant_id] for tenant_id in tenants if tenant_id in self._zones}
        if len(batch.zones) < len(tenants):
            found = await conn.execute(self._sql.zones, (partition, list(tenants)), binary=True)
            batch.zones |= dict(await found.fetchall())
        for stream, place in places.items():
            batch.line(stream, place)
        return batch

    def _refused(self, row: Recorded) -> str:
        event = self._decode(row.type, row.payload)
        assert isinstance(event, Refused)
        return event.stream

    async def _write(self, conn: Connection, partition: int, batch: _Batch) -> None:
        rows = [
            (place.tenant_id, day, place.meter, place.subject, *sums)
            for line in batch.lines.values()
            if (place := line.place)
            for day, sums in line.days.items()
        ]
        if rows:
            await conn.execute(self._sql.add, (partition, *map(list, zip(*rows, strict=True))))
        if batch.new_lines:
            names = [(line.place.tenant_id, stream, *line.place[1:]) for stream, line in batch.new_lines.items()]
            await conn.execute(self._sql.put_places, (partition, *map(list, zip(*names, strict=True))))
        if batch.new_zones:
            await conn.execute(self._sql.put_zones, (partition, list(batch.new_zones), list(batch.new_zones.values())))

    def _publish(self, batch: _Batch) -> None:
        self._places.keep({stream: line.place for stream, line in batch.lines.items()})
        self._zones.keep(batch.zones)


class _Statements:
    def __init__(self, generation: int) -> None:
        day, stream, zone = f"usage_day_{generation}", f"usage_stream_{generation}", f"usage_zone_{generation}"
        arrays = ", ".join(["%b::numeric[]"] * len(AMOUNTS) + ["%b::bigint[]"] * len(COUNTS))
        self.add = f"""
            insert into {day} as d (partition, tenant_id, day, meter, subject, {", ".join(SUMS)})
            select %s::int, u.* from unnest(%b::uuid[], %b::date[], %b::text[], %b::text[], {arrays})
              as u(tenant_id, day, meter, subject, {", ".join(SUMS)})
            on conflict (partition, tenant_id, day, meter, subject) do update
            set {", ".join(f"{name} = d.{name} + excluded.{name}" for name in SUMS)}"""
        self.places = f"""
            select s.stream, s.tenant_id, s.meter, s.subject from unnest(%b::uuid[], %b::text[]) as u(tenant_id, stream)
            join {stream} s on s.partition = %s and s.tenant_id = u.tenant_id and s.stream = u.stream"""
        self.put_places = f"""
            insert into {stream} (partition, tenant_id, stream, meter, subject)
            select %s::int, u.* from unnest(%b::uuid[], %b::text[], %b::text[], %b::text[]) as u(tenant_id, stream, meter, subject)"""
        self.zones = f"select tenant_id, zone from {zone} where partition = %s and tenant_id = any(%b::uuid[])"
        self.put_zones = f"""
            insert into {zone} (partition, tenant_id, zone)
            select %s::int, u.* from unnest(%b::uuid[], %b::text[]) as u(tenant_id, zone)
            on conflict (partition, tenant_id) do update set zone = excluded.zone"""
        self.drop_tenant = tuple(f"delete from {table} where partition = %s and tenant_id = %s" for table in (day, stream, zone))


PROJECTION = Projection(MODEL.name, version=VERSION, shape=MODEL.shape, define=define, consumer=Usage)

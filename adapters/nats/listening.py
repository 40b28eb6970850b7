"""Listening to the log over NATS: each event of a partition once and in order, for whoever keeps the place of what it has done.

Store an event's place in the same transaction as its effect, and hand the places back when you start again. Nothing else has to be
remembered: no name at the server, no acknowledgements, no number of the stream. The listener looks up where to begin, drops
what is at or before your places, begins anew at them after every lost connection, and raises :class:`Missed` rather than
skip an event. After a failover that lost the end of the log it tells :class:`NewEpoch` before the first event of the new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal
from uuid import UUID

import structlog

from adapters.nats import stream as streams
from adapters.nats.bus import Bus, BusRefused, BusUnavailable, WrongStream, connected, place_of, told
from adapters.nats.names import HASH, PARTITIONS_KEY, PREFIX, STREAM, Place, epoch_subject
from adapters.nats.pulling import Pulled, pull

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Event:
    """An event as published. ``body`` is the CloudEvent; ``hash`` the log's hash at this position."""

    partition: int
    place: Place
    tenant_id: UUID
    type: str
    hash: bytes
    body: bytes

    def cloud_event(self) -> dict[str, Any]:
        """The CloudEvent's attributes and data."""
        decoded: dict[str, Any] = json.loads(self.body)
        return decoded


@dataclass(frozen=True, slots=True)
class NewEpoch:
    """A new epoch of a partition begins behind position ``place.position``. ``heard`` is the place reached before.

    When ``rewinds``, the events heard behind that position never happened: undo what they did, and store the place with that.
    """

    partition: int
    place: Place
    heard: Place

    @property
    def rewinds(self) -> bool:
        """Whether events that were heard are void."""
        return self.heard.position > self.place.position


Heard = Event | NewEpoch


class Missed(Exception):
    """Events between two places are not in the stream (any more): begin anew from a source that has them."""

    def __init__(self, partition: int, after: Place, found: Place) -> None:
        super().__init__(
            f"partition {partition}: after position {after.position} of epoch {after.epoch} comes {found.position} of {found.epoch}"
        )
        self.partition, self.after, self.found = partition, after, found


class Listener:
    """Hears the events of some partitions, tenants and types, or of all.

    ``resume`` gives for each partition the place of the last thing done. A partition without one begins with its ``first`` event, with the
    ``oldest`` that the stream keeps, or with what is ``new``. ``types`` are names of events, ``quota.>`` for all of a kind.
    At most ``ahead`` messages are held in memory. Without filters on tenants and types, density is checked for each event.
    """

    def __init__(
        self,
        url: str,
        stream: str = STREAM,
        *,
        partitions: Iterable[int] | None = None,
        tenants: Collection[UUID] | None = None,
        types: Collection[str] | None = None,
        resume: Mapping[int, Place] | None = None,
        begin: Literal["first", "oldest", "new"] = "first",
        ahead: int = 500,
        retry_seconds: float = 0.2,
    ) -> None:
        self._url, self._stream, self._ahead, self._retry_seconds = url, stream, ahead, retry_seconds
        self._asked = None if partitions is None else sorted(set(partitions))
        self._partitions = self._asked or []
        self._tenants, self._types, self._begin = tenants, types, begin
        self.places: dict[int, Place | None] = dict(resume or {})
        self.trouble: str | None = None
        """Why nothing can be heard at the moment."""
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """End the iteration, after what is being handled."""
        self._stopping.set()

    async def run(self, handle: Callable[[Heard], Awaitable[None]]) -> None:
        """Hand everything to a function, one after the other, until :meth:`stop`; what it raises is raised here."""
        async with contextlib.aclosing(self.heard()) as everything:
            async for heard in everything:
                await handle(heard)

    def __aiter__(self) -> AsyncIterator[Heard]:
        return self.heard()

    async def heard(self) -> AsyncGenerator[Heard, None]:
        """What :meth:`run` hands over, to iterate on; close it (``contextlib.aclosing``) when you leave before the end."""
        began = False
        while not self._stopping.is_set():
            try:
                async with connected(self._url, self._stream, "holdbook listener") as bus:
                    start = await self._start(bus)
                    began = True
                    self._tell(None)
                    async with contextlib.aclosing(pull(bus, self._filters(), start, self._ahead, self._stopping)) as messages:
                        async for message in messages:
                            for heard in self._hear(message):
                                yield heard
                                if self._stopping.is_set():
                                    return
            except (BusUnavailable, BusRefused, WrongStream) as error:
                if isinstance(error, WrongStream) and not began:
                    raise
                self._tell(told(error))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), self._retry_seconds)

    def _tell(self, trouble: str | None) -> None:
        """Log that it began or ceased to work, once."""
        if (trouble is None) != (self.trouble is None):
            log.info("listener.works") if trouble is None else log.warning("listener.waits", reason=trouble)
        self.trouble = trouble

    def _filters(self) -> list[str]:
        partitions: list[int | str] = ["*"] if self._asked is None else [*self._asked]
        if self._tenants is None and self._types is None:
            return [f"{PREFIX}.{partition}.>" for partition in partitions]
        tenants = ["*"] if self._tenants is None else sorted(str(tenant) for tenant in self._tenants)
        types = [">"] if self._types is None else sorted(self._types)
        events = [f"{PREFIX}.{partition}.{tenant}.{type_}" for partition, tenant, type_ in product(partitions, tenants, types)]
        return events + [epoch_subject(partition) for partition in partitions]

    # Where to begin

    async def _start(self, bus: Bus) -> int:
        """The number in the stream from which on nothing is missed. What comes again from there is dropped by its place."""
        info = await streams.info(bus)
        first, end = info["state"]["first_seq"] or 1, info["state"]["last_seq"] + 1
        if self._asked is None:
            count = (info["config"].get("metadata") or {}).get(PARTITIONS_KEY)
            if count is None:
                raise WrongStream("The stream does not tell how many partitions it has: name them.")
            self._partitions = list(range(int(count)))
        for partition in self._partitions:
            if partition not in self.places:
                self.places[partition] = Place(0, 0) if self._begin == "first" else None
        if self._begin == "new":
            await self._begin_at_end(bus)
        starts = await asyncio.gather(*(self._first_behind(bus, partition, first, end) for partition in self._partitions))
        return min(starts, default=end)

    async def _begin_at_end(self, bus: Bus) -> None:
        """The end is a place like any other: without it a connection lost before the first event would lose that event."""
        for partition in self._partitions:
            if self.places[partition] is None:
                last = await bus.last(partition)
                self.places[partition] = Place(0, 0) if last is None else last.place
        self._begin = "oldest"

    async def _first_behind(self, bus: Bus, partition: int, first: int, end: int) -> int:
        """The number of the partition's first message behind our place, by bisection: places only grow along the stream."""
        place = self.places[partition]
        last = await bus.last(partition)
        if last is None or (place is not None and last.place <= place):
            if last is not None and place is not None and last.place.epoch < place.epoch:
                raise WrongStream(f"Partition {partition} has not reached epoch {place.epoch}: the stream was made anew, begin anew too.")
            return end
        low, high = first, last.sequence  # the message sought is at or behind low, and at or before high
        while low < high:
            middle = (low + high) // 2
            found = await bus.first_from(partition, middle)
            if found is None or place is None or found.place > place:
                high = middle
            else:
                low = found.sequence + 1
        return low

    # What comes

    def _hear(self, message: Pulled) -> Iterable[Heard]:
        """What the user is told of a message: itself, or nothing when it was done before."""
        partition, rest = _parsed(message.subject)
        place, before = place_of(message.headers), self.places.get(partition)
        if before is not None and place <= before:
            return
        if len(rest) == 1:
            self.places[partition] = place
            yield NewEpoch(partition, place, before or place)
            return
        self._refuse_missing(partition, before, place)
        self.places[partition] = place
        type_ = ".".join(rest[1:])
        yield Event(partition, place, UUID(rest[0]), type_, bytes.fromhex(message.headers[HASH]), message.body)

    def _refuse_missing(self, partition: int, before: Place | None, place: Place) -> None:
        if before is None:
            return
        everything = self._tenants is None and self._types is None
        if place.epoch != before.epoch or (everything and place.position != before.position + 1):
            raise Missed(partition, before, place)


def _parsed(subject: str) -> tuple[int, list[str]]:
    partition, *rest = subject.removeprefix(f"{PREFIX}.").split(".")
    return int(partition), rest

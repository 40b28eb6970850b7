"""What the door reads of the log, and uses for one second: whoever holds a credential need not wait for the database at each request.

Reads go through two lanes, one for those who are known to exist and one for those nobody heard of. The first is wide, because the store
reads together what is asked for together; the other is narrow: a burst of invented credentials waits for itself, holds one connection at
most, and is answered with 503 when the lane is full.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any, Generic, NamedTuple, TypeVar

from api.problems import Problem

FRESH_SECONDS = 1.0
REFRESH_AFTER_SECONDS = 0.5
"""From this age on it is read again while what was last read is still used, so that no request waits for it."""

Known = TypeVar("Known")
Read = Callable[[], Coroutine[Any, Any, tuple[Known, bool]]]
"""Reads one, and says whether it exists."""


class _Found(NamedTuple, Generic[Known]):
    read_at: float
    value: Known


class _Lane(Generic[Known]):
    """Reads, so many at a time, shared by all who wait for the same one."""

    def __init__(self, at_once: int, waiting: int) -> None:
        self._turn, self._waiting = asyncio.Semaphore(at_once), waiting
        self.tasks: dict[str, asyncio.Task[_Found[Known]]] = {}

    def start(self, place: str, read: Callable[[], Coroutine[Any, Any, _Found[Known]]]) -> asyncio.Task[_Found[Known]]:
        task = self.tasks.get(place)
        if task is None:
            if len(self.tasks) >= self._waiting:
                raise Problem("store.overloaded")
            task = self.tasks[place] = asyncio.create_task(self._run(place, read))
            task.add_done_callback(_seen)
        return task

    async def _run(self, place: str, read: Callable[[], Coroutine[Any, Any, _Found[Known]]]) -> _Found[Known]:
        try:
            async with self._turn:
                return await read()
        finally:
            del self.tasks[place]


def _seen(task: asyncio.Task[Any]) -> None:
    """A read that failed is told to those who wait for it, and to nobody else."""
    if not task.cancelled():
        task.exception()


class Fresh(Generic[Known]):
    """What was read of each place. Each kind of thing has one of its own."""

    def __init__(self, *, remembered: int = 10_000, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._remembered = clock, remembered
        self._known: OrderedDict[str, _Found[Known]] = OrderedDict()
        self._unknown: OrderedDict[str, _Found[Known]] = OrderedDict()
        self._refreshing, self._asking = _Lane[Known](1_000, 1_000), _Lane[Known](1, 100)

    async def get(self, place: str, read: Read[Known], *, genuine: bool = False) -> Known:
        """What was read of a place within the last second. ``genuine``: who asks has proved to come from there, and waits in no line."""

        def reading() -> asyncio.Task[_Found[Known]]:
            lane = self._refreshing if genuine or place in self._known else self._asking
            return lane.start(place, lambda: self._read(place, read))

        now = self._clock()
        found = self._known.get(place) or self._unknown.get(place)
        if found is not None and REFRESH_AFTER_SECONDS < now - found.read_at <= FRESH_SECONDS:
            reading()
        while found is None or now - found.read_at > FRESH_SECONDS:  # also what was being read may have been asked for too long ago
            found = await asyncio.shield(reading())
        return found.value

    async def _read(self, place: str, read: Read[Known]) -> _Found[Known]:
        read_at = self._clock()
        value, exists = await read()
        found = _Found(read_at, value)
        mine, other, most = (self._known, self._unknown, self._remembered) if exists else (self._unknown, self._known, 1_000)
        other.pop(place, None)
        mine[place] = found
        mine.move_to_end(place)
        while len(mine) > most:
            mine.popitem(last=False)
        return found

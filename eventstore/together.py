"""Reads that wait for the database together are made together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from contextvars import Context
from typing import Generic, TypeVar

AT_ONCE = 2
"""Groups that are read at the same time: of a pool's few connections the others are for whoever else needs one."""
AT_MOST = 100
"""Keys in one read."""

Group = TypeVar("Group", bound=Hashable)
Key = TypeVar("Key", bound=Hashable)
Found = TypeVar("Found")
ReadMany = Callable[[Group, Sequence[Key]], Awaitable[Mapping[Key, Found | Exception]]]
"""What was found of each key, or why just that one could not be read."""


class Together(Generic[Group, Key, Found]):
    """One read at a time for each group; whoever asks while it is under way is served by the next one, with all who came meanwhile.

    So nobody is answered with what was read before they asked, and a round trip is paid once for many. A read that fails is told to those
    it was for; one who goes away takes nothing from the others.
    """

    def __init__(self, read: ReadMany[Group, Key, Found]) -> None:
        self._read, self._turn = read, asyncio.Semaphore(AT_ONCE)
        self._waiting: dict[Group, dict[Key, asyncio.Future[Found]]] = {}
        self._running: dict[Group, asyncio.Task[None]] = {}

    async def get(self, group: Group, key: Key) -> Found:
        """What a read finds that begins after this call."""
        waiting = self._waiting.setdefault(group, {})
        asked = waiting.get(key)
        if asked is None:
            asked = waiting[key] = asyncio.get_running_loop().create_future()
            if group not in self._running:
                # In a context of its own: it outlives the request that begins it, and must not log under its name.
                self._running[group] = asyncio.create_task(self._serve(group), context=Context())
        return await asyncio.shield(asked)

    async def _serve(self, group: Group) -> None:
        try:
            while self._waiting[group]:
                async with self._turn:
                    waiting = self._waiting[group]
                    asked = {key: waiting.pop(key) for key in list(waiting)[:AT_MOST]}
                    await self._answer(group, asked)
        finally:
            del self._running[group]
            for left in self._waiting.pop(group).values():
                left.cancel()  # the process ends

    async def _answer(self, group: Group, asked: Mapping[Key, asyncio.Future[Found]]) -> None:
        try:
            found = await self._read(group, list(asked))
            for key, future in asked.items():
                _tell(future, found[key])
        except Exception as error:  # it is theirs who asked
            for future in asked.values():
                _tell(future, error)
        finally:
            for future in asked.values():
                future.cancel()  # if the process ends; one that is done stays as it is, and is nobody's news if all who asked are gone


def _tell(future: asyncio.Future[Found], found: Found | Exception) -> None:
    if future.done():
        return
    if isinstance(found, Exception):
        future.set_exception(found)
    else:
        future.set_result(found)

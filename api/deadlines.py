"""Ends reservations that are due. Decisions never wait for this: a quota ends what is due before it decides anything."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Protocol
from uuid import NAMESPACE_URL, UUID, uuid5

import psycopg
import structlog
from psycopg_pool import PoolTimeout

from domain.kernel.decider import Rejected
from domain.quota import QUOTA, Expire
from eventstore.errors import Draining, StoreError
from eventstore.requests import Item, Request
from eventstore.store import Store

log = structlog.get_logger(__name__)

_PROCESS = uuid5(NAMESPACE_URL, "holdbook:process:expire")
AT_ONCE = 1_000


class Due(Protocol):
    """A reservation whose time is over."""

    @property
    def tenant_id(self) -> UUID: ...
    @property
    def stream(self) -> str: ...
    @property
    def reservation_id(self) -> str: ...
    @property
    def expires_at(self) -> datetime: ...


Find = Callable[[datetime, int], Awaitable[Sequence[Due]]]


def command_id(due: Due) -> UUID:
    """The same for whoever ends the same deadline of the same reservation, so that it is recorded once."""
    return uuid5(_PROCESS, f"{due.tenant_id.hex}|{due.reservation_id}|{due.expires_at.isoformat()}")


class Deadlines:
    """Asks for due reservations once a second and has their quotas end them."""

    def __init__(self, store: Store, find: Find, seconds: float = 1.0) -> None:
        self._store, self._find, self._seconds = store, find, seconds
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Have :meth:`run` return."""
        self._stopping.set()

    async def run(self) -> None:
        """Work until :meth:`stop`."""
        while not self._stopping.is_set():
            try:
                ended = await self.once(datetime.now(UTC))
            except Draining:
                return
            except (StoreError, psycopg.Error, PoolTimeout, OSError) as error:
                log.warning("deadlines.retry", reason=type(error).__name__)
                ended = 0
            # Even with more to do the read model is given time to hear of what was just ended.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), self._seconds if ended < AT_ONCE else self._seconds / 4)

    async def once(self, now: datetime) -> int:
        """End what is due by now; one command ends all that is due in a quota. Returns how many reservations were found."""
        found = await self._find(now, AT_ONCE)
        first: dict[tuple[UUID, str], Due] = {}
        for due in found:
            place = due.tenant_id, due.stream
            if place not in first or due.expires_at < first[place].expires_at:
                first[place] = due
        results = await asyncio.gather(*(self._end(due) for due in first.values()), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, Rejected):
                raise result
        return len(found)

    async def _end(self, due: Due) -> None:
        request = Request(due.tenant_id, command_id(due), (Item(QUOTA, due.stream, Expire()),), b"", actor="process:expire")
        await self._store.submit(request)

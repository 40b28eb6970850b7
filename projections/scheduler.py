"""Turns what is due into commands. No decision waits for this: a state machine ends what is due before it decides anything.

Whoever submits a due command submits it under the same id, so it is recorded once, however many schedulers there are, and
whatever their clocks say. What was submitted stays due until the read model has heard of it, or for good when nothing came of it; so
it is let rest, a little longer each time, and does not keep others from their turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import NamedTuple, Protocol
from uuid import NAMESPACE_URL, UUID, uuid5

import psycopg
import structlog
from psycopg_pool import PoolTimeout

from domain.kernel.decider import Rejected
from domain.quota import QUOTA, Expire
from eventstore.errors import Draining, StoreError
from eventstore.requests import Item, Outcome, Request
from eventstore.store import Store

log = structlog.get_logger(__name__)

_EXPIRE = uuid5(NAMESPACE_URL, "holdbook:process:expire")
_LONGEST_REST = 300.0
_MOST_RESTING = 10_000


class Source(Protocol):
    """Knows what is due."""

    name: str

    async def due(self, now: datetime, limit: int) -> Sequence[Request]:
        """Commands whose moment has come, at most so many, those first that should be submitted first."""
        ...


class DueReservation(Protocol):
    """A reservation whose time is over."""

    @property
    def tenant_id(self) -> UUID: ...
    @property
    def stream(self) -> str: ...
    @property
    def reservation_id(self) -> str: ...
    @property
    def expires_at(self) -> datetime: ...


class Reservations:
    """The quotas' source: one command ends all reservations that are due in a quota."""

    name = "reservations"

    def __init__(self, find: Callable[[datetime, int], Awaitable[Sequence[DueReservation]]]) -> None:
        self._find = find

    async def due(self, now: datetime, limit: int) -> Sequence[Request]:
        """See :class:`Source`."""
        first: dict[tuple[UUID, str], DueReservation] = {}
        for due in await self._find(now, limit):
            place = due.tenant_id, due.stream
            if place not in first or due.expires_at < first[place].expires_at:
                first[place] = due
        return [
            Request(due.tenant_id, expire_id(due), (Item(QUOTA, due.stream, Expire()),), b"", actor="process:expire")
            for due in first.values()
        ]


def expire_id(due: DueReservation) -> UUID:
    """The same for whoever ends the same deadline of the same reservation, so that it is recorded once."""
    return uuid5(_EXPIRE, f"{due.tenant_id.hex}|{due.reservation_id}|{due.expires_at.isoformat()}")


class _Rest(NamedTuple):
    until: float
    seconds: float


class Scheduler:
    """Asks its sources once a second, by the time that ``clock`` tells, and submits what they know.

    ``at_once`` bounds what is taken from each source at a time.
    """

    def __init__(
        self,
        store: Store,
        sources: Sequence[Source],
        clock: Callable[[], Awaitable[datetime]],
        *,
        seconds: float = 1.0,
        at_once: int = 1_000,
    ) -> None:
        self._store, self._sources, self._clock = store, sources, clock
        self._seconds, self._at_once = seconds, at_once
        self._resting: dict[str, dict[UUID, _Rest]] = {source.name: {} for source in sources}
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Have :meth:`run` return."""
        self._stopping.set()

    async def run(self) -> None:
        """Work until :meth:`stop`."""
        while not self._stopping.is_set():
            try:
                more = await self.once(await self._clock()) >= self._at_once
            except Draining:
                return
            except (StoreError, psycopg.Error, PoolTimeout, OSError) as error:
                log.warning("scheduler.retry", reason=type(error).__name__)
                more = False
            # Even with more to do the read model is given time to hear of what was just submitted.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), self._seconds / 4 if more else self._seconds)

    async def once(self, now: datetime) -> int:
        """Submit what is due by now. Returns how many commands one source gave, at most."""
        return max([await self._ask(source, now) for source in self._sources], default=0)

    async def _ask(self, source: Source, now: datetime) -> int:
        resting = self._resting[source.name]
        limit = self._at_once + len(resting)
        found = await source.due(now, limit)
        if len(found) < limit:  # so this is all there is, and who is not among it needs no rest any more
            names = {request.command_id for request in found}
            for command_id in [each for each in resting if each not in names]:
                del resting[command_id]
        clock = time.monotonic()
        ready = [each for each in found if each.command_id not in resting or resting[each.command_id].until <= clock][: self._at_once]
        results = await asyncio.gather(*(self._store.submit(request) for request in ready), return_exceptions=True)
        trouble: BaseException | None = None
        for request, result in zip(ready, results, strict=True):
            if isinstance(result, StoreError) and result.retryable:
                trouble = trouble if isinstance(trouble, Draining) else result
                continue
            self._told(source, request, result)
            before = resting.pop(request.command_id, _Rest(0, self._seconds / 2))
            seconds = min(2 * before.seconds, _LONGEST_REST)
            resting[request.command_id] = _Rest(clock + seconds, seconds)
        while len(resting) > _MOST_RESTING:
            del resting[next(iter(resting))]
        if trouble is not None:
            raise trouble
        return len(ready)

    def _told(self, source: Source, request: Request, result: Outcome | BaseException) -> None:
        """A refusal is an answer; what else goes wrong is this command's alone, and somebody should see it."""
        if isinstance(result, Outcome):
            return
        told = {"source": source.name, "stream": request.items[0].stream, "command_id": str(request.command_id)}
        if isinstance(result, Rejected):
            log.info("scheduler.refused", code=result.code, **told)
        elif isinstance(result, Exception):
            log.error("scheduler.failed", exc_info=result, **told)
        else:
            raise result

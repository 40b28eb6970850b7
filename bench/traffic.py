"""Real commands on quotas: callers that reserve and commit in turns, and how they choose an account.

Every reserve and every commit counts as one command, whatever batch it came in.
"""

from __future__ import annotations

import asyncio
import random
import time
from bisect import bisect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from uuid import UUID, uuid4

from domain.quota import QUOTA, Commit, Limit, Reserve, SetLimits, Window, quota_stream, reservation_id
from eventstore.requests import Item, Outcome, Request
from eventstore.store import Store

METER = "tokens"
MONTHLY = Limit("month", 10**15, Window("month"))
ACTOR = "service:bench"
ZIPF_EXPONENT = 0.99  # that of YCSB
A_DAY_SECONDS = 86_400

_FINGERPRINT = bytes(range(32))

Pick = Callable[[int], int]
"""The number of a caller to the number of the account it turns to next."""


def uniform(caller: int) -> int:
    """Each caller has an account of its own."""
    return caller


def hot(_caller: int) -> int:
    """Everybody wants the same account."""
    return 0


def zipf(accounts: int, exponent: float = ZIPF_EXPONENT, seed: int = 1) -> Pick:
    """The account of rank r is chosen with a probability that goes with 1 / r ** exponent."""
    shares = list(accumulate(1 / rank**exponent for rank in range(1, accounts + 1)))
    whole, draw = shares[-1], random.Random(seed).random
    return lambda _caller: bisect(shares, draw() * whole)


def round_robin(accounts: int, callers: int) -> Pick:
    """All accounts get their turn, and no two callers meet on one as long as there are enough."""
    turns = [0] * callers

    def pick(caller: int) -> int:
        turns[caller] += 1
        return (caller + callers * turns[caller]) % accounts

    return pick


@dataclass(frozen=True, slots=True)
class Driven:
    """What was answered, and from when to when in seconds of the clock that all processes share."""

    commands: int
    errors: int
    began: float
    ended: float

    @property
    def rate(self) -> float:
        """Commands a second."""
        return self.commands / (self.ended - self.began)


def together(driven: Iterable[Driven]) -> Driven:
    """What several processes did at the same time."""
    parts = list(driven)
    return Driven(
        sum(part.commands for part in parts),
        sum(part.errors for part in parts),
        min(part.began for part in parts),
        max(part.ended for part in parts),
    )


class Traffic:
    """Callers on the accounts of one tenant."""

    def __init__(self, store: Store, tenant_id: UUID, accounts: int) -> None:
        self._store, self._tenant_id = store, tenant_id
        self._subjects = [f"account-{number}" for number in range(accounts)]
        self._streams = [quota_stream(tenant_id, subject, METER) for subject in self._subjects]

    async def configure(self) -> None:
        """Give every account its monthly limit."""
        limits = (MONTHLY,)
        for start in range(0, len(self._subjects), 1_000):
            part = range(start, min(start + 1_000, len(self._subjects)))
            commands = [SetLimits(subject=self._subjects[number], meter=METER, limits=limits) for number in part]
            items = [Item(QUOTA, self._streams[number], command) for number, command in zip(part, commands, strict=True)]
            await self._ask(self._request(uuid4(), items))

    async def leave_open(self, number: int, reservations: int) -> None:
        """Make reservations that stay open."""
        await asyncio.gather(*(self._reserve([number], A_DAY_SECONDS) for _ in range(reservations)))

    async def drive(
        self, pick: Pick, *, callers: int, seconds: float = 0.0, commands: int = 0, batch: int = 1, tolerant: bool = False
    ) -> Driven:
        """Let callers reserve and commit until the time is over and so many commands were answered.

        Each goes on to the end of its pair, and all are waited for: what is divided by the time is all that was answered in
        it. A tolerant drive counts errors, any other raises them.
        """
        answered = errors = 0
        began = time.time()
        deadline = began + seconds

        async def caller(me: int) -> None:
            nonlocal answered, errors
            while True:  # once in any case, however long it took until its turn came
                try:
                    numbers = [pick(me) for _ in range(batch)]
                    held = await self._reserve(numbers)
                    answered += batch
                    await self._commit(numbers, held)
                    answered += batch
                except Exception:
                    if not tolerant:
                        raise
                    errors += 1
                if time.time() >= deadline and answered >= commands:
                    return

        await asyncio.gather(*(caller(me) for me in range(callers)))
        return Driven(answered, errors, began, time.time())

    async def _reserve(self, numbers: Sequence[int], ttl_seconds: int = 900) -> list[str]:
        command_id = uuid4()
        held: list[str] = []
        items: list[Item] = []
        for index, number in enumerate(numbers):
            stream = self._streams[number]
            identity = reservation_id(stream, command_id, index)
            held.append(identity)
            command = Reserve(subject=self._subjects[number], meter=METER, amount=1, reservation_id=identity, ttl_seconds=ttl_seconds)
            items.append(Item(QUOTA, stream, command))
        await self._ask(self._request(command_id, items))
        return held

    async def _commit(self, numbers: Sequence[int], held: Sequence[str]) -> None:
        items = [
            Item(QUOTA, self._streams[number], Commit(reservation_id=identity, used=1))
            for number, identity in zip(numbers, held, strict=True)
        ]
        await self._ask(self._request(uuid4(), items))

    def _request(self, command_id: UUID, items: Sequence[Item]) -> Request:
        return Request(self._tenant_id, command_id, tuple(items), _FINGERPRINT, actor=ACTOR, size=256 * len(items))

    async def _ask(self, request: Request) -> None:
        outcome: Outcome = await self._store.submit(request)
        if outcome.refused:
            raise RuntimeError(f"refused: {outcome.reply.decode()}")

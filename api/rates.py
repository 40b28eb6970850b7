"""How often a subject may do something, for good: rates of the tenant's policies, counted by quotas with rolling windows.

A take is one atomic request: the quota gets the policy's limit, which leaves nothing when it has it, and one unit of it is consumed. So it
holds across processes and restarts, and a reply that was lost is given again under the same key. A refused take is a row of the log, and
a bot that is flooded would write one for each message; so once the quota has refused, this process answers by itself until there is room
again. A subject's takes come one after the other here: of a hundred at once only the first that is one too many is recorded.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import NamedTuple
from uuid import UUID

from api.auth import Principal
from domain import quota
from domain.identity.policies import POLICIES, Policies, RateNotFound, RatePolicy, policies_stream
from domain.identity.users import USER, Active, user_stream
from domain.quota import QUOTA, quota_stream, reservation_id
from eventstore.requests import Item
from eventstore.store import Store

FRESH_SECONDS = 1.0
"""For so long a tenant's policies are used after they were read."""
REMEMBERED = 20_000
"""Refused subjects, and tenants with policies, kept in memory; the one that was used longest ago gives way."""

_USER_ID = re.compile(r"[0-9a-f]{32}")


class Place(NamedTuple):
    """Whose takes of which rate."""

    tenant_id: UUID
    name: str
    subject: str


class _Refused(NamedTuple):
    until: float
    policy: RatePolicy


class _Turn:
    __slots__ = ("lock", "users")

    def __init__(self) -> None:
        self.lock, self.users = asyncio.Lock(), 0


class Rates:
    """The rates of one process. ``clock`` is monotonic, in seconds."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._clock = store, clock
        self._policies: OrderedDict[UUID, tuple[float, Policies]] = OrderedDict()
        self._refused: OrderedDict[Place, _Refused] = OrderedDict()
        self._turns: dict[Place, _Turn] = {}

    async def policy(self, tenant_id: UUID, name: str) -> RatePolicy:
        """The tenant's rate of that name. Raises `RateNotFound`."""
        now = self._clock()
        known = self._policies.get(tenant_id)
        if known is None or now - known[0] > FRESH_SECONDS:
            found = await self._store.state(POLICIES, tenant_id, policies_stream(tenant_id))
            known = self._policies[tenant_id] = (now, found.state)
            self._policies.move_to_end(tenant_id)
            while len(self._policies) > REMEMBERED:
                self._policies.popitem(last=False)
        rate = known[1].rate(name)
        if rate is None:
            raise RateNotFound(name=name)
        return rate

    async def is_exempt(self, policy: RatePolicy, principal: Principal, subject: str) -> bool:
        """Whether the subject is a person whose role is exempt."""
        if not policy.exempt_roles or not _USER_ID.fullmatch(subject):
            return False
        user_id = UUID(subject)
        if principal.user_id == user_id:
            return principal.role in policy.exempt_roles
        user = (await self._store.state(USER, principal.tenant_id, user_stream(user_id))).state
        return isinstance(user, Active) and user.role in policy.exempt_roles

    @asynccontextmanager
    async def turn(self, place: Place) -> AsyncIterator[None]:
        """Alone with this subject's takes of this rate, in this process."""
        turn = self._turns.setdefault(place, _Turn())
        turn.users += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.users -= 1
            if not turn.users:
                del self._turns[place]

    def wait(self, place: Place, policy: RatePolicy) -> float:
        """For how many seconds still the subject has no room, as far as this process knows; 0 when it has to be asked."""
        refused = self._refused.get(place)
        if refused is None or refused.policy != policy:
            return 0.0
        left = refused.until - self._clock()
        if left <= 0:
            del self._refused[place]
            return 0.0
        self._refused.move_to_end(place)
        return left

    def refused(self, place: Place, policy: RatePolicy, retry_at: datetime) -> float:
        """Remember that there is no room until then; the seconds until then.

        Never longer than the window, so that a clock that is off keeps nobody out for longer than that.
        """
        left = min(max((retry_at - datetime.now(UTC)).total_seconds(), 0.0), float(policy.seconds))
        self._refused[place] = _Refused(self._clock() + left, policy)
        self._refused.move_to_end(place)
        while len(self._refused) > REMEMBERED:
            self._refused.popitem(last=False)
        return left


def items(place: Place, policy: RatePolicy, command_id: UUID) -> tuple[Item, ...]:
    """One take: the policy's limit on the quota, and one unit of it."""
    meter = f"rate.{place.name}"
    stream = quota_stream(place.tenant_id, place.subject, meter)
    limit = quota.Limit("rate", policy.amount, quota.Window("rolling", seconds=policy.seconds), thresholds=())
    return (
        Item(QUOTA, stream, quota.SetLimits(subject=place.subject, meter=meter, limits=(limit,))),
        Item(
            QUOTA, stream, quota.Consume(subject=place.subject, meter=meter, amount=1, reservation_id=reservation_id(stream, command_id, 1))
        ),
    )

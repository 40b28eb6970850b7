"""The shield at the door: how many requests one may send in a while, counted in this process and recorded nowhere.

It keeps one from taking the others' share of a process; it is no account of anything. What must hold across processes and restarts is a
rate of `api.routes.rates`, which is a quota. Counted in moving windows by the monotonic clock, which no correction of the time moves.

The headers are those of draft-ietf-httpapi-ratelimit-headers: ``q`` requests in ``w`` seconds, ``r`` left, ``t`` seconds until the oldest
that counts leaves the window.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from math import ceil
from typing import ClassVar, NamedTuple

from limits import RateLimitItem, RateLimitItemPerMinute, RateLimitItemPerSecond
from limits.storage import Storage
from limits.storage.base import MovingWindowSupport
from limits.strategies import MovingWindowRateLimiter

from api.auth import Principal
from api.origin import household_of
from api.problems import Problem
from api.settings import Settings

REMEMBERED = 20_000
"""Windows kept at once; the one that was used longest ago gives way, so that invented addresses cannot fill the memory."""

Headers = list[tuple[bytes, bytes]]


class _Window(NamedTuple):
    moments: deque[float]
    seconds: int


def _is_over(window: _Window, now: float) -> bool:
    return not window.moments or window.moments[-1] + window.seconds <= now


class Windows(Storage, MovingWindowSupport):
    """What ``limits`` keeps its moving windows in. Its own memory storage goes by the wall clock, is never full and has a thread."""

    STORAGE_SCHEME: ClassVar[list[str] | None] = ["holdbook"]  # type: ignore[misc]  # a class variable there too, but not said

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, remembered: int = REMEMBERED) -> None:
        super().__init__()
        self._clock, self._remembered = clock, remembered
        self._windows: OrderedDict[str, _Window] = OrderedDict()

    def __len__(self) -> int:
        return len(self._windows)

    @property
    def base_exceptions(self) -> type[Exception]:
        """Nothing of ours fails."""
        return ValueError

    def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """See ``limits``: take room for so many, if there is."""
        moments = self._current(key, expiry)
        if len(moments) + amount > limit:
            return False
        moments.extend([self._clock()] * amount)
        self._windows[key] = _Window(moments, expiry)
        self._windows.move_to_end(key)
        self._forget()
        return True

    def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        """See ``limits``: the moment of the oldest that counts, and how many do."""
        moments = self._current(key, expiry)
        return (moments[0], len(moments)) if moments else (self._clock(), 0)

    def _current(self, key: str, seconds: int) -> deque[float]:
        window = self._windows.get(key)
        moments: deque[float] = deque() if window is None else window.moments
        gone = self._clock() - seconds
        while moments and moments[0] <= gone:
            moments.popleft()
        return moments

    def _forget(self) -> None:
        """Drop two that are over, so that what is kept shrinks faster than it grows; and the oldest when there are too many."""
        now = self._clock()
        for _ in range(2):
            window = next(iter(self._windows.values()))
            if len(self._windows) > self._remembered or _is_over(window, now):
                self._windows.popitem(last=False)

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Of other strategies."""
        raise NotImplementedError

    def get(self, key: str) -> int:
        """Of other strategies."""
        raise NotImplementedError

    def get_expiry(self, key: str) -> float:
        """Of other strategies."""
        raise NotImplementedError

    def check(self) -> bool:
        """It is always there."""
        return True

    def reset(self) -> int:
        """Forget everything."""
        known = len(self._windows)
        self._windows.clear()
        return known

    def clear(self, key: str) -> None:
        """Forget one window."""
        self._windows.pop(key, None)


class _Policy(NamedTuple):
    name: str
    item: RateLimitItem


class Shield:
    """The limits of one process."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self.windows = clock, Windows(clock)
        self._limiter = MovingWindowRateLimiter(self.windows)
        self._token = _policy("token", settings.rate_token_per_second, RateLimitItemPerSecond)
        self._user = _policy("user", settings.rate_user_per_minute, RateLimitItemPerMinute)
        self._key = _policy("key", settings.rate_key_per_second, RateLimitItemPerSecond)
        self._address = _policy("address", settings.rate_address_per_minute, RateLimitItemPerMinute)
        self.counts_keys = self._key is not None
        """Whether API keys have a limit at all; without, a request by one costs this look and no more."""

    def person(self, principal: Principal) -> Headers:
        """Count one request of a person; raises the problem when it is one too many."""
        tenant = principal.tenant_id.hex
        checks = []
        if self._token is not None:
            checks.append((self._token, f"{tenant}/{principal.credential}"))
        if self._user is not None:
            checks.append((self._user, f"{tenant}/{principal.account}"))
        return self._take(checks)

    def key(self, principal: Principal) -> Headers:
        """Count one request of an API key."""
        who = f"{principal.tenant_id.hex}/{principal.account}/{principal.credential}"
        return self._take([] if self._key is None else [(self._key, who)])

    def address(self, address: str) -> Headers:
        """Count one request of whoever has no credential yet."""
        return self._take([] if self._address is None else [(self._address, household_of(address))])

    def _take(self, checks: Sequence[tuple[_Policy, str]]) -> Headers:
        """Count in all windows or in none: what one of them refuses takes nothing from the other."""
        for policy, who in checks:
            if not self._limiter.test(policy.item, who):
                raise self._limited(policy, who)
        for policy, who in checks:
            self._limiter.hit(policy.item, who)
        return self._headers(checks)

    def _limited(self, policy: _Policy, who: str) -> Problem:
        headers = {name.decode(): value.decode() for name, value in self._headers([(policy, who)])}
        return limited(policy.name, self._wait(policy, who), headers)

    def _wait(self, policy: _Policy, who: str) -> int:
        reset, _ = self._limiter.get_window_stats(policy.item, who)
        return max(1, ceil(reset - self._clock()))

    def _headers(self, checks: Sequence[tuple[_Policy, str]]) -> Headers:
        if not checks:
            return []
        standing = []
        for policy, who in checks:
            _, left = self._limiter.get_window_stats(policy.item, who)
            standing.append(f'"{policy.name}";r={max(0, left)};t={self._wait(policy, who)}')
        told = ", ".join(f'"{policy.name}";q={policy.item.amount};w={policy.item.get_expiry()}' for policy, _ in checks)
        return [(b"ratelimit-policy", told.encode()), (b"ratelimit", ", ".join(standing).encode())]


def limited(policy: str, wait_seconds: int, headers: dict[str, str] | None = None) -> Problem:
    """The answer to a request that is one too many: which policy says so, and when to come again."""
    return Problem("rate.limited", policy=policy, retry_after=wait_seconds, headers={**(headers or {}), "Retry-After": str(wait_seconds)})


def _policy(name: str, amount: int, kind: Callable[..., RateLimitItem]) -> _Policy | None:
    return _Policy(name, kind(amount, 1, namespace="")) if amount else None

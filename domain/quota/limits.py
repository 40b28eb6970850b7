"""Limits of a quota and what is counted in their windows.

A lifetime limit has one window, a calendar limit one for each period, and both keep counters for each window by its start.
A rolling limit of N seconds counts each whole second while it is less than N seconds old, seen from the latest moment it
was told of: what comes with an older moment is counted if its second is still inside, otherwise not at all.
Tallies are values: they are never changed, only made anew from older ones, which stay usable.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Literal, get_args
from zoneinfo import ZoneInfo

from domain.kernel.periods import Period, period
from domain.kernel.persistent import Heap, Map

MAX_AMOUNT = 2**63 - 1
MAX_LIMITS = 32
MAX_WINDOWS = 400
"""So many windows of a calendar limit are remembered; the oldest gives way to a new one."""

WindowKind = Literal["lifetime", "hour", "day", "week", "month", "year", "rolling"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_BEGINNING = datetime.min.replace(tzinfo=UTC)
_END = datetime.max.replace(tzinfo=UTC)
_NO_WINDOW = _NO_FLOOR = -(2**62)


# Stored for ever inside events: a field may be added with a default, never renamed or removed.


@dataclass(frozen=True, slots=True)
class Window:
    """When a limit starts anew: ``seconds`` belongs to rolling, ``anchor_day`` to week, month and year, ``anchor_month`` to year."""

    kind: WindowKind
    anchor_day: int | None = None
    anchor_month: int | None = None
    seconds: int | None = None


LIFETIME = Window("lifetime")


@dataclass(frozen=True, slots=True)
class Limit:
    """At most ``amount`` units in each window; an overflow limit lets credits pay for what does not fit."""

    limit_id: str
    amount: int
    window: Window = LIFETIME
    overflow: bool = False
    thresholds: tuple[int, ...] = (80,)
    """Percents of the amount whose crossing, upward, is told once in each window."""


@dataclass(frozen=True, slots=True)
class Overdraft:
    """How far below zero a limit may go: not at all, by ``amount`` units, or without end."""

    kind: Literal["none", "bounded", "soft"] = "none"
    amount: int = 0


NO_OVERDRAFT = Overdraft()


def overdraft_is_valid(overdraft: Overdraft) -> bool:
    """Whether it has an amount just when it is bounded."""
    match overdraft.kind:
        case "bounded":
            return 1 <= overdraft.amount <= MAX_AMOUNT
        case "none" | "soft":
            return overdraft.amount == 0
        case _:
            return False


def limits_are_valid(limits: tuple[Limit, ...]) -> bool:
    """Whether the ids differ, and amounts, windows and thresholds are in their ranges."""
    ids = {limit.limit_id for limit in limits}
    return len(ids) == len(limits) <= MAX_LIMITS and all(_limit_is_valid(limit) for limit in limits)


def _limit_is_valid(limit: Limit) -> bool:
    percents = limit.thresholds
    return (
        1 <= len(limit.limit_id) <= 64
        and 0 <= limit.amount <= MAX_AMOUNT
        and _window_is_valid(limit.window)
        and len(set(percents)) == len(percents)
        and all(1 <= percent <= 100 for percent in percents)
    )


def _window_is_valid(window: Window) -> bool:
    """Whether just the fields that belong to the kind are set, each in its range."""
    kind, day, month, seconds = window.kind, window.anchor_day, window.anchor_month, window.seconds
    days = {"week": 7, "month": 31, "year": 31}.get(kind, 0)
    return (
        kind in get_args(WindowKind)
        and (day is None or 1 <= day <= days)
        and (month is None or (kind == "year" and 1 <= month <= 12))
        and ((seconds is not None and 1 <= seconds <= 86400) if kind == "rolling" else seconds is None)
    )


@lru_cache(maxsize=1024)
def zone_is_known(zone: str) -> bool:
    """Whether this is the name of an IANA time zone."""
    try:
        ZoneInfo(zone)
    except (LookupError, OSError, ValueError):  # unknown; a directory of zones; not a relative path
        return False
    return True


@dataclass(frozen=True, slots=True)
class FrozenTally:
    """A tally for a snapshot: ``mark`` is the floor of a calendar tally, the latest second of a rolling one."""

    born: int
    limit: Limit
    mark: int
    counts: tuple[tuple[int, int, int], ...]
    """(start of the window or second, used, reserved)"""
    crossed: tuple[tuple[int, int], ...]
    """(start of the window or second of the crossing, percent)"""


def epoch_second(moment: datetime) -> int:
    """Whole seconds since 1970, rounded down; in integers, because floats round the last microsecond of a far second up."""
    since = moment - _EPOCH
    return since.days * 86400 + since.seconds


def from_epoch(second: int) -> datetime:
    """The moment at which the epoch second starts."""
    return _EPOCH + timedelta(seconds=second)


Counts = tuple[int, int, tuple[int, ...]]
"""(used, reserved, percents crossed) of one window"""

_NOTHING: Counts = (0, 0, ())


@dataclass(slots=True)
class WindowTally:
    """A lifetime or calendar limit with its counters: the newest window unpacked, because nearly all commands hit it."""

    born: int
    """Which incarnation of the limit this is: what was counted in an earlier one is not taken back from this one."""
    limit: Limit
    zone: str
    start: datetime
    end: datetime
    key: int
    used: int
    reserved: int
    crossed: tuple[int, ...]
    past: Map[int, Counts]
    floor: int

    @staticmethod
    def new(born: int, limit: Limit, zone: str) -> WindowTally:
        return WindowTally(born, limit, zone, _BEGINNING, _BEGINNING, _NO_WINDOW, 0, 0, (), Map(), _NO_FLOOR)

    def room(self, at: datetime) -> int:
        """What is left in the window of ``at``; negative when overdrawn."""
        if self.start <= at < self.end:
            return self.limit.amount - self.used - self.reserved
        return self.room_in(self.locate(at))

    def room_in(self, key: int) -> int:
        used, reserved, _ = self.counts(key)
        return self.limit.amount - used - reserved

    def locate(self, at: datetime) -> int:
        """The key of the window of ``at``."""
        return self.key if self.start <= at < self.end else epoch_second(self.window(at).start) if self._calendar else 0

    def counts(self, key: int) -> Counts:
        if key == self.key:
            return self.used, self.reserved, self.crossed
        counts: Counts = self.past.get(key, _NOTHING)
        return counts

    def forgets(self, at: datetime) -> bool:
        """Whether the window of ``at`` gave way to newer ones, so that nothing can be counted in it any more."""
        return at < self.start and self.locate(at) < self.floor

    def holds(self, key: int) -> bool:
        return key >= self.floor

    def add(self, key: int, used: int, reserved: int) -> WindowTally:
        """This tally with so much more used and reserved in the window of that key."""
        if key == self.key:
            return WindowTally(
                self.born, self.limit, self.zone, self.start, self.end, key,
                self.used + used, self.reserved + reserved, self.crossed, self.past, self.floor,
            )  # fmt: skip
        if key < self.floor:
            return self
        if key > self.key:
            return self._advanced(key, (used, reserved, ()))
        old_used, old_reserved, crossed = self.counts(key)
        return self._with_past(key, (old_used + used, old_reserved + reserved, crossed))

    def crossings(self, key: int, added: int) -> list[int]:
        """The percents that ``added`` more units would cross in the window of that key for the first time."""
        limit = self.limit
        used, reserved, crossed = self.counts(key)
        before = (used + reserved) * 100
        after, amount = before + added * 100, limit.amount
        return [percent for percent in limit.thresholds if before < percent * amount <= after and percent not in crossed]

    def as_of(self, at: datetime) -> WindowTally:
        """This tally as a command at that moment sees it."""
        return self

    def cross(self, window_start: datetime | None, percent: int, at: datetime) -> WindowTally:
        """This tally remembering that the percent was crossed in that window."""
        key = 0 if window_start is None else epoch_second(window_start)
        if key < self.floor:
            return self
        used, reserved, crossed = self.counts(key)
        if key == self.key:
            return WindowTally(
                self.born, self.limit, self.zone, self.start, self.end, key, used, reserved, (*crossed, percent), self.past, self.floor
            )
        return self._with_past(key, (used, reserved, (*crossed, percent)))

    def window_start(self, key: int) -> datetime | None:
        return from_epoch(key) if self._calendar else None

    def window(self, at: datetime) -> Period:
        kind = self.limit.window.kind
        match kind:
            case "lifetime" | "rolling":
                return Period(_BEGINNING, _END)
            case _:
                return period(kind, at, self.zone, self.limit.window.anchor_day, self.limit.window.anchor_month)

    def resets_at(self, at: datetime) -> datetime | None:
        return self.window(at).end if self._calendar else None

    def with_limit(self, limit: Limit) -> WindowTally:
        """The same counters under a changed amount, overflow or thresholds."""
        return WindowTally(
            self.born, limit, self.zone, self.start, self.end, self.key, self.used, self.reserved, self.crossed, self.past, self.floor
        )

    def freeze(self) -> FrozenTally:
        windows = sorted(self.past.items())
        if self.key != _NO_WINDOW:
            windows.append((self.key, (self.used, self.reserved, self.crossed)))
        crossed = tuple((key, percent) for key, (_, _, percents) in windows for percent in percents)
        return FrozenTally(self.born, self.limit, self.floor, tuple((key, used, held) for key, (used, held, _) in windows), crossed)

    @property
    def _calendar(self) -> bool:
        return self.limit.window.kind != "lifetime"

    def _advanced(self, key: int, counts: Counts) -> WindowTally:
        left = self if self.key == _NO_WINDOW else self._with_past(self.key, (self.used, self.reserved, self.crossed))
        start, end = self.window(from_epoch(key))
        used, reserved, crossed = counts
        return WindowTally(self.born, self.limit, self.zone, start, end, key, used, reserved, crossed, left.past, left.floor)

    def _with_past(self, key: int, counts: Counts) -> WindowTally:
        past, floor = self.past.set(key, counts), self.floor
        if len(past) >= MAX_WINDOWS:  # with the newest one that is one too many
            oldest = min(past)
            past, floor = past.without(oldest), oldest + 1
        return WindowTally(
            self.born, self.limit, self.zone, self.start, self.end, self.key, self.used, self.reserved, self.crossed, past, floor
        )


@dataclass(slots=True)
class RollingTally:
    """A rolling limit with one counter for each second inside, and their sums as of the latest moment it was told of."""

    born: int
    limit: Limit
    seconds: int
    latest: int
    used: int
    reserved: int
    buckets: Map[int, tuple[int, int]]
    order: Heap[int]
    crossed: tuple[tuple[int, int], ...]
    """(second of the crossing, percent); a percent may be crossed again when the second of its crossing has left."""
    later: RollingTally | None = field(default=None, compare=False, repr=False)
    """What :meth:`seen_at` made last. Without it each refused command would drop the same old seconds again."""

    @staticmethod
    def new(born: int, limit: Limit) -> RollingTally:
        seconds = limit.window.seconds
        assert seconds is not None
        return RollingTally(born, limit, seconds, _NO_FLOOR, 0, 0, Map(), Heap(), ())

    def seen_at(self, second: int) -> RollingTally:
        """This tally with what has left by then dropped; time does not run backwards."""
        if second <= self.latest:
            return self
        later = self.later
        base = self if later is None or later.latest > second else later
        self.later = base._trimmed(second)
        return self.later

    def room(self, at: datetime) -> int:
        return self.room_in(epoch_second(at))

    def room_in(self, key: int) -> int:
        seen = self.seen_at(key)
        return self.limit.amount - seen.used - seen.reserved

    def locate(self, at: datetime) -> int:
        return epoch_second(at)

    def forgets(self, at: datetime) -> bool:
        return False

    def holds(self, key: int) -> bool:
        """Whether the second still counts."""
        return key > self.latest - self.seconds

    def add(self, key: int, used: int, reserved: int) -> RollingTally:
        seen = self.seen_at(key)
        if not seen.holds(key):
            return seen
        bucket = seen.buckets.get(key)
        order = seen.order.push(key) if bucket is None else seen.order
        old_used, old_reserved = bucket or (0, 0)
        counts = (old_used + used, old_reserved + reserved)
        buckets = seen.buckets.set(key, counts)
        made = RollingTally(
            seen.born, seen.limit, seen.seconds, seen.latest, seen.used + used, seen.reserved + reserved, buckets, order, seen.crossed
        )
        return made._trimmed(seen.latest) if counts == (0, 0) else made

    def crossings(self, key: int, added: int) -> list[int]:
        seen = self.seen_at(key)
        if not seen.holds(key):
            return []
        before = (seen.used + seen.reserved) * 100
        after, amount = before + added * 100, self.limit.amount
        crossed = [percent for second, percent in seen.crossed if seen.holds(second)]
        return [percent for percent in self.limit.thresholds if before < percent * amount <= after and percent not in crossed]

    def as_of(self, at: datetime) -> RollingTally:
        return self.seen_at(epoch_second(at))

    def cross(self, window_start: datetime | None, percent: int, at: datetime) -> RollingTally:
        crossed = (*(pair for pair in self.crossed if self.holds(pair[0])), (max(self.latest, epoch_second(at)), percent))
        return RollingTally(self.born, self.limit, self.seconds, self.latest, self.used, self.reserved, self.buckets, self.order, crossed)

    def counts(self, key: int) -> Counts:
        seen = self.seen_at(key)
        return seen.used, seen.reserved, tuple(percent for second, percent in seen.crossed if seen.holds(second))

    def window_start(self, key: int) -> datetime | None:
        return from_epoch(max(key, self.latest) - self.seconds + 1)

    def resets_at(self, at: datetime) -> datetime | None:
        """When the oldest second that counts leaves; None when nothing counts."""
        oldest = self.seen_at(epoch_second(at)).order.least
        return None if oldest is None else from_epoch(oldest + self.seconds)

    def with_limit(self, limit: Limit) -> RollingTally:
        return RollingTally(self.born, limit, self.seconds, self.latest, self.used, self.reserved, self.buckets, self.order, self.crossed)

    def freeze(self) -> FrozenTally:
        counts = tuple((second, used, reserved) for second, (used, reserved) in sorted(self.buckets.items()))
        return FrozenTally(self.born, self.limit, self.latest, counts, self.crossed)

    def _trimmed(self, now: int) -> RollingTally:
        used, reserved, buckets, order = self.used, self.reserved, self.buckets, self.order
        oldest = order.least
        # An oldest second in which nothing counts any more is dropped early, so that the oldest one left says when room comes.
        while oldest is not None and (now - oldest >= self.seconds or buckets[oldest] == (0, 0)):
            gone_used, gone_reserved = buckets[oldest]
            used, reserved = used - gone_used, reserved - gone_reserved
            buckets, order = buckets.without(oldest), order.pop()
            oldest = order.least
        return RollingTally(self.born, self.limit, self.seconds, now, used, reserved, buckets, order, self.crossed)


Tally = WindowTally | RollingTally


def new_tally(born: int, limit: Limit, zone: str) -> Tally:
    """An empty tally."""
    return RollingTally.new(born, limit) if limit.window.kind == "rolling" else WindowTally.new(born, limit, zone)


def thaw_tally(frozen: FrozenTally, zone: str) -> Tally:
    """The tally that was frozen, in the zone of its quota."""
    if frozen.limit.window.kind == "rolling":
        rolling = RollingTally.new(frozen.born, frozen.limit)
        rolling.latest, rolling.crossed = frozen.mark, frozen.crossed
        rolling.used = sum(used for _, used, _ in frozen.counts)
        rolling.reserved = sum(reserved for _, _, reserved in frozen.counts)
        rolling.buckets = Map({second: (used, reserved) for second, used, reserved in frozen.counts})
        rolling.order = Heap(second for second, _, _ in frozen.counts)
        return rolling
    tally = WindowTally.new(frozen.born, frozen.limit, zone)
    tally.floor = frozen.mark
    percents: dict[int, tuple[int, ...]] = {}
    for key, percent in frozen.crossed:
        percents[key] = (*percents.get(key, ()), percent)
    if frozen.counts:
        *past, (newest, used, reserved) = frozen.counts
        tally.past = Map({key: (in_use, held, percents.get(key, ())) for key, in_use, held in past})
        tally.start, tally.end = tally.window(from_epoch(newest))
        tally.key, tally.used, tally.reserved, tally.crossed = newest, used, reserved, percents.get(newest, ())
    return tally

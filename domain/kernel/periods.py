"""Calendar periods: half-open ``[start, end)`` windows between two moments, as a wall clock in some zone divides time.

A period of a unit starts when the wall clock first shows its first date at midnight (an hour: its first minute) and lasts
until the next one starts, so periods of one unit and anchor follow each other without gap or overlap through every clock
change. Anchors move the first day: of the week (ISO weekday 1..7), of the month (1..31, clipped to the month's length, so
anchor 31 gives 31 January, 28 February, 31 March), of the year (anchor month and day).
"""

from __future__ import annotations

from calendar import monthrange
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import Literal, NamedTuple
from zoneinfo import ZoneInfo

Unit = Literal["hour", "day", "week", "month", "year"]

_HOUR = timedelta(hours=1)


class Period(NamedTuple):
    """From ``start`` (inside) to ``end`` (outside), both aware and in UTC."""

    start: datetime
    end: datetime


def period(unit: Unit, at: datetime, zone: str, anchor_day: int | None = None, anchor_month: int | None = None) -> Period:
    """The period of ``unit`` that contains ``at`` in the IANA ``zone``; an anchor that is None is 1."""
    at = at.astimezone(UTC)
    if unit == "hour":
        return _hour(at, ZoneInfo(zone))
    day, month = anchor_day or 1, anchor_month or 1
    index = _index(unit, at.astimezone(ZoneInfo(zone)).date())
    # The date is only a guess: the anchor may lie later in the month, and a clock turned back over midnight shows a date twice.
    while at < _boundary(unit, index, zone, day, month):
        index -= 1
    while at >= _boundary(unit, index + 1, zone, day, month):
        index += 1
    return Period(_boundary(unit, index, zone, day, month), _boundary(unit, index + 1, zone, day, month))


def _index(unit: Unit, day: date) -> int:
    match unit:
        case "day":
            return day.toordinal()
        case "week":
            return (day.toordinal() - 1) // 7
        case "month":
            return day.year * 12 + day.month - 1
        case _:
            return day.year


def _first_date(unit: Unit, index: int, day: int, month: int) -> date:
    match unit:
        case "day":
            return date.fromordinal(index)
        case "week":
            return date.fromordinal(index * 7 + day)  # 1 January of year 1, ordinal 1, was a Monday
        case "month":
            year, month0 = divmod(index, 12)
            month = month0 + 1
        case _:
            year = index
    return date(year, month, min(day, monthrange(year, month)[1]))


@lru_cache(maxsize=4096)
def _boundary(unit: Unit, index: int, zone: str, day: int, month: int) -> datetime:
    # With fold=0 a midnight shown twice is the first of the two, and one that is skipped is the moment of the skip.
    midnight = datetime.combine(_first_date(unit, index, day, month), time(), ZoneInfo(zone))
    return midnight.astimezone(UTC)


def _hour(at: datetime, zone: ZoneInfo) -> Period:
    local = at.astimezone(zone)
    start = at - timedelta(minutes=local.minute, seconds=local.second, microseconds=local.microsecond)
    end = start + _HOUR
    # Lord Howe moves its clock by half an hour: an hour that holds such a change is cut there, or two hours would overlap.
    if _misaligned(start, at, zone):
        start = _change(start, at, zone)
    if _misaligned(at, end, zone):
        end = _change(at, end, zone)
    return Period(start, end)


def _offset(moment: datetime, zone: ZoneInfo) -> timedelta:
    offset = moment.astimezone(zone).utcoffset()
    assert offset is not None
    return offset


def _misaligned(one: datetime, other: datetime, zone: ZoneInfo) -> bool:
    return (_offset(one, zone) - _offset(other, zone)) % _HOUR != timedelta(0)


def _change(before: datetime, after: datetime, zone: ZoneInfo) -> datetime:
    """The moment at which the offset changes between the two; there is one at most within an hour."""
    old = _offset(before, zone)
    low, high = before, after
    while high - low > timedelta(microseconds=1):
        middle = low + (high - low) // 2
        low, high = (middle, high) if _offset(middle, zone) == old else (low, middle)
    return high

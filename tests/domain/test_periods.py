"""Calendar periods through months of every length and every change of clocks."""

from __future__ import annotations

import itertools
from datetime import UTC, date, datetime, timedelta
from typing import get_args
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.kernel.periods import Unit, period

ZONES = ["Europe/Moscow", "America/New_York", "Asia/Kathmandu"]
ODD_ZONES = ["Australia/Lord_Howe", "America/Havana", "America/Sao_Paulo", "Pacific/Apia", "America/St_Johns", "Africa/Monrovia"]
"""Half an hour of summer time, midnights shown twice or never, a day that was skipped, offsets with seconds."""

units = st.sampled_from(get_args(Unit))
CHANGES = [
    datetime(2026, 3, 8, 7, tzinfo=UTC),  # New York
    datetime(2026, 11, 1, 6, tzinfo=UTC),
    datetime(2010, 10, 30, 23, tzinfo=UTC),  # Moscow
    datetime(1985, 12, 31, 18, 30, tzinfo=UTC),  # Kathmandu, by a quarter of an hour
    datetime(2026, 4, 4, 15, tzinfo=UTC),  # Lord Howe
    datetime(2026, 10, 3, 15, 30, tzinfo=UTC),
    datetime(2025, 11, 2, 5, tzinfo=UTC),  # Havana
    datetime(2018, 11, 4, 3, tzinfo=UTC),  # Sao Paulo
    datetime(2011, 12, 30, 10, tzinfo=UTC),  # Apia
    datetime(2010, 11, 7, 2, 31, tzinfo=UTC),  # St. John's
    datetime(1972, 1, 7, 0, 44, 30, tzinfo=UTC),  # Monrovia
]


def moved(moment: datetime, microseconds: int) -> datetime:
    return moment + timedelta(microseconds=microseconds)


SPAN = 50 * 365 * 86_400 * 10**6
moments = st.builds(moved, st.just(datetime(2010, 1, 1, tzinfo=UTC)), st.integers(-SPAN, SPAN)) | st.builds(
    moved, st.sampled_from(CHANGES), st.integers(-3 * 3600, 3 * 3600).map(lambda seconds: seconds * 10**6)
)
anchor_days = st.sampled_from([None, 1, 2, 5, 7, 28, 29, 30, 31])
anchor_months = st.sampled_from([None, 1, 2, 4, 12])


def at(text: str, zone: str = "UTC") -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)


@given(units, moments, st.sampled_from(ZONES + ODD_ZONES), anchor_days, anchor_months)
def test_a_period_contains_its_moment_and_its_neighbours_touch_it(
    unit: Unit, moment: datetime, zone: str, day: int | None, month: int | None
) -> None:
    if unit == "week" and day is not None:
        day = min(day, 7)
    start, end = period(unit, moment, zone, day, month)

    assert start <= moment < end
    assert start.tzinfo is UTC
    assert end.tzinfo is UTC
    assert period(unit, start, zone, day, month) == (start, end)
    assert period(unit, end - timedelta(microseconds=1), zone, day, month) == (start, end)
    assert period(unit, end, zone, day, month).start == end
    assert period(unit, start - timedelta(microseconds=1), zone, day, month).end == start


@given(st.sampled_from(["week", "month", "year"]), moments, st.sampled_from(ZONES), anchor_days, anchor_months)
def test_a_period_starts_on_its_anchor_at_the_zones_midnight(
    unit: Unit, moment: datetime, zone: str, day: int | None, month: int | None
) -> None:
    if unit == "week" and day is not None:
        day = min(day, 7)
    local = period(unit, moment, zone, day, month).start.astimezone(ZoneInfo(zone))
    next_day = local.date() + timedelta(days=1)
    wanted = day or 1

    # A clock that skips midnight shows the day's first minute an hour later.
    assert (local - timedelta(seconds=1)).astimezone(UTC).astimezone(ZoneInfo(zone)).date() <= local.date()
    assert local.hour <= 1
    if unit == "week":
        assert local.isoweekday() == wanted
    else:
        assert local.day == wanted or (local.day < wanted and next_day.day == 1)
    if unit == "year":
        assert local.month == (month or 1)


@pytest.mark.parametrize(
    ("anchor", "starts"),
    [
        (29, ["2025-12-29", "2026-01-29", "2026-02-28", "2026-03-29", "2026-04-29", "2026-05-29"]),
        (30, ["2025-12-30", "2026-01-30", "2026-02-28", "2026-03-30", "2026-04-30", "2026-05-30"]),
        (31, ["2025-12-31", "2026-01-31", "2026-02-28", "2026-03-31", "2026-04-30", "2026-05-31"]),
    ],
)
@pytest.mark.parametrize("zone", ZONES)
def test_a_month_that_is_too_short_starts_on_its_last_day(anchor: int, starts: list[str], zone: str) -> None:
    moment = at(starts[0], zone)
    seen = []
    for _ in starts:
        moment = period("month", moment, zone, anchor).end
        seen.append(period("month", moment, zone, anchor).start)

    assert [start.astimezone(ZoneInfo(zone)).date().isoformat() for start in seen[:-1]] == starts[1:]


@pytest.mark.parametrize(
    ("unit", "moment", "zone", "hours"),
    [
        ("day", "2026-03-08 12:00", "America/New_York", 23),
        ("day", "2026-11-01 12:00", "America/New_York", 25),
        ("day", "2010-03-28 12:00", "Europe/Moscow", 23),
        ("day", "2026-03-28 12:00", "Asia/Kathmandu", 24),
        ("hour", "2026-11-01 01:30", "America/New_York", 1),
        ("week", "2026-03-08 12:00", "America/New_York", 167),
    ],
)
def test_a_change_of_clocks_makes_a_day_shorter_or_longer(unit: Unit, moment: str, zone: str, hours: int) -> None:
    start, end = period(unit, at(moment, zone), zone)

    assert end - start == timedelta(hours=hours)


@pytest.mark.parametrize("zone", ZONES + ODD_ZONES)
@pytest.mark.parametrize("unit", ["hour", "day", "month"])
def test_around_every_change_of_clocks_each_moment_has_one_period(unit: Unit, zone: str) -> None:
    for change in CHANGES:
        seen = [period(unit, change + timedelta(minutes=minutes, seconds=30), zone) for minutes in range(-180, 180, 7)]
        distinct = list(dict.fromkeys(seen))

        assert all(start <= change + timedelta(minutes=-180 + 7 * n, seconds=30) < end for n, (start, end) in enumerate(seen))
        assert all(earlier.end == later.start for earlier, later in itertools.pairwise(distinct))


def test_an_hour_in_kathmandu_starts_at_a_quarter_past() -> None:
    assert period("hour", at("2026-01-01 10:20"), "Asia/Kathmandu") == (at("2026-01-01 10:15"), at("2026-01-01 11:15"))


def test_the_hour_shown_twice_is_two_hours() -> None:
    first = datetime(2026, 11, 1, 5, 30, tzinfo=UTC)  # 01:30 in New York, summer time

    assert period("hour", first, "America/New_York").end == period("hour", first + timedelta(hours=1), "America/New_York").start


def test_a_year_may_start_on_a_leap_day() -> None:
    start, end = period("year", at("2024-06-01"), "UTC", 29, 2)

    assert (start.date(), end.date()) == (date(2024, 2, 29), date(2025, 2, 28))


def test_a_moment_in_another_zone_is_the_same_moment() -> None:
    moment = datetime(2026, 1, 31, 23, 30, tzinfo=ZoneInfo("America/New_York"))

    assert period("month", moment, "UTC").start == at("2026-02-01")
    assert period("month", moment, "America/New_York").start == at("2026-01-01", "America/New_York")

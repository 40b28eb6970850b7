"""Usage by day is what a slow reading of the log adds up to, however the log was cut into batches and by whom it was read."""

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from random import Random
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import psycopg
import pytest

from domain.identity.tenants import TENANT, CreateTenant, DeleteTenant, tenant_stream
from domain.kernel.decider import Rejected
from domain.quota import QUOTA, Commit, Consume, Reserve
from domain.quota.limits import Limit
from eventstore.pruning import prune
from eventstore.requests import Item, Request
from eventstore.store import Store
from projections import schema
from projections.consumer import ProjectionBehind
from projections.follower import Pace
from projections.readers import Readers
from projections.usage import Calendar, Usage
from projections.usage_queries import UsageLine
from projections.usage_tables import SUMS
from tests.projections.conftest import CODEC, LIMITS, Ledger, administer, caught_up, count_events, follow, following

SUBJECTS = ("anna", "boris", "vera")
ZONES = ("America/New_York", "Asia/Kathmandu", None)
TABLES = ("usage_day", "usage_stream", "usage_zone")

Key = tuple[UUID, date, str, str]


def tables(ledger: Ledger, generation: int = 1) -> dict[str, list[tuple[Any, ...]]]:
    """Every row, byte for byte."""
    return {table: sorted(administer(ledger, f"select t::text from {table}_{generation} t")) for table in TABLES}


def second_generation(ledger: Ledger, cached: int = 50_000) -> Usage:
    with psycopg.connect(ledger.dsn) as conn:
        schema.create_generation(conn, "usage", 2)
    return Usage(CODEC, 2, cached)


def in_the_same_partition(ledger: Ledger) -> Ledger:
    while True:
        other = Ledger(ledger.dsn, ledger.store, uuid4(), ledger.now)
        if other.partition == ledger.partition:
            return other


async def create(ledger: Ledger, zone: str) -> None:
    command = CreateTenant(tenant_id=ledger.tenant, name="Acme", zone=zone)
    await ledger.store.submit(Request(ledger.tenant, uuid4(), (Item(TENANT, tenant_stream(ledger.tenant), command),), b"f"))


async def delete(ledger: Ledger) -> None:
    command = DeleteTenant(tenant_id=ledger.tenant)
    await ledger.store.submit(Request(ledger.tenant, uuid4(), (Item(TENANT, tenant_stream(ledger.tenant), command),), b"f"))


async def by_an_older_program(ledger: Ledger) -> None:
    """A command of a tenant that was deleted, taken by a process that has never heard of such."""
    older = await Store.open(ledger.dsn, [QUOTA])
    try:
        late = Ledger(ledger.dsn, older, ledger.tenant, ledger.now)
        await late.set_limits("late", *LIMITS[:1])
    finally:
        await older.drain()


async def neighbours(ledger: Ledger) -> list[Ledger]:
    """Tenants of one partition, each in its zone; the last never said where it lives."""
    found = [ledger, in_the_same_partition(ledger), in_the_same_partition(ledger)]
    for each, zone in zip(found, ZONES, strict=True):
        if zone is not None:
            await create(each, zone)
    return found


def events(ledger: Ledger) -> Iterator[tuple[UUID, str, str, datetime, dict[str, Any]]]:
    rows = administer(ledger, "select tenant_id, stream, type, recorded_at, payload::text from event order by partition, position")
    for tenant_id, stream, type_, recorded_at, payload in rows:
        yield tenant_id, stream, type_, recorded_at, json.loads(payload)


ADDED: dict[str, dict[str, str | int]] = {
    "quota.reserved": {"reserved": "amount", "reservations": 1},
    "quota.progressed": {"used": "used"},
    "quota.committed": {"used": "used", "released": "freed", "commits": 1},
    "quota.rolled_back": {"released": "freed", "rollbacks": 1},
    "quota.expired": {"released": "freed", "expiries": 1},
    "quota.consumed": {"used": "amount", "consumptions": 1},
    "quota.adjusted": {"adjusted": "amount"},
    "command.refused": {"refusals": 1},
}
"""For each column either the payload's field or a number."""


def slowly(ledger: Ledger) -> dict[Key, Counter[str]]:
    """What the log says, event by event, without any of the program's types."""
    zones: dict[UUID, ZoneInfo] = {}
    names: dict[str, tuple[str, str]] = {}
    days: dict[Key, Counter[str]] = {}
    for tenant_id, stream, type_, recorded_at, told in events(ledger):
        if type_ == "tenant.created":
            zones[tenant_id] = ZoneInfo(told["zone"])
        if stream.startswith("quota-") and "meter" in told:
            names[stream] = told["meter"], told["subject"]
        about = told["stream"] if type_ == "command.refused" else stream
        at = recorded_at if type_ == "command.refused" else datetime.fromisoformat(told["at"])
        added = {column: told[field] if isinstance(field, str) else field for column, field in ADDED.get(type_, {}).items()}
        if added and about in names:
            day = at.astimezone(zones.get(tenant_id, ZoneInfo("UTC"))).date()
            key = (tenant_id, day, *names[about])
            days.setdefault(key, Counter()).update(added)
    return days


def shown(ledger: Ledger) -> dict[Key, Counter[str]]:
    rows = administer(ledger, f"select tenant_id, day, meter, subject, {', '.join(SUMS)} from usage_day_1")
    return {row[:4]: Counter({name: int(value) for name, value in zip(SUMS, row[4:], strict=True)}) for row in rows}


@pytest.mark.parametrize("seed", range(3))
async def test_every_day_is_what_the_log_adds_up_to(ledger: Ledger, seed: int) -> None:
    random = Random(seed)
    tenants = await neighbours(ledger)
    for _ in range(3):
        for each in tenants:
            await each.traffic(random, 80, SUBJECTS)
        await follow(ledger, Usage(CODEC, cached=2), pace=Pace(batch=7, poll=0.02, rest=0.001))

        assert shown(ledger) == slowly(ledger)

    total = sum(shown(ledger).values(), Counter[str]())
    assert {name for name in SUMS if not total[name]} == set(), "every column was tried"
    assert len({key[1] for key in shown(ledger)}) > 5


async def test_batches_of_any_size_end_in_the_same_rows(ledger: Ledger) -> None:
    random = Random(7)
    tenants = await neighbours(ledger)
    for _ in range(4):
        for each in tenants:
            await each.traffic(random, 60, SUBJECTS)
        await follow(ledger, Usage(CODEC, cached=1), pace=Pace(batch=random.choice((1, 3, 50)), poll=0.02, rest=0.001))

    await follow(ledger, second_generation(ledger))

    stepped, strode = tables(ledger, 1), tables(ledger, 2)
    assert stepped == strode
    assert all(stepped.values()), "each table should have been tried"


async def test_two_followers_at_once_count_every_event_once(ledger: Ledger) -> None:
    random = Random(11)
    pace = Pace(batch=5, poll=0.005, poll_idle=0.005, rest=0.001, lease=0)
    async with following(ledger, Usage(CODEC), pace=pace) as one, following(ledger, Usage(CODEC), pace=pace) as other:
        while not (one.progress.events and other.progress.events):  # one may be first with all of it
            await asyncio.gather(ledger.traffic(random, 300, SUBJECTS), ledger.traffic(random, 300, SUBJECTS))
        await caught_up(ledger, one)
        await caught_up(ledger, other)

        assert one.progress.events
        assert other.progress.events
    assert shown(ledger) == slowly(ledger)
    assert count_events(ledger, "type = 'command.refused'")


@pytest.mark.parametrize(
    ("zone", "moment", "day"),
    [
        ("America/New_York", "2027-03-14T04:59:59+00:00", "2027-03-13"),  # the night the clocks go forward: this day has 23 hours
        ("America/New_York", "2027-03-14T05:00:00+00:00", "2027-03-14"),
        ("America/New_York", "2027-03-15T03:59:59+00:00", "2027-03-14"),
        ("America/New_York", "2027-03-15T04:00:00+00:00", "2027-03-15"),
        ("America/New_York", "2027-11-07T03:59:59+00:00", "2027-11-06"),  # and back: 25 hours
        ("America/New_York", "2027-11-07T04:00:00+00:00", "2027-11-07"),
        ("America/New_York", "2027-11-08T04:59:59+00:00", "2027-11-07"),
        ("America/New_York", "2027-11-08T05:00:00+00:00", "2027-11-08"),
        ("Asia/Kathmandu", "2027-06-01T18:14:59+00:00", "2027-06-01"),  # 5:45 ahead
        ("Asia/Kathmandu", "2027-06-01T18:15:00+00:00", "2027-06-02"),
        ("America/St_Johns", "2006-10-29T02:30:30+00:00", "2006-10-29"),  # its clocks went back over midnight a minute after it
        ("America/St_Johns", "2006-10-29T02:31:30+00:00", "2006-10-29"),
    ],
)
async def test_days_begin_at_the_tenants_midnight(ledger: Ledger, zone: str, moment: str, day: str) -> None:
    await create(ledger, zone)
    await ledger.set_limits("anna", Limit("life", 1_000))
    ledger.now = datetime.fromisoformat(moment)
    await ledger.send("anna", Consume(subject="anna", meter="tokens", amount=5, reservation_id="r"))

    await follow(ledger, Usage(CODEC))

    assert {(key[1].isoformat(), sums["used"]) for key, sums in shown(ledger).items()} == {(day, 5)}


def test_a_calendar_remembers_no_other_day() -> None:
    calendar = Calendar("America/New_York")
    moments = [datetime(2027, 3, 14, tzinfo=UTC) + timedelta(hours=hours) for hours in (0, 40, 4, 5, 29, 1, 28)]

    assert [calendar.day(moment) for moment in moments] == [moment.astimezone(ZoneInfo("America/New_York")).date() for moment in moments]


async def test_what_is_booked_in_parts_counts_once_and_on_its_day(ledger: Ledger, readers: Readers) -> None:
    ledger.now = datetime(2017, 5, 1, 12, tzinfo=UTC)  # long ago: the refusal below falls on the day of the test
    await ledger.set_limits("anna", Limit("life", 1_000))
    await ledger.reserve("anna", "r", 100, ttl_seconds=10 * 86_400)
    for days, used, final in ((1, 30, False), (2, 20, False), (3, 10, True)):
        ledger.now = datetime(2017, 5, 1 + days, 12, tzinfo=UTC)
        await ledger.send("anna", Commit(reservation_id="r", used=used, final=final))
    with pytest.raises(Rejected):
        await ledger.send("anna", Commit(reservation_id="unknown", used=1))
    await ledger.send("anna", Reserve(subject="anna", meter="tokens", amount=10_000, reservation_id="too many"))
    await follow(ledger, Usage(CODEC))

    lines = await readers.usage.days(ledger.tenant, date(2017, 5, 1), date(2017, 5, 5))

    assert [(line.day and line.day.day, line.used, line.reserved, line.released, line.reservations, line.commits) for line in lines] == [
        (1, 0, 100, 0, 1, 0),
        (2, 30, 0, 0, 0, 0),
        (3, 20, 0, 0, 0, 0),
        (4, 10, 0, 40, 0, 1),
    ]
    today = await readers.usage.days(ledger.tenant, *_around_now())
    assert [(line.meter, line.subject, line.refusals) for line in today] == [("tokens", None, 1)]


def _around_now() -> tuple[date, date]:
    """A refusal has no moment but that of its record."""
    today = datetime.now(UTC).date()
    return today - timedelta(days=1), today + timedelta(days=2)


async def three_by_three(ledger: Ledger) -> None:
    """On each of three days, each of two subjects uses 1, 2 and 4 times as much of two meters."""
    for meter in ("calls", "tokens"):
        for subject in ("anna", "boris"):
            await ledger.set_limits(subject, Limit("life", 10**6), meter=meter)
    for day in (1, 2, 3):
        ledger.now = datetime(2027, 5, day, 12, tzinfo=UTC)
        for number, (meter, subject) in enumerate([("calls", "anna"), ("calls", "boris"), ("tokens", "anna"), ("tokens", "boris")]):
            amount = 10 ** (day - 1) * 2**number
            await ledger.send(subject, Consume(subject=subject, meter=meter, amount=amount, reservation_id=f"{day}"), meter)
    await follow(ledger, Usage(CODEC))


def told(lines: list[UsageLine]) -> list[tuple[int | None, str, str | None, int]]:
    return [(line.day.day if line.day else None, line.meter, line.subject, line.used) for line in lines]


MAY = date(2027, 5, 1), date(2027, 6, 1)


async def test_lines_are_added_up_as_asked(ledger: Ledger, readers: Readers) -> None:
    await three_by_three(ledger)
    usage, tenant = readers.usage, ledger.tenant

    assert told(await usage.days(tenant, *MAY)) == [
        (1, "calls", None, 3), (1, "tokens", None, 12), (2, "calls", None, 30), (2, "tokens", None, 120),
        (3, "calls", None, 300), (3, "tokens", None, 1_200),
    ]  # fmt: skip
    assert told(await usage.days(tenant, *MAY, by="meter")) == [(None, "calls", None, 333), (None, "tokens", None, 1_332)]
    assert told(await usage.days(tenant, date(2027, 5, 2), date(2027, 5, 3), by="subject")) == [
        (2, "calls", "anna", 10), (2, "calls", "boris", 20), (2, "tokens", "anna", 40), (2, "tokens", "boris", 80),
    ]  # fmt: skip
    assert told(await usage.days(tenant, *MAY, subject="boris", by="meter")) == [
        (None, "calls", "boris", 222),
        (None, "tokens", "boris", 888),
    ]
    assert told(await usage.days(tenant, *MAY, meter="calls", subject="anna")) == [
        (1, "calls", "anna", 1),
        (2, "calls", "anna", 10),
        (3, "calls", "anna", 100),
    ]
    assert await usage.days(tenant, date(2027, 5, 4), date(2027, 6, 1)) == []
    assert await usage.days(uuid4(), *MAY) == []


@pytest.mark.parametrize(("by", "keys"), [("day", ("day", "meter")), ("subject", ("day", "meter", "subject")), ("meter", ("meter",))])
async def test_pages_of_any_size_are_one_list(ledger: Ledger, readers: Readers, by: Any, keys: tuple[str, ...]) -> None:
    await three_by_three(ledger)
    whole = await readers.usage.days(ledger.tenant, *MAY, by=by)

    for limit in (1, 2, 5):
        pages: list[UsageLine] = []
        after = None
        while page := await readers.usage.days(ledger.tenant, *MAY, by=by, after=after, limit=limit):
            pages += page
            after = [getattr(page[-1], key) for key in keys]
        assert pages == whole


async def test_a_query_waits_for_the_position_it_names(ledger: Ledger, readers: Readers) -> None:
    await ledger.set_limits("anna", *LIMITS[:1])
    await follow(ledger, Usage(CODEC))
    wanted = await ledger.send("anna", Consume(subject="anna", meter="tokens", amount=5, reservation_id="r"))

    with pytest.raises(ProjectionBehind, match=f"at position 1 of {wanted.position}"):
        await readers.usage.days(ledger.tenant, date(2027, 3, 1), date(2027, 4, 1), min_position=wanted.position, timeout_seconds=0.1)
    asking = asyncio.create_task(
        readers.usage.days(ledger.tenant, date(2027, 3, 1), date(2027, 4, 1), min_position=wanted.position, timeout_seconds=30)
    )
    await follow(ledger, Usage(CODEC))

    assert [line.used for line in await asking] == [5]


async def test_a_refusal_counts_for_its_own_tenant_alone(ledger: Ledger) -> None:
    await ledger.set_limits("anna", Limit("life", 5))
    await ledger.reserve("anna", "too many", 10)
    administer(
        ledger,
        "insert into event (partition, position, tenant_id, stream, version, command_id, ordinal, type, recorded_at, payload, salt, hash) "
        "select partition, position + 1, %s, 'refused-of-another', 1, gen_random_uuid(), 0, type, recorded_at, payload, salt, hash "
        "from event where type = 'command.refused'",
        (uuid4(),),
    )

    for cached in (0, 10):
        await follow(ledger, Usage(CODEC, cached=cached) if cached else second_generation(ledger), pace=Pace(batch=1 + cached, poll=0.02))

    assert [(key[0], sums["refusals"]) for key, sums in shown(ledger).items()] == [(ledger.tenant, 1)]
    assert tables(ledger, 1) == tables(ledger, 2)


async def test_what_an_operator_had_skipped_is_not_counted(ledger: Ledger) -> None:
    await ledger.set_limits("anna", Limit("life", 5))
    for number in range(3):
        await ledger.send("anna", Consume(subject="anna", meter="tokens", amount=1, reservation_id=f"r{number}"))
    await ledger.reserve("anna", "too many", 10)
    await ledger.reserve("anna", "too many again", 10)
    for position in (3, 5):
        administer(
            ledger,
            "insert into skipped_event (partition, consumer, version, position) values (%s, 'usage', 1, %s)",
            (ledger.partition, position),
        )

    await follow(ledger, Usage(CODEC))

    total = sum(shown(ledger).values(), Counter[str]())
    assert (total["used"], total["refusals"]) == (2, 1)


@pytest.mark.parametrize("pruned", [False, True])
async def test_of_a_deleted_tenant_nothing_stays_and_nothing_comes(ledger: Ledger, pruned: bool) -> None:
    other = in_the_same_partition(ledger)
    await create(ledger, "America/New_York")
    for each in (ledger, other):
        await each.traffic(Random(3), 80, SUBJECTS)
    await follow(ledger, Usage(CODEC), pace=Pace(batch=9, poll=0.02, rest=0.001))
    assert {key[0] for key in shown(ledger)} == {ledger.tenant, other.tenant}

    await delete(ledger)
    await by_an_older_program(ledger)
    await other.traffic(Random(4), 20, SUBJECTS)
    await follow(ledger, Usage(CODEC), pace=Pace(batch=1, poll=0.02, rest=0.001))
    if pruned:
        assert prune(ledger.dsn, ledger.tenant)
    await follow(ledger, second_generation(ledger))

    live, rebuilt = tables(ledger, 1), tables(ledger, 2)
    assert live == rebuilt
    assert {key[0] for key in shown(ledger)} == {other.tenant}
    assert str(ledger.tenant) not in str(live)
    assert live["usage_stream"]

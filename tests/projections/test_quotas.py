"""The quota read model says what the fold of the log says, however it was brought there."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta
from random import Random
from uuid import uuid4

import psycopg
import pytest

from domain.identity.tenants import TENANT, CreateTenant, DeleteTenant, tenant_stream
from domain.quota import QUOTA, Quota, Reserve, Window
from domain.quota.limits import Limit
from eventstore.pruning import prune
from eventstore.requests import Item, Request
from eventstore.store import Store
from projections import schema
from projections.consumer import Connection, ProjectionBehind, Recorded
from projections.follower import Pace
from projections.quota_queries import DueReader, QuotaReader
from projections.quotas import Quotas
from tests.projections.conftest import CODEC, LIMITS, Ledger, administer, caught_up, count_events, dump, follow, following

SUBJECTS = ("anna", "boris", "vera")
LATER = (timedelta(0), timedelta(seconds=1), timedelta(seconds=4), timedelta(seconds=30), timedelta(hours=1), timedelta(days=40))


def second_generation(ledger: Ledger) -> Quotas:
    with psycopg.connect(ledger.dsn) as conn:
        schema.create_generation(conn, "quotas", 2)
    return Quotas(CODEC, 2)


def small_steps() -> tuple[Quotas, Pace]:
    """Few states in memory and few events at once, so that every path through cache and tables is taken."""
    return Quotas(CODEC, cached=10), Pace(batch=7, poll=0.02, poll_idle=0.02, rest=0.001)


@pytest.mark.parametrize("seed", range(4))
async def test_every_view_is_the_view_of_the_log(ledger: Ledger, reader: QuotaReader, seed: int) -> None:
    random = Random(seed)
    shown = 0
    for _ in range(4):
        await ledger.traffic(random, 100, SUBJECTS)
        consumer, pace = small_steps()
        await follow(ledger, consumer, pace=pace)

        for later in LATER:
            at = ledger.now + later
            expected = [await ledger.view(subject, at) for subject in SUBJECTS]
            assert [await reader.get(ledger.tenant, subject, "tokens", at) for subject in SUBJECTS] == expected
            assert await reader.list(ledger.tenant, at) == [each for each in expected if each is not None]
            shown += sum(each is not None for each in expected)
        for subject in SUBJECTS:
            state = await ledger.state(subject)
            opened = sorted(state.open.items()) if isinstance(state, Quota) else []
            found = await reader.reservations(ledger.tenant, subject, "tokens", limit=1_000)
            assert [(each.reservation_id, each.amount, each.used, each.reserved_at, each.expires_at) for each in found] == [
                (identity, held.amount, held.booked, held.at, held.expires_at) for identity, held in opened
            ]

    assert shown > 40
    assert count_events(ledger, "type <> 'command.refused'") > 200


async def test_small_steps_restarts_and_one_stride_end_in_the_same_rows(ledger: Ledger) -> None:
    random = Random(9)
    for _ in range(6):
        await ledger.traffic(random, 100, SUBJECTS)
        consumer, pace = small_steps()
        await follow(ledger, consumer, pace=pace)  # each time with a cold cache

    await follow(ledger, second_generation(ledger))

    stepped, strode = dump(ledger, 1), dump(ledger, 2)
    assert stepped == strode
    assert all(stepped.values()), "each table should have been tried"


async def test_a_warm_cache_writes_what_a_cold_one_does(ledger: Ledger) -> None:
    random = Random(3)
    async with following(ledger, Quotas(CODEC)) as warm:
        for _ in range(6):
            await ledger.traffic(random, 60, SUBJECTS)
            await caught_up(ledger, warm)

    await follow(ledger, second_generation(ledger), pace=Pace(batch=1, poll=0.02))

    assert dump(ledger, 1) == dump(ledger, 2)


async def test_two_followers_at_once_apply_every_event_once(ledger: Ledger) -> None:
    random = Random(4)
    pace = Pace(batch=5, poll=0.005, poll_idle=0.005, rest=0.001, lease=0)
    async with following(ledger, Quotas(CODEC), pace=pace) as one, following(ledger, Quotas(CODEC), pace=pace) as other:
        while not (one.progress.events and other.progress.events):  # one may be first with all of it
            await asyncio.gather(ledger.traffic(random, 500, SUBJECTS), ledger.traffic(random, 500, SUBJECTS))
        await caught_up(ledger, one)
        await caught_up(ledger, other)

        events = count_events(ledger)
        assert one.progress.events + other.progress.events == events
        assert one.progress.events
        assert other.progress.events

    await follow(ledger, second_generation(ledger))
    assert dump(ledger, 1) == dump(ledger, 2)


class Killed(Quotas):
    """Loses its connection a few times when everything is written and nothing committed."""

    def __init__(self, ledger: Ledger, kills: int) -> None:
        super().__init__(CODEC)
        self.ledger, self.kills = ledger, kills

    async def apply(self, conn: Connection, partition: int, rows: Sequence[Recorded]) -> Callable[[], None]:
        after = await super().apply(conn, partition, rows)
        if self.kills:
            self.kills -= 1
            ((seen,),) = await (await conn.execute("select count(*) from quota_1")).fetchall()
            assert seen, "the effect is written"
            administer(self.ledger, "select pg_terminate_backend(%s)", (conn.info.backend_pid,))
        return after


async def test_a_kill_between_the_effect_and_the_commit_changes_nothing(ledger: Ledger) -> None:
    await ledger.traffic(Random(5), 300, SUBJECTS)
    consumer = Killed(ledger, 3)

    follower = await follow(ledger, consumer)
    await follow(ledger, second_generation(ledger))

    assert consumer.kills == 0
    assert follower.progress.events == count_events(ledger)
    assert dump(ledger, 1) == dump(ledger, 2)


async def test_one_more_reservation_writes_one_more_row(ledger: Ledger) -> None:
    await ledger.set_limits("hot", Limit("life", 10**9), Limit("long", 10**9, Window("rolling", seconds=86_400)))
    for number in range(200):
        ledger.now += timedelta(seconds=1)
        await ledger.reserve("hot", f"r{number:03}", ttl_seconds=86_400)
    consumer = Quotas(CODEC)
    async with following(ledger, consumer) as follower:
        await caught_up(ledger, follower)
        before = {table: set(administer(ledger, f"select xmin::text, ctid::text from {table}_1")) for table in dump(ledger)}
        ledger.now += timedelta(seconds=1)
        await ledger.reserve("hot", "one more")
        await caught_up(ledger, follower)

    after = {table: set(administer(ledger, f"select xmin::text, ctid::text from {table}_1")) for table in before}
    assert {table: len(after[table] - before[table]) for table in after} == {"quota": 1, "quota_reservation": 1, "quota_second": 1}
    assert administer(ledger, "select max(length(state::text)) < 2000 from quota_1") == [(True,)]


async def test_amounts_beyond_64_bits_survive(ledger: Ledger, reader: QuotaReader) -> None:
    huge = 2**63 - 1
    await ledger.set_limits("whale", Limit("long", huge, Window("rolling", seconds=60)), overdraft="soft")
    for number in range(4):
        await ledger.reserve("whale", f"r{number}", huge)
    await follow(ledger)
    await ledger.reserve("whale", "last", huge)
    await follow(ledger)

    shown = await reader.get(ledger.tenant, "whale", "tokens", ledger.now)

    assert shown == await ledger.view("whale", ledger.now)
    assert shown is not None
    assert shown.reserved == 5 * huge


async def test_pages_follow_one_another(ledger: Ledger, reader: QuotaReader) -> None:
    names = [(meter, subject) for meter in ("calls", "tokens") for subject in ("a", "b", "c", "d/é", "~")]
    for meter, subject in names:
        await ledger.set_limits(subject, *LIMITS[:1], meter=meter)
    for number in range(5):
        await ledger.reserve("a", f"r{number}")
    await follow(ledger)

    pages: list[list[tuple[str, str]]] = []
    after = None
    while page := await reader.list(ledger.tenant, ledger.now, after=after, limit=3):
        after = page[-1].meter, page[-1].subject
        pages.append([(each.meter, each.subject) for each in page])
    opened = await reader.reservations(ledger.tenant, "a", "tokens", limit=2)
    more = await reader.reservations(ledger.tenant, "a", "tokens", after=opened[-1].reservation_id)

    assert [each for page in pages for each in page] == names
    assert [len(page) for page in pages] == [3, 3, 3, 1]
    assert [each.subject for each in await reader.list(ledger.tenant, ledger.now, meter="tokens", after=("tokens", "b"))] == [
        "c",
        "d/é",
        "~",
    ]
    assert [each.reservation_id for each in opened + more] == [f"r{number}" for number in range(5)]


async def test_a_read_waits_for_the_position_it_names(ledger: Ledger, reader: QuotaReader) -> None:
    await ledger.set_limits("anna", *LIMITS)
    await follow(ledger)
    wanted = await ledger.send("anna", Reserve(subject="anna", meter="tokens", amount=5, reservation_id="r"))

    with pytest.raises(ProjectionBehind, match=f"at position 1 of {wanted.position}"):
        await reader.get(ledger.tenant, "anna", "tokens", ledger.now, wanted.position, timeout_seconds=0.1)
    reading = asyncio.create_task(reader.get(ledger.tenant, "anna", "tokens", ledger.now, wanted.position, timeout_seconds=60))
    await follow(ledger)
    shown = await reading

    assert shown is not None
    assert shown.reserved == 5


async def test_a_read_does_not_wait_for_what_has_stopped(ledger: Ledger, reader: QuotaReader) -> None:
    await ledger.set_limits("anna", *LIMITS)
    await follow(ledger)
    administer(ledger, "update checkpoint set stopped = 'by hand'")

    async with asyncio.timeout(60):
        with pytest.raises(ProjectionBehind, match="by hand"):
            await reader.get(ledger.tenant, "anna", "tokens", ledger.now, 2, timeout_seconds=600)


async def test_what_is_due_is_found_over_all_tenants_soonest_first(ledger: Ledger) -> None:
    other = Ledger(ledger.dsn, ledger.store, uuid4())
    for each, subject, seconds in ((ledger, "anna", 20), (other, "boris", 10), (ledger, "vera", 30), (other, "late", 31)):
        await each.set_limits(subject, *LIMITS[:1])
        await each.reserve(subject, f"of {subject}", ttl_seconds=seconds)
    await follow(ledger)
    due_reader = await DueReader.open(ledger.dsn)

    due = await due_reader.due(ledger.now + timedelta(seconds=30), 10)
    first = await due_reader.due(ledger.now + timedelta(seconds=30), 1)
    await due_reader.close()

    assert [(each.tenant_id, each.subject, each.meter, each.reservation_id) for each in due] == [
        (other.tenant, "boris", "tokens", "of boris"),
        (ledger.tenant, "anna", "tokens", "of anna"),
        (ledger.tenant, "vera", "tokens", "of vera"),
    ]
    assert first == due[:1]
    assert due[0].expires_at == ledger.now + timedelta(seconds=10)


@pytest.mark.parametrize("pruned", [False, True])
async def test_of_a_deleted_tenant_nothing_stays_and_nothing_comes(ledger: Ledger, pruned: bool) -> None:
    other = Ledger(ledger.dsn, ledger.store, uuid4())
    while other.partition != ledger.partition:
        other.tenant = uuid4()
    await operate(ledger, CreateTenant(tenant_id=ledger.tenant, name="Acme"))
    for each in (ledger, other):
        await each.traffic(Random(3), 80, SUBJECTS)
        await each.set_limits("hot", Limit("brief", 100, Window("rolling", seconds=60)))
        await each.reserve("hot", "open")
    consumer, pace = small_steps()
    await follow(ledger, consumer, pace=pace)
    before = dump(ledger)

    await operate(ledger, DeleteTenant(tenant_id=ledger.tenant))
    older = await Store.open(ledger.dsn, [QUOTA])  # a process that has never heard of deletions
    await Ledger(ledger.dsn, older, ledger.tenant, ledger.now).set_limits("late", *LIMITS)
    await older.drain()
    await other.reserve("hot", "one more")
    await follow(ledger, consumer, pace=Pace(batch=1, poll=0.02, rest=0.001))
    if pruned:
        assert prune(ledger.dsn, ledger.tenant)
    await follow(ledger, second_generation(ledger))

    live = dump(ledger, 1)
    assert live == dump(ledger, 2)
    assert all(live.values()), "each table should have been tried"
    assert all(str(ledger.tenant) in str(rows) for rows in before.values())
    assert str(ledger.tenant) not in str(live)


async def operate(ledger: Ledger, command: CreateTenant | DeleteTenant) -> None:
    await ledger.store.submit(Request(ledger.tenant, uuid4(), (Item(TENANT, tenant_stream(ledger.tenant), command),), b"f"))


@pytest.mark.parametrize("batch", [1, 50])
async def test_a_quota_whose_beginning_was_skipped_is_not_begun_in_the_middle(ledger: Ledger, batch: int) -> None:
    await ledger.set_limits("anna", *LIMITS)
    await ledger.set_limits("anna", *LIMITS[:1])
    administer(
        ledger, "insert into skipped_event (partition, consumer, version, position) values (%s, 'quotas', 1, 1)", (ledger.partition,)
    )

    follower = await follow(ledger, Quotas(CODEC), pace=Pace(batch=batch, poll=0.02))

    (halt,) = follower.health().halted
    assert (halt.position, dump(ledger)["quota"]) == (1, [])
    assert "goes to version 2 where 1 was to come" in halt.reason


async def test_readers_follow_the_registry_to_another_generation(ledger: Ledger, reader: QuotaReader) -> None:
    await ledger.set_limits("anna", *LIMITS)
    await follow(ledger)
    assert await reader.get(ledger.tenant, "anna", "tokens", ledger.now) is not None
    consumer = second_generation(ledger)

    administer(ledger, "update projection set generation = 2 where name = 'quotas'")
    before = await reader.get(ledger.tenant, "anna", "tokens", ledger.now)
    await follow(ledger, consumer)
    after = await reader.get(ledger.tenant, "anna", "tokens", ledger.now, min_position=1)

    assert before is None
    assert after is not None

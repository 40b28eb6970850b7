"""The audit log shows every event of a tenant, finds it by anything, and never one of another's."""

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import product
from random import Random
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import AsyncConnection

from domain.identity.tenants import TENANT, CreateTenant, DeleteTenant, tenant_stream
from domain.quota import QUOTA, Consume, quota_stream
from domain.quota.limits import Limit
from eventstore.codec import Codec
from eventstore.pruning import prune
from eventstore.requests import Item, Request
from eventstore.store import Store
from projections import schema
from projections.audit import Audit
from projections.audit_queries import AuditFilter, AuditRow, statement
from projections.consumer import RECORDED, ProjectionBehind, Recorded
from projections.follower import Pace
from projections.readers import Readers
from tests.projections.conftest import CODEC, LIMITS, Ledger, administer, caught_up, count_events, follow, following

SUBJECTS = ("anna", "boris")
ACTORS = ("service:one", "service:one@0a1b2c3d4e5f6071", "service:two@0a1b2c3d4e5f6071", None)  # some with an origin
STEPS = Pace(batch=7, poll=0.02, rest=0.001)


def table(ledger: Ledger, generation: int = 1) -> list[tuple[Any, ...]]:
    """Every row, byte for byte."""
    return sorted(administer(ledger, f"select t::text from audit_{generation} t"))


def second_generation(ledger: Ledger) -> Audit:
    with psycopg.connect(ledger.dsn) as conn:
        schema.create_generation(conn, "audit", 2)
    return Audit(CODEC, 2)


def in_the_same_partition(ledger: Ledger) -> Ledger:
    while True:
        other = Ledger(ledger.dsn, ledger.store, uuid4(), ledger.now)
        if other.partition == ledger.partition:
            return other


async def operate(ledger: Ledger, command: CreateTenant | DeleteTenant) -> None:
    await ledger.store.submit(Request(ledger.tenant, uuid4(), (Item(TENANT, tenant_stream(ledger.tenant), command),), b"f"))


async def doings(ledger: Ledger, count: int, random: Random) -> None:
    """Commands of several actors, some of them refused, with and without cause and trace."""
    for subject in SUBJECTS:
        await ledger.set_limits(subject, Limit("life", 50))
    for number in range(count):
        subject = random.choice(SUBJECTS)
        command = Consume(subject=subject, meter="tokens", amount=random.randrange(1, 9), reservation_id=f"r{number}")
        request = Request(
            ledger.tenant,
            uuid4(),
            (Item(QUOTA, quota_stream(ledger.tenant, subject, "tokens"), command),),
            b"f",
            actor=random.choice(ACTORS),
            cause=random.choice((None, uuid4())),
            trace=random.choice((None, f"00-{random.getrandbits(128) | 1:032x}-{random.getrandbits(64) | 1:016x}-01")),
        )
        await ledger.store.submit(request)


def recorded(ledger: Ledger) -> list[AuditRow]:
    """What the log says, oldest first."""
    columns = "position, recorded_at, actor, stream, type, command_id, ordinal, cause, trace"
    rows = administer(ledger, f"select {columns} from event where tenant_id = %s order by position", (ledger.tenant,))
    found = []
    for position, at, actor, *rest in rows:
        who, _, origin = (actor or "").partition("@")
        found.append(AuditRow(position, at, None if actor is None else who, origin or None, *rest))
    return found


def meant(row: AuditRow, wanted: AuditFilter) -> bool:
    """The filter, said once more and slowly."""
    type_ = wanted.type
    return (
        (wanted.actor is None or row.actor == wanted.actor)
        and (wanted.stream is None or row.stream == wanted.stream)
        and (type_ is None or (row.type.startswith(type_) if type_.endswith(".") else row.type == type_))
        and (wanted.since is None or row.recorded_at >= wanted.since)
        and (wanted.until is None or row.recorded_at < wanted.until)
        and (wanted.after is None or row.position > wanted.after)
        and (wanted.before is None or row.position < wanted.before)
    )


async def everything(readers: Readers, ledger: Ledger, wanted: AuditFilter, *, newest_first: bool, limit: int) -> list[AuditRow]:
    """All pages."""
    found: list[AuditRow] = []
    while page := await readers.audit.page(ledger.tenant, wanted, newest_first=newest_first, limit=limit):
        assert len(page) <= limit
        found += page
        wanted = replace(wanted, before=page[-1].position) if newest_first else replace(wanted, after=page[-1].position)
    return found


async def test_every_filter_alone_and_with_others_finds_what_a_look_at_every_row_does(ledger: Ledger, readers: Readers) -> None:
    other = in_the_same_partition(ledger)
    await operate(ledger, CreateTenant(tenant_id=ledger.tenant, name="Acme"))
    for each, seed in ((ledger, 1), (other, 2), (ledger, 3)):
        await doings(each, 40, Random(seed))
    await follow(ledger, Audit(CODEC), pace=STEPS)
    rows = recorded(ledger)
    middle, late = rows[len(rows) // 3].recorded_at, rows[-len(rows) // 4].recorded_at

    tried = 0
    for actor, stream, type_, since, until in product(
        (None, "service:one", "nobody"),
        (None, quota_stream(ledger.tenant, "anna", "tokens")),
        (None, "quota.consumed", "quota.", "command.", "quot", "nothing."),
        (None, middle, rows[-1].recorded_at + timedelta(seconds=1)),
        (None, late),
    ):
        wanted = AuditFilter(actor=actor, stream=stream, type=type_, since=since, until=until)
        expected = [row for row in rows if meant(row, wanted)]
        assert await everything(readers, ledger, wanted, newest_first=False, limit=7) == expected, wanted
        assert await everything(readers, ledger, wanted, newest_first=True, limit=40) == expected[::-1], wanted
        tried += bool(expected)

    assert tried > 30
    assert {row.type for row in rows} >= {"tenant.created", "quota.limits_set", "quota.consumed", "command.refused"}
    assert len(rows) == count_events(ledger, f"tenant_id = '{ledger.tenant}'")


async def test_positions_bound_a_page(ledger: Ledger, readers: Readers) -> None:
    await doings(ledger, 10, Random(1))
    await follow(ledger, Audit(CODEC))

    found = await readers.audit.page(ledger.tenant, AuditFilter(after=3, before=8), newest_first=False)

    assert [row.position for row in found] == [4, 5, 6, 7]


async def test_pages_in_either_order_show_everything_once_while_more_is_written(ledger: Ledger, readers: Readers) -> None:
    await doings(ledger, 60, Random(1))
    await follow(ledger, Audit(CODEC))
    before = recorded(ledger)

    async with following(ledger, Audit(CODEC)) as follower:
        writing = asyncio.create_task(doings(ledger, 120, Random(2)))
        newest = await everything(readers, ledger, AuditFilter(type="quota."), newest_first=True, limit=3)
        oldest = await everything(readers, ledger, AuditFilter(), newest_first=False, limit=2)
        await writing
        await caught_up(ledger, follower)
    after = recorded(ledger)

    assert [row for row in newest if row in before] == [row for row in before[::-1] if row.type.startswith("quota.")]
    assert oldest == after[: len(oldest)]
    assert len(oldest) >= len(before)


async def test_batches_of_any_size_end_in_the_same_rows(ledger: Ledger) -> None:
    for batch in (1, 7, 50):
        await ledger.traffic(Random(batch), 60, SUBJECTS)
        await follow(ledger, Audit(CODEC), pace=Pace(batch=batch, poll=0.02, rest=0.001))

    await follow(ledger, second_generation(ledger))

    assert table(ledger, 1) == table(ledger, 2)
    assert len(table(ledger)) == count_events(ledger)


async def test_two_followers_at_once_write_every_event_once(ledger: Ledger) -> None:
    pace = Pace(batch=5, poll=0.005, poll_idle=0.005, rest=0.001, lease=0)
    async with following(ledger, Audit(CODEC), pace=pace) as one, following(ledger, Audit(CODEC), pace=pace) as other:
        while not (one.progress.events and other.progress.events):  # one may be first with all of it
            await asyncio.gather(doings(ledger, 100, Random(1)), doings(ledger, 100, Random(2)))
        await caught_up(ledger, one)
        await caught_up(ledger, other)

        assert one.progress.events
        assert other.progress.events
    assert len(table(ledger)) == count_events(ledger)


async def test_an_event_that_this_program_does_not_know_is_shown_too(ledger: Ledger, readers: Readers) -> None:
    await doings(ledger, 3, Random(1))

    await follow(ledger, Audit(Codec([TENANT])))

    assert await readers.audit.page(ledger.tenant, AuditFilter(), newest_first=False) == recorded(ledger)


async def test_a_query_waits_for_the_position_it_names(ledger: Ledger, readers: Readers) -> None:
    await ledger.set_limits("anna", *LIMITS[:1])
    await follow(ledger, Audit(CODEC))
    wanted = await ledger.send("anna", Consume(subject="anna", meter="tokens", amount=5, reservation_id="r"))

    with pytest.raises(ProjectionBehind, match=f"at position 1 of {wanted.position}"):
        await readers.audit.page(ledger.tenant, AuditFilter(), min_position=wanted.position, timeout_seconds=0.1)
    asking = asyncio.create_task(readers.audit.page(ledger.tenant, AuditFilter(), min_position=wanted.position, timeout_seconds=30))
    await follow(ledger, Audit(CODEC))

    assert [row.type for row in await asking] == ["quota.consumed", "quota.limits_set"]


async def test_a_log_that_is_not_built_yet_says_so(ledger: Ledger, readers: Readers) -> None:
    administer(ledger, "delete from projection where name = 'audit'")

    with pytest.raises(ProjectionBehind):
        await readers.audit.page(ledger.tenant, AuditFilter())


@pytest.mark.parametrize("pruned", [False, True])
async def test_of_a_deleted_tenant_only_the_deletion_is_left(ledger: Ledger, pruned: bool) -> None:
    other = in_the_same_partition(ledger)
    await operate(ledger, CreateTenant(tenant_id=ledger.tenant, name="Acme"))
    for each in (ledger, other):
        await doings(each, 20, Random(3))
    await follow(ledger, Audit(CODEC), pace=STEPS)
    assert len(table(ledger)) == count_events(ledger)

    await operate(ledger, DeleteTenant(tenant_id=ledger.tenant))
    older = await Store.open(ledger.dsn, [QUOTA])  # a process that has never heard of deletions
    await doings(Ledger(ledger.dsn, older, ledger.tenant), 4, Random(4))
    await older.drain()
    await doings(other, 4, Random(5))
    await follow(ledger, Audit(CODEC), pace=STEPS)
    if pruned:
        assert prune(ledger.dsn, ledger.tenant)
    await follow(ledger, second_generation(ledger))

    live, rebuilt = table(ledger, 1), table(ledger, 2)
    assert live == rebuilt
    ((deletion,),) = administer(ledger, "select position from event where type = 'tenant.deleted'")
    assert [type_ for type_ in await applied_until(ledger, deletion - 1) if type_ == "log.pruned"] == []
    left = administer(ledger, "select type from audit_1 where tenant_id = %s", (ledger.tenant,))
    assert left == [("tenant.deleted",)]
    assert len(live) == 1 + count_events(ledger, f"tenant_id = '{other.tenant}'")


async def applied_until(ledger: Ledger, last: int) -> list[str]:
    """The types in a table that was built anew up to a position, and is dropped again."""
    async with await AsyncConnection.connect(ledger.dsn) as conn:
        await conn.execute("delete from audit_2")
        cursor = await conn.execute(f"select {RECORDED} from event where partition = %s and position <= %s", (ledger.partition, last))
        await Audit(CODEC, 2).apply(conn, ledger.partition, [Recorded._make(row) for row in await cursor.fetchall()])
        types = await (await conn.execute("select type from audit_2")).fetchall()
        await conn.rollback()
    return [type_ for (type_,) in types]


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        (AuditFilter(), "audit_1_pkey"),
        (AuditFilter(actor="service:one"), "audit_1_by_actor"),
        (AuditFilter(stream="quota-1"), "audit_1_by_stream"),
        (AuditFilter(type="quota.consumed"), "audit_1_by_type"),
        (AuditFilter(type="quota."), "audit_1_by_type"),
        (AuditFilter(since=datetime.fromisoformat("2027-01-01T00:00:00Z")), "audit_1_by_time"),
    ],
)
async def test_each_single_filter_pages_by_an_index_without_sorting_all(ledger: Ledger, wanted: AuditFilter, index: str) -> None:
    administer(
        ledger,
        "insert into audit_1 (partition, tenant_id, position, recorded_at, actor, stream, type, command_id, ordinal) "
        "select 1, %s, n, '2027-01-01'::timestamptz + n * interval '1 second', 'service:' || n %% 50, 'quota-' || n %% 500, "
        "'quota.' || n %% 7, gen_random_uuid(), 0 from generate_series(1, 30000) n",
        (ledger.tenant,),
    )
    administer(ledger, "analyze audit_1")
    query, parameters = statement(wanted, newest_first=True)
    parameters |= {"partition": 1, "tenant_id": ledger.tenant, "limit": 20}
    with psycopg.connect(ledger.dsn) as conn:
        plan = "\n".join(row[0] for row in conn.execute("explain (analyze, buffers) " + query.replace("audit_N", "audit_1"), parameters))

    assert index in plan, plan
    buffers = [int(line.split("shared hit=")[1].split()[0]) for line in plan.splitlines() if "shared hit=" in line]
    assert max(buffers, default=0) < 400, plan

"""A read model is built anew beside the one that answers, compared with it and switched to, while everything goes on."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from random import Random
from threading import Barrier
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from structlog.testing import capture_logs

from domain.identity.tenants import TENANT, CreateTenant, DeleteTenant, tenant_stream
from domain.kernel.decider import Command, Event
from domain.quota import Reserved
from eventstore.codec import Codec
from eventstore.errors import CorruptLog
from eventstore.pruning import prune
from eventstore.requests import Item, Request
from projections import comparing, generations, quotas, rebuilding, schema, switching
from projections.building import Builder, CannotBuild, Effort
from projections.consumer import Connection, Consumer, Projection, ProjectionBehind, Recorded
from projections.follower import Follower
from projections.generations import CannotDrop, Generation, Roster, all_generations
from projections.quota_queries import QuotaReader
from projections.quotas import PROJECTION, Quotas
from projections.rebuilding import Outdated, prove, rebuild, turn
from projections.renewing import Renewal
from tests.projections.conftest import CODEC, LIMITS, QUICK, Ledger, administer, caught_up, count_events, dump, follow, until

SUBJECTS = ("anna", "boris", "vera")
SMALL = Effort(range_events=40, gathered_events=40, gathered_streams=3, chunk=7)
"""Many ranges, so that every way through a range's end is taken."""
NEXT = replace(PROJECTION, version=PROJECTION.version + 1)
"""The same fold under a newer version."""


def known(ledger: Ledger, name: str = "quotas") -> dict[int, str]:
    with psycopg.connect(ledger.dsn) as conn:
        return {each.generation: each.state for each in all_generations(conn) if each.name == name}


def answering(ledger: Ledger, name: str = "quotas") -> tuple[Any, ...]:
    (row,) = administer(ledger, "select generation, version from projection where name = %s", (name,))
    return row


class Asked(Roster):
    """Counts how often it was."""

    times = 0

    async def __call__(self, conn: Connection) -> Sequence[Consumer]:
        self.times += 1
        return await super().__call__(conn)


@asynccontextmanager
async def fed(ledger: Ledger, *projections: Projection) -> AsyncIterator[Follower]:
    """A running follower with the roster of a program that has these read models."""
    roster = Asked(CODEC, {each.name: each for each in projections or (PROJECTION,)})
    follower = Follower(ledger.dsn, range(ledger.store.partitions), roster, None, QUICK)
    task = asyncio.create_task(follower.run())
    try:
        yield follower
    finally:
        follower.stop()
        await task


async def renewed(ledger: Ledger, projection: Projection = PROJECTION, **more: Any) -> rebuilding.Outcome:
    return await rebuild(ledger.dsn, projection, CODEC, by="test", **{"effort": SMALL, "linger_seconds": 0, **more})


async def proved(ledger: Ledger) -> rebuilding.Outcome:
    return await prove(ledger.dsn, PROJECTION, CODEC, by="test", effort=SMALL)


async def test_a_generation_is_built_compared_and_switched_to(ledger: Ledger, reader: QuotaReader) -> None:
    await ledger.traffic(Random(1), 300, SUBJECTS)
    await follow(ledger)
    before = [await reader.get(ledger.tenant, subject, "tokens", ledger.now) for subject in SUBJECTS]

    outcome = await renewed(ledger)

    assert outcome.switched
    assert outcome.equal
    assert outcome.compared == ledger.store.partitions
    assert known(ledger) == {1: "old", 2: "current"}
    assert answering(ledger) == (2, PROJECTION.version)
    assert dump(ledger, 1) == dump(ledger, 2)
    assert all(dump(ledger, 2).values()), "each table should have been tried"
    assert [await reader.get(ledger.tenant, subject, "tokens", ledger.now) for subject in SUBJECTS] == before


async def test_a_generation_that_is_switched_to_has_all_that_the_first_one_has(ledger: Ledger) -> None:
    """Indexes, policies and grants: the names alone differ."""
    await renewed(ledger)
    queries = (
        "select indexdef from pg_indexes where tablename = any(%s)",
        "select tablename, policyname, roles::text, cmd, qual, with_check from pg_policies where tablename = any(%s)",
        "select table_name, grantee, privilege_type from information_schema.role_table_grants where table_name = any(%s)",
        "select relname, relrowsecurity, relforcerowsecurity from pg_class where relname = any(%s)",
    )

    def shape(generation: int) -> list[list[str]]:
        names = schema.table_names(PROJECTION, generation)
        found = [administer(ledger, query, (names,)) for query in queries]
        return [sorted(re.sub(rf"_{generation}\b|_{generation}_", "_N_", str(row)) for row in rows) for rows in found]

    assert shape(2) == shape(1)
    assert all(shape(1))


async def test_reading_and_writing_go_on_and_no_reader_goes_back(ledger: Ledger, reader: QuotaReader) -> None:
    """Also of the reader that names no position it is asked that it never sees an older state than before."""
    await ledger.traffic(Random(2), 300, SUBJECTS)
    done, seen = asyncio.Event(), [0]

    async def read() -> None:
        while not done.is_set():
            ((generation, position),) = await _snapshot(ledger)
            assert position >= seen[-1], f"generation {generation} answered at {position}, after {seen[-1]}"
            seen.append(position)
            assert await reader.list(ledger.tenant, ledger.now)

    async def write() -> None:
        while not done.is_set():
            await ledger.traffic(Random(len(seen)), 20, SUBJECTS)

    async with fed(ledger) as follower:
        await caught_up(ledger, follower)
        working = [asyncio.create_task(read()), asyncio.create_task(write())]
        for _ in range(3):
            assert (await renewed(ledger)).equal
        done.set()
        await asyncio.gather(*working)
        await caught_up(ledger, follower)

        assert answering(ledger) == (4, PROJECTION.version)
        assert (await proved(ledger)).equal
    assert seen[-1] > seen[1] > 0


async def _snapshot(ledger: Ledger) -> list[tuple[Any, ...]]:
    """Which generation answers, and where it stands, as one transaction of a reader sees it."""
    query = """
        select p.generation, coalesce(max(c.position), 0) from projection p left join checkpoint c
        on c.consumer = p.name and c.generation = p.generation and c.partition = %s
        where p.name = 'quotas' group by p.generation"""
    return await asyncio.to_thread(administer, ledger, query, (ledger.partition,))


async def test_a_min_position_holds_across_a_switch(ledger: Ledger, reader: QuotaReader) -> None:
    await ledger.set_limits("anna", *LIMITS)
    async with fed(ledger) as follower:
        await caught_up(ledger, follower)
        building = asyncio.create_task(renewed(ledger, linger_seconds=rebuilding.LINGER_SECONDS))
        for number in range(60):
            await ledger.reserve("anna", f"r{number}", ttl_seconds=9_999)
            found = await reader.get(ledger.tenant, "anna", "tokens", ledger.now, count_events(ledger), timeout_seconds=60)
            assert found is not None
            assert found.open_reservations == number + 1
        await building
    assert answering(ledger)[0] == 2


async def test_a_generation_that_differs_is_not_switched_to(ledger: Ledger) -> None:
    await ledger.traffic(Random(3), 200, SUBJECTS)
    await follow(ledger)
    administer(ledger, "update quota_1 set open = open + 1 where subject = 'boris'")
    administer(ledger, "delete from quota_reservation_1 where ctid = (select min(ctid) from quota_reservation_1)")
    outcome = await renewed(ledger)

    assert not outcome.switched
    assert answering(ledger)[0] == 1
    found = {difference.table: difference for difference in outcome.different}
    assert set(found) == {"quota_1", "quota_reservation_1"}
    assert {difference.partition for difference in outcome.different} == {ledger.partition}
    ((stream,),) = administer(ledger, "select stream from quota_1 where subject = 'boris'")
    assert found["quota_1"].keys == ((stream,),)
    assert len(found["quota_reservation_1"].keys) == 1

    assert (await renewed(ledger, force=True)).switched
    assert answering(ledger)[0] == 2
    assert (await proved(ledger)).equal


@pytest.mark.parametrize(
    "harm",
    [
        "update quota_1 set state = (state::text || ' ')::json where subject = 'anna'",
        "update quota_1 set position = position - 1 where subject = 'anna'",
        "delete from quota_1 where subject = 'vera'",
        "insert into quota_1 select partition, stream || 'x', tenant_id, 'x', meter, version, position, open, state from quota_1 limit 1",
        "update quota_reservation_1 set expires_at = expires_at + interval '1 microsecond' "
        "where ctid = (select min(ctid) from quota_reservation_1)",
        "update quota_second_1 set used = used + 1 where ctid = (select min(ctid) from quota_second_1)",
        # The effect is there and the checkpoint did not move.
        "update checkpoint c set position = position - 3, hash = (select hash from event e where e.partition = c.partition "
        "and e.position = c.position - 3) where consumer = 'quotas' and position > 3",
    ],
)
async def test_a_proof_finds_what_is_not_the_fold_of_the_log(ledger: Ledger, harm: str) -> None:
    await ledger.traffic(Random(4), 300, SUBJECTS)
    await follow(ledger)
    assert (await proved(ledger)).equal
    administer(ledger, harm)

    outcome = await proved(ledger)

    assert not outcome.equal
    assert {difference.partition for difference in outcome.different} == {ledger.partition}
    assert known(ledger) == {1: "current"}, "the proof is dropped either way"


MOVE_TO_HEAD = """
update checkpoint c set (position, hash) = (
  select position, hash from event e where e.partition = c.partition order by position desc limit 1)
where consumer = 'quotas' and partition = %s"""


async def test_a_proof_finds_a_checkpoint_that_moved_without_its_effect(ledger: Ledger) -> None:
    await ledger.traffic(Random(40), 200, SUBJECTS)
    await follow(ledger)
    await ledger.traffic(Random(41), 20, SUBJECTS)
    administer(ledger, MOVE_TO_HEAD, (ledger.partition,))

    outcome = await proved(ledger)

    assert {difference.table for difference in outcome.different} >= {"quota_1"}


async def test_a_proof_finds_a_checkpoint_of_another_log(ledger: Ledger) -> None:
    await ledger.traffic(Random(42), 50, SUBJECTS)
    await follow(ledger)
    administer(ledger, "update checkpoint set hash = sha256('') where consumer = 'quotas' and partition = %s", (ledger.partition,))

    outcome = await proved(ledger)

    assert not outcome.equal
    assert list(outcome.lost) == [ledger.partition]


async def test_many_rows_are_compared_in_chunks(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "CHUNK_ROWS", 3)
    await ledger.set_limits("anna", LIMITS[0])
    for number in range(20):
        await ledger.reserve("anna", f"r{number:02}")
    await follow(ledger)
    assert (await proved(ledger)).equal
    (stream,) = {stream for stream, _ in administer(ledger, "select stream, reservation_id from quota_reservation_1")}
    for row in ("r04", "r19"):
        administer(ledger, "update quota_reservation_1 set amount = amount + 1 where reservation_id = %s", (row,))

    outcome = await proved(ledger)

    assert [difference.keys for difference in outcome.different] == [((stream, "r04"),)], "of the first chunk that differs"
    administer(ledger, "update quota_reservation_1 set amount = 1 where reservation_id = 'r04'")
    assert [difference.keys for difference in (await proved(ledger)).different] == [((stream, "r19"),)], "and the last one is looked at"


async def test_many_things_at_once_may_build_the_same_generation(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    await ledger.traffic(Random(6), 500, SUBJECTS)
    await follow(ledger)
    begin, all_there = generations.begin, Barrier(3)

    def begun(*args: Any) -> Generation:
        made = begin(*args)
        all_there.wait(60)  # or the first might be done before the last begins, which would then build another one
        return made

    monkeypatch.setattr(generations, "begin", begun)

    outcomes = await asyncio.gather(*(renewed(ledger, NEXT, compare=False) for _ in range(3)))

    assert {outcome.generation.generation for outcome in outcomes} == {2}
    assert all(outcome.switched for outcome in outcomes)
    assert known(ledger) == {1: "old", 2: "current"}
    assert dump(ledger, 1) == dump(ledger, 2)


async def test_one_waits_while_another_gets_on_with_it(ledger: Ledger) -> None:
    async with turn(ledger.dsn, "quotas") as first:
        async with turn(ledger.dsn, "tenants") as elsewhere:
            pass
        waiting = asyncio.create_task(_turn(ledger, patience_seconds=60))
        await asyncio.sleep(0)
        async with turn(ledger.dsn, "quotas", patience_seconds=0.3) as impatient:
            pass
        assert not waiting.done()
    assert (first, elsewhere, impatient) == (True, True, False)
    assert await waiting


async def _turn(ledger: Ledger, patience_seconds: float) -> bool:
    async with turn(ledger.dsn, "quotas", patience_seconds) as ours:
        return ours


# Versions and shapes


async def test_a_newer_fold_is_built_by_the_worker_and_an_older_program_reads_on(ledger: Ledger, reader: QuotaReader) -> None:
    await ledger.traffic(Random(7), 200, SUBJECTS)
    await follow(ledger)
    service = Renewal(ledger.dsn, CODEC, {"quotas": NEXT}, every_seconds=0.05)
    running = asyncio.create_task(service.run())
    async with fed(ledger, NEXT) as newer:
        await until(lambda: answering(ledger) == (2, NEXT.version))
        await caught_up(ledger, newer)
        await ledger.traffic(Random(8), 50, SUBJECTS)
        await caught_up(ledger, newer)
    service.stop()
    await running
    newest = dump(ledger, 2)
    await ledger.traffic(Random(9), 50, SUBJECTS)

    with capture_logs() as logs:
        async with fed(ledger) as older:
            await until(lambda: older.health().trouble is None)
            roster = older._roster
            assert isinstance(roster, Asked)
            await until(lambda: roster.times > 2)
            assert await reader.list(ledger.tenant, ledger.now)
            assert older.progress.events == 0
    assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == ["projection.not_fed"]
    with pytest.raises(Outdated):
        await renewed(ledger)
    schema.create(ledger.dsn)

    assert dump(ledger, 2) == newest
    assert known(ledger) == {1: "old", 2: "current"}


async def test_an_older_service_builds_nothing(ledger: Ledger) -> None:
    await renewed(ledger, NEXT, compare=False)
    looked = 0

    class Counted(Renewal):
        async def _renew(self, projection: Projection) -> None:
            nonlocal looked
            await super()._renew(projection)
            looked += 1

    service = Counted(ledger.dsn, CODEC, {"quotas": PROJECTION}, every_seconds=0.01)
    with capture_logs() as logs:
        running = asyncio.create_task(service.run())
        await until(lambda: looked > 1)
        service.stop()
        await running

    assert logs == []
    assert known(ledger) == {1: "old", 2: "current"}


def wider(metadata: Any, generation: int) -> None:
    """Tables of another shape."""
    PROJECTION.define(metadata, generation)
    from sqlalchemy import Column, Text

    metadata.tables[f"quota_{generation}"].append_column(Column("note", Text))


async def test_programs_of_two_shapes_read_side_by_side(ledger: Ledger, reader: QuotaReader) -> None:
    await ledger.traffic(Random(9), 200, SUBJECTS)
    shaped = replace(NEXT, shape=PROJECTION.shape + 1, define=wider)
    async with fed(ledger) as old:
        await caught_up(ledger, old)
        await renewed(ledger, shaped)
        async with fed(ledger, shaped) as new:
            await ledger.traffic(Random(10), 50, SUBJECTS)
            await caught_up(ledger, old)
            await caught_up(ledger, new)
            expected = [await ledger.view(subject, ledger.now) for subject in SUBJECTS]
            assert [await reader.get(ledger.tenant, subject, "tokens", ledger.now) for subject in SUBJECTS] == expected

    registered = administer(ledger, "select shape, generation, version from projection where name = 'quotas' order by 1")
    assert registered == [(1, 1, 1), (2, 2, 2)]
    assert dump(ledger, 1)["quota_reservation"] == dump(ledger, 2)["quota_reservation"]
    assert administer(ledger, "select count(*) from quota_2 where note is null") == administer(ledger, "select count(*) from quota_1")

    generations.drop(ledger.dsn, "quotas", 1)  # no program of the old shape is left
    assert administer(ledger, "select shape from projection where name = 'quotas'") == [(2,)]
    with pytest.raises(ProjectionBehind):
        await reader.get(ledger.tenant, "anna", "tokens", ledger.now)


async def test_a_read_model_that_comes_to_a_store_with_a_log_answers_when_it_is_built(ledger: Ledger, reader: QuotaReader) -> None:
    await ledger.traffic(Random(11), 100, SUBJECTS)
    administer(ledger, "delete from projection where name = 'quotas'; delete from projection_generation where name = 'quotas'")
    administer(ledger, "drop table quota_1, quota_reservation_1, quota_second_1")

    assert "quotas" not in schema.create(ledger.dsn)
    with pytest.raises(ProjectionBehind):
        await reader.get(ledger.tenant, "anna", "tokens", ledger.now)
    await renewed(ledger)

    expected = [await ledger.view(subject, ledger.now) for subject in SUBJECTS]
    assert [await reader.get(ledger.tenant, subject, "tokens", ledger.now) for subject in SUBJECTS] == expected


def test_the_registry_of_an_earlier_release_is_kept(database_dsn: str) -> None:
    with psycopg.connect(database_dsn) as conn:
        conn.execute("create table projection (name text primary key, generation int not null, version int not null)")
        conn.execute("grant select on projection to holdbook_reader, holdbook_follower")
        conn.execute("insert into projection values ('quotas', 3, 1), ('forgotten', 1, 1)")

    first, second = schema.create(database_dsn), schema.create(database_dsn)

    assert first == second
    assert first["quotas"] == 3
    with psycopg.connect(database_dsn) as conn:
        found = conn.execute("select shape, generation, version from projection where name = 'quotas'").fetchall()
        tables = conn.execute("select tables, state from projection_generation where name = 'quotas'").fetchall()
    assert found == [(1, 3, 1)]
    assert tables == [(["quota_3", "quota_reservation_3", "quota_second_3"], "current")]


# What may come in between


async def test_a_builder_whose_generation_was_dropped_says_so(ledger: Ledger) -> None:
    await ledger.traffic(Random(12), 100, SUBJECTS)
    made = generations.begin(ledger.dsn, PROJECTION, "building", "test")
    async with Builder.open(ledger.dsn, PROJECTION, made, CODEC, SMALL) as builder:
        generations.drop(ledger.dsn, "quotas", made.generation)
        with pytest.raises(CannotBuild, match="dropped"):
            await builder.advance(await builder.heads())
    assert known(ledger) == {1: "current"}
    assert generations.begin(ledger.dsn, PROJECTION, "building", "test").generation == made.generation + 1, "a number is never used again"


async def test_an_event_that_the_fold_cannot_bear_stops_the_build_there(ledger: Ledger) -> None:
    await ledger.traffic(Random(13), 200, SUBJECTS)

    ((poison,),) = administer(ledger, "select payload::text from event where partition = %s and position = 133", (ledger.partition,))

    class Picky(Quotas):
        def __init__(self, codec: Codec, generation: int) -> None:
            super().__init__(codec, generation)
            self.decode = self.taste

        def taste(self, stored: str, payload: str) -> Event:
            if payload == poison:
                raise ValueError("no taste for it")
            return CODEC.decode(stored, payload)

    picky = replace(NEXT, consumer=Picky)
    with capture_logs(), pytest.raises(CannotBuild, match="Position 133 "):
        await renewed(ledger, picky, compare=False)

    assert answering(ledger) == (1, 1)
    (stopped,) = administer(ledger, "select position from checkpoint where generation = 2 and stopped is not null")
    assert stopped == (132,)
    assert (await renewed(ledger, NEXT, compare=False)).switched, "the next attempt with a better fold goes on there"
    await follow(ledger)
    assert dump(ledger, 1) == dump(ledger, 2)


async def test_a_gap_in_the_log_ends_a_build(ledger: Ledger) -> None:
    await ledger.traffic(Random(14), 100, SUBJECTS)
    assert count_events(ledger) > 20
    administer(ledger, "delete from event where partition = %s and position = 20", (ledger.partition,))

    with pytest.raises(CorruptLog, match=r"Position 20 of partition .* is missing"):
        await renewed(ledger, NEXT, compare=False)
    assert answering(ledger) == (1, 1)


async def test_a_build_on_a_log_that_lost_its_end_is_begun_again(ledger: Ledger) -> None:
    await ledger.traffic(Random(15), 100, SUBJECTS)
    await follow(ledger)
    made = generations.begin(ledger.dsn, PROJECTION, "building", "test")
    async with Builder.open(ledger.dsn, PROJECTION, made, CODEC, SMALL) as builder:
        await builder.advance(await builder.heads())
        administer(ledger, "delete from event where partition = %s and position > %s", (ledger.partition, count_events(ledger) - 9))
        administer(ledger, "update log_partition set epoch = epoch + 1 where partition = %s", (ledger.partition,))
        with pytest.raises(CannotBuild, match="begin again"):
            await builder.advance(await builder.heads())

    outcome = await renewed(ledger)

    assert outcome.switched, "the one that answered is wrong for certain"
    assert set(outcome.lost) == {ledger.partition}
    assert known(ledger) == {1: "old", 3: "current"}
    async with fed(ledger) as follower:
        await caught_up(ledger, follower)
        assert follower.health().ok
        assert (await proved(ledger)).equal


async def test_a_live_generation_that_nobody_feeds_is_caught_up_with_but_not_waited_for(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuilding, "_PATIENCE_SECONDS", 0.2)
    await ledger.traffic(Random(16), 100, SUBJECTS)
    await follow(ledger)
    made = generations.begin(ledger.dsn, PROJECTION, "building", "test")
    await ledger.traffic(Random(17), 30, SUBJECTS)
    async with Builder.open(ledger.dsn, PROJECTION, made, CODEC, SMALL) as builder:
        await builder.advance(await builder.heads())

    outcome = await renewed(ledger)

    assert not outcome.switched
    assert list(outcome.apart) == [ledger.partition]
    await follow(ledger)
    assert (await renewed(ledger)).switched


async def of_tenant(ledger: Ledger, command: Command) -> None:
    item = Item(TENANT, tenant_stream(ledger.tenant), command)
    await ledger.store.submit(Request(ledger.tenant, uuid4(), (item,), b"f", occurred_at=ledger.now))


@pytest.mark.parametrize("effort", [SMALL, Effort(chunk=5)])
async def test_a_tenant_that_was_deleted_is_in_no_generation(ledger: Ledger, effort: Effort) -> None:
    """Deleted in the middle of what is folded at once, with another tenant's events before and behind, pruned and not yet pruned."""
    gone = Ledger(ledger.dsn, ledger.store, uuid4())
    while gone.partition != ledger.partition:
        gone.tenant = uuid4()
    await of_tenant(gone, CreateTenant(tenant_id=gone.tenant, name="Gone", zone="UTC"))
    for seed in range(3):
        await ledger.traffic(Random(seed), 40, SUBJECTS)
        await gone.traffic(Random(seed + 50), 40, SUBJECTS)
    await follow(ledger)
    await of_tenant(gone, DeleteTenant(tenant_id=gone.tenant))
    await ledger.traffic(Random(9), 40, SUBJECTS)
    await follow(ledger)

    before = await prove(ledger.dsn, PROJECTION, CODEC, by="test", effort=effort)
    assert prune(ledger.dsn, gone.tenant) > 50
    after = await prove(ledger.dsn, PROJECTION, CODEC, by="test", effort=effort)

    assert before.equal
    assert after.equal
    assert administer(ledger, "select distinct tenant_id from quota_1") == [(ledger.tenant,)]


async def test_what_answers_cannot_be_dropped_and_what_is_old_can(ledger: Ledger) -> None:
    with pytest.raises(CannotDrop):
        generations.drop(ledger.dsn, "quotas", 1)
    with pytest.raises(CannotDrop):
        generations.drop(ledger.dsn, "quotas", 7)
    await renewed(ledger)
    generations.drop(ledger.dsn, "quotas", 1)

    assert known(ledger) == {2: "current"}
    assert administer(ledger, "select count(*) from pg_class where relname like 'quota%%1'") == [(0,)]
    assert administer(ledger, "select count(*) from checkpoint where consumer = 'quotas' and generation = 1") == [(0,)]
    with pytest.raises(CannotDrop):
        generations.drop(ledger.dsn, "quotas", 1)


async def test_a_query_whose_generation_is_switched_and_dropped_under_it_is_answered(
    ledger: Ledger, reader: QuotaReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has read the registry and has not come to the tables yet."""
    await ledger.set_limits("anna", *LIMITS)
    await follow(ledger)
    expected = await reader.get(ledger.tenant, "anna", "tokens", ledger.now)
    rows, times = reader._rows, 0

    async def meanwhile(*args: Any) -> Any:
        nonlocal times
        times += 1
        if times == 1:
            await renewed(ledger)
            await asyncio.to_thread(generations.drop, ledger.dsn, "quotas", 1)
        return await rows(*args)

    monkeypatch.setattr(reader, "_rows", meanwhile)

    assert await reader.get(ledger.tenant, "anna", "tokens", ledger.now) == expected
    assert times == 2


async def test_a_drop_waits_for_a_query_under_way(ledger: Ledger) -> None:
    await ledger.set_limits("anna", *LIMITS)
    await follow(ledger)
    await renewed(ledger)
    with psycopg.connect(ledger.dsn) as conn:
        conn.execute("select count(*) from quota_second_1")
        dropping = asyncio.create_task(asyncio.to_thread(generations.drop, ledger.dsn, "quotas", 1))
        await asyncio.sleep(0.5)
        assert not dropping.done()
        found = conn.execute("select count(*) from quota_1").fetchone()
        assert found == (1,), "the query finds the tables it has not come to yet"
        conn.rollback()
    await dropping


async def test_a_switch_to_a_generation_that_is_behind_is_refused(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a builder believes of itself: what counts is what stands in the checkpoints."""
    await ledger.traffic(Random(18), 60, SUBJECTS)
    await follow(ledger)
    made = generations.begin(ledger.dsn, PROJECTION, "building", "test")
    async with Builder.open(ledger.dsn, PROJECTION, made, CODEC, SMALL) as builder:
        await builder.advance(await builder.heads())
        administer(ledger, "update checkpoint set position = position - 1 where generation = 2 and position > 0")
        with pytest.raises(switching.Behind):
            await switching.switch(ledger.dsn, builder, PROJECTION)
    assert answering(ledger) == (1, 1)


async def test_what_answers_is_held_while_the_registry_changes(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a follower might bring it further than the one that is to follow it."""
    await ledger.traffic(Random(19), 60, SUBJECTS)
    await follow(ledger)
    register = switching._register
    move = "set lock_timeout = '100ms'; update checkpoint set position = position where consumer = 'quotas' and generation = 1"

    async def watched(*args: Any) -> None:
        with pytest.raises(psycopg.errors.LockNotAvailable):
            await asyncio.to_thread(administer, ledger, move)
        await register(*args)

    monkeypatch.setattr(switching, "_register", watched)

    assert (await renewed(ledger)).switched


def test_a_generation_says_whose_fold_it_is() -> None:
    made = Generation("quotas", 1, 1, 1, "current")

    assert made.fits(PROJECTION)
    assert not made.fits(NEXT)
    assert not made.fits(replace(PROJECTION, shape=2))


class Buggy(Quotas):
    """Forgets every seventh reservation."""

    def __init__(self, codec: Codec, generation: int = 1) -> None:
        super().__init__(codec, generation)
        self._taken = 0

    async def apply(self, conn: Connection, partition: int, rows: Sequence[Recorded]) -> Callable[[], None]:
        after = await super().apply(conn, partition, rows)
        await conn.execute(
            f"delete from quota_reservation_{self.generation} where partition = %s and reservation_id like '%%7'", (partition,)
        )
        return after


async def test_a_projection_with_a_bug_is_found_out_and_mended_by_a_new_generation_without_downtime(
    ledger: Ledger, reader: QuotaReader
) -> None:
    buggy = replace(PROJECTION, consumer=Buggy)
    fixed = NEXT
    await ledger.set_limits("anna", LIMITS[0])
    done, reads, writes = asyncio.Event(), 0, 0

    async def read() -> None:
        nonlocal reads
        while not done.is_set():
            assert await reader.get(ledger.tenant, "anna", "tokens", ledger.now) is not None
            reads += 1

    async def write() -> None:
        nonlocal writes
        while not done.is_set():
            assert not (await ledger_send(ledger, writes)).refused
            writes += 1

    async with fed(ledger, buggy) as old:
        await caught_up(ledger, old)
        working = [asyncio.create_task(read()), asyncio.create_task(write())]
        await until(lambda: writes > 100)
        assert not (await proved(ledger)).equal, "the proof tells that the fold has a bug"
        # The next release comes: its worker starts beside the old one, builds and switches.
        async with fed(ledger, fixed) as new:
            service = Renewal(ledger.dsn, CODEC, {"quotas": fixed}, every_seconds=0.05)
            running = asyncio.create_task(service.run())
            await until(lambda: answering(ledger)[1] == fixed.version)
            so_far = writes
            await until(lambda: writes > so_far + 50 and reads > 20)
            done.set()
            await asyncio.gather(*working)
            await caught_up(ledger, new)
            service.stop()
            await running
            proof = await prove(ledger.dsn, fixed, CODEC, by="test")

    assert proof.equal
    assert reads > 20
    assert [subject for (subject,) in administer(ledger, "select reservation_id from quota_reservation_3 where reservation_id like '%%7'")]
    assert not administer(ledger, "select reservation_id from quota_reservation_1 where reservation_id like '%%7'")


async def ledger_send(ledger: Ledger, number: int) -> Any:
    from domain.quota import Reserve

    return await ledger.send("anna", Reserve(subject="anna", meter="tokens", amount=1, reservation_id=f"r{number}", ttl_seconds=9_999))


def test_an_event_of_the_fold_is_what_the_tests_take_it_for() -> None:
    assert Reserved.event_name == "quota.reserved"
    assert quotas.NAME == "quotas"

"""Listeners hear each event once and in order, whoever dies, and are told what they cannot hear."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Sequence
from functools import partial
from uuid import UUID

import pytest

from adapters.nats.bus import WrongStream
from adapters.nats.listening import Event, Heard, Listener, Missed, NewEpoch
from adapters.nats.names import Place
from eventstore.store import partition_of
from tests.support.nats import Servers, ask, leader
from tests.support.nats_listener import TABLES, ListenerProcess
from tests.support.nats_worlds import BusWorld, caught_up, until
from tests.support.nats_worlds import publishing as running
from tests.support.worlds import TENANT


class Ear:
    """A listener at work in this process, and what it heard."""

    def __init__(self, listener: Listener) -> None:
        self.listener, self.heard = listener, list[Heard]()

    @property
    def events(self) -> list[Event]:
        return [each for each in self.heard if isinstance(each, Event)]

    def has(self, events: int) -> bool:
        return len(self.events) >= events

    async def note(self, heard: Heard) -> None:
        self.heard.append(heard)

    def assert_whole(self, world: BusWorld) -> None:
        """Exactly the log, in order per partition."""
        for partition, rows in world.logs().items():
            mine = [each for each in self.events if each.partition == partition]
            assert [(each.place.position, each.hash, each.tenant_id, each.type) for each in mine] == [
                (row.position, row.hash, row.tenant_id, row.type) for row in rows
            ]
        assert len(self.events) == world.count()


@contextlib.asynccontextmanager
async def listening(listener: Listener) -> AsyncIterator[Ear]:
    ear = Ear(listener)
    task = asyncio.create_task(listener.run(ear.note))
    try:
        yield ear
    finally:
        listener.stop()
        await asyncio.wait_for(task, 60)


async def test_a_listener_hears_what_is_there_and_what_comes(world: BusWorld, servers: Servers) -> None:
    await world.fill(300, tenants=20)
    async with running(world.dsn, servers) as publisher:
        await caught_up(publisher, world)
        async with listening(Listener(servers.url, ahead=100)) as ear:
            await world.fill(300, "b", tenants=20)
            await until(lambda: len(ear.events) >= world.count())
            assert ear.listener.trouble is None
            assert ear.events[0].cloud_event()["sequence"] == "1"
        ear.assert_whole(world)


async def test_a_listener_resumes_behind_its_places(world: BusWorld, servers: Servers) -> None:
    await world.fill(200, tenants=9)
    async with running(world.dsn, servers) as publisher:
        await caught_up(publisher, world)
    async with listening(Listener(servers.url)) as ear:
        await until(lambda: len(ear.events) >= world.count())
    rng = random.Random(5)
    for _ in range(10):
        done = {partition: Place(0, rng.randint(0, rows[-1].position)) for partition, rows in world.logs().items()}
        async with listening(Listener(servers.url, resume=done)) as again:
            left = [event for event in ear.events if event.place > done[event.partition]]
            await until(partial(again.has, len(left)))
        assert again.events == left


async def test_effects_and_places_in_one_transaction_are_exactly_once_although_the_listener_is_killed(
    world: BusWorld, servers: Servers
) -> None:
    world.admin.execute(TABLES)
    rng = random.Random(3)

    def heard() -> int:
        row = world.admin.execute("select count(*) from heard").fetchone()
        assert row is not None
        return int(row[0])

    def at_least(count: int) -> bool:
        return heard() >= count

    async with running(world.dsn, servers) as publisher:
        await world.fill(50, tenants=5)
        await caught_up(publisher, world)
        for round_ in range(4):
            process, before = ListenerProcess(world.dsn, servers.url), heard()
            try:
                await world.fill(100, f"r{round_}-", tenants=5)
                await until(partial(at_least, before + rng.randint(1, 60)))
            finally:
                process.kill()
        last = ListenerProcess(world.dsn, servers.url)
        try:
            await until(lambda: heard() >= world.count())
        finally:
            last.kill()
    found = world.admin.execute("select partition, position, id from heard order by number").fetchall()
    for partition, rows in world.logs().items():
        mine = [row[1:] for row in found if row[0] == partition]
        assert mine == [(row.position, f"{row.command_id}:{row.ordinal}") for row in rows]
    assert len(found) == world.count()


async def test_a_listener_outlives_its_server(world: BusWorld, servers: Servers) -> None:
    [node] = servers.nodes
    async with running(world.dsn, servers, retry_longest=0.1) as publisher, listening(await _first(world, publisher, servers)) as ear:
        for round_ in range(5):
            await world.fill(60, f"r{round_}-", tenants=5)
            await until(partial(ear.has, 60 * round_ + 1))
            node.kill()
            node.start()
        await until(lambda: len(ear.events) >= world.count())
    ear.assert_whole(world)


async def test_a_listener_outlives_the_leader_of_three(world: BusWorld, cluster: Servers) -> None:
    async with running(world.dsn, cluster, retry_longest=0.1) as publisher, listening(await _first(world, publisher, cluster)) as ear:
        await world.fill(60, "a", tenants=5)
        await until(lambda: len(ear.events) > 30)
        led = cluster.named(await leader(cluster.url))
        led.kill()
        await world.fill(60, "b", tenants=5)
        await until(lambda: len(ear.events) >= world.count(), 60)
        led.start()
    ear.assert_whole(world)


async def _first(world: BusWorld, publisher: object, servers: Servers) -> Listener:
    """A listener on a stream that is there."""
    from adapters.nats.publishing import Publisher

    assert isinstance(publisher, Publisher)
    await until(lambda: publisher.trouble is None, 60)
    await world.fill(1)
    return Listener(servers.url)


async def test_a_listener_goes_on_without_its_consumer(world: BusWorld, servers: Servers) -> None:
    async with running(world.dsn, servers) as publisher, listening(await _first(world, publisher, servers)) as ear:
        await world.fill(30)
        await until(lambda: len(ear.events) >= world.count())
        for name in (await ask(servers.url, "CONSUMER.NAMES.HOLDBOOK", {}))["consumers"]:
            await ask(servers.url, f"CONSUMER.DELETE.HOLDBOOK.{name}", {})
        await world.fill(30, "b")
        await until(lambda: len(ear.events) >= world.count())
    ear.assert_whole(world)
    assert (await ask(servers.url, "CONSUMER.NAMES.HOLDBOOK", {}))["consumers"] == []


@pytest.mark.parametrize("types", [None, ["till.taken"], ["till.>"], ["till.opened", "till.taken"]])
async def test_a_listener_may_ask_for_tenants_and_types(world: BusWorld, servers: Servers, types: Sequence[str] | None) -> None:
    await world.fill(60, tenants=6)
    wanted = {TENANT, UUID(int=TENANT.int + 3)}
    partitions = {partition_of(tenant, 64) for tenant in wanted}
    async with running(world.dsn, servers) as publisher:
        await caught_up(publisher, world)
    rows = [row for log in world.logs().values() for row in log if row.tenant_id in wanted]
    rows = [row for row in rows if types != ["till.taken"] or row.type == "till.taken"]
    for asked in (None, partitions):
        async with listening(Listener(servers.url, tenants=wanted, types=types, partitions=asked)) as ear:
            await until(lambda: len(ear.events) >= len(rows))
        assert sorted(each.hash for each in ear.events) == sorted(row.hash for row in rows)


@pytest.mark.parametrize("types", [None, ["till.taken"]], ids=["everything", "one type"])
async def test_a_new_epoch_is_told_before_its_events(world: BusWorld, servers: Servers, types: Sequence[str] | None) -> None:
    def wanted(after: int = 0) -> list[bytes]:
        return [row.hash for row in world.rows()[after:] if types is None or row.type in types]

    await world.fill(30)
    async with running(world.dsn, servers) as publisher:
        await caught_up(publisher, world)
        last = len(world.rows())
        async with listening(Listener(servers.url, partitions=[world.partition], types=types)) as ear:
            await until(lambda: len(ear.events) >= len(wanted()))
            before = len(ear.events)
            world.lose_tail(10)
            await world.fill(20, "b")
            await until(lambda: len(ear.events) >= before + len(wanted(last - 10)))
    told = NewEpoch(world.partition, Place(1, last - 10), Place(0, last))
    number = ear.heard.index(told)
    assert told.rewinds
    assert {each.place.epoch for each in ear.heard[:number]} == {0}
    after = [each for each in ear.heard[number + 1 :] if isinstance(each, Event)]
    assert [each.hash for each in after] == wanted(last - 10)
    for place, heard in ((Place(0, last), ear.heard[number:]), (Place(1, last - 10), ear.heard[number + 1 :])):
        async with listening(Listener(servers.url, partitions=[world.partition], types=types, resume={world.partition: place})) as again:
            await until(partial(again.has, len([each for each in heard if isinstance(each, Event)])))
        assert again.heard == heard


async def test_who_undoes_what_is_void_has_the_log_after_any_number_of_lost_tails(world: BusWorld, servers: Servers) -> None:
    rng = random.Random(11)
    mine: list[bytes] = []

    async def fold(heard: Heard) -> None:
        if heard.partition != world.partition:
            return
        del mine[heard.place.position - isinstance(heard, Event) :]
        if isinstance(heard, Event):
            mine.append(heard.hash)

    await world.fill(20, tenants=3)
    async with running(world.dsn, servers) as publisher:
        await caught_up(publisher, world)
        listener = Listener(servers.url)
        task = asyncio.create_task(listener.run(fold))
    for round_ in range(8):
        await world.fill(rng.randint(1, 40), f"a{round_}-", tenants=3)
        if rng.random() < 0.7:
            async with running(world.dsn, servers) as publisher:
                await caught_up(publisher, world)
        if rng.random() < 0.5:
            await world.forget()  # then nobody knows of the tail, and the epoch stays
        world.lose_tail(rng.randint(1, 30))
        await world.fill(rng.randint(1, 40), f"b{round_}-", tenants=3)
    async with running(world.dsn, servers) as publisher:
        await caught_up(publisher, world)
        await until(lambda: mine == [row.hash for row in world.rows()])
    listener.stop()
    await asyncio.wait_for(task, 60)


async def test_missing_events_are_not_passed_over(world: BusWorld, servers: Servers) -> None:
    await world.fill(30)
    async with running(world.dsn, servers) as publisher:
        await caught_up(publisher, world)
    await ask(servers.url, "STREAM.PURGE.HOLDBOOK", {"seq": 11})
    with pytest.raises(Missed) as missed:
        await asyncio.wait_for(Listener(servers.url).run(Ear(Listener(servers.url)).note), 60)
    assert (missed.value.after, missed.value.found) == (Place(0, 0), Place(0, 11))
    async with listening(Listener(servers.url, begin="oldest")) as ear:
        await until(lambda: len(ear.events) >= len(world.rows()) - 10)
    assert [each.hash for each in ear.events] == [row.hash for row in world.rows()[10:]]


async def test_a_listener_may_begin_with_what_is_new(world: BusWorld, servers: Servers) -> None:
    await world.fill(30)
    async with running(world.dsn, servers) as publisher:
        await caught_up(publisher, world)
        listener = Listener(servers.url, begin="new")
        before = len(world.rows())
        async with listening(listener) as ear:
            await until(lambda: listener.places.get(world.partition) is not None)
            await world.fill(20, "b")
            await until(lambda: len(ear.events) >= len(world.rows()) - before)
    assert [each.hash for each in ear.events] == [row.hash for row in world.rows()[before:]]


async def test_a_slow_listener_holds_few_messages(world: BusWorld, servers: Servers) -> None:
    await world.fill(300)
    async with running(world.dsn, servers) as publisher:
        await caught_up(publisher, world)
    listener, go_on, met = Listener(servers.url, ahead=20), asyncio.Event(), asyncio.Event()

    async def slow(_: Heard) -> None:
        met.set()
        await go_on.wait()

    task = asyncio.create_task(listener.run(slow))
    await met.wait()
    [consumer] = (await ask(servers.url, "CONSUMER.LIST.HOLDBOOK", {}))["consumers"]
    assert 0 < consumer["delivered"]["consumer_seq"] <= 20
    listener.stop()
    go_on.set()
    await asyncio.wait_for(task, 60)


async def test_a_stream_that_is_not_there_is_told_at_once(servers: Servers) -> None:
    with pytest.raises(WrongStream, match="no stream NOWHERE"):
        await asyncio.wait_for(Listener(servers.url, "NOWHERE").run(Ear(Listener(servers.url)).note), 60)

"""Publishers and servers are killed, stopped, doubled and cut off; the stream equals the log."""

import asyncio
import contextlib
import random
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from adapters.nats import stream
from adapters.nats.batches import Message, Outrun, append
from adapters.nats.bus import connected
from adapters.nats.names import Place
from adapters.nats.publishing import Options, Publisher
from tests.support.nats import Servers, everything, leader, of_partition
from tests.support.nats_publisher import POINTS, PublisherProcess
from tests.support.nats_worlds import BusWorld, assert_equal, caught_up, stored, until
from tests.support.nats_worlds import publishing as running

SHORT = {"batch_events": 40, "duplicates_seconds": 0.1}
"""Many batches, and a duplicate window that is over before anybody comes back."""

Start = Callable[..., PublisherProcess]


@pytest.fixture
def start(world: BusWorld, servers: Servers, tmp_path: Path) -> Iterator[Start]:
    """Starts publishers in processes of their own; none outlives the test."""
    started: list[PublisherProcess] = []

    def starter(options: dict[str, Any], **plan: Any) -> PublisherProcess:
        given = {"url": servers.url, **options}
        started.append(PublisherProcess(tmp_path, f"publisher{len(started)}", world.dsn, given, **plan))
        return started[-1]

    yield starter
    for process in started:
        process.end()


async def test_the_stream_equals_the_log(world: BusWorld, servers: Servers) -> None:
    await world.fill(300, tenants=20)
    async with running(world.dsn, servers) as publisher:
        await caught_up(publisher, world)
        await world.fill(300, "b", tenants=20)
        await caught_up(publisher, world)
        assert publisher.published == world.count()
    kept = await everything(servers.url)
    assert_equal(kept, world.logs())
    first = kept[0]
    assert first.subject == f"holdbook.events.{first.partition}.{first.body['partitionkey']}.{first.body['type']}"
    assert (first.body["sequence"], first.body["epoch"], first.body["partition"]) == ("1", 0, first.partition)


@pytest.mark.parametrize("window_seconds", [0.1, 100.0], ids=["long after", "soon after"])
@pytest.mark.parametrize("point", POINTS)
async def test_a_publisher_killed_at_a_named_point_leaves_nothing_out_and_nothing_twice(
    world: BusWorld, servers: Servers, start: Start, point: str, window_seconds: float
) -> None:
    """The next one comes when no message id is remembered any more, or while all are."""
    options = {"batch_events": 40, "duplicates_seconds": window_seconds}
    await world.fill(200)
    killed = start(options, point=point, turn=3, signal=int(signal.SIGKILL))
    await asyncio.to_thread(killed.wait_until_met)
    assert await asyncio.to_thread(killed.process.wait) == -signal.SIGKILL
    if window_seconds < 1:
        await asyncio.sleep(2.5 * window_seconds)
    async with running(world.dsn, servers, **options) as publisher:
        await caught_up(publisher, world)
    assert_equal(await everything(servers.url), world.logs())


@pytest.mark.parametrize("point", ["but_commit", "before"])
async def test_a_publisher_that_wakes_up_after_another_took_over_changes_nothing(
    world: BusWorld, servers: Servers, start: Start, point: str
) -> None:
    await world.fill(200)
    paused = start(SHORT, point=point, turn=3, signal=int(signal.SIGSTOP))
    await asyncio.to_thread(paused.wait_until_met)
    async with running(world.dsn, servers, **SHORT) as publisher:
        await caught_up(publisher, world)
        await asyncio.sleep(2.5 * SHORT["duplicates_seconds"])
        paused.process.send_signal(signal.SIGCONT)
        await until(paused.after)
        assert paused.after() == "Outrun"
        await world.fill(100, "b")
        await caught_up(publisher, world)
    paused.end()
    async with running(world.dsn, servers, **SHORT) as publisher:
        await caught_up(publisher, world)
    assert_equal(await everything(servers.url), world.logs())


async def test_publishers_at_once_do_not_double_and_the_survivor_goes_on(world: BusWorld, servers: Servers) -> None:
    async with running(world.dsn, servers, **SHORT) as one:
        async with running(world.dsn, servers, **SHORT) as other:
            await asyncio.gather(*(world.fill(150, prefix, tenants=10) for prefix in "abcd"))
            await until(lambda: one.published + other.published >= world.count())
        await world.fill(100, "e", tenants=10)
        await caught_up(one, world)
        assert one.published + other.published == world.count()
    assert_equal(await everything(servers.url), world.logs())


async def test_a_server_killed_at_random_under_load_loses_and_doubles_nothing(world: BusWorld, servers: Servers) -> None:
    node, rng, kills, loop = servers.nodes[0], random.Random(7), 0, asyncio.get_running_loop()
    end = loop.time() + 6
    writing = asyncio.create_task(_write_until(world, lambda: kills > 5 and loop.time() >= end))
    async with running(world.dsn, servers, duplicates_seconds=0.1, batch_events=100, retry_longest=0.1) as publisher:
        while not writing.done():
            before = publisher.published
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(_published_more(publisher, before), 2)
            await asyncio.sleep(rng.uniform(0, 0.15))
            node.kill()
            kills += 1
            node.start()
            await asyncio.to_thread(node.ready)
        await writing
        await caught_up(publisher, world)
    assert kills > 5
    assert_equal(await everything(servers.url), world.logs())


async def _write_until(world: BusWorld, over: Callable[[], bool]) -> None:
    number = 0
    while not over():
        await world.fill(100, f"w{number}-", tenants=5)
        number += 1
        await asyncio.sleep(0.02)


async def _published_more(publisher: Publisher, before: int) -> None:
    await until(lambda: publisher.published > before)


async def test_a_cluster_whose_leader_is_killed_loses_and_doubles_nothing(world: BusWorld, cluster: Servers) -> None:
    async with running(world.dsn, cluster, duplicates_seconds=0.1, batch_events=50, retry_longest=0.2) as publisher:
        await world.fill(100, tenants=5)
        await caught_up(publisher, world)
        loop, before = asyncio.get_running_loop(), publisher.published
        end = loop.time() + 3
        writing = asyncio.create_task(_write_until(world, lambda: loop.time() >= end))
        await _published_more(publisher, before)
        led = cluster.named(await leader(cluster.url))
        led.kill()
        await writing
        await caught_up(publisher, world)  # by the two that are left
        assert await leader(cluster.url) != led.name
        led.start()
        await world.fill(100, "z", tenants=5)
        await caught_up(publisher, world)
    assert_equal(await everything(cluster.url), world.logs())


async def test_a_stopped_server_makes_the_publisher_wait_and_nothing_else(world: BusWorld, servers: Servers) -> None:
    async with running(world.dsn, servers, retry_longest=0.1) as publisher:
        await world.fill(50)
        await caught_up(publisher, world)
        servers.nodes[0].kill()
        await world.fill(50, "b")
        await until(lambda: publisher.trouble is not None)
        servers.nodes[0].start()
        await caught_up(publisher, world)
    assert_equal(await everything(servers.url), world.logs())


async def test_without_any_server_a_publisher_tries_on_and_stops_when_told(world: BusWorld) -> None:
    publisher = Publisher(world.dsn, range(64), Options(url="nats://127.0.0.1:1", retry_longest=0.05))
    task = asyncio.create_task(publisher.run())
    await until(lambda: publisher.trouble not in (None, "not started"))
    assert {metric.name: metric.samples[0].value for metric in publisher.collect()}["holdbook_nats_up"] == 0
    publisher.stop()
    await asyncio.wait_for(task, 60)


@pytest.mark.parametrize("noticed", [True, False], ids=["the writer raised the epoch", "nobody raised the epoch yet"])
async def test_after_a_lost_tail_publishing_goes_on_behind_what_still_stands_under_a_new_epoch(
    world: BusWorld, servers: Servers, noticed: bool
) -> None:
    await world.fill(100)
    async with running(world.dsn, servers) as publisher:
        await caught_up(publisher, world)
    before, lost = world.rows(), 30
    await world.forget()
    world.lose_tail(lost)
    if noticed:
        world.admin.execute("update log_partition set epoch = epoch + 1 where partition = %s", (world.partition,))
    await world.fill(60, "b")
    async with running(world.dsn, servers) as publisher:
        await caught_up(publisher, world)
    kept = [each for each in await everything(servers.url) if each.partition == world.partition]
    rows, stands = world.rows(), len(before) - lost
    [notice] = [number for number, each in enumerate(kept) if not each.is_event]
    assert (kept[notice].epoch, kept[notice].position, kept[notice].hash) == (1, stands, rows[stands - 1].hash)
    assert [(each.epoch, each.hash) for each in kept[:notice]] == [(0, row.hash) for row in before]
    assert [(each.epoch, each.position, each.hash) for each in kept[notice + 1 :]] == [(1, row.position, row.hash) for row in rows[stands:]]


async def test_the_same_commands_after_a_lost_tail_are_published_again(world: BusWorld, servers: Servers) -> None:
    """Who got no final answer sends the key again: the events have the ids they had, and JetStream must not take them for duplicates."""
    await world.fill(20)
    before = world.rows()
    async with running(world.dsn, servers, duplicates_seconds=100.0) as publisher:
        await caught_up(publisher, world)
        world.lose_tail(5)
        await world.fill(20)
        await until(lambda: publisher._lines[world.partition].place == (1, len(world.rows())))
    after = of_partition(await everything(servers.url), world.partition)[len(before) :]
    assert {row.command_id for row in before[-5:]} <= {row.command_id for row in world.rows()[-6:]}
    assert [each.body["id"] for each in after] == [f"{row.command_id}:{row.ordinal}" for row in world.rows()[len(before) - 5 :]]


async def test_a_message_too_large_stops_its_partition_alone_and_loudly(world: BusWorld, servers: Servers) -> None:
    [node] = servers.nodes
    node.kill()
    node.configure("64KB")
    node.start()
    await world.fill(10, tenants=5)
    await world.take("x" * 70_000)
    async with running(world.dsn, servers, retry_longest=0.1) as publisher:
        await until(publisher.stopped)
        await until(lambda: sum(publisher.lag().values()) == publisher.lag()[world.partition] > 0)
        [(partition, reason)] = publisher.stopped().items()
        assert partition == world.partition
        assert "max_payload" in reason
        node.kill()
        node.configure("8MB")
        node.start()
        await caught_up(publisher, world)
        assert not publisher.stopped()
    assert_equal(await everything(servers.url), world.logs())


async def test_a_missing_position_stops_its_partition(world: BusWorld, servers: Servers) -> None:
    await world.fill(20)
    world.admin.execute("delete from event where partition = %s and position = 10", (world.partition,))
    async with running(world.dsn, servers) as publisher:
        await until(publisher.stopped)
        assert publisher.stopped() == {world.partition: f"Position 10 of partition {world.partition} is missing."}
    assert await stored(servers) == 0


async def test_a_stream_of_another_store_is_refused(world: BusWorld, servers: Servers) -> None:
    async with running(world.dsn, servers) as publisher:
        await until(lambda: publisher.trouble is None)
    world.admin.execute("update store set created_at = created_at + interval '1 hour'")
    async with running(world.dsn, servers) as publisher:
        await until(lambda: "another store" in (publisher.trouble or ""))
    assert await stored(servers) == 0


async def test_an_old_server_is_refused_with_a_clear_word(world: BusWorld, servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "OLDEST_SERVER", (99, 0))  # there is no old server to run here
    async with running(world.dsn, servers) as publisher:
        await until(lambda: "2.12 or newer is needed" in (publisher.trouble or ""))


async def test_a_server_that_takes_smaller_batches_gets_smaller_ones(world: BusWorld, servers: Servers) -> None:
    await world.fill(1_200)
    async with running(world.dsn, servers, batch_events=1_100) as publisher:
        await caught_up(publisher, world)
    assert_equal(await everything(servers.url), world.logs())


async def test_a_batch_behind_another_last_message_changes_nothing(world: BusWorld, servers: Servers) -> None:
    async with running(world.dsn, servers) as publisher:
        await until(lambda: publisher.trouble is None)

    def message(position: int) -> Message:
        return Message("holdbook.events.3.t.a.b", f"m{position}", Place(0, position), bytes(32), b"{}")

    async with connected(servers.url, "HOLDBOOK", "test") as bus:
        first = await append(bus, 3, 0, [message(1), message(2)])
        for behind in (0, first - 1, first + 1):
            with pytest.raises(Outrun):
                await append(bus, 3, behind, [message(3), message(4)])
        assert await append(bus, 4, 0, [message(1)._replace(subject="holdbook.events.4.t.a.b", id="other")]) == first + 1
        assert await append(bus, 3, first, [message(3)]) == first + 2
    assert await stored(servers) == 4


async def test_old_messages_are_forgotten_but_never_a_partitions_last(world: BusWorld, servers: Servers) -> None:
    await world.fill(50, tenants=4)
    async with running(world.dsn, servers) as publisher:
        await caught_up(publisher, world)
    lasts = {rows[-1].hash for rows in world.logs().values()}
    await asyncio.sleep(2.1)  # ages are counted in whole seconds
    async with running(world.dsn, servers, keep_days=1 / 86_400) as publisher:
        await until(partial(_count_is, servers, len(lasts)))
        assert {each.hash for each in await everything(servers.url)} == lasts
        assert publisher.published == 0
        await world.fill(4, "b", tenants=4)
        await until(lambda: publisher.published == 8)  # each till is opened again
    async with running(world.dsn, servers) as publisher:
        await caught_up(publisher, world)
        assert publisher.published == 0


async def _count_is(servers: Servers, count: int) -> bool:
    return await stored(servers) == count

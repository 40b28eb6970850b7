"""Which event is queued for which endpoint: by the log's order, once, and for nobody else's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from domain.kernel.decider import Command
from domain.quota import Consume
from domain.webhooks import (
    WEBHOOKS,
    ChangeEndpoint,
    DeleteEndpoint,
    DisableEndpoint,
    EnableEndpoint,
    RegisterEndpoint,
    ReplayMessage,
    SendTest,
    webhooks_stream,
)
from eventstore.requests import Item, Outcome, Request
from projections.follower import Follower, Pace
from projections.readers import Readers
from projections.webhook_deliveries import Deliveries, Note, Place
from projections.webhooks import NAME, Webhooks
from tests.projections.conftest import CODEC, LIMITS, QUICK, Ledger, administer, caught_up, following, until

URL = "https://hooks.example.com/in"
_MOVED = "select count(*) from checkpoint where consumer = 'webhooks'"


async def ask(ledger: Ledger, command: Command) -> Outcome:
    item = Item(WEBHOOKS, webhooks_stream(ledger.tenant), command)
    return await ledger.store.submit(Request(ledger.tenant, uuid4(), (item,), b"f"))


async def register(ledger: Ledger, *types: str) -> UUID:
    endpoint_id = uuid4()
    await ask(ledger, RegisterEndpoint(endpoint_id=endpoint_id, url=URL, types=types))
    return endpoint_id


async def use(ledger: Ledger, amount: int = 1, subject: str = "anna") -> int:
    """Consume, and tell the position of the event."""
    ledger.now += timedelta(seconds=1)
    return (await ledger.send(subject, Consume(subject=subject, meter="tokens", amount=amount, reservation_id=uuid4().hex))).position


@asynccontextmanager
async def watching(ledger: Ledger, consumer: Webhooks | None = None, pace: Pace = QUICK) -> AsyncIterator[Follower]:
    """Followed from here on."""
    async with following(ledger, consumer or Webhooks(CODEC), pace=pace) as follower:
        await until(lambda: administer(ledger, _MOVED) == [(ledger.store.partitions,)])
        yield follower
        await caught_up(ledger, follower)


@pytest.fixture
async def watched(ledger: Ledger) -> Ledger:
    """A ledger whose webhooks are followed since its first event."""
    async with watching(ledger):
        await ledger.set_limits("anna", *LIMITS[:1])
    return ledger


def queued(ledger: Ledger, endpoint_id: UUID | None = None) -> list[int]:
    """Positions of the messages queued for an endpoint, in the order of its lane."""
    found = administer(ledger, "select lane, number from task where consumer = %s order by number", (NAME,))
    return [number for lane, number in found if endpoint_id is None or lane == endpoint_id.hex]


def deliveries(ledger: Ledger) -> list[tuple[Any, ...]]:
    return administer(ledger, "select endpoint_id, number, position, type, state, attempts from webhook_delivery order by 1, 2")


def rows(ledger: Ledger) -> dict[str, list[tuple[Any, ...]]]:
    """All there is, but times of the database's own."""
    return {
        "endpoints": administer(ledger, "select t::text from webhook_endpoint t order by 1"),
        "deliveries": administer(ledger, "select t::text from webhook_delivery t order by 1"),
        "tasks": administer(ledger, "select partition, lane, number, tenant_id, payload::text from task order by 2, 3"),
    }


async def test_an_event_is_queued_for_each_endpoint_that_takes_its_type(watched: Ledger) -> None:
    async with watching(watched):
        everything, quotas, limits = await register(watched), await register(watched, "quota."), await register(watched, "quota.limits_set")
        used = await use(watched)
        await watched.set_limits("bert", *LIMITS[:1])

    assert queued(watched, everything) == [used, used + 1]
    assert queued(watched, quotas) == [used, used + 1]
    assert queued(watched, limits) == [used + 1]
    assert [row for row in deliveries(watched) if row[0] == limits] == [(limits, used + 1, used + 1, "quota.limits_set", "waiting", 0)]


async def test_an_endpoint_is_told_of_what_happens_while_it_is_enabled(watched: Ledger) -> None:
    async with watching(watched):
        await use(watched)
        endpoint = await register(watched, "quota.")
        first = await use(watched)
        await ask(watched, DisableEndpoint(endpoint_id=endpoint))
        await use(watched)
        await ask(watched, EnableEndpoint(endpoint_id=endpoint))
        second = await use(watched)
        await ask(watched, ChangeEndpoint(endpoint_id=endpoint, url=URL, types=("tenant.",)))
        await use(watched)
        await ask(watched, ChangeEndpoint(endpoint_id=endpoint, url=URL, types=("quota.",)))
        third = await use(watched)
        await ask(watched, DeleteEndpoint(endpoint_id=endpoint))
        await use(watched)

    assert queued(watched, endpoint) == [first, second, third]


async def test_a_change_of_a_disabled_endpoint_leaves_it_disabled(watched: Ledger) -> None:
    async with watching(watched):
        endpoint = await register(watched)
        await ask(watched, DisableEndpoint(endpoint_id=endpoint))
        await ask(watched, ChangeEndpoint(endpoint_id=endpoint, url=URL, types=("quota.",)))
        await use(watched)

    assert queued(watched, endpoint) == []


async def test_others_are_told_that_an_endpoint_was_disabled_and_nothing_of_its_address(watched: Ledger) -> None:
    async with watching(watched):
        other = await register(watched)
        one = await register(watched)
        disabled = (await ask(watched, DisableEndpoint(endpoint_id=one, reason="failing"))).position

    assert queued(watched, other) == [disabled]
    assert queued(watched, one) == []


async def test_a_test_and_a_replay_go_to_their_endpoint_alone_whatever_it_takes(watched: Ledger) -> None:
    async with watching(watched):
        one, other = await register(watched, "tenant."), await register(watched)
        used = await use(watched)
        test = (await ask(watched, SendTest(endpoint_id=one, message_id="m"))).position
        replay = ReplayMessage(endpoint_id=one, message_id="m:0", message_type="quota.consumed", position=used)
        again = (await ask(watched, replay)).position

    assert queued(watched, one) == [test, again]
    assert queued(watched, other) == [used]
    told = [row[1:4] for row in deliveries(watched) if row[0] == one]
    assert told == [(test, test, "webhook.test_requested"), (again, used, "quota.consumed")]


async def test_another_tenant_of_the_partition_is_not_told(watched: Ledger) -> None:
    stranger = Ledger(watched.dsn, watched.store, uuid4())
    while stranger.partition != watched.partition:
        stranger.tenant = uuid4()
    async with watching(watched):
        endpoint = await register(watched)
        await stranger.set_limits("eve", *LIMITS[:1])
        await use(stranger, subject="eve")

    assert queued(watched, endpoint) == []


async def test_batches_make_no_difference(watched: Ledger, postgres_dsn: str) -> None:
    await _history(watched)
    whole: list[dict[str, Any]] = []
    for batch in (1, 2, 5_000):
        administer(watched, "truncate webhook_endpoint, webhook_delivery, task, task_lane")
        administer(watched, "update checkpoint set position = 0 where consumer = 'webhooks'")
        async with watching(watched, pace=Pace(batch=batch, poll=0.02, poll_idle=0.05, rest=0.001, retry=0.1)):
            pass
        whole.append(rows(watched))

    assert len(whole[0]["tasks"]) > 20
    assert whole[0] == whole[1] == whole[2]


async def test_two_followers_and_a_restart_queue_each_message_once(watched: Ledger) -> None:
    async with watching(watched), watching(watched):
        await _history(watched)
    async with watching(watched):
        pass
    twice = administer(
        watched, "select endpoint_id, message_id from webhook_delivery where number = position group by 1, 2 having count(*) > 1"
    )

    assert twice == []
    numbers = queued(watched)
    once = rows(watched)
    administer(watched, "truncate webhook_endpoint, webhook_delivery, task, task_lane")
    administer(watched, "update checkpoint set position = 0 where consumer = 'webhooks'")
    async with watching(watched):
        pass
    assert (queued(watched), rows(watched)) == (numbers, once)


async def _history(ledger: Ledger) -> None:
    endpoints = [await register(ledger, *types) for types in ((), ("quota.",), ("webhook.",))]
    for turn in range(12):
        await asyncio.gather(use(ledger), use(ledger))
        endpoint = endpoints[turn % 3]
        await ask(ledger, (DisableEndpoint if turn % 2 else EnableEndpoint)(endpoint_id=endpoint))
    await ask(ledger, DeleteEndpoint(endpoint_id=endpoints[1]))


async def test_enabling_wakes_what_was_waiting(watched: Ledger) -> None:
    async with watching(watched) as follower:
        endpoint = await register(watched, "quota.")
        await use(watched)
        await ask(watched, DisableEndpoint(endpoint_id=endpoint))
        await caught_up(watched, follower)
        far = datetime.now(UTC) + timedelta(days=1)
        for table in ("task", "task_lane"):
            administer(watched, f"update {table} set due_at = %s", (far,))
        await ask(watched, EnableEndpoint(endpoint_id=endpoint))

    assert administer(watched, "select count(*) from task t join task_lane l using (lane) where greatest(t.due_at, l.due_at) > now()") == [
        (0,)
    ]


async def test_whoever_runs_tasks_is_woken_when_something_was_queued(watched: Ledger) -> None:
    woken = asyncio.Event()
    async with watching(watched, Webhooks(CODEC, woken.set)) as follower:
        await register(watched, "quota.")
        await caught_up(watched, follower)
        assert not woken.is_set()
        await use(watched)
        await asyncio.wait_for(woken.wait(), 20)


# Row-level security, and what the sender keeps


async def test_a_reader_sees_the_tenants_own_deliveries_and_no_endpoints(watched: Ledger) -> None:
    async with watching(watched):
        endpoint = await register(watched, "quota.")
        used = await use(watched)
    readers = await Readers.open(watched.dsn)
    try:
        (own,) = await readers.webhooks.list(watched.tenant, endpoint)
        stranger = uuid4()
        assert await readers.webhooks.list(stranger, endpoint) == []
        assert await readers.webhooks.find(stranger, endpoint, own.message_id) is None
        assert (await readers.webhooks.find(watched.tenant, endpoint, own.message_id)) == own
        assert own.position == used
    finally:
        await readers.close()
    with psycopg.connect(watched.dsn, autocommit=True, options="-c role=holdbook_reader") as conn:
        assert conn.execute("select count(*) from webhook_delivery").fetchone() == (0,)
        conn.execute(f"set app.tenant_id = '{watched.tenant}'")
        assert conn.execute("select count(*) from webhook_delivery").fetchone() == (1,)
        for statement in ("select * from webhook_endpoint", "delete from webhook_delivery", "update webhook_delivery set state = 'x'"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                conn.execute(statement)


async def test_pages_of_deliveries_are_newest_first(watched: Ledger) -> None:
    async with watching(watched):
        endpoint = await register(watched, "quota.")
        positions = [await use(watched) for _ in range(5)]
    readers = await Readers.open(watched.dsn)
    try:
        first = await readers.webhooks.list(watched.tenant, endpoint, limit=3)
        second = await readers.webhooks.list(watched.tenant, endpoint, first[-1].number, limit=3)
    finally:
        await readers.close()

    assert [each.position for each in [*first, *second]] == positions[::-1]


async def test_an_end_that_was_noted_stays_and_is_forgotten_when_its_time_has_come(watched: Ledger) -> None:
    async with watching(watched):
        endpoint = await register(watched, "quota.")
        used, waiting = await use(watched), await use(watched)
    place, now = Place(watched.partition, endpoint, used), datetime.now(UTC)
    opened = await Deliveries.open(watched.dsn)
    try:
        await opened.note(place, Note("delivered", 1, 204, None, now, None, 1))
        await opened.note(place, Note("waiting", 2, 500, "status", now, now, 1))
        assert [row[4:] for row in deliveries(watched)] == [("delivered", 1), ("waiting", 0)]

        assert await opened.forget(watched.partition, now) == 0
        assert await opened.forget(watched.partition, now + timedelta(seconds=1)) == 1
    finally:
        await opened.close()
    assert [row[1] for row in deliveries(watched)] == [waiting]


async def test_a_deleted_tenant_leaves_nothing_here(watched: Ledger) -> None:
    from domain.identity.tenants import TENANT, CreateTenant, DeleteTenant, tenant_stream

    async def tenant(command: Command) -> None:
        item = Item(TENANT, tenant_stream(watched.tenant), command)
        await watched.store.submit(Request(watched.tenant, uuid4(), (item,), b"f"))

    async with watching(watched) as follower:
        await tenant(CreateTenant(tenant_id=watched.tenant, name="Acme"))
        await register(watched)
        await use(watched)
        await caught_up(watched, follower)
        assert deliveries(watched) != []
        await tenant(DeleteTenant(tenant_id=watched.tenant))

    assert deliveries(watched) == []
    assert administer(watched, "select count(*) from webhook_endpoint") == [(0,)]

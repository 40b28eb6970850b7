"""Messages from the log to a receiver over real HTTP: signed, in order, again and again, at least once, given up once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import msgspec
import psycopg
import pytest

from adapters.webhooks.addresses import Addresses
from adapters.webhooks.retrying import DELAYS
from api.delivering import ACTOR, Outgoing
from domain.webhooks import (
    ChangeEndpoint,
    DeleteEndpoint,
    DisableEndpoint,
    EnableEndpoint,
    ReplayMessage,
    RotateSecret,
    SendTest,
)
from projections.webhook_deliveries import Deliveries
from tests.support.receiver import Received, Receiver, Reply, receiving
from tests.support.webhooks import SOURCE, TENANT, Post, SendingProcess, partition, post

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
DISABLED = "select payload::text, actor, cause, trace from event where type = 'webhook.disabled'"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as started:
        yield started


@pytest.fixture
async def sending(database_dsn: str) -> AsyncIterator[Post]:
    async with post(database_dsn) as started:
        yield started


def answers(receiver: Receiver, status: int, **more: Any) -> None:
    receiver.answer = lambda _: Reply(status, **more)


async def came(receiver: Receiver, count: int) -> list[Received]:
    return await asyncio.to_thread(receiver.wait, count)


async def test_a_message_is_the_event_signed_as_standard_webhooks_say(sending: Post, receiver: Receiver) -> None:
    endpoint = await sending.register(receiver.url, "quota.")
    (message,) = await sending.use(trace=TRACE)
    (received,) = await came(receiver, 1)
    await sending.until_state(message, endpoint, "delivered")

    ((position, payload, recorded_at),) = sending.rows("select position, payload::text, recorded_at from event where trace is not null")
    event = received.event
    assert received.message_id == event["id"] == message
    assert received.headers["content-type"] == "application/cloudevents+json"
    assert received.headers["traceparent"] == event["traceparent"] == TRACE
    assert (event["specversion"], event["source"], event["type"]) == ("1.0", SOURCE, "quota.consumed")
    assert (event["partitionkey"], event["sequence"]) == (str(TENANT), str(position))
    assert event["data"] == msgspec.json.decode(payload)
    assert datetime.fromisoformat(event["time"]) == recorded_at
    assert received.signed_by(await sending.secret(endpoint, 1))
    assert not received.signed_by(await sending.secret(endpoint, 2))
    assert not received.signed_by(await sending.secret(uuid4(), 1))


async def test_both_secrets_sign_during_a_rotation_and_then_the_new_one_alone(sending: Post, receiver: Receiver) -> None:
    endpoint = await sending.register(receiver.url, "quota.")
    first, second, third = [await sending.secret(endpoint, number) for number in (1, 2, 3)]

    await sending.ask(RotateSecret(endpoint_id=endpoint))
    await sending.until_known()
    await sending.use()
    (both,) = await came(receiver, 1)
    assert both.signed_by(first)
    assert both.signed_by(second)

    await sending.ask(RotateSecret(endpoint_id=endpoint, overlap_seconds=0))
    await asyncio.sleep(1.1)
    await sending.use()
    latest = (await came(receiver, 2))[1]
    assert latest.signed_by(third)
    assert not latest.signed_by(first)
    assert not latest.signed_by(second)


async def test_a_first_message_that_fails_holds_back_the_second_and_no_other_endpoint(sending: Post, receiver: Receiver) -> None:
    sending.clock.stand_still()
    with receiving() as other:
        answers(receiver, 500)
        failing, fine = await sending.register(receiver.url, "quota."), await sending.register(other.url, "quota.")
        messages = await sending.use(3)
        await came(other, 3)
        await sending.until_state(messages[0], failing, "waiting", attempts=1)
        assert receiver.ids() == [messages[0]]
        assert other.ids() == messages

        receiver.answer = lambda _: Reply()
        await sending.let_pass(timedelta(seconds=DELAYS[0] * 1.2))
        await came(receiver, 4)

    assert receiver.ids() == [messages[0], *messages]
    await sending.until_state(messages[2], failing, "delivered")
    assert sending.delivery(messages[0], failing)[:4] == ("delivered", 2, 204, None)
    assert sending.delivery(messages[0], fine)[:2] == ("delivered", 1)


async def test_one_that_is_never_taken_is_tried_for_three_days_and_then_the_endpoint_is_given_up_once(
    sending: Post, receiver: Receiver
) -> None:
    sending.clock.stand_still()
    with receiving() as other:
        answers(receiver, 503)
        endpoint, witness = await sending.register(receiver.url, "quota."), await sending.register(other.url, "webhook.")
        first, second = await sending.use(2)
        began = sending.clock()
        for attempt in range(1, len(DELAYS) + 1):
            await sending.until_state(first, endpoint, "waiting", attempts=attempt)
            state, attempts, status, error, next_at = sending.delivery(first, endpoint)
            assert (state, attempts, status, error) == ("waiting", attempt, 503, "status")
            await sending.let_pass(next_at - sending.clock())
        await sending.until_state(first, endpoint, "failed")
        took = sending.clock() - began
        (notice,) = await came(other, 1)
        await sending.until("select 1 from task_lane where lane = %s and claimed_by is null", endpoint.hex)

        assert timedelta(hours=70) < took < timedelta(hours=82)
        assert receiver.ids() == [first] * (len(DELAYS) + 1)
        assert (await sending.endpoint(endpoint)).disabled == "failing"
        ((payload, actor, cause, _),) = sending.rows(DISABLED)
        assert (msgspec.json.decode(payload)["reason"], actor, f"{cause}:0") == ("failing", ACTOR, first)
        assert (notice.event["type"], notice.event["data"]["endpoint_id"]) == ("webhook.disabled", str(endpoint))
        assert sending.delivery(second, endpoint)[:2] == ("waiting", 0)

        # Mended, it goes on where it stood; what had failed is not sent unasked.
        receiver.answer = lambda _: Reply()
        await sending.ask(EnableEndpoint(endpoint_id=endpoint))
        await sending.until_state(second, endpoint, "delivered")
        assert receiver.ids()[-1] == second
        assert sending.delivery(first, endpoint)[0] == "failed"
        assert (await sending.endpoint(witness)).disabled is None
    assert len(sending.rows(DISABLED)) == 1


async def test_a_receiver_that_is_gone_is_disabled_at_once(sending: Post, receiver: Receiver) -> None:
    answers(receiver, 410)
    endpoint = await sending.register(receiver.url, "quota.")
    first, second = await sending.use(2)
    await sending.until_state(first, endpoint, "failed")
    await sending.until("select 1 from event where type = 'webhook.disabled'")
    third = (await sending.use())[0]

    assert (await sending.endpoint(endpoint)).disabled == "gone"
    assert receiver.ids() == [first]
    assert sending.delivery(second, endpoint)[0] == "waiting"
    await sending.until("select 1 from checkpoint c join event e using (partition) where e.command_id = %s and c.position >= e.position",
                        UUID(third.split(":")[0]))  # fmt: skip
    assert sending.delivery(third, endpoint)[0] == "nothing", "what happens while it is disabled is not queued"


async def test_a_receiver_that_asks_for_time_gets_it(sending: Post, receiver: Receiver) -> None:
    sending.clock.stand_still()
    answers(receiver, 429, headers={"Retry-After": "600"})
    endpoint = await sending.register(receiver.url, "quota.")
    (message,) = await sending.use()
    await sending.until_state(message, endpoint, "waiting", attempts=1)
    wait = sending.delivery(message, endpoint)[4] - sending.clock()
    assert timedelta(seconds=600) <= wait <= timedelta(seconds=660)

    receiver.answer = lambda _: Reply()
    await sending.let_pass(timedelta(seconds=300))
    await sending.let_pass(timedelta(seconds=400))
    await sending.until_state(message, endpoint, "delivered")
    assert len(receiver.received) == 2


async def test_a_disabled_endpoint_is_sent_nothing_until_it_is_enabled(sending: Post, receiver: Receiver) -> None:
    release = threading.Event()
    answers(receiver, 204, hold=release)
    endpoint = await sending.register(receiver.url, "quota.")
    first, second = await sending.use(2)
    await sending.until_queued(second)
    await came(receiver, 1)
    await sending.ask(DisableEndpoint(endpoint_id=endpoint))
    await sending.until_known()
    release.set()
    await sending.until_state(first, endpoint, "delivered")
    await sending.until("select 1 from task where attempts > 0")
    assert sending.delivery(second, endpoint)[:2] == ("waiting", 0)
    assert receiver.ids() == [first]

    await sending.ask(EnableEndpoint(endpoint_id=endpoint))
    await sending.until_state(second, endpoint, "delivered")


async def test_what_waits_for_a_deleted_endpoint_is_dropped(sending: Post, receiver: Receiver) -> None:
    sending.clock.stand_still()
    answers(receiver, 500)
    endpoint = await sending.register(receiver.url, "quota.")
    first, second = await sending.use(2)
    await sending.until_state(first, endpoint, "waiting", attempts=1)
    await sending.ask(DeleteEndpoint(endpoint_id=endpoint))
    await sending.until_state(second, endpoint, "dropped")
    await sending.until_idle()

    assert sending.delivery(first, endpoint)[0] == "dropped"
    assert receiver.ids() == [first]


async def test_what_waits_goes_to_the_new_address(sending: Post, receiver: Receiver) -> None:
    sending.clock.stand_still()
    answers(receiver, 500)
    endpoint = await sending.register(receiver.url, "quota.")
    (message,) = await sending.use()
    await sending.until_state(message, endpoint, "waiting", attempts=1)
    with receiving() as other:
        await sending.ask(ChangeEndpoint(endpoint_id=endpoint, url=other.url, types=("quota.",)))
        await sending.until_known()
        await sending.let_pass(timedelta(seconds=6))
        await came(other, 1)
        assert other.ids() == [message]


async def test_a_test_and_a_replay_go_the_same_way(sending: Post, receiver: Receiver) -> None:
    endpoint = await sending.register(receiver.url, "tenant.")
    await sending.ask(SendTest(endpoint_id=endpoint, message_id="x"))
    (test,) = await came(receiver, 1)
    assert test.event["type"] == "webhook.test_requested"
    assert test.signed_by(await sending.secret(endpoint, 1))

    replay = ReplayMessage(
        endpoint_id=endpoint, message_id=test.message_id, message_type="webhook.test_requested", position=int(test.event["sequence"])
    )
    await sending.ask(replay)
    again = (await came(receiver, 2))[1]
    assert (again.message_id, again.body) == (test.message_id, test.body)
    await sending.until_idle()
    assert sending.rows("select count(*) from webhook_delivery where message_id = %s", test.message_id) == [(2,)]


async def test_a_replay_of_what_is_another_tenants_or_not_that_event_sends_nothing(sending: Post, receiver: Receiver) -> None:
    """Only the route says which position: should it ever be wrong, nothing of anybody else's goes out."""
    stranger = uuid4()
    while partition(sending.store, stranger) != partition(sending.store):
        stranger = uuid4()
    await sending.limit(stranger)
    (foreign,) = await sending.use(tenant=stranger)
    ((position,),) = sending.rows("select position from event where command_id = %s", UUID(foreign.split(":")[0]))
    endpoint = await sending.register(receiver.url, "quota.")
    await sending.ask(ReplayMessage(endpoint_id=endpoint, message_id=foreign, message_type="quota.consumed", position=position))
    await sending.ask(ReplayMessage(endpoint_id=endpoint, message_id=f"{uuid4()}:0", message_type="quota.consumed", position=position + 1))
    (own,) = await sending.use()
    await sending.until_state(own, endpoint, "delivered")

    assert receiver.ids() == [own]
    assert sending.rows("select state, count(*) from webhook_delivery group by 1 order by 1") == [("delivered", 1), ("dropped", 2)]


async def test_a_private_address_is_never_connected_to(database_dsn: str, receiver: Receiver) -> None:
    async with post(database_dsn, addresses=Addresses(allow_http=True)) as strict:
        endpoint = await strict.register(receiver.url.replace("127.0.0.1", "localhost"), "quota.")
        (message,) = await strict.use()
        await strict.until_state(message, endpoint, "waiting", attempts=1)

        assert strict.delivery(message, endpoint)[2:4] == (None, "address")
    assert receiver.connections == 0


async def test_one_tenant_with_slow_receivers_leaves_turns_to_others(sending: Post, receiver: Receiver) -> None:
    release = threading.Event()
    slow, other = TENANT, uuid4()
    answers(receiver, 204, hold=release)
    for _ in range(20):
        await sending.register(receiver.url, "quota.", tenant=slow)
    await sending.use(tenant=slow)
    await came(receiver, 6)
    with receiving() as quick:
        await sending.register(quick.url, "quota.", tenant=other)
        await sending.use(tenant=other)
        await came(quick, 1)
    held = len(receiver.received)
    release.set()
    await came(receiver, 20)
    assert held == 6


async def test_two_senders_at_once_lose_nothing_and_keep_the_order(sending: Post, receiver: Receiver) -> None:
    async with post(sending.dsn):
        endpoint = await sending.register(receiver.url, "quota.")
        messages = await sending.use(30)
        await sending.until_state(messages[-1], endpoint, "delivered")
        await sending.until_idle()

    seen = list(dict.fromkeys(receiver.ids()))
    assert seen == messages


# Deaths


async def test_a_sender_that_dies_before_it_noted_the_answer_sends_again_under_the_same_id(database_dsn: str, receiver: Receiver) -> None:
    async with post(database_dsn, sends=False) as writing:
        endpoint = await writing.register(receiver.url, "quota.")
        messages = await writing.use(2)
        await writing.until_queued(messages[-1])
        doomed = SendingProcess(database_dsn, "sent")
        try:
            await asyncio.to_thread(doomed.wait_until_killed)
        finally:
            doomed.end()
        assert receiver.ids() == messages[:1]
        assert writing.delivery(messages[0], endpoint)[0] == "waiting"
    async with post(database_dsn) as again:
        await again.until_state(messages[1], endpoint, "delivered")

    assert receiver.ids() == [messages[0], *messages]
    assert receiver.received[0].body == receiver.received[1].body


async def test_a_sender_that_dies_after_it_noted_the_answer_does_not_send_again(database_dsn: str, receiver: Receiver) -> None:
    async with post(database_dsn, sends=False) as writing:
        endpoint = await writing.register(receiver.url, "quota.")
        messages = await writing.use(2)
        await writing.until_queued(messages[-1])
        doomed = SendingProcess(database_dsn, "noted")
        try:
            await asyncio.to_thread(doomed.wait_until_killed)
        finally:
            doomed.end()
        assert writing.delivery(messages[0], endpoint)[0] == "delivered"
        assert writing.rows("select count(*) from task") == [(2,)], "its task is still there"
    async with post(database_dsn) as again:
        await again.until_state(messages[1], endpoint, "delivered")
        await again.until_idle()

    assert receiver.ids() == messages


@pytest.mark.parametrize("point", ["given_up", "disabled"])
async def test_an_endpoint_is_given_up_once_whenever_the_sender_dies(database_dsn: str, receiver: Receiver, point: str) -> None:
    answers(receiver, 410)
    async with post(database_dsn, sends=False) as writing:
        endpoint = await writing.register(receiver.url, "quota.")
        messages = await writing.use(2)
        await writing.until_queued(messages[-1])
        doomed = SendingProcess(database_dsn, point)
        try:
            await asyncio.to_thread(doomed.wait_until_killed)
        finally:
            doomed.end()
        assert len(writing.rows(DISABLED)) == (point == "disabled")
    async with post(database_dsn) as again:
        await again.until("select 1 from event where type = 'webhook.disabled'")
        await again.until("select 1 from task having count(*) = 1")

        assert (await again.endpoint(endpoint)).disabled == "gone"
        assert len(again.rows(DISABLED)) == 1
    assert receiver.ids() == messages[:1]


async def test_an_endpoint_that_was_enabled_meanwhile_is_not_given_up_a_second_time(database_dsn: str, receiver: Receiver) -> None:
    answers(receiver, 410)
    async with post(database_dsn, sends=False) as writing:
        endpoint = await writing.register(receiver.url, "quota.")
        messages = await writing.use(2)
        await writing.until_queued(messages[-1])
        doomed = SendingProcess(database_dsn, "disabled")
        try:
            await asyncio.to_thread(doomed.wait_until_killed)
        finally:
            doomed.end()
        await writing.ask(EnableEndpoint(endpoint_id=endpoint))
    answers(receiver, 204)
    async with post(database_dsn) as again:
        await again.until_state(messages[1], endpoint, "delivered")

        assert (await again.endpoint(endpoint)).disabled is None
        assert len(again.rows(DISABLED)) == 1
    assert receiver.ids() == messages


# Secrets and retention


async def test_no_secret_is_in_the_log_in_a_table_or_in_what_is_logged(
    sending: Post, receiver: Receiver, capfd: pytest.CaptureFixture[str]
) -> None:
    endpoint = await sending.register(receiver.url, "quota.")
    await sending.ask(RotateSecret(endpoint_id=endpoint))
    answers(receiver, 410, body=b"the-receivers-own-words")
    (message,) = await sending.use()
    await sending.until_state(message, endpoint, "failed")
    await sending.until("select 1 from event where type = 'webhook.disabled'")

    secrets = [await sending.secret(endpoint, number) for number in (1, 2)]
    raw = [msgspec.convert(secret.removeprefix("whsec_"), bytes, strict=False) for secret in secrets]
    hidden = [*(secret.removeprefix("whsec_") for secret in secrets), *(each.hex() for each in raw), "the-receivers-own-words"]
    with psycopg.connect(sending.dsn, autocommit=True) as conn:
        tables = [row[0] for row in conn.execute("select tablename from pg_tables where schemaname = 'public'")]
        told = "".join(str(row) for table in tables for row in conn.execute(f"select t::text from {table} t"))
    told += "".join(capfd.readouterr())

    assert endpoint.hex in told
    assert message in told
    assert [each for each in hidden if each in told] == []


async def test_deliveries_that_ended_long_ago_are_forgotten_and_others_are_not(sending: Post, receiver: Receiver) -> None:
    endpoint = await sending.register(receiver.url, "quota.")
    *old, last = await sending.use(8)
    await sending.until_state(last, endpoint, "delivered")
    ((moment,),) = sending.rows("select done_at from webhook_delivery where message_id = %s", last)
    deliveries = await Deliveries.open(sending.dsn)
    outgoing = Outgoing(deliveries, sending.handler, sending.store.partitions, timedelta(days=1))
    try:
        await outgoing.forget(moment, at_most=3)
    finally:
        await outgoing.close()

    assert sending.rows("select message_id from webhook_delivery") == [(last,)]
    assert len(old) == 7


async def test_attempts_are_counted_by_how_they_ended(sending: Post, receiver: Receiver) -> None:
    endpoint = await sending.register(receiver.url, "quota.")
    answers(receiver, 410)
    (message,) = await sending.use()
    await sending.until_state(message, endpoint, "failed")
    await sending.until("select 1 from event where type = 'webhook.disabled'")
    await sending.until_idle()

    attempts, given_up = sending.handler.collect()
    assert [(sample.labels, sample.value) for sample in attempts.samples] == [({"outcome": "status"}, 1)]
    assert [sample.value for sample in given_up.samples] == [1]

"""Sender accounts over HTTP: signals, cooldowns, and reservations that name a sender, through a whole server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from math import ceil
from typing import Any
from uuid import uuid4

import httpx
import pytest

from domain.catalog import DECIDERS
from domain.sender_account import SENDER, FloodWait, ReportSignal, sender_stream
from eventstore.requests import Item, Request
from eventstore.store import Store
from tests.api.conftest import Site
from tests.support.people import call, signed

pytestmark = pytest.mark.asyncio(loop_scope="module")

SENDERS = "/v1/senders"
LABEL = "+7 999 123-45-67"


async def register(site: Site, sender_id: str = "one", **more: Any) -> httpx.Response:
    answer = await site.post(SENDERS, {"sender_id": sender_id, **more}, key=uuid4().hex)
    assert answer.status_code == 200, answer.text
    return answer


async def report(site: Site, signal: str, sender_id: str = "one", *, key: str | None = None, **more: Any) -> dict[str, Any]:
    answer = await site.post(f"{SENDERS}/{sender_id}/signals", {"signal": signal, **more}, key=key or uuid4().hex)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def use(site: Site, path: str = "reserve", *, key: str | None = None, sender_id: str = "one", amount: int = 1) -> httpx.Response:
    return await site.post(f"/v1/usage/{path}", {"messages": amount, "sender_id": sender_id}, key=key or uuid4().hex)


async def act(site: Site, what: str, sender_id: str = "one") -> dict[str, Any]:
    answer = await site.post(f"{SENDERS}/{sender_id}/{what}", {}, key=uuid4().hex)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def put(site: Site, path: str, body: Any) -> httpx.Response:
    return await site.client.put(path, json=body, headers={**site.account.headers, "Idempotency-Key": uuid4().hex})


async def left(site: Site) -> int:
    """Of the default quota of 100, from the log itself."""
    answer = await site.get("/v1/quotas/messages/default", as_of=datetime.now(UTC).isoformat())
    assert answer.status_code == 200, answer.text
    return int(answer.json()["limits"][0]["remaining"])


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110  # what is waited for is in another task of the server
            await asyncio.sleep(0.02)


async def types(site: Site, prefix: str = "sender.") -> list[str]:
    return [row.type for row in await site.rows() if row.type.startswith(prefix)]


async def test_a_sender_is_registered_seen_and_changed(site: Site) -> None:
    registered = await register(site, label=LABEL, owner="customer-1", cooldown_seconds=60)
    assert registered.json() == {"sender_id": "one", "state": "active", "errors": 0, "reason": None, "until": None}

    found = (await site.get(f"{SENDERS}/one")).json()
    assert found == {
        "sender_id": "one", "owner": "customer-1", "label": LABEL, "state": "active", "errors": 0, "reason": None, "until": None,
        "max_consecutive_errors": 5, "cooldown_seconds": 60, "cooldown_cap_seconds": 86_400,
    }  # fmt: skip

    changed = await put(site, f"{SENDERS}/one", {"label": "@acme", "max_consecutive_errors": 2})
    assert changed.status_code == 200, changed.text
    found = (await site.get(f"{SENDERS}/one")).json()
    assert (found["label"], found["max_consecutive_errors"], found["cooldown_seconds"]) == ("@acme", 2, 300)

    before = len(await site.rows())
    same = await put(site, f"{SENDERS}/one", {"label": "@acme", "max_consecutive_errors": 2})
    assert same.status_code == 200
    assert len(await site.rows()) == before, "the same label sealed anew is no change"


async def test_a_label_is_nowhere_in_the_log_in_clear(site: Site) -> None:
    await register(site, label=LABEL)
    rows = await site.rows()

    assert any(row.type == "sender.registered" for row in rows)
    assert not [row for row in rows if LABEL in row.payload or LABEL in (row.reply or "")]


async def test_an_id_is_taken_once_and_bad_settings_name_their_field(site: Site) -> None:
    await register(site)
    again = await site.post(SENDERS, {"sender_id": "one"}, key=uuid4().hex)
    assert (again.status_code, again.json()["code"]) == (409, "sender.exists")

    for body, field in (
        ({"sender_id": "no spaces"}, "sender_id"),
        ({"sender_id": "two", "cooldown_seconds": 0}, "cooldown_seconds"),
        ({"sender_id": "two", "cooldown_seconds": 100, "cooldown_cap_seconds": 99}, "cooldown_cap_seconds"),
        ({"sender_id": "two", "label": LABEL + "\n"}, "label"),
        ({"sender_id": "two", "telephone": LABEL}, "telephone"),
    ):
        answer = await site.post(SENDERS, body, key=uuid4().hex)
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field), answer.text
        assert LABEL not in answer.text


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"signal": "flood_wait"}, "seconds"),
        ({"signal": "flood_wait", "seconds": 0}, "seconds"),
        ({"signal": "peer_flood", "seconds": 5}, "seconds"),
        ({"signal": "probe"}, "free"),
        ({"signal": "sent", "free": True}, "free"),
        ({"signal": "probe", "free": True, "limited_until": "2027-01-01T00:00:00Z"}, "limited_until"),
        ({"signal": "probe", "free": False, "limited_until": "9000-01-01T00:00:00Z"}, "limited_until"),
        ({"signal": "smoke"}, "signal"),
    ],
)
async def test_a_signal_that_makes_no_sense_names_its_field(site: Site, body: dict[str, Any], field: str) -> None:
    await register(site)
    answer = await site.post(f"{SENDERS}/one/signals", body, key=uuid4().hex)

    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field), answer.text
    assert await types(site) == ["sender.registered"]


async def test_a_reservation_in_a_cooldown_is_refused_with_the_time_and_takes_nothing(site: Site) -> None:
    await site.limit()
    await register(site)
    assert (await use(site)).status_code == 200
    told = await report(site, "flood_wait", seconds=500)
    before = len(await site.rows())

    began = datetime.now(UTC)
    refused = await use(site, key="campaign-1")
    least, most = [ceil((datetime.fromisoformat(told["until"]) - at).total_seconds()) for at in (datetime.now(UTC), began)]

    assert (refused.status_code, refused.json()["code"]) == (409, "sender.cooling_down")
    details = refused.json()["details"]
    assert datetime.fromisoformat(details["retry_at"]) == datetime.fromisoformat(told["until"])
    assert (details["reason"], details["sender_id"]) == ("flood_wait", "one")
    assert least <= int(refused.headers["Retry-After"]) <= most <= 500
    assert "index" not in refused.json()
    assert await left(site) == 99
    assert [row.type for row in (await site.rows())[before:]] == ["command.refused"]

    consumed = await use(site, "consume")
    assert (consumed.status_code, consumed.json()["code"]) == (409, "sender.cooling_down")
    assert await left(site) == 99


async def test_a_refusal_is_the_same_for_ever_under_its_key_and_a_new_key_asks_again(site: Site) -> None:
    await site.limit()
    await register(site, cooldown_seconds=10, cooldown_cap_seconds=10)  # or it is over before a slow machine has asked
    await report(site, "peer_flood")
    first = await use(site, key="letter-1")
    assert first.status_code == 409

    async def free() -> bool:
        return bool((await site.get(f"{SENDERS}/one")).json()["state"] == "active")

    await until(free)
    again = await use(site, key="letter-1")
    assert again.content == first.content
    assert again.headers["Idempotent-Replayed"] == "true"
    assert int(again.headers["Retry-After"]) == 0
    assert (await use(site, key="letter-1/2")).status_code == 200


async def test_an_unknown_sender_leaves_nothing_and_the_key_may_be_used_again(site: Site) -> None:
    await site.limit()
    before = len(await site.rows())
    refused = await use(site, key="letter-1")
    assert (refused.status_code, refused.json()["code"]) == (404, "sender.not_found")
    assert "index" not in refused.json()
    assert len(await site.rows()) == before

    await register(site)
    assert (await use(site, key="letter-1")).status_code == 200


async def test_the_answer_of_a_reservation_that_names_a_sender_is_that_of_the_reservation(site: Site) -> None:
    await site.limit()
    await register(site)
    first = await use(site, key="letter-1", amount=4)
    assert (first.json()["granted"], first.json()["remaining"]) == (4, 96)

    again = await use(site, key="letter-1", amount=4)
    assert again.content == first.content
    assert again.headers["Idempotent-Replayed"] == "true"
    done = await site.post("/v1/usage/commit", {"reservation_id": first.json()["reservation_id"], "used": 3})
    assert done.json()["freed"] == 1

    too_much = await use(site, amount=1_000)
    assert (too_much.status_code, too_much.json()["code"]) == (409, "quota.exceeded")
    assert "index" not in too_much.json()


async def test_a_signal_under_the_same_key_counts_once(site: Site) -> None:
    await register(site)
    first = await report(site, "timeout", key="message-9")
    again = await report(site, "timeout", key="message-9")
    assert first == again
    assert (await site.get(f"{SENDERS}/one")).json()["errors"] == 1

    answers = await asyncio.gather(*(report(site, "timeout", key="message-10") for _ in range(5)))
    assert {answer["errors"] for answer in answers} == {2}
    assert await types(site) == ["sender.registered", "sender.failed", "sender.failed"]


async def test_errors_in_a_row_exclude_and_somebody_brings_it_back(site: Site) -> None:
    await site.limit()
    await register(site, max_consecutive_errors=3)
    await report(site, "timeout")
    assert (await report(site, "sent"))["errors"] == 0
    await report(site, "timeout")
    await report(site, "timeout")
    assert (await report(site, "timeout"))["state"] == "excluded"

    refused = await use(site)
    assert (refused.status_code, refused.json()["code"]) == (409, "sender.excluded")
    assert "Retry-After" not in refused.headers
    assert (await report(site, "probe", free=True))["state"] == "excluded"
    assert (await act(site, "restore"))["state"] == "active"
    assert (await use(site)).status_code == 200
    assert (await act(site, "exclude")) == {"sender_id": "one", "state": "excluded", "errors": 0, "reason": "asked", "until": None}


async def test_a_deadline_brings_a_sender_back_and_says_so_in_the_log(site: Site) -> None:
    await register(site, cooldown_seconds=1, cooldown_cap_seconds=1)
    told = await report(site, "peer_flood")

    async def ended() -> bool:
        return "sender.cooldown_ended" in await types(site)

    await until(ended)
    end = next(row for row in await site.rows() if row.type == "sender.cooldown_ended")
    assert end.actor == "process:deadline"
    assert end.recorded_at >= datetime.fromisoformat(told["until"])


async def test_a_signal_and_reservations_at_once_are_in_one_order(site: Site) -> None:
    """Every reservation that was granted stands before the signal in the log, every refused one behind it."""
    await site.limit()
    await register(site)

    async def some(count: int) -> list[httpx.Response]:
        return await asyncio.gather(*(use(site, path) for path in ("reserve", "consume") for _ in range(count)))

    first, _, second = await asyncio.gather(some(15), report(site, "flood_wait", seconds=900), some(15))
    answers = [*first, *second, *await some(2)]

    order = [
        row.type
        for row in await site.rows()
        if row.type in ("quota.reserved", "quota.consumed", "sender.cooldown_started", "command.refused")
    ]
    at = order.index("sender.cooldown_started")
    assert set(order[:at]) <= {"quota.reserved", "quota.consumed"}
    assert set(order[at + 1 :]) == {"command.refused"}
    granted = sum(answer.status_code == 200 for answer in answers)
    assert granted == at
    assert await left(site) == 100 - granted


async def test_a_batch_counts_commands_whatever_they_take(site: Site) -> None:
    await site.limit()
    await register(site)
    await register(site, "two")
    commands = [
        {"op": "consume", "messages": 2},
        {"op": "reserve", "messages": 3, "sender_id": "one"},
        {"op": "consume", "messages": 1, "sender_id": "two"},
    ]
    done = await site.post("/v1/batches", {"atomic": True, "commands": commands}, key="batch-1")
    assert [result.get("status") for result in done.json()["results"]] == ["committed", "reserved", "committed"]
    assert [result["granted"] for result in done.json()["results"]] == [2, 3, 1]
    again = await site.post("/v1/batches", {"atomic": True, "commands": commands}, key="batch-1")
    assert (again.content, again.headers["Idempotent-Replayed"]) == (done.content, "true")

    await report(site, "flood_wait", "two", seconds=60)
    refused = await site.post("/v1/batches", {"atomic": True, "commands": commands}, key="batch-2")
    assert (refused.status_code, refused.json()["code"], refused.json()["index"]) == (409, "sender.cooling_down", 2)
    again = await site.post("/v1/batches", {"atomic": True, "commands": commands}, key="batch-2")
    assert again.content == refused.content
    assert await left(site) == 94

    unknown = [*commands[:2], {**commands[2], "sender_id": "three"}]
    missing = await site.post("/v1/batches", {"atomic": True, "commands": unknown}, key="batch-3")
    assert (missing.status_code, missing.json()["index"]) == (404, 2)


async def test_each_command_of_a_batch_has_its_own_sender(site: Site) -> None:
    await site.limit()
    await register(site)
    await register(site, "two")
    await act(site, "exclude", "two")
    commands = [{"op": "consume", "messages": 1, "sender_id": sender_id} for sender_id in ("one", "two", "three")]

    done = await site.post("/v1/batches", {"commands": commands}, key="batch-1")

    results = done.json()["results"]
    assert [result["status"] for result in results] == [200, 409, 404]
    assert results[0]["body"]["status"] == "committed"
    assert [result["problem"]["code"] for result in results[1:]] == ["sender.excluded", "sender.not_found"]
    assert not [result for result in results[1:] if "index" in result["problem"]]
    again = await site.post("/v1/batches", {"commands": commands}, key="batch-1")
    assert again.json() == done.json()


async def test_senders_are_listed_by_page_owner_and_state(site: Site) -> None:
    for number in range(5):
        await register(site, f"s{number}", owner="anna" if number % 2 else "bert", label=f"@number{number}")
    await report(site, "flood_wait", "s3", seconds=90)
    last = await site.post(f"{SENDERS}/s4/exclude", {}, key=uuid4().hex)
    position = last.headers["Holdbook-Position"]

    page = await site.get(SENDERS, limit=3, min_position=position)
    assert [(each["sender_id"], each["label"]) for each in page.json()["senders"]] == [(f"s{n}", f"@number{n}") for n in range(3)]
    following = await site.client.get(page.links["next"]["url"], headers=site.account.headers)
    assert [(each["sender_id"], each["state"]) for each in following.json()["senders"]] == [("s3", "cooldown"), ("s4", "excluded")]
    assert [each["sender_id"] for each in (await site.get(SENDERS, owner="anna")).json()["senders"]] == ["s1", "s3"]
    assert [each["sender_id"] for each in (await site.get(SENDERS, state="cooldown")).json()["senders"]] == ["s3"]
    wrong = await site.get(SENDERS, cursor="x")
    assert (wrong.status_code, wrong.json()["errors"][0]["field"]) == (422, "cursor")


async def test_permissions_are_asked_and_tenants_do_not_see_each_other(site: Site) -> None:
    await register(site, label=LABEL)
    reader = await site.issue(site.account.tenant_id, ["senders:read"])
    assert (await site.get(f"{SENDERS}/one", account=reader)).status_code == 200
    denied = await site.post(f"{SENDERS}/one/signals", {"signal": "sent"}, account=reader, key="k")
    assert (denied.status_code, denied.json()["permission"]) == (403, "senders:write")

    other = await site.issue(await site.tenant())
    assert (await site.get(f"{SENDERS}/one", account=other)).status_code == 404
    assert (await site.get(SENDERS, account=other)).json() == {"senders": []}
    assert (await site.post(f"{SENDERS}/one/exclude", {}, account=other, key="k")).status_code == 404
    assert (await site.get(f"{SENDERS}/one")).json()["state"] == "active"


async def test_a_cooldown_that_is_over_is_over_without_the_deadline(site: Site) -> None:
    """The read model still says cooldown until the deadline's command came; who asks looks at the time."""
    await register(site)
    told = await report(site, "peer_flood")
    position = (await site.post(f"{SENDERS}/one/signals", {"signal": "timeout"}, key=uuid4().hex)).headers["Holdbook-Position"]
    reader = site.app.state.edge.readers.senders
    over = datetime.fromisoformat(told["until"])

    (before,) = await reader.list(site.account.tenant_id, over - timedelta(seconds=1), min_position=int(position))
    (after,) = await reader.list(site.account.tenant_id, over)

    assert (before.state, before.until, before.reason) == ("cooldown", over, "peer_flood")
    assert (after.state, after.until, after.reason) == ("active", None, None)
    assert await reader.list(site.account.tenant_id, over, state="cooldown") == []


async def test_a_person_has_their_own_senders_and_those_of_others_do_not_exist(site: Site) -> None:
    anna, bert, boss = await signed(site, "member"), await signed(site, "member"), await signed(site, "manager")
    for who in (anna, bert):
        await site.limit(who.user_id.hex)
        made = await call(site, who, "POST", SENDERS, {"sender_id": f"of-{who.user_id.hex}", "label": LABEL})
        assert made.status_code == 200, made.text
    mine, other = f"of-{anna.user_id.hex}", f"of-{bert.user_id.hex}"

    assert (await call(site, anna, "GET", f"{SENDERS}/{mine}")).json()["owner"] == anna.user_id.hex
    for answer in (
        await call(site, anna, "GET", f"{SENDERS}/{other}"),
        await call(site, anna, "PUT", f"{SENDERS}/{other}", {"label": "@mine now"}),
        await call(site, anna, "POST", f"{SENDERS}/{other}/signals", {"signal": "peer_flood"}),
        await call(site, anna, "POST", f"{SENDERS}/{other}/exclude", {}),
        await call(site, anna, "POST", f"{SENDERS}/{other}/restore", {}),
        await call(site, anna, "POST", "/v1/usage/reserve", {"messages": 1, "sender_id": other}),
        await call(site, anna, "POST", "/v1/usage/consume", {"messages": 1, "sender_id": other}),
    ):
        assert (answer.status_code, answer.json()["code"]) == (404, "sender.not_found"), answer.text
        assert answer.json()["details"] == {"sender_id": other}
    position = (await call(site, anna, "POST", "/v1/usage/reserve", {"messages": 1, "sender_id": mine})).headers["Holdbook-Position"]

    for more in ({}, {"owner": anna.user_id.hex}):
        listed = await call(site, anna, "GET", SENDERS, min_position=position, **more)
        assert [each["sender_id"] for each in listed.json()["senders"]] == [mine]
    for denied in (
        await call(site, anna, "GET", SENDERS, owner=bert.user_id.hex),
        await call(site, anna, "POST", SENDERS, {"sender_id": "third", "owner": bert.user_id.hex}),
    ):
        assert (denied.status_code, denied.json()["code"]) == (403, "auth.not_yours")
    assert (await call(site, bert, "GET", f"{SENDERS}/{other}")).json()["state"] == "active"

    assert len((await call(site, boss, "GET", SENDERS)).json()["senders"]) == 2
    excluded = await call(site, boss, "POST", f"{SENDERS}/{mine}/exclude", {})
    assert excluded.json()["state"] == "excluded"
    refused = await call(site, anna, "POST", "/v1/usage/reserve", {"messages": 1, "sender_id": mine})
    assert (refused.status_code, refused.json()["code"]) == (409, "sender.excluded")


async def test_a_label_goes_with_the_person_and_nothing_new_is_kept_of_them(site: Site) -> None:
    anna = await signed(site, "member")
    owner = anna.user_id.hex
    made = await call(site, anna, "POST", SENDERS, {"sender_id": f"of-{owner}", "label": LABEL}, key="register")
    assert made.status_code == 200, made.text
    await site.store.sealing.shred(site.account.tenant_id, anna.user_id)

    found = await site.get(f"{SENDERS}/of-{owner}")
    assert (found.json()["label"], found.json()["owner"]) == (None, owner)
    listed = await site.get(SENDERS, owner=owner, min_position=made.headers["Holdbook-Position"])
    assert [each["label"] for each in listed.json()["senders"]] == [None]
    for answer in (
        await site.post(SENDERS, {"sender_id": f"second-{owner}", "owner": owner, "label": LABEL}, key=uuid4().hex),
        await put(site, f"{SENDERS}/of-{owner}", {"label": LABEL}),
    ):
        assert (answer.status_code, answer.json()["code"]) == (409, "privacy.erased"), answer.text
    assert (await put(site, f"{SENDERS}/of-{owner}", {"cooldown_seconds": 7})).status_code == 200


async def test_two_processes_agree_on_which_came_first(site: Site, module_database: str) -> None:
    """Signals through one store, reservations through another: what was granted stands before the cooldown in the log."""
    await site.limit()
    await register(site)
    tenant_id = site.account.tenant_id
    other = await Store.open(module_database, DECIDERS)
    try:

        async def signal() -> None:
            wanted = ReportSignal(sender_id="one", signal=FloodWait(600))
            await other.submit(Request(tenant_id, uuid4(), (Item(SENDER, sender_stream(tenant_id, "one"), wanted),), b""))

        answers = await asyncio.gather(*(use(site) for _ in range(20)), signal(), *(use(site) for _ in range(20)))
    finally:
        await other.drain()

    order = [row.type for row in await site.rows() if row.type in ("quota.reserved", "sender.cooldown_started")]
    granted = sum(answer is not None and answer.status_code == 200 for answer in answers)
    assert order.index("sender.cooldown_started") == len(order) - 1 == granted
    assert (await use(site)).status_code == 409
    assert await left(site) == 100 - granted

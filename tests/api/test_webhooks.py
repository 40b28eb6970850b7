"""Webhooks over HTTP, as their owner uses them; messages go to a real receiver through the whole server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import pytest

from api.app import create_app
from api.settings import Settings
from domain.webhooks import MAX_ENDPOINTS
from tests.api.conftest import Account, Site
from tests.support.receiver import Received, Receiver, Reply, receiving

pytestmark = pytest.mark.asyncio(loop_scope="module")

URL = "https://hooks.example.com/in"
WEBHOOKS = "/v1/webhooks"
UNKNOWN = f"{WEBHOOKS}/{'0' * 32}"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as started:
        yield started


async def register(site: Site, url: str = URL, *types: str, account: Account | None = None) -> str:
    answer = await site.post(WEBHOOKS, {"url": url, "types": types}, key=uuid4().hex, account=account)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["webhook_id"])


async def put(site: Site, path: str, body: Any) -> httpx.Response:
    return await site.client.put(path, json=body, headers={**site.account.headers, "Idempotency-Key": uuid4().hex})


async def delete(site: Site, path: str) -> httpx.Response:
    return await site.client.delete(path, headers=site.account.headers)


async def act(site: Site, path: str, body: Any = None, *, account: Account | None = None, key: str | None = None) -> httpx.Response:
    return await site.post(path, body or {}, key=key or uuid4().hex, account=account)


async def use(site: Site) -> None:
    answer = await act(site, "/v1/usage/consume", {"messages": 1})
    assert answer.status_code == 200, answer.text


async def came(receiver: Receiver, count: int) -> list[Received]:
    return await asyncio.to_thread(receiver.wait, count)


async def deliveries(site: Site, webhook_id: str, state: str, count: int) -> list[dict[str, Any]]:
    """Wait until so many deliveries are in a state, and tell them."""
    async with asyncio.timeout(120):
        while True:
            found = (await site.get(f"{WEBHOOKS}/{webhook_id}/deliveries")).json()["deliveries"]
            those = [each for each in found if each["state"] == state]
            if len(those) >= count:
                return those
            await asyncio.sleep(0.02)


async def test_a_webhook_is_registered_shown_changed_and_deleted(site: Site) -> None:
    webhook_id = await register(site, URL, "quota.")
    shown = (await site.get(f"{WEBHOOKS}/{webhook_id}")).json()
    assert {name: shown[name] for name in ("url", "types", "state", "reason", "secret_number")} == {
        "url": URL, "types": ["quota."], "state": "enabled", "reason": None, "secret_number": 1,
    }  # fmt: skip
    assert (await site.get(WEBHOOKS)).json() == {"webhooks": [shown]}

    changed = (await put(site, f"{WEBHOOKS}/{webhook_id}", {"url": f"{URL}/2", "description": "billing"})).json()
    assert (changed["url"], changed["types"], changed["description"]) == (f"{URL}/2", [], "billing")
    assert (await site.get(f"{WEBHOOKS}/{webhook_id}")).json() == changed

    deleted = await delete(site, f"{WEBHOOKS}/{webhook_id}")
    assert deleted.json() == {"webhook_id": webhook_id, "status": "deleted"}
    again = await delete(site, f"{WEBHOOKS}/{webhook_id}")
    assert (again.json(), again.headers["Idempotent-Replayed"]) == (deleted.json(), "true")
    assert (await site.get(f"{WEBHOOKS}/{webhook_id}")).status_code == 404
    assert (await site.get(WEBHOOKS)).json() == {"webhooks": []}


async def test_a_registration_sent_twice_is_one_webhook(site: Site) -> None:
    first, second = [await site.post(WEBHOOKS, {"url": URL}, key="once") for _ in range(2)]
    other = await site.post(WEBHOOKS, {"url": f"{URL}/other"}, key="once")

    assert (first.content, second.headers["Idempotent-Replayed"]) == (second.content, "true")
    assert (other.status_code, other.json()["code"]) == (422, "idempotency.key_reused")
    assert len((await site.get(WEBHOOKS)).json()["webhooks"]) == 1


async def test_a_tenant_has_so_many_and_no_more_also_when_they_come_at_once(site: Site) -> None:
    answers = await asyncio.gather(*(act(site, WEBHOOKS, {"url": f"{URL}/{n}"}) for n in range(MAX_ENDPOINTS + 5)))

    refused = [answer for answer in answers if answer.status_code != 200]
    assert [(answer.status_code, answer.json()["code"]) for answer in refused] == [(409, "webhook.too_many")] * 5
    assert len((await site.get(WEBHOOKS)).json()["webhooks"]) == MAX_ENDPOINTS


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "url"),
        ({"url": 7}, "url"),
        ({"url": "hooks.example.com"}, "url"),
        ({"url": "https://user:pw@hooks.example.com/"}, "url"),
        ({"url": "https://hooks.example.com/#x"}, "url"),
        ({"url": URL, "types": ["Quota.*"]}, "types.0"),
        ({"url": URL, "types": ["quota.", "quota."]}, "types"),
        ({"url": URL, "description": "x" * 201}, "description"),
        ({"url": URL, "secret": "whsec_mine"}, "secret"),
        ({"url": URL, "webhook_id": "0" * 32}, "webhook_id"),
    ],
)
async def test_what_cannot_be_accepted_is_named_and_changes_nothing(site: Site, body: Any, field: str) -> None:
    before = len(await site.rows())
    answer = await act(site, WEBHOOKS, body)

    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field)
    assert "whsec_mine" not in answer.text
    assert len(await site.rows()) == before


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example.com/", "https://127.0.0.1/", "https://[::1]/", "https://10.0.0.1:8443/", "https://169.254.169.254/latest",
        "https://2130706433/", "https://0x7f.1/", "https://[::ffff:10.0.0.1]/", "https://[64:ff9b::10.0.0.1]/", "https://100.64.0.1/",
    ],
)  # fmt: skip
async def test_a_deployment_that_allows_nothing_private_refuses_such_addresses_at_once(site: Site, url: str) -> None:
    strict = create_app(site.store, site.app.state.edge.readers, Settings())
    webhook_id = await register(site)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(strict), base_url="http://strict", headers=site.account.headers) as client:
        made = await client.post(WEBHOOKS, json={"url": url}, headers={"Idempotency-Key": "1"})
        moved = await client.put(f"{WEBHOOKS}/{webhook_id}", json={"url": url}, headers={"Idempotency-Key": "2"})

    for answer in (made, moved):
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "url")
    assert [each["url"] for each in (await site.get(WEBHOOKS)).json()["webhooks"]] == [URL]


async def test_whoever_lacks_the_scope_gets_nothing(site: Site) -> None:
    webhook_id = await register(site)
    poor = await site.issue(site.account.tenant_id, ["usage:read", "usage:write", "quota:admin"])
    for path in ("", f"/{webhook_id}", f"/{webhook_id}/secret", f"/{webhook_id}/deliveries"):
        answer = await site.get(WEBHOOKS + path, account=poor)
        assert (answer.status_code, answer.json()["permission"]) == (403, "webhooks:admin")
    for path in ("", *(f"/{webhook_id}/{verb}" for verb in ("rotate", "enable", "disable", "test"))):
        assert (await act(site, WEBHOOKS + path, {"url": URL} if not path else {}, account=poor)).status_code == 403
    assert (await act(site, f"{WEBHOOKS}/{webhook_id}/deliveries/{uuid4()}:0/replay", account=poor)).status_code == 403
    assert (await site.client.delete(f"{WEBHOOKS}/{webhook_id}", headers=poor.headers)).status_code == 403


async def test_another_tenants_webhook_is_not_there(site: Site, receiver: Receiver) -> None:
    await site.limit()
    webhook_id = await register(site, receiver.url, "quota.")
    await use(site)
    (delivery,) = await deliveries(site, webhook_id, "delivered", 1)
    stranger = await site.issue(await site.tenant())
    mine = await register(site, account=stranger)
    place = f"{WEBHOOKS}/{webhook_id}"

    assert [each["webhook_id"] for each in (await site.get(WEBHOOKS, account=stranger)).json()["webhooks"]] == [mine]
    for path in (place, f"{place}/secret", f"{place}/deliveries"):
        assert (await site.get(path, account=stranger)).status_code == 404
    for verb in ("rotate", "enable", "disable", "test", f"deliveries/{delivery['message_id']}/replay"):
        assert (await act(site, f"{place}/{verb}", account=stranger)).json()["code"] == "webhook.not_found"
    replay = f"{WEBHOOKS}/{mine}/deliveries/{delivery['message_id']}/replay"
    assert (await act(site, replay, account=stranger)).status_code == 404
    assert (await site.client.delete(place, headers=stranger.headers)).status_code == 404
    assert len(receiver.received) == 1


@pytest.mark.parametrize("verb", ["rotate", "enable", "disable", "test", "deliveries/00000000-0000-4000-8000-000000000000:0/replay"])
async def test_what_is_not_there_is_not_found(site: Site, verb: str) -> None:
    answer = await act(site, f"{UNKNOWN}/{verb}")

    assert (answer.status_code, answer.json()["code"]) == (404, "webhook.not_found")


@pytest.mark.parametrize(
    "path", ["/x", f"/{'0' * 32}/deliveries?cursor=x", f"/{'0' * 32}/deliveries?limit=0", f"/{'0' * 32}/deliveries?x=1"]
)
async def test_a_question_that_makes_no_sense_is_named(site: Site, path: str) -> None:
    answer = await site.client.get(WEBHOOKS + path, headers=site.account.headers)

    assert (answer.status_code, answer.json()["code"]) == (422, "request.invalid")


async def test_a_message_comes_signed_by_the_secret_that_is_shown(site: Site, receiver: Receiver) -> None:
    await site.limit()
    webhook_id = await register(site, receiver.url, "quota.")
    await use(site)
    (received,) = await came(receiver, 1)
    answer = await site.get(f"{WEBHOOKS}/{webhook_id}/secret")
    (secret,) = answer.json()["secrets"]

    assert received.signed_by(secret["secret"])
    assert (secret["number"], secret["signs_until"], answer.headers["Cache-Control"]) == (1, None, "no-store")
    (delivery,) = await deliveries(site, webhook_id, "delivered", 1)
    assert delivery["message_id"] == received.message_id
    assert (delivery["type"], delivery["attempts"], delivery["last_status"], delivery["next_at"]) == ("quota.consumed", 1, 204, None)


async def test_a_rotation_shows_both_secrets_and_one_without_overlap_the_new_one(site: Site) -> None:
    webhook_id = await register(site)
    (first,) = (await site.get(f"{WEBHOOKS}/{webhook_id}/secret")).json()["secrets"]

    rotated = await act(site, f"{WEBHOOKS}/{webhook_id}/rotate")
    assert (rotated.json()["secret_number"], "whsec_" in rotated.text) == (2, False)
    new, old = (await site.get(f"{WEBHOOKS}/{webhook_id}/secret")).json()["secrets"]
    assert (old["secret"], old["number"], new["number"], new["signs_until"]) == (first["secret"], 1, 2, None)
    assert old["signs_until"] is not None

    await act(site, f"{WEBHOOKS}/{webhook_id}/rotate", {"overlap_seconds": 0})
    (last,) = (await site.get(f"{WEBHOOKS}/{webhook_id}/secret")).json()["secrets"]
    assert last["number"] == 3
    assert len({first["secret"], new["secret"], last["secret"]}) == 3
    assert "whsec_" not in str(await site.rows())


async def test_a_test_message_is_sent_once_for_one_key(site: Site, receiver: Receiver) -> None:
    webhook_id = await register(site, receiver.url, "tenant.")
    first, second = [await act(site, f"{WEBHOOKS}/{webhook_id}/test", key="press") for _ in range(2)]
    await act(site, f"{WEBHOOKS}/{webhook_id}/test", key="press-again")
    one, two = await came(receiver, 2)

    assert first.json() == second.json() == {"webhook_id": webhook_id, "message_id": one.message_id, "status": "queued"}
    assert one.event["type"] == two.event["type"] == "webhook.test_requested"
    assert one.message_id != two.message_id
    await deliveries(site, webhook_id, "delivered", 2)
    assert len(receiver.received) == 2


async def test_a_replay_sends_the_same_message_again(site: Site, receiver: Receiver) -> None:
    await site.limit()
    webhook_id = await register(site, receiver.url, "quota.")
    await use(site)
    (before,) = await deliveries(site, webhook_id, "delivered", 1)
    replay = f"{WEBHOOKS}/{webhook_id}/deliveries/{before['message_id']}/replay"

    first, second = [await act(site, replay, key="again") for _ in range(2)]
    one, two = await came(receiver, 2)
    after = await deliveries(site, webhook_id, "delivered", 2)

    assert first.json() == {"webhook_id": webhook_id, "message_id": before["message_id"], "status": "queued"}
    assert second.headers["Idempotent-Replayed"] == "true"
    assert (one.message_id, one.body) == (two.message_id, two.body)
    assert [each["position"] for each in after] == [before["position"]] * 2
    assert after[0]["number"] > after[1]["number"]
    assert len(receiver.received) == 2


async def test_a_disabled_webhook_takes_no_tests_and_goes_on_when_enabled(site: Site, receiver: Receiver) -> None:
    receiver.answer = lambda _: Reply(410)
    webhook_id = await register(site, receiver.url)
    await act(site, f"{WEBHOOKS}/{webhook_id}/test")
    await deliveries(site, webhook_id, "failed", 1)
    async with asyncio.timeout(120):
        # What is waited for is in the log, without an event of its own.
        while (shown := (await site.get(f"{WEBHOOKS}/{webhook_id}")).json())["state"] == "enabled":  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert shown["reason"] == "gone"
    refused = await act(site, f"{WEBHOOKS}/{webhook_id}/test")
    assert (refused.status_code, refused.json()["code"]) == (409, "webhook.is_disabled")

    receiver.answer = lambda _: Reply()
    enabled = await act(site, f"{WEBHOOKS}/{webhook_id}/enable")
    assert (enabled.json()["state"], enabled.json()["reason"]) == ("enabled", None)
    await act(site, f"{WEBHOOKS}/{webhook_id}/test")
    told = await deliveries(site, webhook_id, "delivered", 2)
    assert [each["type"] for each in told] == ["webhook.test_requested", "webhook.enabled"]
    disabled = await act(site, f"{WEBHOOKS}/{webhook_id}/disable")
    assert (disabled.json()["state"], disabled.json()["reason"]) == ("disabled", "asked")


async def test_pages_of_deliveries_hold_each_once(site: Site, receiver: Receiver) -> None:
    await site.limit()
    webhook_id = await register(site, receiver.url, "quota.")
    for _ in range(7):
        await use(site)
    await deliveries(site, webhook_id, "delivered", 7)

    seen: list[int] = []
    path: str | None = f"{WEBHOOKS}/{webhook_id}/deliveries?limit=3"
    while path is not None:
        answer = await site.client.get(path, headers=site.account.headers)
        page = [each["number"] for each in answer.json()["deliveries"]]
        assert len(page) <= 3
        seen += page
        link = answer.headers.get("Link")
        path = link[1 : link.index(">")] if link else None

    assert len(seen) == 7
    assert seen == sorted(set(seen), reverse=True)


async def test_attempts_are_in_the_metrics_of_a_whole_process() -> None:
    """The names stand where a dashboard looks for them; what they count is tested beside the sender."""
    from api.delivering import Delivering

    nothing: Any = None
    names = [family.name for family in Delivering(nothing, nothing, nothing, "x").collect()]

    assert names == ["holdbook_webhook_attempts", "holdbook_webhook_given_up"]

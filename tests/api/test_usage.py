"""Reserve, commit, roll back, consume: the RFC's bodies as written, the general form, keys and replays."""

import asyncio

import pytest

from api.routes.usage import ID
from eventstore.origins import without_origin
from tests.api.conftest import Site

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_the_rfcs_bodies_work_as_written(site: Site, prefix: str) -> None:
    await site.limit()

    reserved = await site.post(f"{prefix}/usage/reserve", {"messages": 40, "correlation_id": "broadcast-1"})
    assert reserved.status_code == 200
    held = reserved.json()
    assert (held["status"], held["granted"], held["remaining"]) == ("reserved", 40, 60)

    committed = await site.post(f"{prefix}/usage/commit", {"reservation_id": held["reservation_id"], "used": 37})
    assert (committed.json()["status"], committed.json()["freed"], committed.json()["remaining"]) == ("committed", 3, 63)

    other = (await site.post(f"{prefix}/usage/reserve", {"messages": 10, "correlation_id": "broadcast-2"})).json()
    rolled_back = await site.post(f"{prefix}/usage/rollback", {"reservation_id": other["reservation_id"]})
    assert (rolled_back.json()["status"], rolled_back.json()["remaining"]) == ("rolled_back", 63)


async def test_the_general_form_names_subject_and_meter(site: Site) -> None:
    await site.limit("customer-1", "tokens")
    body = {"subject": "customer-1", "meter": "tokens", "amount": 150, "ttl_seconds": 60, "mode": "best_effort", "correlation_id": "a"}

    reserved = await site.post("/v1/usage/reserve", body)
    assert reserved.json()["granted"] == 100

    checked = await site.post("/v1/usage/reserve", {**body, "amount": 1, "mode": "check_only", "correlation_id": "b"})
    assert (checked.status_code, checked.json()["code"]) == (409, "quota.exceeded")


async def test_consume_is_reserve_and_commit(site: Site) -> None:
    await site.limit()

    consumed = await site.post("/v1/usage/consume", {"amount": 7, "meter": "messages", "correlation_id": "c"})

    assert (consumed.json()["status"], consumed.json()["used"], consumed.json()["remaining"]) == ("committed", 7, 93)


async def test_the_same_key_gets_the_same_bytes(site: Site) -> None:
    await site.limit()
    body = {"messages": 40, "correlation_id": "once"}

    first = await site.post("/v1/usage/reserve", body)
    again = await site.post("/v1/usage/reserve", dict(reversed(body.items())))

    assert again.content == first.content
    assert "Idempotent-Replayed" not in first.headers
    assert again.headers["Idempotent-Replayed"] == "true"
    for name in ("Holdbook-Position", "Holdbook-Epoch"):
        assert again.headers[name] == first.headers[name]


async def test_a_refusal_is_replayed_byte_for_byte_also_when_there_is_room_again(site: Site) -> None:
    await site.limit()
    refused = await site.post("/v1/usage/reserve", {"messages": 101, "correlation_id": "too-much"})
    assert refused.status_code == 409
    assert refused.headers["content-type"] == "application/problem+json"
    problem = refused.json()
    assert problem["type"] == "urn:holdbook:problem:quota.exceeded"
    assert problem["details"] == {"limit_id": "total", "remaining": 100, "requested": 101, "retry_at": None}

    await site.limit(limits=[{"limit_id": "total", "amount": 1000}])
    again = await site.post("/v1/usage/reserve", {"messages": 101, "correlation_id": "too-much"})

    assert again.content == refused.content
    assert again.headers["Idempotent-Replayed"] == "true"


async def test_the_same_key_with_another_body_is_refused_and_changes_nothing(site: Site) -> None:
    await site.limit()
    await site.post("/v1/usage/reserve", {"messages": 40, "correlation_id": "once"})

    altered = await site.post("/v1/usage/reserve", {"messages": 41, "correlation_id": "once"})

    assert (altered.status_code, altered.json()["code"]) == (422, "idempotency.key_reused")
    fresh = await site.post("/v1/usage/reserve", {"messages": 1, "correlation_id": "other"})
    assert fresh.json()["remaining"] == 59


async def test_a_header_key_comes_before_the_body_and_two_accounts_never_share_one(site: Site) -> None:
    await site.limit()
    other = await site.issue(site.account.tenant_id)

    first = await site.post("/v1/usage/reserve", {"messages": 1, "correlation_id": "same"}, key="one")
    second = await site.post("/v1/usage/reserve", {"messages": 1, "correlation_id": "same"}, key="two")
    third = await site.post("/v1/usage/reserve", {"messages": 1, "correlation_id": "same"}, key="one", account=other)

    assert len({answer.json()["reservation_id"] for answer in (first, second, third)}) == 3


async def test_twenty_at_once_under_one_key_are_one(site: Site) -> None:
    await site.limit()

    answers = await asyncio.gather(*(site.post("/v1/usage/reserve", {"messages": 10, "correlation_id": "storm"}) for _ in range(20)))

    assert {answer.content for answer in answers} == {answers[0].content}
    assert sum("Idempotent-Replayed" not in answer.headers for answer in answers) == 1


@pytest.mark.parametrize(
    ("body", "key", "status", "code"),
    [
        ({"messages": 1}, None, 400, "idempotency.key_required"),
        ({"messages": 1}, "", 400, "idempotency.key_invalid"),
        ({"messages": 1}, "é", 400, "idempotency.key_invalid"),
        ({"messages": 1}, "x" * 256, 400, "idempotency.key_invalid"),
        ({"messages": 1, "correlation_id": "\n"}, None, 422, "request.invalid"),
    ],
)
async def test_a_key_is_needed_and_printable(site: Site, body: object, key: str | None, status: int, code: str) -> None:
    headers: list[tuple[bytes, bytes]] = [(name.encode(), value.encode()) for name, value in site.account.headers.items()]
    if key is not None:
        headers.append((b"Idempotency-Key", key.encode()))

    answer = await site.client.post("/v1/usage/reserve", json=body, headers=headers)

    assert (answer.status_code, answer.json()["code"]) == (status, code)


async def test_a_commit_in_parts_needs_keys_of_its_own(site: Site) -> None:
    await site.limit()
    held = (await site.post("/v1/usage/reserve", {"messages": 40, "correlation_id": "r"})).json()["reservation_id"]

    keyless = await site.post("/v1/usage/commit", {"reservation_id": held, "used": 10, "final": False})
    assert keyless.status_code == 422
    assert keyless.json()["errors"][0]["field"] == "correlation_id"

    part = await site.post("/v1/usage/commit", {"reservation_id": held, "used": 10, "final": False, "correlation_id": "p1"})
    assert (part.json()["status"], part.json()["used"]) == ("open", 10)
    end = await site.post("/v1/usage/commit", {"reservation_id": held, "used": 5})
    assert (end.json()["used"], end.json()["freed"]) == (15, 25)


@pytest.mark.parametrize("path", ["/v1/usage/commit", "/v1/usage/rollback"])
async def test_another_tenants_reservation_is_not_there(site: Site, path: str) -> None:
    await site.limit()
    held = (await site.post("/v1/usage/reserve", {"messages": 40, "correlation_id": "r"})).json()["reservation_id"]
    stranger = await site.issue(await site.tenant())
    body = {"reservation_id": held, "used": 0} if path.endswith("commit") else {"reservation_id": held}

    answer = await site.post(path, body, account=stranger)
    cancelled = await site.post(f"/v1/reservations/{held}/cancel", account=stranger)

    assert answer.status_code == cancelled.status_code == 404
    mine = await site.post("/v1/usage/commit", {"reservation_id": held, "used": 40})
    assert mine.json()["status"] == "committed"


async def test_what_is_not_there_leaves_nothing_so_the_same_key_may_be_sent_again(site: Site) -> None:
    body = {"messages": 1, "correlation_id": "early"}
    assert (await site.post("/v1/usage/reserve", body)).status_code == 404

    await site.limit()

    assert (await site.post("/v1/usage/reserve", body)).status_code == 200
    assert (await site.post("/v1/usage/commit", {"reservation_id": ID, "used": 1})).status_code == 404


async def test_the_traceparent_is_kept_with_the_event(site: Site) -> None:
    await site.limit()
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    for number, sent in enumerate((trace, "00-" + "0" * 32 + "-00f067aa0ba902b7-01")):
        headers = {**site.account.headers, "traceparent": sent}
        await site.client.post("/v1/usage/reserve", json={"messages": 1, "correlation_id": f"t{number}"}, headers=headers)

    rows = [row for row in await site.rows() if row.type == "quota.reserved"]

    assert [row.trace for row in rows] == [trace, None]
    assert {without_origin(row.actor or "") for row in rows} == {f"service:{site.account.account_id.hex}"}

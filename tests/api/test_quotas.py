"""Limits, grants, corrections, and every way to ask."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.api.conftest import Site

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def position(site: Site, amount: int, subject: str = "default", name: str = "x") -> str:
    answer = await site.post("/v1/usage/consume", {"subject": subject, "amount": amount, "correlation_id": f"{subject}-{name}-{amount}"})
    assert answer.status_code == 200, answer.text
    return answer.headers["Holdbook-Position"]


async def test_a_read_sees_what_was_written_before_its_position(site: Site) -> None:
    await site.limit()
    for amount in range(1, 6):
        at = await position(site, amount)

        seen = (await site.get("/v1/usage", min_position=at)).json()

        assert seen["used"] == sum(range(amount + 1))
        assert seen["limits"][0]["remaining"] == 100 - seen["used"]
    same = await site.get("/v1/quotas/messages/default", min_position=at)
    assert same.json()["used"] == 15


async def test_a_position_nobody_wrote_is_told_to_come_back(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    await site.limit()

    answer = await site.get("/v1/usage", min_position=10**9)

    assert (answer.status_code, answer.json()["code"]) == (503, "projection.behind")
    assert "Retry-After" in answer.headers


async def test_any_past_moment_can_be_asked_for(site: Site) -> None:
    await site.limit()
    seen: list[tuple[str, int]] = []
    for amount in (1, 2, 3):
        await position(site, amount)
        seen.append((datetime.now(UTC).isoformat(), sum(range(amount + 1))))
        await asyncio.sleep(0.02)

    for moment, used in seen:
        assert (await site.get("/v1/usage", as_of=moment)).json()["used"] == used
    assert (await site.get("/v1/usage", as_of="2020-01-01T00:00:00Z")).status_code == 404
    assert (await site.get("/v1/usage", as_of="2020-01-01T00:00:00")).status_code == 422


async def test_the_view_now_and_as_of_now_agree(site: Site) -> None:
    await site.limit(limits=[{"limit_id": "m", "amount": 50, "window": {"kind": "month"}}], zone="Asia/Kathmandu")
    await site.post("/v1/usage/reserve", {"messages": 5, "correlation_id": "open"})
    at = await position(site, 2)

    live = (await site.get("/v1/usage", min_position=at)).json()
    folded = (await site.get("/v1/usage", as_of=live["at"])).json()  # of the same moment: a later one may be in the next month

    assert live == folded
    assert live["reserved"] == 5


async def test_pages_follow_one_another_through_all_quotas(site: Site) -> None:
    subjects = [f"s{number:02}" for number in range(7)] + ["with/slash", "ü ml"]
    for subject in subjects:
        at = (await site.limit(subject.replace("/", "%2F"))).headers["Holdbook-Position"]
    await site.get("/v1/usage", subject="s00", min_position=at)

    found: list[str] = []
    path: str | None = "/v1/quotas?limit=2&meter=messages"
    while path is not None:
        answer = await site.client.get(path, headers=site.account.headers)
        found += [quota["subject"] for quota in answer.json()["quotas"]]
        path = answer.links["next"]["url"] if "next" in answer.links else None

    assert found == sorted(subjects)
    stranger = await site.issue(await site.tenant())
    assert (await site.get("/v1/quotas", account=stranger)).json() == {"quotas": []}
    assert (await site.get("/v1/quotas", cursor="AAAA")).status_code == 422


async def test_a_subject_with_a_slash_is_one_segment(site: Site) -> None:
    at = (await site.limit("a%2Fb")).headers["Holdbook-Position"]

    assert (await site.client.get(f"/v1/quotas/messages/a%2Fb?min_position={at}", headers=site.account.headers)).json()["subject"] == "a/b"
    assert (await site.client.get("/v1/quotas/messages/a/b", headers=site.account.headers)).status_code == 404
    assert (await site.get("/v1/usage", subject="a/b")).status_code == 200


async def test_open_reservations_are_listed_and_cancelled(site: Site) -> None:
    await site.limit()
    held = []
    for number in range(5):
        answer = await site.post("/v1/usage/reserve", {"messages": 1, "correlation_id": str(number)})
        held.append(answer.json()["reservation_id"])
    await site.get("/v1/usage", min_position=answer.headers["Holdbook-Position"])

    first = await site.get("/v1/quotas/messages/default/reservations", limit=3)
    second = await site.client.get(first.links["next"]["url"], headers=site.account.headers)
    listed = [open_["reservation_id"] for open_ in first.json()["reservations"] + second.json()["reservations"]]
    assert listed == sorted(held)

    cancelled = await site.post(f"/v1/reservations/{held[0]}/cancel")
    again = await site.post(f"/v1/reservations/{held[0]}/cancel")
    assert cancelled.json()["status"] == "rolled_back"
    assert again.content == cancelled.content
    assert again.headers["Idempotent-Replayed"] == "true"


async def test_credits_are_granted_spent_and_voided(site: Site) -> None:
    await site.limit(limits=[{"limit_id": "free", "amount": 3, "overflow": True}])
    grant = {"grant_id": "invoice-1", "amount": 10, "expires_at": "2099-01-01T00:00:00Z", "correlation_id": "i1"}
    granted = await site.post("/v1/quotas/messages/default/grants", grant)
    assert granted.json() == {"grant_id": "invoice-1", "amount": 10, "credits_remaining": 10}
    await position(site, 5)

    voided = await site.post("/v1/quotas/messages/default/grants/invoice-1/void", {"correlation_id": "v1"})
    assert (voided.json()["freed"], voided.json()["credits_remaining"]) == (8, 0)
    unnamed = await site.post("/v1/quotas/messages/default/grants", {"amount": 1}, key="i2")
    assert len(unnamed.json()["grant_id"]) == 32


async def test_corrections_may_go_below_zero(site: Site) -> None:
    await site.limit()

    adjusted = await site.post("/v1/quotas/messages/default/adjustments", {"amount": -5, "reason": "refund", "correlation_id": "a"})

    assert (adjusted.json()["used"], adjusted.json()["remaining"]) == (-5, 105)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"limits": [{"limit_id": "a", "amount": -1}]}, "limits.0.amount"),
        ({"limits": [{"limit_id": "a", "amount": 1, "window": {"kind": "fortnight"}}]}, "limits.0.window.kind"),
        ({"limits": [{"limit_id": "a", "amount": 1, "window": {"kind": "rolling"}}]}, "limits"),
        ({"limits": [], "zone": "Mars/Olympus"}, "zone"),
        ({"limits": [], "overdraft": {"kind": "bounded"}}, "overdraft"),
        ({"limits": [], "meter": "other"}, "meter"),
        ({}, "limits"),
    ],
)
async def test_limits_that_make_no_sense_name_their_field(site: Site, body: Any, field: str) -> None:
    headers = {**site.account.headers, "Idempotency-Key": "k"}

    answer = await site.client.put("/v1/quotas/messages/default/limits", json=body, headers=headers)

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == field


async def test_the_path_is_part_of_what_a_key_covers(site: Site) -> None:
    headers = {**site.account.headers, "Idempotency-Key": "k"}
    first = await site.client.put("/v1/quotas/messages/a/limits", json={"limits": []}, headers=headers)
    other = await site.client.put("/v1/quotas/messages/b/limits", json={"limits": []}, headers=headers)

    assert first.status_code == 200
    assert other.json()["code"] == "idempotency.key_reused"


async def test_expired_reservations_are_ended_by_the_deadlines(site: Site) -> None:
    await site.limit()
    await site.post("/v1/usage/reserve", {"amount": 5, "ttl_seconds": 1, "correlation_id": "short"})

    async def ended() -> bool:
        rows = await site.rows()
        return [row.actor for row in rows if row.type == "quota.expired"] == ["process:expire"]

    async with asyncio.timeout(60):
        while not await ended():  # noqa: ASYNC110  # the log says it
            await asyncio.sleep(0.1)


async def test_sums_beyond_64_bits_are_told_exactly(site: Site) -> None:
    await site.limit(limits=[{"limit_id": "big", "amount": 2**63 - 1}], overdraft={"kind": "soft"})
    for number in range(3):
        answer = await site.post("/v1/usage/consume", {"amount": 2**63 - 1, "correlation_id": str(number)})
        assert answer.status_code == 200, answer.text

    seen = (await site.get("/v1/usage", min_position=answer.headers["Holdbook-Position"])).json()

    assert seen["used"] == 3 * (2**63 - 1)
    assert seen["remaining"] == -2 * (2**63 - 1)

"""Usage by day, as HTTP tells it."""

from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from domain.quota import QUOTA, Consume, quota_stream
from eventstore.requests import Item, Request
from tests.api.conftest import Site

pytestmark = pytest.mark.asyncio(loop_scope="module")


def now() -> dict[str, Any]:
    """A range around today, wherever the clock stands when the test runs."""
    today = datetime.now(UTC).date()
    return {"from": str(today - timedelta(days=1)), "to": str(today + timedelta(days=2))}


async def consumed(site: Site, subject: str, amount: int, meter: str, at: datetime) -> int:
    tenant_id = site.account.tenant_id
    command = Consume(subject=subject, meter=meter, amount=amount, reservation_id=f"{subject}-{meter}")
    item = Item(QUOTA, quota_stream(tenant_id, subject, meter), command)
    outcome = await site.store.submit(Request(tenant_id, uuid4(), (item,), b"", occurred_at=at))
    assert not outcome.refused, outcome.reply
    return outcome.position


async def some_usage(site: Site) -> int:
    """Four quotas used by 1, 2, 3 and 4 units, all on one day."""
    moment = datetime.now(UTC)
    for amount, (meter, subject) in enumerate([(m, s) for m in ("calls", "messages") for s in ("anna", "boris")], 1):
        await site.limit(subject, meter)
        at = await consumed(site, subject, amount, meter, moment)
    return at


async def test_a_day_tells_what_became_of_every_unit(site: Site) -> None:
    await site.limit()
    for number, (units, used) in enumerate([(40, 37), (10, None)]):
        held = (await site.post("/v1/usage/reserve", {"messages": units, "correlation_id": str(number)})).json()["reservation_id"]
        if used is not None:
            await site.post("/v1/usage/commit", {"reservation_id": held, "used": used})
        else:
            await site.post("/v1/usage/rollback", {"reservation_id": held})
    refused = await site.post("/v1/usage/reserve", {"messages": 1_000, "correlation_id": "too many"})
    assert refused.status_code == 409

    answer = await site.get("/v1/usage/days", **now(), min_position=refused.headers["Holdbook-Position"])

    lines = answer.json()["lines"]
    total = {name: sum(line[name] for line in lines) for name in lines[0] if name not in ("day", "meter", "subject")}
    assert total == {
        "used": 37, "adjusted": 0, "reserved": 50, "released": 13,
        "reservations": 2, "commits": 1, "rollbacks": 1, "expiries": 0, "consumptions": 0, "refusals": 1,
    }  # fmt: skip
    assert {(line["meter"], line["subject"]) for line in lines} == {("messages", None)}
    assert {date.fromisoformat(line["day"]) for line in lines} <= {datetime.now(UTC).date(), datetime.now(UTC).date() - timedelta(days=1)}


async def test_lines_by_meter_by_subject_and_filtered(site: Site) -> None:
    at = await some_usage(site)

    async def used(**asked: Any) -> list[tuple[str, str | None, int]]:
        lines = (await site.get("/v1/usage/days", **now(), min_position=at, **asked)).json()["lines"]
        return [(line["meter"], line["subject"], line["used"]) for line in lines]

    assert await used(by="meter") == [("calls", None, 3), ("messages", None, 7)]
    assert await used(by="meter", subject="boris") == [("calls", "boris", 2), ("messages", "boris", 4)]
    assert await used(by="subject", meter="calls") == [("calls", "anna", 1), ("calls", "boris", 2)]
    assert await used(by="meter", meter="nothing") == []


@pytest.mark.parametrize("by", ["day", "subject", "meter"])
async def test_pages_follow_one_another(site: Site, by: str) -> None:
    at = await some_usage(site)
    whole = (await site.get("/v1/usage/days", **now(), by=by, min_position=at)).json()["lines"]

    found: list[dict[str, Any]] = []
    answer = await site.get("/v1/usage/days", **now(), by=by, limit=1)
    while True:
        found += answer.json()["lines"]
        if "next" not in answer.links:
            break
        answer = await site.client.get(answer.links["next"]["url"], headers=site.account.headers)

    assert found == whole
    assert len(whole) == {"day": 2, "subject": 4, "meter": 2}[by]


async def test_another_tenant_sees_nothing_of_it_and_the_scope_is_asked_for(site: Site) -> None:
    at = await some_usage(site)
    assert (await site.get("/v1/usage/days", **now(), min_position=at)).json()["lines"]
    stranger = await site.issue(await site.tenant())
    writer = await site.issue(site.account.tenant_id, ["usage:write"])

    assert (await site.get("/v1/usage/days", **now(), account=stranger)).json() == {"lines": []}
    refused = await site.get("/v1/usage/days", **now(), account=writer)
    assert (refused.status_code, refused.json()["permission"]) == (403, "usage:read")


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"from": "2026-01-01"}, "to"),
        ({"to": "2026-01-01"}, "from"),
        ({"from": "2026-01-01", "to": "2026-01-01"}, "to"),
        ({"from": "2026-01-02", "to": "2026-01-01"}, "to"),
        ({"from": "2026-01-01", "to": "2027-01-03"}, "to"),
        ({"from": "1.1.2026", "to": "2026-01-03"}, "from"),
        ({"from": "2026-02-30", "to": "2026-03-03"}, "from"),
        ({"from": "0001-01-01", "to": "0001-01-03"}, "from"),
        ({"by": "week"}, "by"),
        ({"meter": "Not A Meter"}, "meter"),
        ({"subject": ""}, "subject"),
        ({"limit": 1_001}, "limit"),
        ({"cursor": "AAAA"}, "cursor"),
        ({"cursor": "WyJ5ZXN0ZXJkYXkiLCJtZXNzYWdlcyJd"}, "cursor"),  # of the right length, but its day is none
        ({"first": "2026-01-01"}, "first"),
    ],
)
async def test_what_makes_no_sense_is_told_by_the_fields_name(site: Site, asked: dict[str, Any], field: str) -> None:
    range_: dict[str, Any] = {} if {"from", "to"} & set(asked) else {"from": "2026-01-01", "to": "2027-01-02"}

    answer = await site.get("/v1/usage/days", **range_, **asked)

    assert (answer.status_code, answer.json()["code"]) == (422, "request.invalid")
    assert field in [error["field"] for error in answer.json()["errors"]]

"""Who did what, as HTTP tells it: page by page, filtered, and to nobody else."""

import asyncio
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest

from domain.quota import quota_stream
from eventstore.origins import without_origin
from tests.api.conftest import Account, Site

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def consumed(site: Site, count: int, subject: str = "default", name: str = "x", account: Account | None = None) -> str:
    """Units consumed one by one; the last one's position."""
    for number in range(count):
        body = {"subject": subject, "amount": 1, "correlation_id": f"{subject}-{name}-{number}"}
        answer = await site.post("/v1/usage/consume", body, account=account)
        assert answer.status_code == 200, answer.text
    return answer.headers["Holdbook-Position"]


async def walked(site: Site, path: str) -> list[dict[str, Any]]:
    """The entries of all pages."""
    found: list[dict[str, Any]] = []
    following: str | None = path
    while following is not None:
        answer = await site.client.get(following, headers=site.account.headers)
        assert answer.status_code == 200, answer.text
        found += answer.json()["entries"]
        following = answer.links["next"]["url"] if "next" in answer.links else None
    return found


async def test_an_entry_says_who_did_what_when_and_what_came_with_it(site: Site) -> None:
    await site.limit()
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    answer = await site.client.post(
        "/v1/usage/reserve", json={"messages": 40, "correlation_id": "c"}, headers={**site.account.headers, "traceparent": trace}
    )
    position = int(answer.headers["Holdbook-Position"])

    page = await site.get("/v1/audit", type="quota.reserved", min_position=position)
    (entry,) = page.json()["entries"]

    assert entry["position"] == position
    assert entry["stream"] == quota_stream(site.account.tenant_id, "default", "messages")
    assert (entry["ordinal"], entry["trace"], entry["cause"], entry["refused"]) == (0, trace, None, None)
    assert site.account.account_id.hex in entry["actor"]
    assert entry["payload"]["reservation_id"] == answer.json()["reservation_id"]
    assert entry["payload"]["amount"] == 40
    assert datetime.fromisoformat(entry["at"]) == datetime.fromisoformat(entry["payload"]["at"])


async def test_an_entry_says_from_where_and_the_log_does_not(site: Site) -> None:
    await site.limit()
    headers = {**site.account.headers, "User-Agent": "till-of-acme/7"}
    answer = await site.client.post("/v1/usage/consume", json={"messages": 1, "correlation_id": "c"}, headers=headers)

    page = await site.get("/v1/audit", type="quota.consumed", min_position=answer.headers["Holdbook-Position"])

    (entry,) = page.json()["entries"]
    assert (entry["actor"], entry["origin"]["address"], entry["origin"]["agent"]) == (
        f"service:{site.account.account_id.hex}", "127.0.0.1", "till-of-acme/7",
    )  # fmt: skip
    row = (await site.rows())[-1]
    assert row.actor == f"{entry['actor']}@{entry['origin']['id']}"
    assert "till-of-acme" not in str(row)
    assert "127.0.0.1" not in str(row)


async def test_the_whole_of_a_tenants_log_is_there_refusals_included(site: Site) -> None:
    await site.limit()
    await consumed(site, 3)
    refused = await site.post("/v1/usage/reserve", {"messages": 1_000, "correlation_id": "too many"})
    assert refused.status_code == 409

    entries = (await site.get("/v1/audit", order="oldest", min_position=refused.headers["Holdbook-Position"])).json()["entries"]

    rows = await site.rows()
    assert [(each["position"], each["type"], each["stream"]) for each in entries] == [(row.position, row.type, row.stream) for row in rows]
    assert [each["refused"] for each in entries if each["type"] == "command.refused"] == ["quota.exceeded"]
    assert {each["type"] for each in entries} >= {"tenant.created", "service.key_issued", "quota.limits_set", "quota.consumed"}


async def test_pages_show_everything_once_while_writes_go_on(site: Site) -> None:
    await site.limit(limits=[{"limit_id": "life", "amount": 10_000}])
    at = await consumed(site, 20)
    before = [row.position for row in await site.rows()]
    await site.get("/v1/audit", min_position=at)

    writing = asyncio.create_task(consumed(site, 40, name="more"))
    newest = [each["position"] for each in await walked(site, "/v1/audit?limit=3")]
    oldest = [each["position"] for each in await walked(site, "/v1/audit?order=oldest&limit=2")]
    await writing

    after = [row.position for row in await site.rows()]
    assert newest == sorted(newest, reverse=True)
    assert [position for position in newest if position <= before[-1]] == before[::-1]
    assert oldest == after[: len(oldest)]
    assert len(oldest) >= len(before)


async def test_filters_combine(site: Site) -> None:
    other = await site.issue(site.account.tenant_id)
    await site.limit("anna")
    await site.limit("boris")
    await consumed(site, 2, "anna")
    await consumed(site, 2, "boris")
    at = await consumed(site, 3, "anna", "other", other)
    await site.get("/v1/audit", min_position=at)
    rows = await site.rows()
    by_other = f"service:{other.account_id.hex}"

    async def positions(**asked: Any) -> list[int]:
        return [each["position"] for each in (await site.get("/v1/audit", order="oldest", **asked)).json()["entries"]]

    anna = quota_stream(site.account.tenant_id, "anna", "messages")
    assert await positions(actor=by_other) == [row.position for row in rows if without_origin(row.actor or "") == by_other]
    assert await positions(stream=anna) == [row.position for row in rows if row.stream == anna]
    assert await positions(meter="messages", subject="anna", actor=by_other) == await positions(stream=anna, actor=by_other, type="quota.")
    assert len(await positions(stream=anna, actor=by_other)) == 3
    assert await positions(type="quota.") == [row.position for row in rows if row.type.startswith("quota.")]
    assert await positions(type="quota") == []
    middle = rows[len(rows) // 2].recorded_at
    assert await positions(since=middle.isoformat()) == [row.position for row in rows if row.recorded_at >= middle]
    assert await positions(until=middle.isoformat()) == [row.position for row in rows if row.recorded_at < middle]
    assert await positions(after=rows[-3].position) == [row.position for row in rows[-2:]]
    assert await positions(since=(rows[-1].recorded_at + timedelta(microseconds=1)).isoformat()) == []


async def test_another_tenant_sees_nothing_of_it(site: Site) -> None:
    await site.limit()
    at = await consumed(site, 2)
    stranger = await site.issue(await site.tenant())
    await site.get("/v1/audit", min_position=at)
    own = {row.position for row in await site.rows()}
    some = (await site.rows())[-1]

    seen = (await site.get("/v1/audit", account=stranger, limit=200)).json()["entries"]

    assert {each["type"] for each in seen} <= {"tenant.created", "service.key_issued"}
    assert str(site.account.tenant_id) not in str(seen)
    assert own
    assert (await site.get("/v1/audit", account=stranger, stream=some.stream)).json() == {"entries": []}
    assert (await site.get("/v1/audit", account=stranger, actor=without_origin(some.actor or ""))).json() == {"entries": []}


async def test_the_scope_is_one_of_its_own(site: Site) -> None:
    lesser = await site.issue(site.account.tenant_id, ["usage:read", "usage:write", "quota:admin"])
    auditor = await site.issue(site.account.tenant_id, ["audit:read"])

    refused = await site.get("/v1/audit", account=lesser)
    allowed = await site.get("/v1/audit", account=auditor)

    assert (refused.status_code, refused.json()["code"], refused.json()["permission"]) == (403, "auth.permission_missing", "audit:read")
    assert allowed.status_code == 200
    assert (await site.get("/v1/usage", account=auditor)).status_code == 403
    assert (await site.client.get("/v1/audit")).status_code == 401


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"since": "yesterday"}, "since"),
        ({"until": "2026-01-01T00:00:00"}, "until"),
        ({"since": "2026-01-02T00:00:00Z", "until": "2026-01-01T00:00:00Z"}, "until"),
        ({"type": "Quota."}, "type"),
        ({"type": "quota.%"}, "type"),
        ({"actor": ""}, "actor"),
        ({"stream": "a\x00b"}, "stream"),
        ({"order": "sideways"}, "order"),
        ({"limit": 0}, "limit"),
        ({"limit": 201}, "limit"),
        ({"after": -1}, "after"),
        ({"after": 2**63}, "after"),
        ({"cursor": "AAAA"}, "cursor"),
        ({"cursor": "WyI5OTk5OTk5OTk5OTk5OTk5OTk5OTk5Il0"}, "cursor"),  # a number that is no position
        ({"cursor": "WyLCsiJd"}, "cursor"),  # a superscript two is a digit to Python
        ({"meter": "tokens"}, "subject"),
        ({"subject": "anna"}, "meter"),
        ({"stream": "quota-1", "meter": "tokens", "subject": "anna"}, "stream"),
        ({"who": "me"}, "who"),
    ],
)
async def test_what_makes_no_sense_is_told_by_the_fields_name(site: Site, asked: dict[str, Any], field: str) -> None:
    answer = await site.get("/v1/audit", **asked)

    assert (answer.status_code, answer.json()["code"]) == (422, "request.invalid")
    assert [error["field"] for error in answer.json()["errors"]] == [field]


async def test_what_was_pruned_since_is_left_out(site: Site, module_database: str) -> None:
    await site.limit()
    at = int(await consumed(site, 2))
    assert len((await site.get("/v1/audit", type="quota.consumed", min_position=at)).json()["entries"]) == 2
    with psycopg.connect(module_database) as conn:
        done = conn.execute(
            "update event set type = 'log.pruned', leaf = hash, payload = 'null' where tenant_id = %s and position = %s",
            (site.account.tenant_id, at),
        )
    assert done.rowcount == 1

    page = await site.get("/v1/audit", type="quota.consumed")

    assert [entry["position"] for entry in page.json()["entries"]] == [at - 1]


async def test_a_position_nobody_wrote_is_told_to_come_back(site: Site) -> None:
    answer = await site.get("/v1/audit", min_position=10**9)

    assert (answer.status_code, answer.json()["code"]) == (503, "projection.behind")
    assert "Retry-After" in answer.headers

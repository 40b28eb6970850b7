"""A tenant's settings over HTTP, and a suspended tenant at the door."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

from domain.identity.tenants import TENANT, DeleteTenant, ResumeTenant, SuspendTenant, tenant_stream
from domain.quota import QUOTA, Consume, quota_stream
from eventstore.requests import Item, Request
from tests.api.conftest import Site
from tests.support.doors import door_by_a_clock
from tests.support.people import call, signed

pytestmark = pytest.mark.asyncio(loop_scope="module")

SETTINGS = {"name": "Acme", "zone": "Asia/Kathmandu", "locale": "ne-NP", "currency": "NPR", "registration": "open"}


async def test_settings_are_read_and_replaced(site: Site) -> None:
    before = (await site.get("/v1/tenant")).json()
    assert before == {
        "tenant_id": site.account.tenant_id.hex,
        "name": "Acme",
        "zone": "UTC",
        "locale": "en",
        "currency": "EUR",
        "registration": "invited",
        "status": "active",
    }

    changed = await call(site, None, "PUT", "/v1/tenant", SETTINGS, key="s")
    again = await call(site, None, "PUT", "/v1/tenant", SETTINGS, key="s")

    assert changed.status_code == 200, changed.text
    assert changed.json() == {**before, **SETTINGS}
    assert again.content == changed.content
    assert again.headers["Idempotent-Replayed"] == "true"
    assert (await site.get("/v1/tenant")).json() == {**before, **SETTINGS}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""), ("name", "a\x00b"), ("zone", "Mars/Olympus"), ("zone", "../../etc/passwd"), ("locale", "secret"), ("currency", "eur"),
        ("currency", "EUROS"), ("registration", "closed"), ("name", None), ("owner", "me"),
    ],
)  # fmt: skip
async def test_bad_settings_are_named_and_change_nothing(site: Site, field: str, value: object) -> None:
    answer = await call(site, None, "PUT", "/v1/tenant", {**SETTINGS, field: value})

    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == [field]
    assert not isinstance(value, str) or len(value) < 4 or value not in answer.text
    assert (await site.get("/v1/tenant")).json()["zone"] == "UTC"


@pytest.mark.parametrize(("role", "reads", "changes"), [
    ("owner", 200, 200), ("admin", 200, 200), ("manager", 200, 403), ("support", 200, 403), ("member", 403, 403),
])  # fmt: skip
async def test_who_may_see_and_who_may_change(site: Site, role: str, reads: int, changes: int) -> None:
    who = await signed(site, role)

    assert (await call(site, who, "GET", "/v1/tenant")).status_code == reads
    assert (await call(site, who, "PUT", "/v1/tenant", SETTINGS)).status_code == changes


async def test_a_suspended_tenant_is_refused_within_a_second_and_let_in_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = door_by_a_clock(site, monkeypatch)
    tenant_id = site.account.tenant_id
    owner = await signed(site, "owner")
    for headers in (site.account.headers, owner.headers):
        assert (await site.client.get("/v1/tenant", headers=headers)).status_code == 200

    await site.operate(tenant_id, TENANT, tenant_stream(tenant_id), SuspendTenant())
    clock.pass_a_second()
    for headers in (site.account.headers, owner.headers):
        refused = await site.client.get("/v1/tenant", headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (403, "auth.tenant_suspended")
    wrong = site.account.headers["Authorization"][:-4] + "AAAA"
    assert (await site.client.get("/v1/tenant", headers={"Authorization": wrong})).json()["code"] == "auth.key_invalid"

    await site.operate(tenant_id, TENANT, tenant_stream(tenant_id), ResumeTenant())
    clock.pass_a_second()
    for headers in (site.account.headers, owner.headers):
        assert (await site.client.get("/v1/tenant", headers=headers)).status_code == 200


async def test_a_deleted_tenant_has_no_settings_left(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, tenant_id = door_by_a_clock(site, monkeypatch), site.account.tenant_id
    assert (await site.get("/v1/tenant")).status_code == 200
    await site.operate(tenant_id, TENANT, tenant_stream(tenant_id), DeleteTenant(tenant_id=tenant_id))

    clock.pass_a_second()
    assert (await site.get("/v1/tenant")).status_code == 401


async def test_a_day_is_that_of_the_zone_the_tenant_has_moved_to(site: Site) -> None:
    tenant_id = site.account.tenant_id
    await site.limit("default", "messages", limits=[{"limit_id": "total", "amount": 100}])

    async def days_after_one_more(name: str) -> dict[str, int]:
        command = Consume(subject="default", meter="messages", amount=1, reservation_id=name)
        item = Item(QUOTA, quota_stream(tenant_id, "default", "messages"), command)
        outcome = await site.store.submit(Request(tenant_id, uuid4(), (item,), b"", occurred_at=datetime(2026, 3, 1, 20, tzinfo=UTC)))
        period: dict[str, Any] = {"from": "2026-02-01", "to": "2026-04-01"}
        found = await site.get("/v1/usage/days", meter="messages", min_position=outcome.position, **period)
        return {day["day"]: day["used"] for day in found.json()["lines"]}

    assert await days_after_one_more("one") == {"2026-03-01": 1}
    await call(site, None, "PUT", "/v1/tenant", SETTINGS)  # in Kathmandu it is past midnight
    assert await days_after_one_more("two") == {"2026-03-01": 1, "2026-03-02": 1}

"""Operators above tenants: what they may, that nobody else may, and that the tenant sees all of it."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID, uuid4

import pytest

from domain.identity.operators import Look, operator_stream
from domain.identity.tenants import PLATFORM, TENANT, DeleteTenant, tenant_stream
from eventstore.requests import Request
from projections.tenants import list_tenants
from tests.api.conftest import Site
from tests.support.people import call, made, operator, signed

pytestmark = pytest.mark.asyncio(loop_scope="module")

SETTINGS = {"name": "Other", "zone": "Europe/Moscow", "locale": "ru", "currency": "RUB", "registration": "open"}
TENANTS = "/v1/operator/tenants"


def of(site: Site, what: str = "") -> str:
    return f"{TENANTS}/{site.account.tenant_id}{what}"


EVERY: list[tuple[str, str, Any]] = [
    ("GET", "", None),
    ("PUT", "", SETTINGS),
    ("POST", "/suspend", None),
    ("POST", "/resume", None),
    ("POST", "/owners", {"email": "x@example.com"}),
    ("GET", "/users", None),
    ("GET", "/audit", None),
]


async def seen_by_the_tenant(site: Site, position: str | int, **wanted: Any) -> list[dict[str, Any]]:
    """What the tenant's own audit log says."""
    answer = await site.get("/v1/audit", order="oldest", limit=200, min_position=position, **wanted)
    assert answer.status_code == 200, answer.text
    entries: list[dict[str, Any]] = answer.json()["entries"]
    return entries


async def head(site: Site) -> int:
    return (await site.rows())[-1].position


async def test_a_tenant_is_made_once_for_a_key_and_its_first_owner_invited(site: Site) -> None:
    who = await operator(site)
    first = await call(site, who, "POST", TENANTS, {"name": "New", "zone": "Asia/Kathmandu"}, key="new")
    again = await call(site, who, "POST", TENANTS, {"name": "New", "zone": "Asia/Kathmandu"}, key="new")
    other = await call(site, who, "POST", TENANTS, {"name": "Newer"}, key="new")

    assert first.status_code == 200, first.text
    assert again.content == first.content
    assert other.json()["code"] == "idempotency.key_reused"
    told = first.json()
    assert (told["name"], told["zone"], told["locale"], told["status"]) == ("New", "Asia/Kathmandu", "en", "active")
    path = f"{TENANTS}/{UUID(told['tenant_id'])}"
    assert (await call(site, who, "GET", path)).json() == told
    invited = await call(site, who, "POST", f"{path}/owners", {"email": "first@example.com"})
    assert invited.status_code == 200, invited.text
    assert (invited.json()["role"], invited.json()["status"]) == ("owner", "invited")
    assert invited.json()["invitation_token"].split("_")[1] == told["tenant_id"]


async def test_the_tenant_sees_what_an_operator_looked_at_before_it_was_shown(site: Site) -> None:
    who = await operator(site)
    for what in ("", "/users", "/audit"):
        assert (await call(site, who, "GET", of(site, what))).status_code == 200

    looks = await seen_by_the_tenant(site, await head(site), type="operator.looked")
    assert [entry["payload"]["what"] for entry in looks] == ["tenant", "users", "audit"]
    assert {entry["actor"] for entry in looks} == {f"operator:{who.user_id.hex}"}


async def test_turning_pages_is_recorded_once_a_minute(site: Site) -> None:
    who = await operator(site)
    stream = operator_stream(site.account.tenant_id, who.user_id)
    minutes = set()
    for _ in range(5):
        assert (await call(site, who, "GET", of(site, "/users"), limit=1)).status_code == 200
    for row in await site.rows():
        if row.stream == stream:
            minutes.add(row.recorded_at.replace(second=0, microsecond=0))

    assert len([row for row in await site.rows() if row.stream == stream]) == len(minutes) <= 2


async def test_nothing_is_shown_that_could_not_be_recorded(site: Site) -> None:
    """A look that is refused by the store leaves no answer: the record comes first."""
    who = await operator(site)
    edge = site.app.state.edge
    submit = edge.store.submit

    async def broken(request: Request) -> Any:
        if any(isinstance(item.command, Look) for item in request.items):
            raise TimeoutError
        return await submit(request)

    edge.store.submit = broken
    try:
        answers = [await call(site, who, "GET", of(site, what)) for what in ("", "/users", "/audit")]
    finally:
        del edge.store.submit

    assert [answer.status_code for answer in answers] == [503, 503, 503]
    assert not any("Acme" in answer.text for answer in answers)


async def test_the_tenant_sees_what_an_operator_changed(site: Site) -> None:
    who = await operator(site)
    changes = [
        ("PUT", "", SETTINGS),
        ("POST", "/suspend", None),
        ("POST", "/resume", None),
        ("POST", "/owners", {"email": "a@example.com"}),
    ]
    for method, what, body in changes:
        answer = await call(site, who, method, of(site, what), body)
        assert answer.status_code == 200, answer.text
    for _ in range(200):
        if (await site.get("/v1/tenant")).status_code == 200:
            break
        await asyncio.sleep(0.02)

    entries = [entry for entry in await seen_by_the_tenant(site, await head(site)) if (entry["actor"] or "").startswith("operator:")]
    assert [entry["type"] for entry in entries] == [
        "tenant.settings_changed", "tenant.suspended", "tenant.resumed", "login.claimed", "user.invited",
    ]  # fmt: skip
    assert {entry["actor"] for entry in entries} == {f"operator:{who.user_id.hex}"}
    assert (await site.get("/v1/tenant")).json()["currency"] == "RUB"


async def test_an_operator_sees_what_the_tenant_sees_also_of_a_suspended_one(site: Site) -> None:
    who = await operator(site)
    _, email = await made(site, site.account.tenant_id, "member")
    suspended = await call(site, who, "POST", of(site, "/suspend"))
    at = suspended.headers["Holdbook-Position"]

    listed = await call(site, who, "GET", of(site, "/users"), min_position=at)
    audited = await call(site, who, "GET", of(site, "/audit"), min_position=at, type="tenant.", order="oldest")

    assert [user["email"] for user in listed.json()["users"]] == [email]
    assert [entry["type"] for entry in audited.json()["entries"]] == ["tenant.created", "tenant.suspended"]
    assert (await call(site, who, "GET", of(site))).json()["status"] == "suspended"


async def test_tenants_are_listed_by_pages_and_status(site: Site, module_database: str) -> None:
    who = await operator(site)
    mine = [(await call(site, who, "POST", TENANTS, {"name": f"T{n}"})).json()["tenant_id"] for n in range(3)]
    await call(site, who, "POST", f"{TENANTS}/{UUID(mine[1])}/suspend")

    async def listed(query: str) -> list[str]:
        found: list[str] = []
        url: str | None = f"{TENANTS}?{query}"
        while url is not None:
            answer = await site.client.get(url, headers=who.headers)
            assert answer.status_code == 200, answer.text
            found += [tenant["tenant_id"] for tenant in answer.json()["tenants"] if tenant["tenant_id"] in mine]
            url = answer.links.get("next", {}).get("url")
        return found

    async def followed() -> bool:
        found = {row.tenant_id.hex: row.status for row in await list_tenants(module_database)}
        return [found.get(each) for each in mine] == ["active", "suspended", "active"]

    async with asyncio.timeout(30):
        while not await followed():  # noqa: ASYNC110  # the read model tells nobody here, and each partition follows for itself
            await asyncio.sleep(0.05)
    assert await listed("status=suspended&limit=200") == [mine[1]]
    assert await listed("limit=9") == mine
    assert await listed("status=active&limit=200") == [mine[0], mine[2]]


@pytest.mark.parametrize("role", ["owner", "admin", "support", None])
async def test_nobody_but_an_operator_comes_in(site: Site, role: str | None) -> None:
    who = None if role is None else await signed(site, role)
    other = await site.tenant()
    for method, what, body in EVERY:
        for tenant_id in (site.account.tenant_id, other):
            answer = await call(site, who, method, f"{TENANTS}/{tenant_id}{what}", body)
            assert (answer.status_code, answer.json()["code"]) == (403, "auth.permission_missing"), (method, what)
    for method, body in (("GET", None), ("POST", SETTINGS)):
        assert (await call(site, who, method, TENANTS, body)).status_code == 403


async def test_the_role_alone_makes_no_operator(site: Site) -> None:
    """A store that was written by hand: an operator anywhere but in the platform's tenant is none."""
    impostor = await signed(site, "operator")
    for method, what, body in EVERY:
        answer = await call(site, impostor, method, of(site, what), body)
        assert (answer.status_code, answer.json()["code"]) == (403, "auth.permission_missing"), (method, what)


@pytest.mark.parametrize("path", ["/v1/tenant", "/v1/users", "/v1/audit", "/v1/quotas", "/v1/webhooks"])
async def test_an_operator_uses_no_tenants_routes(site: Site, path: str) -> None:
    who = await operator(site)

    assert (await call(site, who, "GET", path)).status_code == 403


async def test_a_tenant_that_is_not_there_gets_no_log(site: Site) -> None:
    who, nowhere = await operator(site), uuid4()
    for method, what, body in EVERY:
        answer = await call(site, who, method, f"{TENANTS}/{nowhere}{what}", body)
        assert (answer.status_code, answer.json()["code"]) == (404, "tenant.not_found"), (method, what)
    found = await site.store.writer(nowhere).log.read(0, 100_000)
    assert not [row for row in found if row.tenant_id == nowhere]


async def test_a_deleted_tenant_is_told_apart(site: Site) -> None:
    who, tenant_id = await operator(site), site.account.tenant_id
    await site.operate(tenant_id, TENANT, tenant_stream(tenant_id), DeleteTenant(tenant_id=tenant_id))

    answer = await call(site, who, "GET", of(site))

    assert (answer.status_code, answer.json()["code"]) == (409, "tenant.deleted")


async def test_the_platform_is_not_suspended_and_has_no_owners(site: Site) -> None:
    who = await operator(site)

    assert (await call(site, who, "POST", f"{TENANTS}/{PLATFORM}/suspend")).status_code == 403
    assert (await call(site, who, "POST", f"{TENANTS}/{PLATFORM}/owners", {"email": "x@example.com"})).status_code == 403


async def test_two_operators_who_look_at_once_are_both_seen(site: Site) -> None:
    both = [await operator(site), await operator(site)]

    answers = await asyncio.gather(*(call(site, who, "GET", of(site)) for who in both for _ in range(3)))

    assert {answer.status_code for answer in answers} == {200}
    looks = await seen_by_the_tenant(site, await head(site), type="operator.looked")
    assert {entry["actor"] for entry in looks} == {f"operator:{who.user_id.hex}" for who in both}

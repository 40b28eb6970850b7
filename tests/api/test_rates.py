"""Rates that survive a restart and hold across processes, and what a flood of refused takes leaves in the log."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from api.auth import new_key
from domain.catalog import DECIDERS
from domain.identity.service_accounts import SERVICE_ACCOUNT, IssueKey, service_account_stream
from domain.identity.tenants import TENANT, CreateTenant, tenant_stream
from domain.quota import QUOTA, quota_stream
from eventstore.requests import Item, Request
from eventstore.store import Store
from tests.api.conftest import Site
from tests.support.processes import Managed, free_ports, surroundings

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def rate(site: Site, amount: int = 5, seconds: int = 60, name: str = "bot", **more: Any) -> httpx.Response:
    body = {"amount": amount, "seconds": seconds, **more}
    headers = {**site.account.headers, "Idempotency-Key": uuid4().hex}
    answer = await site.client.put(f"/v1/policies/rates/{name}", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    site.app.state.edge.rates._policies.clear()  # what was read may be used for a second
    return answer


async def take(site: Site, subject: str = "telegram-81", name: str = "bot", key: str | None = None, **more: Any) -> httpx.Response:
    return await site.post(f"/v1/rates/{name}/take", {"subject": subject, **more}, key=key)


async def test_five_of_sixty_seconds_then_a_refusal_that_says_when_to_come_again(site: Site) -> None:
    await rate(site)

    taken = [await take(site) for _ in range(5)]
    refused = await take(site)

    assert [answer.json() for answer in taken] == [{"allowed": True, "remaining": left, "exempt": False} for left in (4, 3, 2, 1, 0)]
    assert taken[0].headers["ratelimit-policy"] == '"bot";q=5;w=60'
    assert refused.status_code == 429
    assert refused.json()["code"] == "rate.limited"
    assert refused.json()["policy"] == "bot"
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.headers["ratelimit"].startswith('"bot";r=0;t=')
    assert (await take(site, "telegram-82")).status_code == 200


async def test_room_comes_back_when_the_oldest_take_leaves_the_window(site: Site) -> None:
    await rate(site, 1, 2)

    many = await asyncio.gather(*(take(site) for _ in range(20)))  # of so many some come within two seconds, however slow the machine
    assert {answer.status_code for answer in many} == {200, 429}
    deadline = asyncio.get_running_loop().time() + 60
    while (answer := await take(site)).status_code == 429:
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.05)

    assert answer.json()["allowed"]


async def test_a_flood_of_refused_takes_is_one_row_of_the_log(site: Site) -> None:
    await rate(site, 2, 600)
    for _ in range(2):
        await take(site)

    answers = await asyncio.gather(*(take(site, key=uuid4().hex if i % 2 else None) for i in range(60)))

    assert {answer.status_code for answer in answers} == {429}
    refused = [row for row in await site.rows() if row.type == "command.refused"]
    assert len(refused) == 1


async def test_a_take_whose_answer_was_lost_is_told_again_even_while_others_are_refused(site: Site) -> None:
    await rate(site, 1, 600)
    first = await take(site, key="update-1")
    assert (await take(site, key="update-2")).status_code == 429

    again = await take(site, key="update-1")

    assert (again.status_code, again.json()) == (200, first.json())
    assert again.headers["idempotent-replayed"] == "true"


async def test_a_refused_take_stays_refused_under_its_key(site: Site) -> None:
    await rate(site, 1, 600)
    await take(site, key="update-1")
    assert (await take(site, key="update-2")).status_code == 429
    await rate(site, 5, 600)

    again = await take(site, key="update-2")
    anew = await take(site, key="update-3")

    assert (again.status_code, again.headers["retry-after"]) == (429, "1")
    assert anew.status_code == 200


async def test_another_policy_is_asked_for_at_once_and_keeps_what_was_counted(site: Site) -> None:
    await rate(site, 1, 600)
    await take(site)
    assert (await take(site)).status_code == 429

    await rate(site, 3, 600)

    assert (await take(site)).json()["remaining"] == 1
    assert (await take(site)).json()["remaining"] == 0
    assert (await take(site)).status_code == 429


async def test_whom_a_key_calls_exempt_is_recorded_nowhere(site: Site) -> None:
    await rate(site, 1, 600)
    before = len(await site.rows())

    answers = [await take(site, exempt=True) for _ in range(5)]

    assert {answer.text for answer in answers} == {'{"allowed":true,"remaining":null,"exempt":true}'}
    assert len(await site.rows()) == before


@pytest.mark.parametrize(
    ("body", "field"),
    [({}, "subject"), ({"subject": ""}, "subject"), ({"subject": "x", "name": "bot"}, "name"), ({"subject": "x", "amount": 2}, "amount")],
)
async def test_a_bad_take_names_the_field(site: Site, body: dict[str, Any], field: str) -> None:
    await rate(site)

    answer = await site.post("/v1/rates/bot/take", body)

    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field)


async def test_a_rate_that_is_not_set_is_not_found(site: Site) -> None:
    answer = await take(site, name="nothing")

    assert (answer.status_code, answer.json()["code"]) == (404, "policy.rate_not_found")


async def test_policies_are_set_shown_listed_and_removed(site: Site) -> None:
    await rate(site, 5, 60, exempt_roles=["owner", "admin"])
    await rate(site, 3, 300, name="ai")

    shown = await site.get("/v1/policies/rates/bot")
    listed = await site.get("/v1/policies/rates")
    removed = await site.client.delete("/v1/policies/rates/bot", headers={**site.account.headers, "Idempotency-Key": "1"})
    gone = await site.get("/v1/policies/rates/bot")

    assert shown.json() == {"name": "bot", "amount": 5, "seconds": 60, "exempt_roles": ["admin", "owner"]}
    assert [each["name"] for each in listed.json()["rates"]] == ["ai", "bot"]
    assert removed.json() == {"name": "bot", "status": "removed"}
    assert gone.status_code == 404


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"amount": 0, "seconds": 60}, "amount"),
        ({"amount": 5, "seconds": 86_401}, "seconds"),
        ({"amount": 5, "seconds": 60, "exempt_roles": ["s3cret"]}, "exempt_roles.0"),
        ({"amount": "5", "seconds": 60}, "amount"),
    ],
)
async def test_a_bad_policy_names_the_field_and_echoes_nothing(site: Site, body: dict[str, Any], field: str) -> None:
    answer = await site.client.put("/v1/policies/rates/bot", json=body, headers={**site.account.headers, "Idempotency-Key": "1"})

    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field)
    assert "s3cret" not in answer.text


async def test_permissions_are_those_of_the_tenants_settings(site: Site) -> None:
    reader = await site.issue(site.account.tenant_id, ("tenant:read",))
    await rate(site)

    seen = await site.get("/v1/policies/rates", account=reader)
    headers = {**reader.headers, "Idempotency-Key": "1"}
    refused = await site.client.put("/v1/policies/rates/bot", json={"amount": 9, "seconds": 60}, headers=headers)
    take_refused = await site.post("/v1/rates/bot/take", {"subject": "x"}, account=reader)

    assert (seen.status_code, refused.status_code, take_refused.status_code) == (200, 403, 403)


async def test_no_other_tenant_takes_of_it(site: Site) -> None:
    await rate(site, 1, 600)
    other = await site.issue(await site.tenant())

    answer = await site.post("/v1/rates/bot/take", {"subject": "telegram-81"}, account=other)

    assert answer.status_code == 404


@contextmanager
def two_servers(dsn: str, directory: Path) -> Iterator[list[tuple[str, Managed]]]:
    servers = []
    try:
        for name, port in zip(("first", "second"), free_ports(2), strict=True):
            environment = surroundings(dsn, HOLDBOOK_PORT=str(port), HOLDBOOK_LOG_LEVEL="warning")
            server = Managed(directory / f"{name}.log", environment, "serve")
            server.ensure()
            servers.append((f"http://127.0.0.1:{port}", server))
        yield servers
    finally:
        for _, server in servers:
            server.kill()


async def until_ready(client: httpx.AsyncClient, url: str) -> None:
    deadline = asyncio.get_running_loop().time() + 120
    while True:
        try:
            if (await client.get(f"{url}/livez")).status_code == 200:
                return
        except httpx.TransportError:
            pass
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.1)


async def made_tenant(dsn: str) -> tuple[Any, str, str]:
    """A tenant with a key, made as the command line does."""
    tenant_id, account_id = uuid4(), uuid4()
    key = new_key(tenant_id, account_id)
    store = await Store.open(dsn, DECIDERS, connections=2)
    items = (
        Item(TENANT, tenant_stream(tenant_id), CreateTenant(tenant_id=tenant_id, name="Acme")),
        Item(
            SERVICE_ACCOUNT,
            service_account_stream(account_id),
            IssueKey(key_id=key.key_id, secret_hash=key.secret_hash, scopes=("usage:write", "tenant:admin"), name="test"),
        ),
    )
    try:
        for item in items:
            await store.submit(Request(tenant_id, uuid4(), (item,), b""))
    finally:
        await store.drain()
    return tenant_id, key.text, quota_stream(tenant_id, "telegram-81", "rate.bot")


async def test_it_holds_across_two_processes_and_survives_their_restart(database_dsn: str, tmp_path: Path) -> None:
    tenant_id, key, stream = await made_tenant(database_dsn)
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(trust_env=False, timeout=120, headers=headers) as client:
        with two_servers(database_dsn, tmp_path) as servers:
            urls = [url for url, _ in servers]
            for url in urls:
                await until_ready(client, url)
            policy = {"amount": 5, "seconds": 3600, "correlation_id": "1"}
            assert (await client.put(f"{urls[0]}/v1/policies/rates/bot", json=policy)).status_code == 200

            flood = [client.post(f"{url}/v1/rates/bot/take", json={"subject": "telegram-81"}) for url in urls * 20]
            answers = [answer.status_code for answer in await asyncio.gather(*flood)]
            for _, server in servers:
                server.kill()
                server.ensure()
            for url in urls:
                await until_ready(client, url)
            after = [(await client.post(f"{url}/v1/rates/bot/take", json={"subject": "telegram-81"})).status_code for url in urls]

    assert sorted(answers) == [200] * 5 + [429] * 35
    assert after == [429, 429]
    store = await Store.open(database_dsn, DECIDERS, connections=2)
    try:
        state = (await store.state(QUOTA, tenant_id, stream)).state
        rows = [row for row in await store.writer(tenant_id).log.read(0, 1000) if row.tenant_id == tenant_id]
    finally:
        await store.drain()
    assert state.used == 5
    assert len([row for row in rows if row.type == "command.refused"]) <= 4

"""What is refused before any rule is asked: bodies, keys, scopes, addresses."""

import asyncio
from collections import Counter
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from api.auth import new_key
from tests.api.conftest import BODY_LIMIT, Site

pytestmark = pytest.mark.asyncio(loop_scope="module")

RESERVE = "/v1/usage/reserve"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"messages": 1, "surprise": 1}, "surprise"),
        ({"messages": 1.0}, "messages"),
        ({"messages": "1"}, "messages"),
        ({"messages": True}, "messages"),
        ({"messages": 0}, "messages"),
        ({"messages": -1}, "messages"),
        ({"messages": 2**63}, "messages"),
        ({"messages": 1, "amount": 1}, "messages"),
        ({}, "amount"),
        ({"amount": 1, "meter": "Messages"}, "meter"),
        ({"amount": 1, "subject": ""}, "subject"),
        ({"amount": 1, "subject": "a\nb"}, "subject"),
        ({"amount": 1, "subject": "x" * 129}, "subject"),
        ({"amount": 1, "ttl_seconds": 0}, "ttl_seconds"),
        ({"amount": 1, "mode": "hopeful"}, "mode"),
        ({"amount": 1, "correlation_id": 7}, "correlation_id"),
    ],
)
async def test_bad_input_names_its_field_and_changes_nothing(site: Site, body: dict[str, Any], field: str) -> None:
    answer = await site.post(RESERVE, body, key="k")

    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["type"] == "urn:holdbook:problem:request.invalid"
    assert problem["errors"][0]["field"] == field
    rows = await site.rows()
    assert not [row for row in rows if row.stream.startswith(("quota-", "refused-"))]


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff", b"[1]", b"null", b'"x"', b'{"messages": NaN}', b'{"subject": "\\ud800"}'])
async def test_what_is_no_json_object_is_a_client_error(site: Site, raw: bytes) -> None:
    answer = await site.client.post(RESERVE, content=raw, headers={**site.account.headers, "Idempotency-Key": "k"})

    assert answer.status_code in (400, 422)
    assert answer.json()["code"] in ("request.malformed", "request.invalid")


async def test_values_are_never_repeated(site: Site) -> None:
    answer = await site.post(RESERVE, {"messages": "hunter2", "correlation_id": "k"})

    assert "hunter2" not in answer.text


async def test_a_body_too_large_is_refused_whether_or_not_it_says_so(site: Site) -> None:
    headers = {**site.account.headers, "Idempotency-Key": "k"}

    async def chunks() -> Any:
        for _ in range(BODY_LIMIT // 1024 + 1):
            yield b" " * 1024

    declared = await site.client.post(RESERVE, content=b" " * (BODY_LIMIT + 1), headers=headers)
    chunked = await site.client.post(RESERVE, content=chunks(), headers=headers)

    assert declared.status_code == chunked.status_code == 413
    assert declared.json()["code"] == "request.too_large"


async def test_chunked_bodies_work(site: Site) -> None:
    await site.limit()

    async def chunks() -> Any:
        yield b'{"messages": 1, '
        yield b'"correlation_id": "chunked"}'

    assert (await site.client.post(RESERVE, content=chunks(), headers=site.account.headers)).status_code == 200


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (None, "auth.required"),
        ("Basic eDp5", "auth.key_invalid"),
        ("Bearer nonsense", "auth.key_invalid"),
        ("Bearer " + new_key(uuid4(), uuid4()).text, "auth.key_invalid"),
    ],
)
async def test_without_a_known_key_there_is_401(site: Site, header: str | None, code: str) -> None:
    answer = await site.client.post(RESERVE, json={}, headers={"Authorization": header} if header else {})

    assert (answer.status_code, answer.json()["code"]) == (401, code)
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")


async def test_a_wrong_secret_for_a_known_key_is_401(site: Site) -> None:
    text = site.account.text[:-43] + "A" * 43

    answer = await site.client.get("/v1/usage", headers={"Authorization": f"Bearer {text}"})

    assert answer.status_code == 401


async def test_a_key_of_one_tenant_with_another_tenants_name_is_401(site: Site) -> None:
    other = await site.tenant()
    text = site.account.text.replace(site.account.tenant_id.hex, other.hex)

    assert (await site.client.get("/v1/usage", headers={"Authorization": f"Bearer {text}"})).status_code == 401


@pytest.mark.parametrize(
    ("scope", "method", "path", "body"),
    [
        ("usage:write", "POST", RESERVE, {"messages": 1, "correlation_id": "k"}),
        ("usage:read", "GET", "/v1/usage", None),
        ("usage:read", "GET", "/v1/quotas", None),
        ("quota:admin", "PUT", "/v1/quotas/messages/default/limits", {"limits": [], "correlation_id": "k"}),
        ("quota:admin", "POST", "/v1/quotas/messages/default/grants", {"amount": 1, "correlation_id": "k"}),
        ("quota:admin", "POST", "/v1/batches",
         {"correlation_id": "k", "commands": [{"op": "grant", "meter": "m", "subject": "s", "amount": 1}]}),
    ],
)  # fmt: skip
async def test_a_key_without_the_scope_is_told_which(site: Site, scope: str, method: str, path: str, body: object) -> None:
    scopes = [other for other in ("usage:write", "usage:read", "quota:admin") if other != scope]
    account = await site.issue(site.account.tenant_id, scopes)

    answer = await site.client.request(method, path, json=body, headers=account.headers)

    assert (answer.status_code, answer.json()["code"], answer.json()["permission"]) == (403, "auth.permission_missing", scope)


async def test_a_revoked_key_ends_within_a_second(site: Site) -> None:
    account = await site.issue(site.account.tenant_id)
    assert (await site.get("/v1/quotas", account=account)).status_code == 200

    await site.revoke(account)
    await asyncio.sleep(1.05)

    assert (await site.get("/v1/quotas", account=account)).status_code == 401


async def test_a_burst_of_invented_keys_leaves_known_ones_alone(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, released = 0, asyncio.Event()
    invented = {tenant_id: f"Bearer {new_key(tenant_id, uuid4()).text}" for tenant_id in (uuid4() for _ in range(300))}
    states = site.store.states

    async def held(tenant_id: UUID, *arguments: Any) -> Any:
        nonlocal asked
        if tenant_id in invented:
            asked += 1
            await released.wait()
        return await states(tenant_id, *arguments)

    monkeypatch.setattr(site.store, "states", held)
    assert (await site.get("/v1/quotas")).status_code == 200
    limits = httpx.Limits(max_connections=300)
    async with httpx.AsyncClient(base_url=site.url, timeout=120, limits=limits, trust_env=False) as client:
        burst = [asyncio.create_task(client.get("/v1/quotas", headers={"Authorization": text})) for text in invented.values()]
        async with asyncio.timeout(100):
            while sum(each.done() for each in burst) < 200:  # noqa: ASYNC110  # those for whom there is no room
                await asyncio.sleep(0.01)
        known, asked_meanwhile = await site.get("/v1/quotas"), asked
        released.set()
        statuses = Counter(answer.status_code for answer in await asyncio.gather(*burst))

    assert known.status_code == 200
    assert asked_meanwhile == 1, "one is looked up at a time"
    assert statuses == {401: 100, 503: 200}


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nope", 404), ("DELETE", RESERVE, 405), ("GET", RESERVE, 405)])
async def test_unknown_addresses_are_problems_as_well(site: Site, method: str, path: str, status: int) -> None:
    answer = await site.client.request(method, path)

    assert answer.status_code == answer.json()["status"] == status
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_bug_says_nothing_about_itself(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("hunter2")

    monkeypatch.setattr(site.app.state.edge.readers.quotas, "get", broken)

    answer = await site.get("/v1/usage")

    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "hunter2" not in answer.text


async def test_more_than_may_wait_is_told_to_come_back(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site.store.options, "queue_commands", 0)

    answer = await site.post(RESERVE, {"messages": 1, "correlation_id": "k"})

    assert (answer.status_code, answer.json()["code"]) == (503, "store.overloaded")
    assert answer.headers["Retry-After"] == "1"


async def test_health_and_metrics(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    await site.limit()
    await site.post(RESERVE, {"messages": 1000, "correlation_id": "k"})

    assert (await site.client.get("/livez")).json() == {"status": "ok"}
    ready = await site.client.get("/readyz")
    assert (ready.status_code, ready.json()["checks"]) == (200, {"store": "ok", "projections": "ok", "draining": "ok"})
    metrics = (await site.client.get("/metrics")).text
    assert 'holdbook_requests_total{method="POST",route="/v1/usage/reserve",status="409"} ' in metrics
    assert 'holdbook_refusals_total{code="quota.exceeded"} ' in metrics
    assert "holdbook_writer_events_total" in metrics
    assert "holdbook_projection_lag_events" in metrics

    monkeypatch.setattr(site.app.state.edge, "draining", True)
    assert (await site.client.get("/readyz")).status_code == 503

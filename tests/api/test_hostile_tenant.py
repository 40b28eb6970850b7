"""A stranger at every door: whatever the OpenAPI document lists is tried with another tenant's credentials, and with none.

A route is covered the day it appears. One with a parameter that is not known here fails until :data:`IDS` says how a tenant comes by such
a thing, so that the stranger can ask for a real one.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import httpx
import jwt
import pytest
import pytest_asyncio

from api.app import openapi_document
from api.edge import Edge
from api.openapi import PERMISSION
from domain.identity.permissions import KEY_PERMISSIONS, ROLES
from eventstore.store import partition_of
from tests.api.conftest import Account, Running, Site
from tests.support import persons

pytestmark = pytest.mark.asyncio(loop_scope="module")

MARK = "m4rk3d-by-acme"
"""Stands in everything that the owner gives a name to, and must be in no answer to anybody else."""

QUERY = {"from": "2026-01-01", "to": "2026-02-01"}
"""Parameters of queries that cannot be left out, and name nothing."""

DOCUMENT = openapi_document()


@dataclass(frozen=True)
class Operation:
    """One method of one address."""

    method: str
    path: str
    told: dict[str, Any]

    @property
    def public(self) -> bool:
        return self.told.get("security") == [] or not self.path.startswith("/v1/")

    @property
    def permission(self) -> str | None:
        found: str | None = self.told.get(PERMISSION)
        return found

    def body(self) -> Any:
        """The document's own first example."""
        content = self.told.get("requestBody", {}).get("content", {}).get("application/json", {})
        examples = list(content.get("examples", {}).values())
        return examples[0]["value"] if examples else content.get("example")

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


def operations() -> Iterator[Operation]:
    for path, methods in DOCUMENT["paths"].items():
        for method, told in methods.items():
            yield Operation(method.upper(), path, told)


ALL = list(operations())
PRIVATE = [operation for operation in ALL if not operation.public]


@dataclass
class Owner:
    """The tenant that everything is tried to be taken from, and what it has, by the names the document gives to parameters."""

    site: Site
    ids: dict[str, str]


async def _reserved(site: Site) -> str:
    await site.limit(MARK)
    answer = await site.post("/v1/usage/reserve", {"subject": MARK, "messages": 1, "ttl_seconds": 86_400, "correlation_id": MARK})
    return str(answer.json()["reservation_id"])


async def _granted(site: Site) -> str:
    body = {"grant_id": f"{MARK}-grant", "amount": 5, "correlation_id": uuid4().hex}
    answer = await site.post(f"/v1/quotas/messages/{MARK}/grants", body)
    assert answer.status_code == 200, answer.text
    return f"{MARK}-grant"


async def _webhook(site: Site) -> str:
    body = {"url": f"https://{MARK}.example.com/in", "types": [], "description": MARK, "correlation_id": uuid4().hex}
    answer = await site.post("/v1/webhooks", body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["webhook_id"])


async def _message(site: Site, webhook_id: str) -> str:
    answer = await site.post(f"/v1/webhooks/{webhook_id}/test", {"correlation_id": uuid4().hex})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["message_id"])


async def _put(site: Site, path: str, body: Any) -> None:
    answer = await site.client.put(path, json=body, headers={**site.account.headers, "Idempotency-Key": uuid4().hex})
    assert answer.status_code == 200, f"{path}: {answer.text}"


async def _person(site: Site) -> tuple[persons.Person, str]:
    """Somebody with a license, a device and a sender account, signed in; the session's id."""
    edge: Edge = site.app.state.edge
    tenant_id = site.account.tenant_id
    user_id = await persons.create(edge, tenant_id)
    person = await persons.sign_in(edge, tenant_id, user_id, name=MARK)
    me = await site.client.put("/v1/me", json={"name": MARK, "correlation_id": MARK}, headers=person.headers)
    assert me.status_code == 200, me.text
    limits = {"messages": {"limits": [{"limit_id": "life", "amount": 9}]}}
    await _put(site, f"/v1/users/{user_id.hex}/license", {"plan": MARK, "devices": 2, "limits": limits})
    sender = {"sender_id": f"{MARK}-sender", "label": MARK, "correlation_id": MARK}
    answer = await site.client.post("/v1/senders", json=sender, headers=person.headers)
    assert answer.status_code == 200, answer.text
    claims = jwt.decode(person.headers["Authorization"].split()[1], options={"verify_signature": False})
    return person, str(claims["sid"])


async def made(site: Site) -> dict[str, str]:
    """One of each thing a path can name."""
    webhook_id = await _webhook(site)
    person, session_id = await _person(site)
    assert person.device_id is not None
    await _put(site, f"/v1/privacy/{MARK}/consents/marketing", {"version": MARK})
    await _put(site, f"/v1/policies/rates/{MARK}", {"amount": 5, "seconds": 60})
    await _put(site, "/v1/policies/retention/telemetry", {"days": 17})
    key = await site.post("/v1/keys", {"name": MARK, "scopes": ["usage:read"], "correlation_id": MARK})
    assert key.status_code == 200, key.text
    return {
        "user_id": person.user_id.hex,
        "device_id": person.device_id.hex,
        "session_id": session_id,
        "sender_id": f"{MARK}-sender",
        "key_id": str(key.json()["key_id"]),
        "name": MARK,
        "tenant_id": site.account.tenant_id.hex,
        "purpose": "marketing",
        "kind": "telemetry",
        "meter": "messages",
        "subject": MARK,
        "reservation_id": await _reserved(site),
        "grant_id": await _granted(site),
        "webhook_id": webhook_id,
        "message_id": await _message(site, webhook_id),
    }


COMMON = frozenset({"meter", "purpose", "kind"})
"""Names that everybody uses: there is nothing of one's own to be found under them."""


def invented(ids: dict[str, str]) -> dict[str, str]:
    """As these, and nobody's."""
    fresh = iter(uuid4().hex * 20)
    return {
        name: value if name in COMMON else re.sub(r"[0-9a-f](?!\d*$)", lambda _: next(fresh), value)  # a last number counts something
        for name, value in ids.items()
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def owner(running: Running) -> AsyncIterator[Owner]:
    site = Site(running.url, running.app, running.store, running.client, Account(uuid4(), uuid4(), "", ""))
    site.account = await site.issue(await site.tenant())
    ids = await made(site)
    yield Owner(site, ids)


def aimed(operation: Operation, ids: dict[str, str]) -> str:
    """The operation's address with these ids in it."""
    needed = [each["name"] for each in operation.told.get("parameters", []) if each.get("required")]
    missing = [name for name in needed if name not in ids | QUERY]
    assert not missing, f"{operation}: say in `made` how a tenant comes by {missing}"
    path = re.sub(r"{(\w+)}", lambda found: ids[found[1]], operation.path)
    return str(httpx.URL(path, params={name: QUERY[name] for name in needed if name in QUERY}))


def body_with(operation: Operation, ids: dict[str, str], key: str) -> Any:
    """The example with the owner's ids wherever it names something."""
    body = operation.body()
    if not isinstance(body, dict):
        return body
    body = json.loads(json.dumps(body))
    for name in body:
        if name in ids:
            body[name] = ids[name]
        elif name == "correlation_id":
            body[name] = key
    return body


async def asked(client: httpx.AsyncClient, operation: Operation, ids: dict[str, str], headers: dict[str, str]) -> httpx.Response:
    key = uuid4().hex
    body = body_with(operation, ids, key)
    content = None if body is None or operation.method == "GET" else json.dumps(body).encode()
    sent = {**headers, "Idempotency-Key": key, "Content-Type": "application/json"}
    return await client.request(operation.method, aimed(operation, ids), content=content, headers=sent)


def seen(answer: httpx.Response) -> tuple[int, str | None]:
    """What an answer gives away about whether the thing is there."""
    is_json = answer.headers.get("content-type") in ("application/json", "application/problem+json")
    told = answer.json() if is_json and answer.content else {}
    return answer.status_code, told.get("code") if isinstance(told, dict) else None


async def _neighbour(site: Site) -> UUID:
    """A tenant in the same partition of the log, whose streams the same writer has at hand."""
    partitions = site.store.partitions
    wanted = partition_of(site.account.tenant_id, partitions)
    return await site.tenant(next(each for each in iter(uuid4, None) if partition_of(each, partitions) == wanted))


async def _with_a_key(site: Site) -> dict[str, str]:
    return (await site.issue(await _neighbour(site))).headers


async def _as_owner(site: Site) -> dict[str, str]:
    edge: Edge = site.app.state.edge
    tenant_id = await _neighbour(site)
    return (await persons.sign_in(edge, tenant_id, await persons.create(edge, tenant_id, "owner"))).headers


@pytest.mark.parametrize("enter", [_with_a_key, _as_owner])
@pytest.mark.parametrize("operation", PRIVATE, ids=str)
async def test_a_stranger_learns_and_changes_nothing(owner: Owner, operation: Operation, enter: Callable[[Site], Any]) -> None:
    site = owner.site
    headers = await enter(site)
    before = [row.hash for row in await site.rows()]

    real = await asked(site.client, operation, owner.ids, headers)
    nobodys = await asked(site.client, operation, invented(owner.ids), await enter(site))

    assert real.status_code < 500 or real.status_code == 501, real.text
    assert seen(real) == seen(nobodys), "the stranger can tell what is there from what is not"
    answered = real.text
    for value in owner.ids.values():  # what was asked may be said again
        answered = answered.replace(value, "")
    assert MARK not in answered
    assert site.account.tenant_id.hex not in answered.replace("-", "")
    assert [row.hash for row in await site.rows()] == before


@pytest.mark.parametrize("operation", PRIVATE, ids=str)
async def test_nobody_gets_in_without_a_credential(owner: Owner, operation: Operation) -> None:
    before = [row.hash for row in await owner.site.rows()]

    answer = await asked(owner.site.client, operation, owner.ids, {})

    assert (answer.status_code, answer.json()["code"]) == (401, "auth.required"), answer.text
    assert MARK not in answer.text.replace(owner.ids["subject"], "")
    assert [row.hash for row in await owner.site.rows()] == before


@pytest.mark.parametrize("operation", [each for each in PRIVATE if each.permission in KEY_PERMISSIONS], ids=str)
async def test_the_permission_that_is_shown_is_the_one_that_is_asked_for(owner: Owner, operation: Operation) -> None:
    site = owner.site
    without = await site.issue(site.account.tenant_id, [each for each in KEY_PERMISSIONS if each != operation.permission])

    answer = await asked(site.client, operation, owner.ids, without.headers)

    assert (answer.status_code, answer.json().get("code")) == (403, "auth.permission_missing"), answer.text
    assert answer.json()["permission"] == operation.permission


async def test_every_operation_says_what_it_needs() -> None:
    open_to_all_with_a_credential = {"POST /v1/batches"}  # each command in it needs its own
    silent = {str(each) for each in PRIVATE if each.permission is None}

    assert silent == open_to_all_with_a_credential


@pytest.mark.parametrize("operation", PRIVATE, ids=str)
async def test_a_member_sees_nothing_of_others_in_the_same_tenant(owner: Owner, operation: Operation) -> None:
    site = owner.site
    edge: Edge = site.app.state.edge
    member = await persons.person(edge, site.account.tenant_id)

    answer = await asked(site.client, operation, owner.ids, member.headers)

    allowed = operation.permission is None or operation.permission in ROLES["member"] or operation.path.startswith("/v1/privacy/")
    assert answer.status_code == 403 or allowed, answer.text
    answered = answer.text
    for value in owner.ids.values():
        answered = answered.replace(value, "")
    assert MARK not in answered

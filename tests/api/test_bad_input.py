"""Bad input at every door: the field is named, nothing is recorded, and what was sent is never said again, for it may be a secret."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest

from tests.api.conftest import Site
from tests.api.test_hostile_tenant import ALL, Operation, aimed
from tests.support import persons

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRET = "hunter2-never-say-this-again"
PLACES = {
    "meter": "messages",
    "purpose": "marketing",
    "kind": "telemetry",
    "sender_id": "sender-1",
    "grant_id": "grant-1",
    "name": "rate-1",
}
WITH_BODY = [each for each in ALL if each.path.startswith("/v1/") and isinstance(each.body(), dict)]


def _more(body: dict[str, Any]) -> dict[str, Any]:
    return {**body, "surplus": SECRET}


def _other_kind(body: dict[str, Any]) -> dict[str, Any]:
    return {name: {"told": SECRET} for name in body}


def _too_long(body: dict[str, Any]) -> dict[str, Any]:
    return dict.fromkeys(body, SECRET * 400)


def _inside_a_list(body: dict[str, Any]) -> dict[str, Any]:
    return {name: [SECRET] for name in body}


def _odd_text(body: dict[str, Any]) -> dict[str, Any]:
    return dict.fromkeys(body, f"{SECRET}\x00\n")


def ids(operation: Operation) -> dict[str, str]:
    """Something of the right shape for every name in the path."""
    found = {each["name"]: uuid4().hex for each in operation.told.get("parameters", []) if each.get("in") == "path"}
    return {name: PLACES.get(name, value) for name, value in found.items()} | {"message_id": f"{uuid4()}:0", "reservation_id": "A" * 40}


def _fields(answer: Any) -> Iterator[str]:
    yield from (error["field"] for error in answer.get("errors", ()))


@pytest.mark.parametrize("spoil", [_more, _other_kind, _too_long, _inside_a_list, _odd_text])
@pytest.mark.parametrize("operation", WITH_BODY, ids=str)
async def test_bad_input_is_named_and_never_repeated(
    site: Site, operation: Operation, spoil: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    edge = site.app.state.edge
    owner = await persons.person(edge, site.account.tenant_id, "owner")
    operator = operation.path.startswith("/v1/operator/")
    person = operator or operation.permission == "self:manage"
    headers = {} if operation.public else owner.headers if person else site.account.headers
    before = [row.hash for row in await site.rows()]
    body = spoil(operation.body())

    answer = await site.client.request(
        operation.method,
        aimed(operation, ids(operation)),
        content=json.dumps(body).encode(),
        headers={**headers, "Idempotency-Key": uuid4().hex, "Holdbook-Tenant": str(site.account.tenant_id)},
    )

    assert SECRET not in answer.text
    assert not any(SECRET in value for value in answer.headers.values())
    assert (answer.status_code, answer.headers["content-type"]) in {
        (status, "application/problem+json") for status in (401, 403, 404, 409, 422)
    }, answer.text
    if answer.status_code == 422:
        assert set(_fields(answer.json())), "the field is named"
    assert [row.hash for row in await site.rows()] == before, "and nothing is recorded"

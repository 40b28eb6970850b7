"""Whose a request is that brings no credential."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from uuid import UUID, uuid4

import pytest
from fastapi import Request as HttpRequest

from api.problems import Problem
from api.settings import Settings
from api.tenancy import host_name, tenant_of

ACME, OTHER = uuid4(), uuid4()


def _request(settings: Settings, headers: list[tuple[str, str]]) -> HttpRequest:
    app = SimpleNamespace(state=SimpleNamespace(edge=SimpleNamespace(settings=settings)))
    encoded = [(name.lower().encode(), value.encode()) for name, value in headers]
    return HttpRequest({"type": "http", "method": "POST", "path": "/", "headers": encoded, "app": app})


_HOSTS = Settings(tenant_hosts={"app.example.com": ACME}, default_tenant=None)
_DEFAULT = Settings(tenant_hosts={"app.example.com": ACME}, default_tenant=OTHER)


@pytest.mark.parametrize(
    ("settings", "headers", "expected"),
    [
        (_HOSTS, [("Holdbook-Tenant", str(OTHER))], OTHER),
        (_HOSTS, [("Holdbook-Tenant", OTHER.hex)], OTHER),
        (_HOSTS, [("Holdbook-Tenant", str(OTHER)), ("Host", "app.example.com")], OTHER),
        (_HOSTS, [("Host", "app.example.com")], ACME),
        (_HOSTS, [("Host", "APP.example.com.:8443")], ACME),
        (_HOSTS, [("Host", "other.example.com")], None),
        (_HOSTS, [], None),
        (_DEFAULT, [("Host", "other.example.com")], OTHER),
        (_DEFAULT, [("Host", "app.example.com")], ACME),
        (_DEFAULT, [("Holdbook-Tenant", "nobody")], None),
        (_DEFAULT, [("Holdbook-Tenant", str(ACME)), ("Holdbook-Tenant", str(OTHER))], None),
    ],
)
@pytest.mark.asyncio
async def test_whose_a_request_is(settings: Settings, headers: list[tuple[str, str]], expected: UUID | None) -> None:
    try:
        found: UUID | str = await tenant_of(_request(settings, headers))
    except Problem as problem:
        found = problem.code

    assert found == (expected or "auth.tenant_required")


def test_host_names_lose_their_port() -> None:
    shapes: dict[str, str] = {"A.b:80": "a.b", "[::1]:80": "[::1]", "[::1]": "[::1]", "::1]": "::1]", "": "", "a.b.": "a.b"}
    name: Callable[[str], str] = host_name
    assert {text: name(text) for text in shapes} == shapes

"""People of a tenant for tests: made as the API makes them, and signed in with a session of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import httpx

from api import people, sessions
from api.edge import Edge
from api.people import Profile
from domain.identity.tenants import PLATFORM, TENANT, CreateTenant, tenant_stream
from eventstore.requests import Item, Request
from eventstore.store import Store
from tests.api.conftest import Site


@dataclass(frozen=True)
class Signed:
    """A person who is signed in."""

    tenant_id: UUID
    user_id: UUID
    role: str
    email: str
    headers: dict[str, str]


def edge_of(site: Site) -> Edge:
    edge: Edge = site.app.state.edge
    return edge


async def create(
    store: Store, tenant_id: UUID, role: str, email: str | None = None, name: str = "Test", hashed: str | None = None
) -> tuple[UUID, str]:
    """An active user, made behind the server; ``hashed`` is the password."""
    user_id, sealing = uuid4(), store.sealing
    email = email or f"{user_id.hex}@example.com"
    profile = await people.seal_profile(sealing, tenant_id, user_id, Profile(email, name))
    login = await people.login_of_email(sealing, tenant_id, email)
    password = None if hashed is None else await sealing.seal(tenant_id, user_id, people.PASSWORD, hashed)
    items = people.create_items(tenant_id, user_id, role, profile, login, password)
    outcome = await store.submit(Request(tenant_id, uuid4(), items, b""))
    assert not outcome.refused, outcome.reply
    return user_id, email


async def made(site: Site, tenant_id: UUID, role: str, email: str | None = None, name: str = "Test") -> tuple[UUID, str]:
    """An active user without a password."""
    return await create(site.store, tenant_id, role, email, name)


async def sign_in(site: Site, tenant_id: UUID, user_id: UUID, role: str, email: str) -> Signed:
    session = await sessions.start(edge_of(site), tenant_id, user_id)
    return Signed(tenant_id, user_id, role, email, {"Authorization": f"Bearer {session.token}"})


async def signed(site: Site, role: str, tenant_id: UUID | None = None, email: str | None = None) -> Signed:
    """Somebody new with that role in the site's tenant, or in another one, signed in."""
    tenant_id = tenant_id or site.account.tenant_id
    user_id, email = await made(site, tenant_id, role, email)
    return await sign_in(site, tenant_id, user_id, role, email)


async def operator(site: Site) -> Signed:
    """An operator of the platform, signed in; the platform's tenant is made when there is none."""
    create = CreateTenant(tenant_id=PLATFORM, name="Platform")
    outcome = await site.store.submit(Request(PLATFORM, uuid4(), (Item(TENANT, tenant_stream(PLATFORM), create),), b""))
    assert not outcome.refused, outcome.reply
    return await signed(site, "operator", PLATFORM)


async def call(
    site: Site, who: Signed | None, method: str, path: str, body: Any = None, *, key: str | None = None, **params: Any
) -> httpx.Response:
    """A request as that person, or as the site's key; a command gets a key of its own when none is given."""
    headers = dict(site.account.headers if who is None else who.headers)
    if method != "GET":
        headers["Idempotency-Key"] = key or uuid4().hex
    return await site.client.request(method, path, json=body, params=params, headers=headers)

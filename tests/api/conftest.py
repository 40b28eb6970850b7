"""A whole server for each test: real PostgreSQL, real sockets, read models that follow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest_asyncio
from fastapi import FastAPI

from api import server
from api.app import create_app
from api.auth import new_key
from api.settings import Settings
from domain.catalog import DECIDERS
from domain.identity.permissions import KEY_PERMISSIONS
from domain.identity.service_accounts import SERVICE_ACCOUNT, IssueKey, RevokeKey, service_account_stream
from domain.identity.tenants import TENANT, CreateTenant, tenant_stream
from domain.kernel.decider import Command, Decider
from eventstore.requests import Item, Request
from eventstore.rows import Row
from eventstore.store import Store
from projections import schema
from projections.readers import Readers

BODY_LIMIT = 128 * 1024
LIMITS = {"limits": [{"limit_id": "total", "amount": 100}]}


@dataclass
class Account:
    """A service account and its key."""

    tenant_id: UUID
    account_id: UUID
    key_id: str
    text: str
    headers: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.headers = {"Authorization": f"Bearer {self.text}"}


@dataclass
class Running:
    """What the tests of a file share."""

    url: str
    app: FastAPI
    store: Store
    client: httpx.AsyncClient


@dataclass
class Site:
    """A running server, and what a test does to it from outside and from behind."""

    url: str
    app: FastAPI
    store: Store
    client: httpx.AsyncClient
    account: Account

    async def operate(self, tenant_id: UUID, decider: Decider[Any], stream: str, command: Command) -> None:
        """Submit a command as the command line does."""
        outcome = await self.store.submit(Request(tenant_id, uuid4(), (Item(decider, stream, command),), b""))
        assert not outcome.refused, outcome.reply

    async def rows(self) -> list[Row]:
        """The tenant's part of the log."""
        found = await self.store.writer(self.account.tenant_id).log.read(0, 100_000)
        return [row for row in found if row.tenant_id == self.account.tenant_id]

    async def tenant(self, tenant_id: UUID | None = None) -> UUID:
        tenant_id = tenant_id or uuid4()
        await self.operate(tenant_id, TENANT, tenant_stream(tenant_id), CreateTenant(tenant_id=tenant_id, name="Acme"))
        return tenant_id

    async def issue(self, tenant_id: UUID, scopes: Sequence[str] = tuple(KEY_PERMISSIONS)) -> Account:
        account_id = uuid4()
        key = new_key(tenant_id, account_id)
        command = IssueKey(key_id=key.key_id, secret_hash=key.secret_hash, scopes=tuple(scopes), name="test")
        await self.operate(tenant_id, SERVICE_ACCOUNT, service_account_stream(account_id), command)
        return Account(tenant_id, account_id, key.key_id, key.text)

    async def revoke(self, account: Account) -> None:
        stream = service_account_stream(account.account_id)
        await self.operate(account.tenant_id, SERVICE_ACCOUNT, stream, RevokeKey(key_id=account.key_id))

    async def post(self, path: str, body: Any = None, *, account: Account | None = None, key: str | None = None) -> httpx.Response:
        headers = dict((account or self.account).headers)
        if key is not None:
            headers["Idempotency-Key"] = key
        return await self.client.post(path, json=body, headers=headers)

    async def get(self, path: str, *, account: Account | None = None, **params: Any) -> httpx.Response:
        return await self.client.get(path, params=params, headers=(account or self.account).headers)

    async def limit(
        self, subject: str = "default", meter: str = "messages", *, account: Account | None = None, **body: Any
    ) -> httpx.Response:
        """Limits on a quota, 100 in all unless the test says otherwise."""
        path = f"/v1/quotas/{meter}/{subject}/limits"
        headers = {**(account or self.account).headers, "Idempotency-Key": uuid4().hex}
        answer = await self.client.put(path, json=body or LIMITS, headers=headers)
        assert answer.status_code == 200, answer.text
        return answer


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(module_database: str) -> AsyncIterator[Running]:
    settings = Settings(
        port=0,
        rate_address_per_minute=0,  # all of a file's tests sign in from one address
        body_limit_bytes=BODY_LIMIT,
        log_level="warning",
        webhook_allow_private=True,
        webhook_allow_http=True,
    )
    async with AsyncExitStack() as stack:
        schema.create(module_database)
        store = await Store.open(module_database, DECIDERS, settings.writer_options())
        stack.push_async_callback(store.drain)
        follower = await stack.enter_async_context(server.following(module_database, store, settings=settings))
        readers = await Readers.open(module_database)
        stack.push_async_callback(readers.close)
        app = create_app(store, readers, settings, follower)
        listener = server.listen(settings)
        url = server.url_of(listener)
        await stack.enter_async_context(server.serving(app, settings, listener))
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=60, trust_env=False))
        async with asyncio.timeout(60):
            # Or the first who waits for a position, which nobody does for long, would wait for the follower's start as well.
            while not follower.health().ok:  # noqa: ASYNC110  # it tells no event
                await asyncio.sleep(0.01)
        yield Running(url, app, store, client)


@pytest_asyncio.fixture(loop_scope="module")
async def site(running: Running) -> Site:
    found = Site(running.url, running.app, running.store, running.client, Account(uuid4(), uuid4(), "", ""))
    found.account = await found.issue(await found.tenant())
    return found

"""A store that a server can serve, and requests on it: a tenant with an API key, and accounts with limits."""

from __future__ import annotations

import json
from dataclasses import dataclass
from uuid import UUID, uuid4

from api.auth import new_key
from bench.load import Asked
from bench.traffic import METER, Traffic
from domain.catalog import DECIDERS
from domain.identity.permissions import KEY_PERMISSIONS
from domain.identity.service_accounts import SERVICE_ACCOUNT, IssueKey, service_account_stream
from domain.identity.tenants import TENANT, CreateTenant, tenant_stream
from eventstore.requests import Item, Request
from eventstore.store import Store

CONNECTIONS = 32
ACCOUNTS = 100


@dataclass(frozen=True, slots=True)
class Site:
    """A tenant, and the key that its clients send."""

    tenant_id: UUID
    key: str

    def single(self, path: str) -> Asked:
        """A reservation, each connection on an account of its own."""
        return Asked(path, self._headers, json.dumps({"subject": "account-{connection}", "meter": METER, "amount": 1}))

    def batch(self, path: str, *operations: str, size: int, atomic: bool) -> Asked:
        """Commands on as many accounts, the operations taking turns."""
        commands = [
            {"op": operations[number % len(operations)], "subject": f"account-{number}", "meter": METER, "amount": 1}
            for number in range(size)
        ]
        return Asked(path, self._headers, json.dumps({"atomic": atomic, "commands": commands}), size)

    @property
    def _headers(self) -> tuple[tuple[str, str], ...]:
        return ("authorization", f"Bearer {self.key}"), ("idempotency-key", "{key}")


async def found(dsn: str) -> Site:
    """Make the tenant, its key and its accounts."""
    tenant_id, account_id = uuid4(), uuid4()
    key = new_key(tenant_id, account_id)
    issue = IssueKey(key_id=key.key_id, secret_hash=key.secret_hash, scopes=tuple(KEY_PERMISSIONS), name="bench", expires_at=None)
    items = (
        Item(TENANT, tenant_stream(tenant_id), CreateTenant(tenant_id=tenant_id, name="bench", zone="UTC")),
        Item(SERVICE_ACCOUNT, service_account_stream(account_id), issue),
    )
    store = await Store.open(dsn, DECIDERS)
    try:
        for item in items:
            await store.submit(Request(tenant_id, uuid4(), (item,), b"", actor="operator:bench"))
        await Traffic(store, tenant_id, ACCOUNTS).configure()
    finally:
        await store.drain()
    return Site(tenant_id, key.text)

"""API keys: their text, and the check of one at the door.

A key reads ``hbk_<tenant>_<account>_<key id>_<secret>``: it leads to its service account without a search over tenants. Only
the SHA-256 of the secret is kept, and the text is in no event and no log. The secret has 256 random bits, so a fast digest
is as good as a slow one.

What was read of an account and its tenant is used for one second, so a revocation, and the deletion of a tenant, take effect within one
second in every process. Reads
go through two narrow lanes, one for accounts that exist and one for those nobody heard of: a burst of invented keys
waits for itself, holds one connection at most, and is answered with 503 when the lane is full.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any, NamedTuple
from uuid import UUID

from api.problems import Problem
from domain.identity.service_accounts import SERVICE_ACCOUNT, ServiceAccount, service_account_stream
from domain.identity.tenants import TENANT, DeletedTenant, tenant_stream
from domain.kernel.decider import Decider
from eventstore.store import Store

FRESH_SECONDS = 1.0
REFRESH_AFTER_SECONDS = 0.5
"""From this age on an account is read again while its last state is still used, so that no request waits for it."""

_TEXT = re.compile(r"hbk_([0-9a-f]{32})_([0-9a-f]{32})_([0-9a-f]{8})_([A-Za-z0-9_-]{43})")


class NewKey(NamedTuple):
    """A key that was just made; ``text`` is shown once and then forgotten."""

    text: str
    key_id: str
    secret_hash: str


def new_key(tenant_id: UUID, account_id: UUID) -> NewKey:
    """A fresh key for a service account."""
    key_id, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
    return NewKey(f"hbk_{tenant_id.hex}_{account_id.hex}_{key_id}_{secret}", key_id, sha256(secret.encode()).hexdigest())


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks: a service account of a tenant by one of its keys, or a person by one of their sessions.

    ``account`` is whose idempotency keys count, whichever credential is used; ``credential`` names that: a key's id or a session's.
    """

    tenant_id: UUID
    account: str
    actor: str
    permissions: frozenset[str]
    credential: str
    user_id: UUID | None = None
    """Of a person. One without the permission to act for others acts for this subject alone."""
    role: str | None = None

    def require(self, permission: str) -> None:
        """Refuse with 403 when this one may not do this."""
        if permission not in self.permissions:
            challenge = f'Bearer realm="holdbook", error="insufficient_scope", scope="{permission}"'
            raise Problem("auth.permission_missing", permission=permission, headers={"WWW-Authenticate": challenge})


class _Usable(NamedTuple):
    secret_hash: bytes
    expires_at: float
    principal: Principal


@dataclass(slots=True)
class _Account:
    read_at: float
    keys: dict[str, _Usable]


class _Lane:
    """Reads of accounts, few at a time and shared by all who wait for the same one."""

    def __init__(self, at_once: int, waiting: int) -> None:
        self._turn, self._waiting = asyncio.Semaphore(at_once), waiting
        self.tasks: dict[str, asyncio.Task[_Account]] = {}

    def start(self, account: str, read: Callable[[], Coroutine[Any, Any, _Account]]) -> asyncio.Task[_Account]:
        task = self.tasks.get(account)
        if task is None:
            if len(self.tasks) >= self._waiting:
                raise Problem("store.overloaded")
            task = self.tasks[account] = asyncio.create_task(self._run(account, read))
            task.add_done_callback(_seen)
        return task

    async def _run(self, account: str, read: Callable[[], Coroutine[Any, Any, _Account]]) -> _Account:
        try:
            async with self._turn:
                return await read()
        finally:
            del self.tasks[account]


def _seen(task: asyncio.Task[_Account]) -> None:
    """A read that failed is told to those who wait for it, and to nobody else."""
    if not task.cancelled():
        task.exception()


class Authenticator:
    """Checks keys against the service accounts of a store."""

    def __init__(self, store: Store, *, remembered: int = 10_000, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._clock, self._remembered = store, clock, remembered
        self._known: OrderedDict[str, _Account] = OrderedDict()
        self._unknown: OrderedDict[str, _Account] = OrderedDict()
        self._refreshing, self._asking = _Lane(2, 1_000), _Lane(1, 100)

    async def principal(self, headers: Mapping[bytes, bytes]) -> Principal:
        """Who sent these headers; 401 when that is nobody."""
        given = headers.get(b"authorization")
        if given is None:
            raise Problem("auth.required", headers={"WWW-Authenticate": 'Bearer realm="holdbook"'})
        text = given.decode("latin-1")
        match = _TEXT.fullmatch(text, 7)
        if match is None or text[:7].lower() != "bearer ":
            raise _refused()
        tenant, account, key_id, secret = match.groups()
        place = text[11:76]
        now = self._clock()
        found = self._known.get(place) or self._unknown.get(place)
        if found is None or now - found.read_at > REFRESH_AFTER_SECONDS:
            lane = self._refreshing if place in self._known else self._asking
            reading = lane.start(place, lambda: self._read(place, UUID(tenant), UUID(account)))
            if found is None or now - found.read_at > FRESH_SECONDS:
                found = await asyncio.shield(reading)
        usable = found.keys.get(key_id)
        # Compared also when there is no such key, so that the time tells nothing about ids.
        same = hmac.compare_digest(sha256(secret.encode()).digest(), usable.secret_hash if usable else bytes(32))
        if usable is None or not same or usable.expires_at <= time.time():
            raise _refused()
        return usable.principal

    async def _read(self, place: str, tenant_id: UUID, account_id: UUID) -> _Account:
        read_at = self._clock()
        places: list[tuple[Decider[Any], str]] = [(SERVICE_ACCOUNT, service_account_stream(account_id)), (TENANT, tenant_stream(tenant_id))]
        of_account, of_tenant = await self._store.states(tenant_id, places)
        state: ServiceAccount = SERVICE_ACCOUNT.initial if isinstance(of_tenant.state, DeletedTenant) else of_account.state
        actor = f"service:{account_id.hex}"
        account = _Account(
            read_at,
            {
                key.key_id: _Usable(
                    bytes.fromhex(key.secret_hash),
                    _timestamp(key.expires_at),
                    Principal(tenant_id, account_id.hex, actor, frozenset(key.scopes), key.key_id),
                )
                for key in state.keys
            },
        )
        mine, other, most = (self._known, self._unknown, self._remembered) if account.keys else (self._unknown, self._known, 1_000)
        other.pop(place, None)
        mine[place] = account
        mine.move_to_end(place)
        while len(mine) > most:
            mine.popitem(last=False)
        return account


def _timestamp(moment: datetime | None) -> float:
    return float("inf") if moment is None else moment.timestamp()


def _refused() -> Problem:
    return Problem("auth.key_invalid", headers={"WWW-Authenticate": 'Bearer realm="holdbook", error="invalid_token"'})

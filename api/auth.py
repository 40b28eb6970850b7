"""The door: who sends a request, by an API key, a person's access token, or the cookie of a browser's session.

A key reads ``hbk_<tenant>_<account>_<key id>_<secret>``: it leads to its service account without a search over tenants. Only
the SHA-256 of the secret is kept, and the text is in no event and no log. The secret has 256 random bits, so a fast digest
is as good as a slow one.

A token or a cookie says whose session it is, and no more is believed of it: what the person may do, and whether they still may come in, is
read of the log.

What was read is used for one second, so a revocation, signing out, another role, an unbound device, and the suspension or deletion of a
tenant take effect within one second in every process.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import secrets
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from api import browser
from api.fresh import Fresh
from api.problems import Problem
from api.standing import Standing, read_standing
from api.tokens import Tokens
from domain.identity.permissions import ROLES
from domain.identity.service_accounts import SERVICE_ACCOUNT, ServiceAccount, service_account_stream
from domain.identity.sessions import EXTEND_SECONDS, SESSION, ExtendSession, Session, session_stream
from domain.identity.tenants import TENANT, DeletedTenant, Tenant, tenant_stream
from domain.kernel.decider import Decider
from eventstore.requests import Item, Request
from eventstore.store import Store

_ID = re.compile(r"[0-9a-f]{32}")
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
    device: str | None = None
    """The digest of the fingerprint of the device that a person's session is bound to."""

    def require(self, permission: str) -> None:
        """Refuse with 403 when this one may not do this."""
        if permission not in self.permissions:
            challenge = f'Bearer realm="holdbook", error="insufficient_scope", scope="{permission}"'
            raise Problem("auth.permission_missing", permission=permission, headers={"WWW-Authenticate": challenge})


class _Usable(NamedTuple):
    secret_hash: bytes
    expires_at: float
    principal: Principal


class _Account(NamedTuple):
    keys: dict[str, _Usable]
    suspended: bool


class _Seen(NamedTuple):
    standing: Standing
    principal: Principal | None
    """Who comes in by the session, as long as its time is not over."""


class Authenticator:
    """Checks keys, access tokens and cookies against what the log of a store says. ``tokens`` may be missing where nobody signs in."""

    def __init__(
        self,
        store: Store,
        tokens: Tokens | None = None,
        *,
        insecure_cookies: bool = False,
        remembered: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._tokens, self._insecure = store, tokens, insecure_cookies
        self._accounts = Fresh[_Account](remembered=remembered, clock=clock)
        self._sessions = Fresh[_Seen](remembered=remembered, clock=clock)
        self._extending: dict[UUID, asyncio.Task[None]] = {}

    async def principal(self, headers: Mapping[bytes, bytes], method: str = "GET") -> Principal:
        """Who sent these headers; 401 when that is nobody. A credential in ``Authorization`` counts before a cookie."""
        given = headers.get(b"authorization")
        if given is None:
            cookie = browser.presented(headers, insecure=self._insecure) if b"cookie" in headers else None
            if cookie is None:
                raise Problem("auth.required", headers={"WWW-Authenticate": 'Bearer realm="holdbook"'})
            return await self._of_cookie(cookie, headers, method)
        text = given.decode("latin-1")
        if text[:7].lower() != "bearer ":
            raise _refused()
        if self._tokens is None or "." not in text:  # which no key has, and every token
            return await self._of_key(text)
        return await self._of_token(await self._tokens.verify(text[7:]))

    async def standing(self, tenant_id: UUID, user_id: UUID, session_id: UUID, *, genuine: bool = False) -> Standing:
        """What the log says of a session, as of the last second; see :meth:`api.fresh.Fresh.get`."""
        seen = await self._seen(tenant_id.hex, user_id.hex, session_id.hex, genuine=genuine)
        return seen.standing

    async def _seen(self, tenant: str, user: str, session: str, *, genuine: bool) -> _Seen:
        def read() -> Coroutine[Any, Any, tuple[_Seen, bool]]:
            return self._see(UUID(tenant), UUID(user), UUID(session))

        return await self._sessions.get(f"{tenant}{user}{session}", read, genuine=genuine)

    async def _see(self, tenant_id: UUID, user_id: UUID, session_id: UUID) -> tuple[_Seen, bool]:
        standing, exists = await read_standing(self._store, tenant_id, user_id, session_id)
        return _Seen(standing, _person(tenant_id, user_id, session_id, standing)), exists

    # API keys

    async def _of_key(self, text: str) -> Principal:
        match = _TEXT.fullmatch(text, 7)
        if match is None:
            raise _refused()
        tenant, account, key_id, secret = match.groups()
        found = await self._accounts.get(text[11:76], lambda: self._read_account(UUID(tenant), UUID(account)))
        usable = found.keys.get(key_id)
        # Compared also when there is no such key, so that the time tells nothing about ids.
        same = hmac.compare_digest(sha256(secret.encode()).digest(), usable.secret_hash if usable else bytes(32))
        if usable is None or not same or usable.expires_at <= time.time():
            raise _refused()
        if found.suspended:  # told to nobody who has no key of the tenant's
            raise Problem("auth.tenant_suspended")
        return usable.principal

    async def _read_account(self, tenant_id: UUID, account_id: UUID) -> tuple[_Account, bool]:
        places: list[tuple[Decider[Any], str]] = [(SERVICE_ACCOUNT, service_account_stream(account_id)), (TENANT, tenant_stream(tenant_id))]
        of_account, of_tenant = await self._store.states(tenant_id, places)
        state: ServiceAccount = SERVICE_ACCOUNT.initial if isinstance(of_tenant.state, DeletedTenant) else of_account.state
        actor = f"service:{account_id.hex}"
        keys = {
            key.key_id: _Usable(
                bytes.fromhex(key.secret_hash),
                _timestamp(key.expires_at),
                Principal(tenant_id, account_id.hex, actor, frozenset(key.scopes), key.key_id),
            )
            for key in state.keys
        }
        return _Account(keys, isinstance(of_tenant.state, Tenant) and of_tenant.state.suspended), bool(keys)

    # People

    async def _of_token(self, claims: Mapping[str, Any]) -> Principal:
        tenant, user, session = _id_in(claims, "tid"), _id_in(claims, "sub"), _id_in(claims, "sid")
        seen = await self._seen(tenant, user, session, genuine=True)
        return _let_in(seen, datetime.now(UTC))

    async def _of_cookie(self, cookie: browser.Cookie, headers: Mapping[bytes, bytes], method: str) -> Principal:
        sealing, now = self._store.sealing, datetime.now(UTC)
        seen = await self._seen(cookie.tenant_id.hex, cookie.user_id.hex, cookie.session_id.hex, genuine=False)
        # First whether there is such a session: a secret would be made for every tenant that somebody makes up.
        if seen.standing.refused == "auth.token_invalid" or not await browser.is_genuine(sealing, cookie):
            raise _not_valid("auth.session_ended")
        principal, session = _let_in(seen, now), seen.standing.session
        if session is None or session.kind != "browser":
            raise _not_valid("auth.session_ended")
        await browser.refuse_forgery(sealing, headers, method, cookie)
        if (now - session.rotated_at).total_seconds() >= EXTEND_SECONDS:
            self._extend(cookie.tenant_id, session)
        return principal

    def _extend(self, tenant_id: UUID, session: Session) -> None:
        """Record that the browser's session is in use. Nobody waits for it: the next request tries again when it fails."""
        if session.session_id not in self._extending:
            task = self._extending[session.session_id] = asyncio.create_task(self._record_use(tenant_id, session))
            task.add_done_callback(lambda done: self._extended(session.session_id, done))

    def _extended(self, session_id: UUID, done: asyncio.Task[None]) -> None:
        del self._extending[session_id]
        if not done.cancelled():
            done.exception()

    async def _record_use(self, tenant_id: UUID, session: Session) -> None:
        item = Item(SESSION, session_stream(session.session_id), ExtendSession())
        await self._store.submit(Request(tenant_id, uuid4(), (item,), b"", actor=f"user:{session.user_id.hex}"))


def _person(tenant_id: UUID, user_id: UUID, session_id: UUID, standing: Standing) -> Principal | None:
    if standing.session is None or standing.refused is not None:
        return None
    actor = f"{'operator' if standing.role == 'operator' else 'user'}:{user_id.hex}"
    device = standing.session.device
    return Principal(tenant_id, user_id.hex, actor, ROLES[standing.role], session_id.hex, user_id, standing.role, device)


def _let_in(seen: _Seen, now: datetime) -> Principal:
    problem = seen.standing.problem(now)
    if problem is not None or seen.principal is None:
        raise _not_valid(problem or "auth.session_ended")
    return seen.principal


def _id_in(claims: Mapping[str, Any], name: str) -> str:
    claim = claims.get(name)
    if not isinstance(claim, str) or _ID.fullmatch(claim) is None:
        raise _not_valid("auth.token_invalid")
    return claim


def _not_valid(code: str) -> Problem:
    problem = Problem(code)
    if problem.status == 401:
        problem.headers["WWW-Authenticate"] = 'Bearer realm="holdbook", error="invalid_token"'
    return problem


def _timestamp(moment: datetime | None) -> float:
    return float("inf") if moment is None else moment.timestamp()


def _refused() -> Problem:
    return Problem("auth.key_invalid", headers={"WWW-Authenticate": 'Bearer realm="holdbook", error="invalid_token"'})

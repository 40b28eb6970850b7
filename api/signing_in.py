"""Signing in by password: who it is, whether they must wait, whether the password is right, and one batch that lets them in.

Nobody may learn from an answer, or from the time it takes, whether there is a person of a name. So whatever is wrong (the tenant, the
name, the password, a person who was only invited, is suspended or locked), one password is verified, if need be against a hash of nothing;
the answer is the same; names that are nobody's are slowed down like the others; and a refusal is sent at a moment that was chosen
before anything was recorded.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import ceil
from typing import Annotated, Literal, Self
from uuid import UUID, uuid4

from fastapi import Request
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from starlette.responses import Response

from api import passwords, people, sessions
from api.bodies import Body
from api.devices import DeviceName, Fingerprint, bind_item, limit_problem
from api.edge import Asked, Edge, edge_of
from api.origin import client_address
from api.problems import Problem
from api.tenancy import tenant_of
from domain.identity.devices import DeviceLimitReached
from domain.identity.logins import LOGIN, Login, LoginState, login_stream
from domain.identity.signins import (
    SIGNIN,
    RecordFailure,
    RecordSuccess,
    SignIn,
    SignInChanged,
    SignInLocked,
    SignInSlowedDown,
    signin_stream,
)
from domain.identity.tenants import TENANT, Tenant, tenant_stream
from domain.identity.users import USER, Active, SetPassword, UserState, user_stream
from domain.kernel.decider import Rejected
from eventstore.origins import with_origin
from eventstore.requests import Item
from eventstore.requests import Request as StoreRequest

REFUSAL_SECONDS = 0.25
"""Refusals are sent at multiples of this after the request came, so that what was done for each cannot be told from outside."""
_RECORDING_SECONDS = 0.05
"""Time left for recording a failure before the moment chosen for the answer."""


class Wanted(Body):
    """On what one wants to be signed in, and how."""

    device_fingerprint: Fingerprint | None = None
    device_name: DeviceName | None = None
    session: Annotated[
        Literal["token", "browser"],
        Field(description="`token`: a bearer token and a refresh token, on a device that is named. `browser`: a cookie."),
    ] = "token"

    @model_validator(mode="after")
    def named_device(self) -> Self:
        """Or the license's number of devices would hold for nobody."""
        if self.session == "token" and self.device_fingerprint is None:
            raise PydanticCustomError("missing", "Field required", {"field": "device_fingerprint"})
        return self


class SignedInUser(Body):
    """Who is signed in."""

    user_id: str
    email: str | None
    name: str | None
    role: str


class SignedInAnswer(Body):
    """A bearer token, whose it is, and until when it is good, in seconds since 1970. Without a token the session is a cookie's."""

    token: str | None
    user: SignedInUser
    exp: int


# The batch that lets somebody in


async def let_in(
    request: Request, tenant_id: UUID, user_id: UUID, wanted: Wanted, items: tuple[Item, ...], session_id: UUID | None = None
) -> Response:
    """Bind the device and start the session together with ``items``, or none of it; the answer is the session's."""
    edge = edge_of(request)
    device = None
    if wanted.device_fingerprint is not None:
        bind, device = await bind_item(edge, tenant_id, user_id, wanted.device_fingerprint, wanted.device_name)
        items = (*items, bind)
    try:
        signed_in = await sessions.start(
            edge, tenant_id, user_id, kind=wanted.session, device=device, extra=items, session_id=session_id, request=request
        )
    except DeviceLimitReached as refused:
        raise await limit_problem(edge, tenant_id, user_id, refused) from None
    return await sessions.signed_in_response(edge, signed_in)


def success(user_id: UUID, method: str, standing: SignIn) -> Item:
    """That a proof was right, unless everything the person had was ended since ``standing`` was read."""
    return Item(SIGNIN, signin_stream(user_id), RecordSuccess(method=method, signed_out_at=standing.signed_out_at))


def refuse(request: Request, tenant_id: UUID | None, method: str, reason: str, credential: str | None = None) -> Problem:
    """The one answer to every sign-in that is not possible; ``reason`` is counted and told to nobody who asks."""
    note(request, tenant_id, method, reason, credential)
    return Problem("auth.sign_in_refused")


def note(request: Request, tenant_id: UUID | None, method: str, reason: str, credential: str | None = None) -> None:
    """Count a refused sign-in; ``credential`` is a digest."""
    edge = edge_of(request)
    edge.metrics.signed_in(method, reason)
    edge.refusals.note("sign_in", tenant_id, credential, client_address(request.scope, edge.settings))


# Who it is


async def living_tenant(edge: Edge, tenant_id: UUID) -> Tenant | None:
    """The tenant, if there is one whose people may sign in. Asked first: nothing is made for a tenant that somebody made up."""
    found = (await edge.store.state(TENANT, tenant_id, tenant_stream(tenant_id))).state
    return found if isinstance(found, Tenant) and not found.suspended else None


async def standing_and_user(edge: Edge, tenant_id: UUID, user_id: UUID) -> tuple[SignIn, UserState]:
    """What is known of somebody's signing in, and who they are.

    Read in this order: a password that is changed in between ends all sessions with it, so that what was read of the first is outdated
    and a success is refused for it.
    """
    standing: SignIn = (await edge.store.state(SIGNIN, tenant_id, signin_stream(user_id))).state
    return standing, await people.user_state(edge.store, tenant_id, user_id)


@dataclass(slots=True)
class _Found:
    """Who was meant. Without a user, the standing is that of a name which is nobody's."""

    standing: SignIn
    reason: str = "password"
    digest: str | None = None
    user: Active | None = None
    hashed: str | None = field(default=None, repr=False)


async def _find(edge: Edge, tenant_id: UUID, email: str) -> _Found:
    nobody = edge.guesses.standing(tenant_id, email)
    if await living_tenant(edge, tenant_id) is None:
        return _Found(nobody, "tenant")
    digest = await people.login_of_email(edge.store.sealing, tenant_id, email)
    login: LoginState = (await edge.store.state(LOGIN, tenant_id, login_stream(digest))).state
    # Nobody's name costs the same reads.
    standing, user = await standing_and_user(edge, tenant_id, login.user_id if isinstance(login, Login) else uuid4())
    if not isinstance(login, Login):
        return _Found(nobody, "unknown", digest)
    if not isinstance(user, Active) or user.password is None:
        return _Found(nobody, "inactive", digest)
    hashed = await edge.store.sealing.open(tenant_id, user.user_id, people.PASSWORD, user.password)
    if hashed is None:
        return _Found(nobody, "inactive", digest)
    return _Found(standing, "password", digest, user, hashed)


# The password


async def by_password(request: Request, email: str, password: str, wanted: Wanted) -> Response:
    """Let in whoever has the password; refuse everybody else in the same way."""
    began = time.monotonic()
    edge, tenant_id = edge_of(request), await tenant_of(request)
    found = await _find(edge, tenant_id, email)
    waits = found.standing.waits_until(datetime.now(UTC)) is not None
    verdict = await passwords.verify(password, None if waits else found.hashed)
    answer_at = _moment(began)
    refused: Rejected | None
    if verdict.right and found.user is not None:
        items = await _success(edge, tenant_id, found, verdict)
        try:
            response = await let_in(request, tenant_id, found.user.user_id, wanted, items)
        except (SignInSlowedDown, SignInLocked, SignInChanged) as meanwhile:
            refused = meanwhile  # many tries at once: the right one among them is let in no sooner than alone
        else:
            edge.metrics.signed_in("password", "success")
            return response
    else:
        refused = await _failed(request, tenant_id, email, found, waits=waits)
    known_tenant = None if found.reason == "tenant" else tenant_id
    problem = refuse(request, known_tenant, "password", found.reason if refused is None else "waiting", found.digest)
    await asyncio.sleep(max(0.0, answer_at - time.monotonic()))
    raise _slow_down(refused) if isinstance(refused, SignInSlowedDown) else problem


async def _success(edge: Edge, tenant_id: UUID, found: _Found, verdict: passwords.Verdict) -> tuple[Item, ...]:
    assert found.user is not None
    user_id = found.user.user_id
    items = (success(user_id, "password", found.standing),)
    if verdict.renewed is None:
        return items
    sealed = await edge.store.sealing.seal(tenant_id, user_id, people.PASSWORD, verdict.renewed)
    return *items, Item(USER, user_stream(user_id), SetPassword(password=sealed, version=found.user.version))


async def _failed(request: Request, tenant_id: UUID, email: str, found: _Found, *, waits: bool) -> Rejected | None:
    """Record one failure more; or what refuses the attempt, of which then nothing is recorded."""
    if waits:
        until = found.standing.wait_until
        assert until is not None
        return (SignInSlowedDown if found.standing.locked_until is None else SignInLocked)(retry_at=until.isoformat())
    edge = edge_of(request)
    try:
        if found.user is None:
            edge.guesses.fail(tenant_id, email, datetime.now(UTC))
        else:
            user_id = found.user.user_id
            origin_id = await edge.origin(request.scope, dict(request.scope["headers"]), tenant_id, user_id)
            await _record_failure(edge, tenant_id, user_id, with_origin("anonymous", origin_id))
    except (SignInSlowedDown, SignInLocked) as refused:
        return refused
    return None


async def wrong_old_password(asked: Asked) -> None:
    """The same for somebody who is signed in: a session in the wrong hands must not be where a password is found out."""
    principal = asked.principal
    assert principal.user_id is not None
    with contextlib.suppress(SignInSlowedDown, SignInLocked):  # of others that came at the same time
        await _record_failure(asked.edge, principal.tenant_id, principal.user_id, principal.actor)


async def _record_failure(edge: Edge, tenant_id: UUID, user_id: UUID, actor: str) -> None:
    item = Item(SIGNIN, signin_stream(user_id), RecordFailure())
    await edge.store.submit(StoreRequest(tenant_id, uuid4(), (item,), b"", actor=actor))


def _slow_down(refused: SignInSlowedDown) -> Problem:
    retry_at = datetime.fromisoformat(refused.details["retry_at"])
    seconds = max(1, ceil((retry_at - datetime.now(UTC)).total_seconds()))
    return Problem("auth.slow_down", retry_at=retry_at.isoformat(), headers={"Retry-After": str(seconds)})


def check_wait(standing: SignIn) -> None:
    """Refuse a person who is signed in and must wait before the next try of their password."""
    until = standing.waits_until(datetime.now(UTC))
    if until is not None:
        raise _slow_down(SignInSlowedDown(retry_at=until.isoformat()))


def _moment(began: float) -> float:
    """When a refusal is sent, by the monotonic clock: later than now, and long enough for what is recorded until then."""
    passed = time.monotonic() - began + _RECORDING_SECONDS
    return began + ceil(passed / REFUSAL_SECONDS) * REFUSAL_SECONDS

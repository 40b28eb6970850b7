"""Sessions: staying signed in, seeing where one is, and leaving.

These addresses take no idempotency key: a refresh that was not answered may be repeated within some seconds, and leaving twice is leaving.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from uuid import UUID, uuid4

import msgspec
from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from api import bodies, browser, refreshing
from api.bodies import MAX_AMOUNT, Body
from api.devices import Fingerprint, devices_of, names_of
from api.edge import Asked, ask, edge_of, respond, submit
from api.openapi import PUBLIC, command, needs, problem, problems, query, success
from api.people import known_user, require_grant
from api.sessions import REFRESH_HEADER
from api.signing_in import SignedInAnswer
from api.standing import on_bound_device
from domain.identity.sessions import SESSION, EndSession, NoSession, SessionNotFound, SessionState, session_stream
from domain.identity.signins import SIGNIN, SignOutEverywhere, signin_stream
from eventstore.requests import Item

router = APIRouter(tags=["sessions"])

_ID = r"^[0-9a-f]{32}$"
SessionPath = Annotated[str, Path(pattern=_ID)]
UserPath = Annotated[str, Path(pattern=_ID)]
_encode = msgspec.json.Encoder().encode
NO_STORE = {"Cache-Control": "no-store"}


class RefreshBody(Body):
    """The refresh token that came last, and the device that it was given to."""

    refresh_token: Annotated[str, Field(min_length=10, max_length=300, repr=False)]
    device_fingerprint: Annotated[Fingerprint | None, Field(description="As at signing in; left out where none was named then.")] = None


class _SessionsQuery(Body):
    # Query values are text, so they cannot be strict.
    model_config = ConfigDict(extra="forbid", strict=False)

    min_position: Annotated[int | None, Field(ge=0, le=MAX_AMOUNT, description="Wait until the read model has come so far.")] = None


# Answers


class SessionOver(Body):
    """It is over, within a second everywhere."""

    session_id: str
    status: Literal["ended"]


class SignedOut(Body):
    """Every session of the person that began until now is over, within a second everywhere."""

    user_id: str
    status: Literal["signed_out"]


class CsrfToken(Body):
    """What a page sends in the header `X-CSRF-Token` with every request that may change something."""

    csrf_token: str


@dataclass(frozen=True, slots=True)
class SessionShown:
    """A session; `current` is the one that asks. Unused, it ends at `until`."""

    session_id: str
    kind: Literal["token", "browser"]
    device: str | None
    started_at: datetime
    last_refreshed_at: datetime
    until: datetime
    current: bool


@dataclass(frozen=True, slots=True)
class SessionList:
    """The newest first."""

    sessions: tuple[SessionShown, ...]


# What the OpenAPI document says

_SESSION = "3d7f0c52a4e84b0f9b5e2a1c6d8e7f90"
_USER = "0f0e0d0c0b0a49088706050403020100"
_AT = datetime(2026, 11, 21, 5, 45, tzinfo=UTC)
_REFRESH_EXAMPLE = {
    "refresh_token": f"hbr_{_USER}_{_SESSION}_1_{'x' * 43}",
    "device_fingerprint": "4f6a1c0d-desk-01",
}
_SIGNED_IN = {
    "token": "eyJhbGciOiJSUzI1NiIsImtpZCI6Ii4uLiJ9...",
    "user": {"user_id": _USER, "email": "ada@example.com", "name": "Ada", "role": "member"},
    "exp": 1795242000,
}
_LIST = msgspec.to_builtins(SessionList((SessionShown(_SESSION, "token", "Laptop", _AT, _AT, _AT, True),)))
_OVER = {"session_id": _SESSION, "status": "ended"}
_OUT = {"user_id": _USER, "status": "signed_out"}


def _ending(reply: type[BaseModel], operation_id: str, answer: Any, permission: str, missing: str | None = None) -> dict[str, Any]:
    """Arguments of a route that ends sessions: no body, no key."""
    done = success(reply, answer, command=True)
    done["headers"] = {name: told for name, told in done["headers"].items() if name.startswith("Holdbook-")}
    responses: dict[int | str, Any] = {200: done, **problems(401, 403, 503)}
    if missing is not None:
        responses[404] = problem(404, missing)
    return {"operation_id": operation_id, "responses": responses, "openapi_extra": needs(permission)}


def _refreshing() -> dict[str, Any]:
    told = command(RefreshBody, SignedInAnswer, "refresh", body={"device": _REFRESH_EXAMPLE}, answer=_SIGNED_IN, refusals=())
    responses = told["responses"]
    for status in (404, 409):
        del responses[status]
    told_header = {"description": "The refresh token for next time. It works once.", "schema": {"type": "string"}}
    responses[200]["headers"] = {**responses[200]["headers"], REFRESH_HEADER: told_header}
    responses[401] = problem(401, "auth.refresh_reused", "auth.refresh_invalid", "auth.device_mismatch", "auth.session_ended")
    told["openapi_extra"] = {**told["openapi_extra"], **PUBLIC, "parameters": []}
    return told


# Routes


@router.post("/v1/auth/refresh", **_refreshing())
async def refresh(request: Request) -> Response:
    """Get the next access token and the next refresh token.

    A refresh token works once. The one before may be sent again for 10 seconds by the same device, when the answer was lost, and gets the
    same next one. Sent later, or from another device, it ends the session for everybody who has a token of it.
    """
    edge, headers = edge_of(request), dict(request.scope["headers"])
    body = bodies.parse(RefreshBody, await bodies.read(request, headers, edge.settings.body_limit_bytes))
    return await refreshing.refresh(edge, request.scope, headers, body.refresh_token, body.device_fingerprint)


@router.post("/v1/auth/logout", **_ending(SessionOver, "logout", _OVER, "self:manage"))
async def logout(request: Request) -> Response:
    """End the session that asks."""
    asked = await ask(request, "self:manage")
    return _without_cookie(asked, await _end(asked, UUID(asked.principal.credential)))


@router.post("/v1/auth/logout-everywhere", **_ending(SignedOut, "logout_everywhere", _OUT, "self:manage"))
async def logout_everywhere(request: Request) -> Response:
    """End all of one's own sessions, this one too."""
    asked = await ask(request, "self:manage")
    return _without_cookie(asked, await _sign_out(asked, _own_id(asked)))


@router.post("/v1/users/{user_id}/logout", **_ending(SignedOut, "logout_user", _OUT, "users:admin", "user.not_found"))
async def logout_user(request: Request, user_id: UserPath) -> Response:
    """End all sessions of somebody whose role is one's own to give."""
    asked = await ask(request, "users:admin")
    user = await known_user(asked.edge.store, asked.principal.tenant_id, UUID(user_id))
    require_grant(asked.principal, user.role)
    return await _sign_out(asked, UUID(user_id))


@router.get(
    "/v1/auth/csrf", **query(CsrfToken, "csrf_token", permission="self:manage", answer={"csrf_token": "x" * 43}, found=False)
)  # fmt: skip
async def csrf_token(request: Request) -> Response:
    """What a browser session's page sends along with requests that may change something; the same as long as the session lives."""
    asked = await ask(request, "self:manage")
    principal = asked.principal
    token = await browser.csrf_token(asked.edge.store.sealing, principal.tenant_id, UUID(principal.credential))
    return Response(_encode({"csrf_token": token}), media_type="application/json", headers=NO_STORE)


@router.get("/v1/sessions", **query(SessionList, "list_sessions", permission="self:manage", answer=_LIST, found=False))
async def list_sessions(request: Request, asked_for: Annotated[_SessionsQuery, Query()]) -> Response:
    """One's own sessions, the newest first."""
    asked = await ask(request, "self:manage")
    tenant_id, user_id, now = asked.principal.tenant_id, _own_id(asked), datetime.now(UTC)
    rows = await asked.edge.readers.sessions.list(tenant_id, user_id, now, min_position=asked_for.min_position)
    devices = await devices_of(asked.edge, tenant_id, user_id)
    names = dict(
        zip((each.fingerprint for each in devices.bound), await names_of(asked.edge, tenant_id, user_id, devices.bound), strict=True)
    )
    shown = tuple(
        SessionShown(
            row.session_id.hex, row.kind, names.get(row.device) if row.device else None, row.started_at, row.used_at, row.until,
            row.session_id.hex == asked.principal.credential,
        )
        for row in rows
        if on_bound_device(row.device, row.started_at, devices)
    )  # fmt: skip  # a session's fields, then whose it is
    return Response(_encode(SessionList(shown)), media_type="application/json", headers=NO_STORE)


@router.delete("/v1/sessions/{session_id}", **_ending(SessionOver, "end_session", _OVER, "self:manage", "session.not_found"))
async def end_session(request: Request, session_id: SessionPath) -> Response:
    """End one of one's own sessions."""
    asked = await ask(request, "self:manage")
    found: SessionState = (await asked.edge.store.state(SESSION, asked.principal.tenant_id, session_stream(UUID(session_id)))).state
    if isinstance(found, NoSession) or found.user_id != _own_id(asked):
        raise SessionNotFound()
    return await _end(asked, UUID(session_id))


def _own_id(asked: Asked) -> UUID:
    user_id = asked.principal.user_id
    assert user_id is not None, "keys have no such permission"
    return user_id


async def _end(asked: Asked, session_id: UUID) -> Response:
    item = Item(SESSION, session_stream(session_id), EndSession(reason="logout"))
    answer = respond(asked.edge, await submit(asked, uuid4(), (item,), b"", 256))
    return _told(answer, {"session_id": session_id.hex, "status": "ended"})


async def _sign_out(asked: Asked, user_id: UUID) -> Response:
    """The sessions themselves need no event: every door knows the moment."""
    item = Item(SIGNIN, signin_stream(user_id), SignOutEverywhere())
    answer = respond(asked.edge, await submit(asked, uuid4(), (item,), b"", 256))
    return _told(answer, {"user_id": user_id.hex, "status": "signed_out"})


def _told(answer: Response, body: dict[str, str]) -> Response:
    headers = {name: value for name, value in answer.headers.items() if name.startswith("holdbook-")}
    return Response(_encode(body), media_type="application/json", headers={**headers, **NO_STORE})


def _without_cookie(asked: Asked, answer: Response) -> Response:
    """A browser that was let in by its cookie need not send it any more."""
    if b"authorization" not in asked.headers:
        browser.remove_cookie(answer, insecure=asked.edge.settings.insecure_cookies)
    return answer

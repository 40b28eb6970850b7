"""Beginning a session, and the one answer that signing in and refreshing have.

The access token is short-lived and says whose session it is. The refresh token is derived from the session and a number and never kept;
which number is live stands in the log (:mod:`domain.identity.sessions`). It travels in a header of its own, so that programs which keep
or log bodies keep no token that lives for weeks.
"""

from __future__ import annotations

import hmac
import re
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from uuid import UUID, uuid4

import msgspec
from fastapi import Request
from starlette.responses import Response

from api import browser, people
from api.problems import Problem, of_refusal
from domain.identity.sessions import SESSION, EndSession, Session, StartSession, session_stream
from domain.identity.users import USER, Active, user_stream
from eventstore.origins import with_origin
from eventstore.requests import Item
from eventstore.requests import Request as StoreRequest
from eventstore.sealing import Sealing

if TYPE_CHECKING:
    from api.edge import Edge

REFRESH_HEADER = "Holdbook-Refresh-Token"
_REFRESH = re.compile(r"hbr_([0-9a-f]{32})_([0-9a-f]{32})_([0-9]{1,9})_([A-Za-z0-9_-]{43})")
_PURPOSE = "refresh"

Device = str
"""The keyed digest of a fingerprint, as :func:`api.devices.bind_item` returns it."""


class RefreshToken(NamedTuple):
    """What a refresh token says; whether it is genuine is for :func:`is_genuine` to say."""

    tenant_id: UUID
    session_id: UUID
    number: int
    text: str


class SignedIn(NamedTuple):
    """A session, and what its person uses it with: two tokens, or a cookie. ``exp`` is when to refresh, or when the cookie ends."""

    tenant_id: UUID
    user_id: UUID
    session_id: UUID
    exp: datetime
    token: str | None
    refresh_token: str | None
    refresh_exp: datetime | None
    cookie: str | None
    position: int
    epoch: int


class _Started(msgspec.Struct):
    session_id: UUID
    user_id: UUID
    number: int
    until: datetime


class _Results(msgspec.Struct):
    results: list[msgspec.Raw]


async def start(
    edge: Edge,
    tenant_id: UUID,
    user_id: UUID,
    *,
    kind: Literal["token", "browser"] = "token",
    device: Device | None = None,
    extra: tuple[Item, ...] = (),
    session_id: UUID | None = None,
    request: Request | None = None,
    actor: str | None = None,
) -> SignedIn:
    """Begin a session in one atomic batch with ``extra``, which comes first, and make its tokens.

    A session of kind ``browser`` needs the ``request``, which must not come from another site; the session that its cookie names is ended.
    With the ``session_id`` of a session that began a moment ago on the same device and was not refreshed, that one's tokens are made
    again. Raises what a command of the batch is refused with, `SessionExists` among it, and the problem auth.csrf.
    """
    session_id = session_id or uuid4()
    headers: dict[bytes, bytes] = {} if request is None else dict(request.scope["headers"])
    if kind == "browser":
        if request is None:
            raise TypeError("a browser's session needs the request")
        browser.refuse_other_sites(headers)
        extra = (*await _ending_old(edge, tenant_id, headers, session_id), *extra)
    settings = edge.settings
    command = StartSession(
        session_id=session_id,
        user_id=user_id,
        kind=kind,
        device=device,
        lifetime_seconds=settings.session_seconds,
        idle_seconds=settings.session_idle_seconds,
    )
    items = (*extra, Item(SESSION, session_stream(session_id), command))
    origin = None if request is None else await edge.origin(request.scope, headers, tenant_id, user_id)
    actor = with_origin(actor or f"user:{user_id.hex}", origin)
    outcome = await edge.store.submit(StoreRequest(tenant_id, uuid4(), items, b"", actor=actor))
    if outcome.refused:
        told = msgspec.json.decode(outcome.reply)
        told.pop("index", None)
        raise of_refusal(told)
    reply = msgspec.json.decode(outcome.reply, type=_Results).results[-1] if len(items) > 1 else outcome.reply
    started = msgspec.json.decode(reply, type=_Started)
    return await signed_in(edge, tenant_id, started, kind, outcome.position, outcome.epoch)


async def _ending_old(edge: Edge, tenant_id: UUID, headers: Mapping[bytes, bytes], new: UUID) -> tuple[Item, ...]:
    """What ends the session that this browser was signed in with, if that was one of the tenant's."""
    cookie = browser.presented(headers, insecure=edge.settings.insecure_cookies)
    if cookie is None or cookie.tenant_id != tenant_id or cookie.session_id == new:
        return ()
    found = (await edge.store.state(SESSION, tenant_id, session_stream(cookie.session_id))).state
    if not isinstance(found, Session) or not await browser.is_genuine(edge.store.sealing, cookie):
        return ()
    return (Item(SESSION, session_stream(cookie.session_id), EndSession(reason="replaced")),)


async def signed_in(edge: Edge, tenant_id: UUID, session: Any, kind: str, position: int, epoch: int) -> SignedIn:
    """The tokens, or the cookie, of a session as a reply tells of it."""
    user_id, session_id, until = session.user_id, session.session_id, session.until
    sealing = edge.store.sealing
    if kind == "browser":
        value = await browser.cookie_value(sealing, tenant_id, user_id, session_id)
        return SignedIn(tenant_id, user_id, session_id, until, None, None, None, value, position, epoch)
    now = datetime.now(UTC)
    end = min(int(now.timestamp()) + edge.settings.token_seconds, int(until.timestamp()))
    user = (await edge.store.state(USER, tenant_id, user_stream(user_id))).state
    claims: dict[str, Any] = {"sub": user_id.hex, "tid": tenant_id.hex, "sid": session_id.hex, "exp": end}
    if isinstance(user, Active):
        claims["role"] = user.role  # told to other services; this one asks the log
    token = await edge.tokens.mint(claims)
    refresh = await refresh_token(sealing, tenant_id, session_id, session.number)
    return SignedIn(
        tenant_id, user_id, session_id, datetime.fromtimestamp(end, UTC), token, refresh, until, None, position, epoch
    )  # fmt: skip


async def signed_in_response(edge: Edge, signed_in: SignedIn) -> Response:
    """``{"token", "user", "exp"}``, with the refresh token in its header, or the cookie. Nothing of it may be kept by caches."""
    state = (await edge.store.state(USER, signed_in.tenant_id, user_stream(signed_in.user_id))).state
    if not isinstance(state, Active):
        raise Problem("auth.session_ended")
    profile = await people.open_profile(edge.store.sealing, signed_in.tenant_id, signed_in.user_id, state.profile) or people.Profile()
    user = {"user_id": signed_in.user_id.hex, "email": profile.email, "name": profile.name, "role": state.role}
    body = {"token": signed_in.token, "user": user, "exp": int(signed_in.exp.timestamp())}
    headers = {
        "Cache-Control": "no-store",
        "Holdbook-Position": str(signed_in.position),
        "Holdbook-Epoch": str(signed_in.epoch),
    }
    if signed_in.refresh_token is not None:
        headers[REFRESH_HEADER] = signed_in.refresh_token
    response = Response(msgspec.json.encode(body), 200, headers, "application/json")
    if signed_in.cookie is not None:
        browser.set_cookie(response, signed_in.cookie, signed_in.exp, insecure=edge.settings.insecure_cookies)
    return response


# Refresh tokens


async def refresh_token(sealing: Sealing, tenant_id: UUID, session_id: UUID, number: int) -> str:
    """The token of a session's number, always the same."""
    said = f"{session_id.hex}|{number}"
    mac = hmac.digest(await sealing.secret(tenant_id, _PURPOSE), said.encode(), "sha256")
    return f"hbr_{tenant_id.hex}_{session_id.hex}_{number}_{urlsafe_b64encode(mac).decode().rstrip('=')}"


def read_refresh_token(text: str) -> RefreshToken | None:
    """What a refresh token says; None when it cannot be ours."""
    match = _REFRESH.fullmatch(text)
    return None if match is None else RefreshToken(UUID(match[1]), UUID(match[2]), int(match[3]), text)


async def is_genuine(sealing: Sealing, token: RefreshToken) -> bool:
    """Whether we made it. To be asked of tenants that are there: their secret is made when it is first asked for."""
    ours = await refresh_token(sealing, token.tenant_id, token.session_id, token.number)
    return hmac.compare_digest(ours, token.text)

"""Sessions of browsers: a cookie that no script can read, and what keeps other sites from using it.

The cookie's value is derived, like all our tokens, and is in no table. Each sign-in makes a new one: what a browser presented is never
taken over, so nobody can plant a session; the session that it named is ended.

A browser sends the cookie along with requests that other sites make it send. ``SameSite=Lax`` keeps most of those out. A method that may
change something needs more: the header ``X-CSRF-Token``, whose value only who may read our answers can know, and, as far as the browser
says where the request comes from (``Origin``, ``Sec-Fetch-Site``), that it comes from here. Signing in is held to the latter as well,
or a stranger could sign somebody in as themselves. A proxy before us must leave the ``Host`` header as it came.
"""

from __future__ import annotations

import hmac
import re
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import NamedTuple
from urllib.parse import urlsplit
from uuid import UUID

from starlette.responses import Response

from api.problems import Problem
from eventstore.sealing import Sealing

CSRF_HEADER = "X-CSRF-Token"
_CSRF = CSRF_HEADER.lower().encode()
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_PURPOSE = "browser-session"
_VALUE = re.compile(r"hbb_([0-9a-f]{32})_([0-9a-f]{32})_([0-9a-f]{32})_([A-Za-z0-9_-]{43})")
_PORTS = {"http": 80, "https": 443}


class Cookie(NamedTuple):
    """What a cookie says; whether it is genuine is for :func:`is_genuine` to say."""

    tenant_id: UUID
    user_id: UUID
    session_id: UUID
    text: str


def cookie_name(*, insecure: bool) -> str:
    """``__Host-`` has browsers refuse it from a subdomain, from another path, and without TLS."""
    return "holdbook" if insecure else "__Host-holdbook"


def presented(headers: Mapping[bytes, bytes], *, insecure: bool) -> Cookie | None:
    """The cookie of a request, if it has one that could be ours. Of several with the name the first counts, as browsers order them."""
    name = cookie_name(insecure=insecure)
    for pair in headers.get(b"cookie", b"").decode("latin-1").split(";"):
        found, _, value = pair.strip().partition("=")
        if found == name:
            match = _VALUE.fullmatch(value)
            return None if match is None else Cookie(UUID(match[1]), UUID(match[2]), UUID(match[3]), value)
    return None


async def cookie_value(sealing: Sealing, tenant_id: UUID, user_id: UUID, session_id: UUID) -> str:
    """The value of a session's cookie, always the same."""
    return f"hbb_{tenant_id.hex}_{user_id.hex}_{session_id.hex}_{await _mac(sealing, tenant_id, f'cookie|{user_id.hex}|{session_id.hex}')}"


async def is_genuine(sealing: Sealing, cookie: Cookie) -> bool:
    """Whether we made it. To be asked of tenants that are there: their secret is made when it is first asked for."""
    ours = await cookie_value(sealing, cookie.tenant_id, cookie.user_id, cookie.session_id)
    return hmac.compare_digest(ours, cookie.text)


async def csrf_token(sealing: Sealing, tenant_id: UUID, session_id: UUID) -> str:
    """What a page sends along to show that it may read our answers."""
    return await _mac(sealing, tenant_id, f"csrf|{session_id.hex}")


async def refuse_forgery(sealing: Sealing, headers: Mapping[bytes, bytes], method: str, cookie: Cookie) -> None:
    """Raise the problem auth.csrf when another site may have made the browser send this."""
    if method in SAFE:
        return
    refuse_other_sites(headers)
    expected = await csrf_token(sealing, cookie.tenant_id, cookie.session_id)
    if not hmac.compare_digest(expected.encode(), headers.get(_CSRF, b"")):
        raise Problem("auth.csrf")


def refuse_other_sites(headers: Mapping[bytes, bytes]) -> None:
    """Raise the problem auth.csrf when the browser says that another site made it send this. A program says nothing of the kind."""
    site = headers.get(b"sec-fetch-site")
    if site is not None and site != b"same-origin":
        raise Problem("auth.csrf")
    origin = headers.get(b"origin")
    if origin is not None and not _is_here(origin.decode("latin-1"), headers.get(b"host", b"").decode("latin-1")):
        raise Problem("auth.csrf")


def _is_here(origin: str, host: str) -> bool:
    """Whether an origin is the host that was asked, whichever of the two schemes a proxy turned into the other."""
    try:
        parts = urlsplit(origin)
        port = parts.port or _PORTS[parts.scheme]
        asked = urlsplit(f"{parts.scheme}://{host}")
        return bool(parts.hostname) and (parts.hostname, port) == (asked.hostname, asked.port or _PORTS[parts.scheme])
    except (KeyError, ValueError):  # "null", or nonsense
        return False


def set_cookie(response: Response, value: str, expires_at: datetime, *, insecure: bool) -> None:
    """Have the browser keep it until the session ends in any case."""
    seconds = max(0, int((expires_at - datetime.now(UTC)).total_seconds()))
    name = cookie_name(insecure=insecure)
    response.set_cookie(name, value, max_age=seconds, path="/", secure=not insecure, httponly=True, samesite="lax")


def remove_cookie(response: Response, *, insecure: bool) -> None:
    """Have the browser forget it."""
    response.delete_cookie(cookie_name(insecure=insecure), path="/", secure=not insecure, httponly=True, samesite="lax")


async def _mac(sealing: Sealing, tenant_id: UUID, text: str) -> str:
    mac = hmac.digest(await sealing.secret(tenant_id, _PURPOSE), text.encode(), "sha256")
    return urlsafe_b64encode(mac).decode().rstrip("=")

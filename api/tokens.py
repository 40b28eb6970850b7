"""Access tokens: JSON Web Tokens (RFC 7519, profile RFC 9068) signed with RS256 by keys that change without anybody noticing.

Nothing of a token is believed before its signature was verified with a key of ours, found by the key id, by the one algorithm there is.
What a token's header says about keys is not looked at.

A token that was verified is remembered by its digest: 3 us instead of 130 [measured]. Its times and its key are looked at every time.

The keys are read again every few seconds. A process that meets an unknown key id reads them at once, so that a key's first token is
accepted everywhere; invented ids make it do so once a second and no oftener.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any, NamedTuple
from uuid import uuid4

import jwt

from api.problems import Problem
from api.token_keys import KeySource, MemoryTokenKeys, TokenKey, jwk_of

ALGORITHM = "RS256"
TYPE = "at+jwt"
LEEWAY_SECONDS = 5
"""For clocks that differ a little."""

REREAD_SECONDS = 2.0
"""Older keys are read again, while they are still used."""
STALE_SECONDS = 30.0
"""Older keys are not used any more: a process that cannot read them must not go on for ever with what was."""
UNKNOWN_SECONDS = 1.0
REMEMBERED = 10_000
LONGEST = 4_096
"""Characters of a token."""

_REQUIRED = ("iss", "aud", "sub", "exp", "iat", "nbf")
_UNTIMED = {
    "verify_exp": False,  # the clock is given to us, and PyJWT asks its own
    "verify_iat": False,
    "verify_nbf": False,
    "require": list(_REQUIRED),
}


class _Verified(NamedTuple):
    kid: str
    claims: dict[str, Any]


class Tokens:
    """Makes and checks tokens. ``clock`` is in seconds since 1970, ``monotonic`` in seconds; ``seconds`` is how long a token is good."""

    def __init__(
        self,
        source: KeySource | None = None,
        *,
        issuer: str = "holdbook",
        audience: str = "holdbook",
        seconds: int = 600,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source, self.issuer, self.audience, self.seconds = source or MemoryTokenKeys(), issuer, audience, seconds
        self._clock, self._monotonic = clock, monotonic
        self._keys: Mapping[str, TokenKey] = {}
        self._read_at = float("-inf")
        self._reading: asyncio.Task[None] | None = None
        self._verified: OrderedDict[bytes, _Verified] = OrderedDict()
        self._verifier = jwt.PyJWT(options={})

    async def mint(self, claims: Mapping[str, Any]) -> str:
        """A token with these claims. Issuer, audience, times and id are added where they are not given."""
        now = int(self._clock())
        given = {"iss": self.issuer, "aud": self.audience, "iat": now, "nbf": now, "exp": now + self.seconds, "jti": uuid4().hex, **claims}
        key = self._signing(await self._current())
        assert key.private is not None, "it was chosen for having one"
        # Off the loop: a signature takes about a millisecond, and the library lets others run meanwhile.
        return await asyncio.to_thread(jwt.encode, given, key.private, ALGORITHM, {"kid": key.kid, "typ": TYPE})

    async def verify(self, text: str) -> dict[str, Any]:
        """The claims of a genuine token of now. Raises the problems ``auth.token_invalid`` and ``auth.token_expired``.

        Whose they are, and whether that one may still come in, is the caller's to find out.
        """
        if len(text) > LONGEST:
            raise _invalid()
        keys, digest = await self._current(), sha256(text.encode("utf-8", "surrogatepass")).digest()
        verified = self._verified.get(digest)
        if verified is None:
            kid = _key_id(text)
            if kid not in keys and self._monotonic() - self._read_at > UNKNOWN_SECONDS:
                keys = await self._reread()
            verified = self._remember(digest, _Verified(kid, self._check(text, self._verifying(keys, kid))))
        else:
            self._verifying(keys, verified.kid)
        self._check_times(verified.claims)
        return dict(verified.claims)

    async def published(self) -> list[dict[str, str]]:
        """The public keys as JSON Web Keys: those that sign, that will, and that still verify."""
        now = self._clock()
        return [jwk_of(key.public) for key in (await self._current()).values() if _verifies(key, now)]

    def _signing(self, keys: Mapping[str, TokenKey]) -> TokenKey:
        now = self._clock()
        ready = [key for key in keys.values() if key.private is not None and key.signs_from <= now]
        if not ready:  # clocks differ by more than the installation is old; the oldest is known everywhere
            ready = [key for key in keys.values() if key.private is not None][:1]
        return ready[-1]

    def _verifying(self, keys: Mapping[str, TokenKey], kid: str) -> TokenKey:
        key = keys.get(kid)
        if key is None or not _verifies(key, self._clock()):
            raise _invalid()
        return key

    def _check(self, text: str, key: TokenKey) -> dict[str, Any]:
        try:
            options: Any = _UNTIMED
            claims: dict[str, Any] = self._verifier.decode(
                text, key.public, algorithms=[ALGORITHM], audience=self.audience, issuer=self.issuer, options=options
            )
        except (jwt.InvalidTokenError, ValueError, UnicodeError):
            raise _invalid() from None
        if any(type(claims[name]) is not int for name in ("exp", "iat", "nbf")):
            raise _invalid()
        return claims

    def _check_times(self, claims: Mapping[str, Any]) -> None:
        now = self._clock()
        if claims["exp"] + LEEWAY_SECONDS <= now:
            raise _invalid("auth.token_expired")
        if claims["iat"] - LEEWAY_SECONDS > now or claims["nbf"] - LEEWAY_SECONDS > now:
            raise _invalid()

    def _remember(self, digest: bytes, verified: _Verified) -> _Verified:
        self._verified[digest] = verified
        while len(self._verified) > REMEMBERED:
            self._verified.popitem(last=False)
        return verified

    async def _current(self) -> Mapping[str, TokenKey]:
        """Keys that are not too old; while they are read again, those that were."""
        age = self._monotonic() - self._read_at
        if age > STALE_SECONDS:
            return await self._reread()
        if age > REREAD_SECONDS:
            self._start_reading()
        return self._keys

    async def _reread(self) -> Mapping[str, TokenKey]:
        await asyncio.shield(self._start_reading())
        return self._keys

    def _start_reading(self) -> asyncio.Task[None]:
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read())
            self._reading.add_done_callback(_seen)
        return self._reading

    async def _read(self) -> None:
        began = self._monotonic()
        self._keys = {key.kid: key for key in await self._source.read()}
        self._read_at = began


def _verifies(key: TokenKey, now: float) -> bool:
    return key.verifies_until is None or now < key.verifies_until


def _key_id(text: str) -> str:
    """The key id of a header that is one of ours; nothing else of it is looked at."""
    try:
        header = jwt.get_unverified_header(text)
    except (jwt.InvalidTokenError, ValueError, UnicodeError):
        raise _invalid() from None
    kid = header.get("kid")
    if header.get("alg") != ALGORITHM or header.get("typ") != TYPE or not isinstance(kid, str):
        raise _invalid()
    return kid


def _invalid(code: str = "auth.token_invalid") -> Problem:
    return Problem(code, headers={"WWW-Authenticate": 'Bearer realm="holdbook", error="invalid_token"'})


def _seen(task: asyncio.Task[None]) -> None:
    """A reading that failed is told to those who wait for it, and to nobody else."""
    if not task.cancelled():
        task.exception()

"""Headers that every answer carries, because browsers would otherwise guess, embed, remember and pass on.

An answer that brings one of them itself keeps its own: a page for people has another Content-Security-Policy than a document for programs.
"""

from __future__ import annotations

from collections.abc import Iterable

from api.origin import Scope, origin_of
from api.settings import Settings

Header = tuple[bytes, bytes]

ALWAYS: tuple[Header, ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
UNLESS_GIVEN: tuple[Header, ...] = (
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
)
"""Answers are somebody's own, so nobody in between keeps one unless its route says that they may."""

_ALL = (*ALWAYS, *UNLESS_GIVEN)


class Hardening:
    """Adds the headers."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._proxied = settings, bool(settings.trusted_proxies)
        hsts = (b"strict-transport-security", b"max-age=%d; includeSubDomains" % settings.hsts_seconds)
        self._hsts = hsts if settings.hsts_seconds else None

    def of(self, scope: Scope, given: Iterable[Header]) -> Iterable[Header]:
        """What is to be added to an answer's own headers.

        Strict-Transport-Security only where the client spoke TLS: said over plain HTTP it must be ignored (RFC 6797, section 7.2).
        """
        own = [name for name, _ in given if name in _OVERRIDABLE]
        added: Iterable[Header] = _ALL if not own else (*ALWAYS, *(header for header in UNLESS_GIVEN if header[0] not in own))
        if self._hsts is not None and (self._proxied or scope["scheme"] == "https") and origin_of(scope, self._settings).secure:
            return (*added, self._hsts)
        return added


_OVERRIDABLE = frozenset(name for name, _ in UNLESS_GIVEN)

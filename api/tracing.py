"""Which request is being served, so that its answer, its log lines and its events can be found from one another.

Every answer carries ``X-Request-Id``: the client's own when it is 1 to 128 letters, digits or ``-._:/+=@``, else a new one. A
``traceparent`` (W3C Trace Context) is taken as the client sent it: it goes into the events of its command and from there to whatever
follows from them. Where there is none, none is made up: an event's trace says what somebody else can look up, or nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import MutableMapping
from contextvars import ContextVar
from typing import Any, NamedTuple

from starlette.types import Scope

_SAFE = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}").fullmatch
_TRACE = re.compile(rb"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}").fullmatch


class Serving(NamedTuple):
    """The request that is being served."""

    request_id: bytes
    traceparent: bytes | None

    @property
    def instance(self) -> str:
        """A problem document's ``instance``: this occurrence of it."""
        return f"urn:holdbook:request:{self.request_id.decode()}"


SERVING: ContextVar[Serving | None] = ContextVar("serving", default=None)


def begin(scope: Scope) -> Serving:
    """Note the request; whoever runs in its context from now on can tell it."""
    request_id, traceparent = b"", None
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _SAFE(value):
            request_id = value
        elif name == b"traceparent":
            traceparent = value
    serving = Serving(request_id or os.urandom(16).hex().encode(), traceparent)
    SERVING.set(serving)
    return serving


def valid(traceparent: bytes | None) -> str | None:
    """The header's text where it is one, of version 00."""
    return traceparent.decode() if traceparent is not None and _TRACE(traceparent) else None


def add_request(_logger: Any, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: each line of a request says which one, and of which trace."""
    serving = SERVING.get()
    if serving is not None:
        line.setdefault("request_id", serving.request_id.decode())
        if (trace := valid(serving.traceparent)) is not None:
            line.setdefault("trace_id", trace[3:35])
    return line

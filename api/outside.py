"""What surrounds every request: counted, timed, bounded in number, and never left without an answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from urllib.parse import unquote

import structlog
from starlette.requests import Request
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.hardening import Hardening, Header
from api.lean import LeanRoute
from api.metrics import Metrics
from api.problems import Problem, of_error
from api.tracing import SERVING, begin

log = structlog.get_logger(__name__)

_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})


class Outside:
    """The outermost layer. Lean routes are called from here; everything else goes through FastAPI's own layers."""

    def __init__(
        self,
        app: ASGIApp,
        routes: Iterable[BaseRoute],
        *,
        metrics: Metrics,
        at_once: int,
        hardening: Hardening,
        knock: Callable[[Scope], list[Header]],
    ) -> None:
        self._app, self._metrics, self._at_once, self._serving = app, metrics, at_once, 0
        self._hardening, self._knock = hardening, knock
        self._lean = {(method, route.path): route for route in routes if isinstance(route, LeanRoute) for method in route.methods or ()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 0
        began = time.perf_counter()
        serving = begin(scope)

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message["headers"]
                added = self._hardening.of(scope, headers)
                message["headers"] = [*headers, *added, *scope.get(SENT_ALONG, ()), (b"x-request-id", serving.request_id)]
            await send(message)

        self._serving += 1
        try:
            await self._serve(scope, receive, watched)
        except Exception:
            log.exception("request_failed", method=scope["method"], route=_template(scope))
            if not status:
                await Problem("internal", instance=serving.instance).response()(scope, receive, watched)
        finally:
            self._serving -= 1
            method = scope["method"] if scope["method"] in _METHODS else "other"
            route, seconds = _template(scope), time.perf_counter() - began
            self._metrics.answered(method, route, status, seconds)
            log.debug("request_answered", method=method, route=route, status=status, seconds=round(seconds, 6))
            SERVING.set(None)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._serving > self._at_once:
            await Problem("store.overloaded").response()(scope, receive, send)
            return
        if scope["path"].startswith(UNKNOWN_SENDERS):
            try:
                scope[SENT_ALONG] = self._knock(scope)
            except Problem as limited:
                await limited.response()(scope, receive, send)
                return
        route = self._lean.get((scope["method"], scope["path"]))
        if route is None:
            _keep_slashes(scope)
            await self._app(scope, receive, send)
            return
        scope["route"] = route
        try:
            response = await route.endpoint(Request(scope, receive))
        except Exception as error:
            problem = of_error(error)
            if problem.code == "internal":
                raise
            response = problem.response()
        await response(scope, receive, send)


SENT_ALONG = "holdbook.headers"
"""Where in the scope stand headers that whatever is answered shall carry."""

UNKNOWN_SENDERS = ("/v1/auth/", "/auth/")
"""Below these anybody may send without a credential, so requests are counted by the client's address."""


def _template(scope: Scope) -> str:
    return getattr(scope.get("route"), "path", "unknown")


SLASH = "\x00"
"""Stands for a slash that the client encoded, inside one segment of the path."""


def _keep_slashes(scope: Scope) -> None:
    """A subject may hold a slash, written %2F; decoded too early it would cut the segment in two."""
    raw: bytes = scope.get("raw_path") or b""
    if b"%2f" in raw or b"%2F" in raw:
        scope["path"] = unquote(raw.split(b"?")[0].decode("latin-1").replace("%2f", SLASH).replace("%2F", SLASH))

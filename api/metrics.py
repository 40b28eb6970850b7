"""Prometheus metrics of one application, in a registry of its own, and the ASGI middleware that feeds them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING
from urllib.parse import unquote

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problems import Problem
from eventstore.requests import Stats
from eventstore.store import Store

if TYPE_CHECKING:
    from api.edge import Follower

log = structlog.get_logger()

_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Metrics:
    """What is counted."""

    def __init__(self, store: Store, follower: Follower | None) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter("holdbook_requests", "Answered requests.", ("method", "route", "status"), registry=self.registry)
        self._seconds = Histogram(
            "holdbook_request_seconds", "Time to answer.", ("method", "route"), registry=self.registry, buckets=_BUCKETS
        )
        self._refusals = Counter("holdbook_refusals", "Commands refused by a rule, replays included.", ("code",), registry=self.registry)
        self._children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self.registry.register(_Store(store, follower))

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """One request was answered."""
        place = method, route, status
        children = self._children.get(place)
        if children is None:
            children = self._requests.labels(method, route, str(status)), self._seconds.labels(method, route)
            self._children[place] = children
        children[0].inc()
        children[1].observe(seconds)

    def refused(self, code: str) -> None:
        """One command was refused."""
        self._refusals.labels(code).inc()

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)


class _Store(Collector):
    """Reads the writers' own counters when asked."""

    def __init__(self, store: Store, follower: Follower | None) -> None:
        self._store, self._follower = store, follower

    def collect(self) -> Iterable[Metric]:
        """See prometheus_client."""
        stats = self._store.stats()
        for field in dataclasses.fields(Stats):
            if field.name == "in_doubt":
                continue
            yield CounterMetricFamily(
                f"holdbook_writer_{field.name}",
                f"Writers of this process: {field.name.replace('_', ' ')}.",
                value=getattr(stats, field.name),
            )
        yield GaugeMetricFamily("holdbook_writer_queued_commands", "Commands waiting.", value=self._store.queued)
        if self._follower is not None:
            yield GaugeMetricFamily(
                "holdbook_projection_lag_events", "Events the read models are behind the log.", value=behind(self._follower)
            )


def behind(follower: Follower) -> int:
    """Events between the log's end and what the slowest read model has seen."""
    lag = follower.lag()
    return int(lag if isinstance(lag, int | float) else max(lag.values(), default=0))


_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})


class Observed:
    """Outermost of ours: counts and times requests, bounds how many are served at once, and turns what nobody caught into a 500."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, at_once: int) -> None:
        self.app, self._metrics, self._at_once, self._serving = app, metrics, at_once, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 0
        began = time.perf_counter()

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._serving += 1
        try:
            if self._serving > self._at_once:
                await Problem("store.overloaded").response()(scope, receive, watched)
            else:
                _keep_slashes(scope)
                await self.app(scope, receive, watched)
        except Exception:
            log.exception("request_failed", method=scope["method"], route=_route(scope))
            if not status:
                await Problem("internal").response()(scope, receive, watched)
        finally:
            self._serving -= 1
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.answered(method, _route(scope), status, time.perf_counter() - began)


def _route(scope: Scope) -> str:
    return getattr(scope.get("route"), "path", "unknown")


SLASH = "\x00"
"""Stands for a slash that the client encoded, inside one segment of the path."""


def _keep_slashes(scope: Scope) -> None:
    """A subject may hold a slash, written %2F; decoded too early it would cut the segment in two."""
    raw: bytes = scope.get("raw_path") or b""
    if b"%2f" in raw or b"%2F" in raw:
        scope["path"] = unquote(raw.split(b"?")[0].decode("latin-1").replace("%2f", SLASH).replace("%2F", SLASH))

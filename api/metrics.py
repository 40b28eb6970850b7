"""Prometheus metrics of one application, in a registry of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from eventstore.requests import Stats
from eventstore.store import Store

if TYPE_CHECKING:
    from api.edge import Follower

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

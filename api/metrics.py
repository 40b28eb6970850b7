"""Prometheus metrics of one application, in a registry of its own.

What is counted elsewhere is read when Prometheus asks: anything with a method ``collect`` that yields metric families, a
background service for example, is handed to :meth:`Metrics.register` once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from api.following import FollowerMetrics
from eventstore.requests import BATCH_BOUNDS, COMMIT_BOUNDS
from eventstore.store import Store

if TYPE_CHECKING:
    from api.edge import Follower

_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)

_WRITER_COUNTERS = {
    "commands": "Commands answered, replays and refusals included.",
    "events": "Events appended.",
    "refused": "Commands refused by a rule, replays not included.",
    "replayed": "Commands answered with what was recorded under their key.",
    "caught_up": "Events of other processes folded under the lock.",
    "snapshots": "Snapshots written.",
    "lost_tails": "Times the log was found to have lost its end.",
}


@runtime_checkable
class Collects(Protocol):
    """Something that can tell its metrics when asked."""

    def collect(self) -> Iterable[Metric]:
        """Metric families with their values of now. Called on the event loop: it must not wait
        for anything, and it must work before whatever it tells of has started."""
        ...


class _Adapter(Collector):
    """Lets prometheus_client ask what is not of its class."""

    def __init__(self, source: Collects) -> None:
        self._source = source

    def collect(self) -> Iterable[Metric]:
        """See prometheus_client."""
        return self._source.collect()


class Metrics:
    """What is counted."""

    def __init__(self, store: Store) -> None:
        self.registry = CollectorRegistry(auto_describe=True)  # so that two of one name are refused when they are registered
        self._requests = Counter("holdbook_requests", "Answered requests.", ("method", "route", "status"), registry=self.registry)
        self._seconds = Histogram(
            "holdbook_request_seconds", "Time to answer.", ("method", "route"), registry=self.registry, buckets=_BUCKETS
        )
        self._refusals = Counter("holdbook_refusals", "Commands refused by a rule, replays included.", ("code",), registry=self.registry)
        self._sign_ins = Counter(
            "holdbook_sign_ins", "Sign-ins by method and what became of them.", ("method", "result"), registry=self.registry
        )
        self._children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self.register(_Store(store))
        ProcessCollector(registry=self.registry)

    def register(self, collector: Collects) -> None:
        """Ask this one too from now on. Raises ValueError when another one already exports a metric of the same name."""
        self.registry.register(_Adapter(collector))

    def register_all(self, services: Iterable[object]) -> None:
        """Ask those of the services that have something to tell."""
        for service in services:
            if isinstance(service, Collects):
                self.register(service)

    def follow(self, follower: Follower) -> None:
        """Tell how far the read models that it feeds are behind."""
        self.register(_Lag(follower))
        self.register(FollowerMetrics(follower))

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

    def signed_in(self, method: str, result: str) -> None:
        """Somebody signed in, or could not. ``result`` is one of few words."""
        self._sign_ins.labels(method, result).inc()

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)


class _Store:
    """Reads the writers' own numbers when asked."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def collect(self) -> Iterator[Metric]:
        """See :class:`Collects`."""
        stats = self._store.stats()
        for name, told in _WRITER_COUNTERS.items():
            yield CounterMetricFamily(f"holdbook_writer_{name}", told, value=getattr(stats, name))
        yield GaugeMetricFamily("holdbook_writer_in_doubt", "Commits whose answer has not come.", value=stats.in_doubt)
        yield GaugeMetricFamily("holdbook_writer_queued_commands", "Commands waiting.", value=self._store.queued)
        yield GaugeMetricFamily("holdbook_writer_queued_bytes", "Bytes of the bodies of waiting commands.", value=self._store.queued_bytes)
        yield _histogram("holdbook_writer_batch_commands", "Commands in one transaction.", BATCH_BOUNDS, stats.by_size, stats.commands)
        yield _histogram(
            "holdbook_writer_commit_seconds",
            "From asking for a partition's lock to the commit's answer.",
            COMMIT_BOUNDS,
            stats.by_seconds,
            stats.commit_seconds,
        )


class _Lag:
    def __init__(self, follower: Follower) -> None:
        self._follower = follower

    def collect(self) -> Iterator[Metric]:
        """See :class:`Collects`."""
        yield GaugeMetricFamily(
            "holdbook_projection_lag_events", "Events the read models are behind the log.", value=behind(self._follower)
        )


def _histogram(name: str, told: str, bounds: Sequence[float], counts: Sequence[int], total: float) -> HistogramMetricFamily:
    """Counts of single buckets as Prometheus wants them: each holds the smaller ones too, the last is open."""
    told_bounds = [*(str(float(bound)) for bound in bounds), "+Inf"]
    return HistogramMetricFamily(name, told, buckets=list(zip(told_bounds, accumulate(counts), strict=True)), sum_value=total)


def behind(follower: Follower) -> int:
    """Events between the log's end and what the slowest read model has seen."""
    lag = follower.lag()
    return int(lag if isinstance(lag, int | float) else max(lag.values(), default=0))

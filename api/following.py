"""What a process tells of its follower: to Prometheus, and to whoever asks whether it is ready.

Strangers may read both, so neither holds anything of an event: consumers, partitions, positions and classes of errors, no texts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

if TYPE_CHECKING:
    from api.edge import Follower
    from projections.follower import Figures

TOLD_AT_MOST = 20


class FollowerMetrics:
    """How each consumer stands, by its name alone: partitions and generations would be too many labels."""

    def __init__(self, follower: Follower) -> None:
        self._follower = follower

    def collect(self) -> Iterator[Metric]:
        """See :class:`api.metrics.Collects`."""
        figures = self._follower.figures()
        yield _gauge("lag_events", "Events not applied yet, of the partition furthest behind.", figures, lambda each: each.lag_events)
        yield _gauge("lag_seconds", "At least as old as the oldest event not applied yet.", figures, lambda each: each.lag_seconds)
        yield _gauge("stopped_partitions", "Partitions on which it waits for an operator.", figures, lambda each: each.stopped)
        yield _gauge("failed_partitions", "Partitions on which it failed and tries again.", figures, lambda each: each.failed)
        yield _counter("events", "Events applied.", figures, lambda each: each.progress.events)
        yield _counter("batches", "Batches applied.", figures, lambda each: each.progress.batches)
        yield _counter("lost_batches", "Batches that another follower was first with.", figures, lambda each: each.progress.lost)


def _gauge(name: str, told: str, figures: dict[str, Figures], value: Any) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"holdbook_consumer_{name}", told, labels=["consumer"])
    for consumer, each in sorted(figures.items()):
        family.add_metric([consumer], value(each))
    return family


def _counter(name: str, told: str, figures: dict[str, Figures], value: Any) -> CounterMetricFamily:
    family = CounterMetricFamily(f"holdbook_consumer_{name}", told, labels=["consumer"])
    for consumer, each in sorted(figures.items()):
        family.add_metric([consumer], value(each))
    return family


def stopped(follower: Follower) -> bool:
    """Whether a consumer waits for an operator."""
    return any(halt.recorded for halt in follower.health().halted)


def halted(follower: Follower) -> list[dict[str, Any]]:
    """The consumers that do not go on, without the texts of their errors; at most so many."""
    worst_first = sorted(follower.health().halted, key=lambda halt: (not halt.recorded, halt.consumer, halt.generation, halt.partition))
    return [
        {
            "consumer": halt.consumer,
            "generation": halt.generation,
            "partition": halt.partition,
            "position": halt.position,
            "error": halt.error,
            "stopped": halt.recorded,
        }
        for halt in worst_first[:TOLD_AT_MOST]
    ]

"""What Prometheus is told: figures that add up, under names that follow its conventions, once each."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from uuid import UUID

import pytest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families

from api.metrics import Metrics
from eventstore.requests import BATCH_BOUNDS, COMMIT_BOUNDS, Stats
from eventstore.store import Store
from tests.api.conftest import Site
from tests.support.till import TILL, Open, Take
from tests.support.worlds import ask

pytestmark = pytest.mark.asyncio(loop_scope="module")

RESERVE = "/v1/usage/reserve"


async def samples(site: Site) -> dict[str, float]:
    """Every sample as Prometheus would write it."""
    text = (await site.client.get("/metrics")).text
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if not line.startswith("#")}


async def test_every_name_is_told_once_and_follows_the_conventions(site: Site) -> None:
    text = (await site.client.get("/metrics")).text
    families = list(text_string_to_metric_families(text))
    names = [family.name for family in families]

    assert len(names) == len(set(names))
    for family in families:
        assert family.documentation, family.name
        assert re.fullmatch(r"(holdbook|process)_[a-z_]+", family.name)
        assert not re.search("milliseconds|_ms|kilobytes|_total$", family.name), "base units, and _total for counters alone"


async def test_batches_and_commits_are_counted_into_buckets(site: Site) -> None:
    await site.limit()
    before = await samples(site)
    for number in range(3):
        await site.post(RESERVE, {"messages": 1, "correlation_id": f"k{number}"})
    after = await samples(site)

    def more(name: str) -> float:
        return after[name] - before[name]

    assert more('holdbook_writer_batch_commands_bucket{le="1.0"}') >= 3
    assert more("holdbook_writer_batch_commands_count") == more("holdbook_writer_commit_seconds_count") >= 3
    assert more("holdbook_writer_batch_commands_sum") == more("holdbook_writer_commands_total")
    assert 0 < more("holdbook_writer_commit_seconds_sum") < 30
    for name, bounds in (("batch_commands", BATCH_BOUNDS), ("commit_seconds", COMMIT_BOUNDS)):
        counts = [after[f'holdbook_writer_{name}_bucket{{le="{bound}"}}'] for bound in [*map(float, bounds), "+Inf"]]
        assert counts == sorted(counts), "each bucket holds the smaller ones too"
        assert counts[-1] == after[f"holdbook_writer_{name}_count"]


async def test_a_bound_belongs_to_its_own_bucket() -> None:
    stats = Stats()
    for commands, seconds in ((1, 0.001), (2, 0.0011), (3, 5.0), (1_000, 5.1), (1_001, 0.0)):
        stats.committed(commands, seconds)

    assert stats.by_size == [1, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1]
    assert stats.by_seconds == [2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]
    assert stats.batches == 5


async def test_what_waits_is_told_in_commands_and_bytes() -> None:
    store = Store.in_memory([TILL])
    metrics = Metrics(store)
    waiting = [asyncio.create_task(store.submit(ask(("till-a", Open(room=9)), size=size))) for size in (100, 23)]
    await asyncio.sleep(0)

    text = metrics.text().decode()
    await asyncio.gather(*waiting)
    await store.drain()

    assert "holdbook_writer_queued_commands 2.0" in text
    assert "holdbook_writer_queued_bytes 123.0" in text
    assert "holdbook_writer_queued_bytes 0.0" in metrics.text().decode()


async def test_writers_of_several_partitions_are_summed() -> None:
    store = Store.in_memory([TILL], partitions=64)
    tenants = [f"00000000-0000-4000-8000-0000000000{number:02}" for number in range(20)]
    for tenant in tenants:
        await store.submit(ask((f"till-{tenant}", Open(room=9)), tenant=UUID(tenant)))
        await store.submit(ask((f"till-{tenant}", Take(take_id="t")), tenant=UUID(tenant)))
    stats = store.stats()
    await store.drain()

    assert len(store.writers) > 1
    assert (stats.commands, stats.events, sum(stats.by_size), sum(stats.by_seconds)) == (40, 40, 40, 40)


class Tells:
    """A background service with something to tell."""

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("holdbook_told", "Told.", value=7)


class Silent:
    """A background service without."""


async def test_services_that_have_something_to_tell_are_asked() -> None:
    store = Store.in_memory([TILL])
    metrics = Metrics(store)

    metrics.register_all([Silent(), Tells()])

    assert "holdbook_told 7.0" in metrics.text().decode()
    with pytest.raises(ValueError, match="holdbook_told"):
        metrics.register(Tells())
    await store.drain()

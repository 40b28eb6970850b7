"""What a follower tells of itself: why something stands still, how far it is behind, and nothing of what an event holds."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from api.app import create_app
from api.settings import Settings
from projections import halts
from projections.follower import Follower
from projections.readers import Readers
from tests.projections.conftest import LIMITS, Ledger, administer, caught_up, following, until
from tests.support.counting import Counting


@asynccontextmanager
async def asking(ledger: Ledger, readers: Readers, follower: Follower) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(ledger.store, readers, Settings(), follower)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://holdbook") as client:
        yield client


def metric(text: str, name: str, consumer: str) -> float:
    (value,) = [
        line.rsplit(" ", 1)[1] for line in text.splitlines() if line.startswith(f'holdbook_consumer_{name}{{consumer="{consumer}"}}')
    ]
    return float(value)


async def test_a_poison_event_is_shown_without_what_it_holds(ledger: Ledger, readers: Readers) -> None:
    await ledger.set_limits("anna-of-all-people", *LIMITS[:1])
    await ledger.reserve("anna-of-all-people", "r1")
    picky, easy = Counting("picky", lambda row: row.position == 2 and "anna" in row.payload), Counting("easy")
    picky.hates = _hates_loudly
    async with following(ledger, picky, easy) as follower, asking(ledger, readers, follower) as client:
        await caught_up(ledger, follower)
        ready = await client.get("/readyz")
        metrics = (await client.get("/metrics")).text

        administer(ledger, "update checkpoint set stopped = null, position = 2 where consumer = 'picky' and stopped is not null")
        await until(lambda: follower.health().ok)
        ready_again = await client.get("/readyz")

    assert ready.status_code == 503
    assert ready.json()["checks"]["projections"] == "stopped"
    assert ready.json()["halted"] == [
        {"consumer": "picky", "generation": 1, "partition": ledger.partition, "position": 1, "error": "ValueError", "stopped": True}
    ]
    assert metric(metrics, "stopped_partitions", "picky") == 1
    assert metric(metrics, "stopped_partitions", "easy") == 0
    assert metric(metrics, "lag_events", "picky") == 1
    assert metric(metrics, "lag_seconds", "picky") > 0
    assert metric(metrics, "lag_events", "easy") == 0
    assert metric(metrics, "lag_seconds", "easy") == 0
    assert metric(metrics, "events_total", "easy") == 2
    assert metric(metrics, "events_total", "picky") == 1
    assert metric(metrics, "batches_total", "easy") >= 1
    assert metric(metrics, "lost_batches_total", "easy") == 0
    for shown in (ready.text, metrics):
        assert "anna" not in shown
        assert "quota-" not in shown
    assert ready_again.status_code == 200
    assert "halted" not in ready_again.json()


def _hates_loudly(row: Any) -> bool:
    if row.position == 2:
        raise ValueError(f"what is in it: {row.payload}")
    return False


async def test_what_is_only_tried_again_does_not_make_the_process_unready(ledger: Ledger, readers: Readers) -> None:
    await ledger.set_limits("anna", *LIMITS[:1])
    consumer = Counting()
    async with following(ledger, consumer) as follower, asking(ledger, readers, follower) as client:
        await caught_up(ledger, follower)
        cursor = follower._cursors.by_partition[ledger.partition][0]
        follower._feeder._fail(cursor, OSError("anna's disk"))
        ready = await client.get("/readyz")
        metrics = (await client.get("/metrics")).text

    assert ready.status_code == 200
    assert [(each["error"], each["stopped"]) for each in ready.json()["halted"]] == [("OSError", False)]
    assert metric(metrics, "failed_partitions", "counting") == 1
    assert "anna" not in ready.text + metrics


class LooksLike(Exception):
    """Of a text that might be taken for something else."""


@pytest.mark.parametrize(
    ("reason", "error", "poison"),
    [
        ("Position 13 (quota.reserved of quota-0f): ValueError: Position 14 (x): secret", "ValueError", 13),
        (halts.other_epoch(2, 1), "epoch", None),
        (halts.lost_tail(7), "lost tail", None),
        (halts.gap(3, 13), "gap", None),
        (halts.told(LooksLike("The log is of epoch 3: secret")), "LooksLike", None),
        ("", "unknown", None),
    ],
)
def test_a_reason_comes_to_one_word(reason: str, error: str, poison: int | None) -> None:
    halt = halts.Halt("quotas", 1, 3, 12, reason, True)

    assert halt.error == error
    assert halts.poisoned_at(reason) == poison
    assert "secret" not in halt.error

"""A log that lost its tail: who had applied nothing of what was lost goes on, everybody else stops and is told what to do."""

import asyncio

import pytest
from typer.testing import CliRunner, Result

from api.cli import app
from projections import feeding
from projections.quotas import Quotas
from tests.projections.conftest import CODEC, LIMITS, Ledger, administer, caught_up, count_events, follow, following, until
from tests.support.counting import Counting


async def restart(ledger: Ledger, name: str, position: int) -> Result:
    arguments = ["projections", "restart", name, "--partition", str(ledger.partition), "--position", str(position)]
    environment = {"HOLDBOOK_DATABASE_URL": ledger.dsn, "COLUMNS": "200", "HOLDBOOK_LOG_LEVEL": "error"}
    return await asyncio.to_thread(lambda: CliRunner().invoke(app, arguments, env=environment, catch_exceptions=False))


async def reservations(ledger: Ledger, count: int, name: str = "r") -> None:
    for number in range(count):
        await ledger.reserve("anna", f"{name}{number}")


async def five_events(ledger: Ledger) -> None:
    await ledger.set_limits("anna", *LIMITS[:1])
    await reservations(ledger, 4)


async def lose(ledger: Ledger, after: int) -> None:
    """The log loses what is behind a position, and goes on: a writer notices and raises the epoch."""
    administer(ledger, "delete from event where partition = %s and position > %s", (ledger.partition, after))
    await reservations(ledger, 4, "written over ")
    assert administer(ledger, "select epoch from log_partition where partition = %s", (ledger.partition,)) == [(1,)]


def standing(ledger: Ledger, consumer: str) -> tuple[int, int, str | None]:
    query = "select position, epoch, stopped from checkpoint where partition = %s and consumer = %s"
    (row,) = administer(ledger, query, (ledger.partition, consumer))
    return row


async def test_who_applied_nothing_of_what_was_lost_goes_on(ledger: Ledger) -> None:
    await five_events(ledger)
    consumer = Counting()
    await follow(ledger, consumer, Quotas(CODEC))
    await reservations(ledger, 3, "lost ")

    await lose(ledger, 5)
    await follow(ledger, consumer, Quotas(CODEC))

    assert standing(ledger, "counting") == standing(ledger, "quotas") == (9, 1, None)
    assert [position for _, position in consumer.seen] == list(range(1, 10))


async def test_one_that_has_applied_nothing_at_all_goes_on(ledger: Ledger) -> None:
    async with following(ledger, Counting()) as follower:
        await caught_up(ledger, follower)
    await five_events(ledger)

    await lose(ledger, 2)
    await follow(ledger, Counting())

    assert standing(ledger, "counting") == (6, 1, None)


async def test_a_running_follower_goes_on_too(ledger: Ledger) -> None:
    await five_events(ledger)
    consumer = Counting()
    async with following(ledger, consumer) as follower:
        await caught_up(ledger, follower)
        administer(ledger, "update log_partition set epoch = epoch + 1 where partition = %s", (ledger.partition,))
        await ledger.reserve("anna", "on the new epoch")
        await until(lambda: len(consumer.seen) == 6)
        assert follower.health().ok

    assert standing(ledger, "counting") == (6, 1, None)


@pytest.mark.parametrize("after", [4, 2])
async def test_who_applied_what_was_lost_stops(ledger: Ledger, after: int) -> None:
    await five_events(ledger)
    consumer = Counting()
    await follow(ledger, consumer, Quotas(CODEC))

    await lose(ledger, after)
    await follow(ledger, consumer, Quotas(CODEC))

    for name in ("counting", "quotas"):
        position, epoch, stopped = standing(ledger, name)
        assert (position, epoch) == (5, 0)
        assert stopped is not None
        assert stopped.startswith("The log is of epoch 1, this was built on epoch 0")
    assert len(consumer.seen) == 5


async def test_without_the_hash_it_would_go_on(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeding, "_ADOPT", feeding._ADOPT.replace("position = 0 or", "true or"))

    with pytest.raises(AssertionError):
        await test_who_applied_what_was_lost_stops(ledger, 4)


async def test_a_log_that_ends_before_what_was_applied_is_not_followed(ledger: Ledger) -> None:
    await five_events(ledger)
    await follow(ledger, Counting())
    administer(ledger, "delete from event where partition = %s and position > 3", (ledger.partition,))

    await follow(ledger, Counting())

    position, _, stopped = standing(ledger, "counting")
    assert position == 5
    assert stopped is not None
    assert "ends at 3" in stopped


async def test_a_consumer_that_is_no_read_model_is_restarted(ledger: Ledger) -> None:
    await five_events(ledger)
    consumer = Counting("acting")
    await follow(ledger, consumer)
    await lose(ledger, 3)
    await follow(ledger, consumer)

    refused = await restart(ledger, "acting", 6)
    restarted = await restart(ledger, "acting", 3)
    await follow(ledger, consumer)

    assert refused.exit_code == 1
    assert "does not stand at or behind position 6" in refused.stderr
    assert restarted.exit_code == 0, restarted.output
    assert standing(ledger, "acting") == (7, 1, None)
    assert [position for _, position in consumer.seen] == [1, 2, 3, 4, 5, 4, 5, 6, 7]


async def test_a_read_model_is_not_restarted(ledger: Ledger) -> None:
    await five_events(ledger)
    await follow(ledger, Quotas(CODEC))

    refused = await restart(ledger, "quotas", 2)

    assert refused.exit_code == 1
    assert "rebuild it" in refused.stderr
    assert standing(ledger, "quotas") == (count_events(ledger), 0, None)

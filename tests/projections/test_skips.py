"""Going on without an event: only as recorded, exactly there, for one version of the fold, and complete whatever dies on the way."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection
from typer.testing import CliRunner, Result

from api.cli import app
from domain.quota import Quota
from projections import operating, skips
from projections.consumer import SKIPPED, Connection, Recorded
from projections.quota_queries import QuotaReader
from projections.quotas import Quotas
from tests.projections.conftest import CODEC, LIMITS, QUICK, Ledger, administer, caught_up, count_events, follow, following, until
from tests.support.counting import Counting

ROOT = Path(__file__).parents[2]
POISON = 3


def hated(row: Recorded) -> bool:
    return row.position == POISON


async def cli(ledger: Ledger, *arguments: str) -> Result:
    """The command, as an operator runs it."""
    environment = {"HOLDBOOK_DATABASE_URL": ledger.dsn, "COLUMNS": "200", "HOLDBOOK_LOG_LEVEL": "error"}
    return await asyncio.to_thread(lambda: CliRunner().invoke(app, list(arguments), env=environment, catch_exceptions=False))


async def skip(ledger: Ledger, name: str = "picky", position: int = POISON, partition: int | None = None) -> Result:
    place = ("--partition", str(ledger.partition if partition is None else partition), "--position", str(position))
    return await cli(ledger, "projections", "skip", name, *place, "--reason", "a test's")


def checkpoint(ledger: Ledger, consumer: str = "picky", generation: int = 1) -> tuple[Any, ...]:
    query = "select position, stopped from checkpoint where partition = %s and consumer = %s and generation = %s"
    (row,) = administer(ledger, query, (ledger.partition, consumer, generation))
    return row


def recorded(ledger: Ledger) -> list[dict[str, Any]]:
    """The skips in the log."""
    rows = administer(ledger, "select payload::text from event where type = 'consumer.event_skipped' order by position")
    return [json.loads(payload) for (payload,) in rows]


def table(ledger: Ledger) -> list[tuple[Any, ...]]:
    return administer(ledger, "select partition, consumer, version, position from skipped_event order by 1, 2, 3, 4")


async def stopped(ledger: Ledger, *consumers: Counting) -> None:
    """Five events, of which the consumers could not bear the third."""
    await ledger.set_limits("anna", *LIMITS[:1])
    for number in range(4):
        await ledger.reserve("anna", f"r{number}")
    await follow(ledger, *(consumers or [Counting("picky", hated)]))


async def test_a_consumer_goes_on_without_the_event_and_the_log_says_so(ledger: Ledger) -> None:
    await stopped(ledger)
    again = Counting("picky", hated)
    async with following(ledger, again) as follower:
        await caught_up(ledger, follower)
        assert again.seen == []

        said = await skip(ledger)
        assert said.exit_code == 0, said.output
        await until(lambda: len(again.seen) == 4)  # three that were waiting, and the record of the skip

    assert follower.health().ok
    assert again.positions(ledger.partition) == [3, 4, 5, 6]
    assert again.skipped == [3]
    (event,) = recorded(ledger)
    assert event.pop("at")
    assert event == {"consumer": "picky", "version": 0, "partition": ledger.partition, "position": 3, "reason": "a test's"}
    assert administer(ledger, "select tenant_id, actor from event where type = 'consumer.event_skipped'") == [
        (ledger.tenant, "operator:cli")
    ]
    assert table(ledger) == [(ledger.partition, "picky", 0, 3)]


async def test_the_same_again_changes_nothing(ledger: Ledger) -> None:
    await stopped(ledger)
    first = await skip(ledger)
    second = await skip(ledger)

    assert (first.exit_code, second.exit_code) == (0, 0)
    assert "already" in second.output
    assert len(recorded(ledger)) == len(table(ledger)) == 1
    assert checkpoint(ledger) == (2, None)


_DYING = """
import os, signal, sys
from api.cli import projections as commands
from projections import skips

async def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

record = commands._record

async def record_and_die(*arguments):
    await record(*arguments)
    await die()

if sys.argv[1] == "before the record":
    commands._record = die
elif sys.argv[1] == "after the record":
    commands._record = record_and_die
else:
    skips.keep = die
commands.app(sys.argv[2:])
"""


@pytest.mark.parametrize(("point", "in_log"), [("before the record", 0), ("after the record", 1), ("before the commit", 1)])
async def test_whatever_dies_on_the_way_running_it_again_completes_it(ledger: Ledger, point: str, in_log: int) -> None:
    await stopped(ledger)
    arguments = ["skip", "picky", "--partition", str(ledger.partition), "--position", str(POISON), "--reason", "a test's"]
    environment = {**os.environ, "HOLDBOOK_DATABASE_URL": ledger.dsn, "PYTHONPATH": str(ROOT)}
    dying = await asyncio.to_thread(
        lambda: subprocess.run([sys.executable, "-c", _DYING, point, *arguments], env=environment, capture_output=True, check=False)
    )
    assert dying.returncode == -signal.SIGKILL, dying.stderr
    assert len(recorded(ledger)) == in_log
    assert table(ledger) == []
    position, reason = checkpoint(ledger)
    assert position == 2
    assert reason is not None

    said = await skip(ledger)
    assert said.exit_code == 0, said.output

    assert len(recorded(ledger)) == 1
    assert table(ledger) == [(ledger.partition, "picky", 0, 3)]
    assert checkpoint(ledger) == (2, None)


@pytest.mark.parametrize(("name", "position"), [("picky", 2), ("picky", 4), ("picky", 99), ("nobody", 3)])
async def test_it_is_refused_where_the_consumer_is_not_stopped(ledger: Ledger, name: str, position: int) -> None:
    await stopped(ledger)
    before = checkpoint(ledger)

    said = await skip(ledger, name, position)

    assert said.exit_code == 1
    assert (recorded(ledger), table(ledger), checkpoint(ledger)) == ([], [], before)


async def test_it_is_refused_on_another_partition_and_when_nothing_is_stopped(ledger: Ledger) -> None:
    await stopped(ledger, Counting("picky"))

    assert (await skip(ledger)).exit_code == 1
    assert (await skip(ledger, partition=(ledger.partition + 1) % 64)).exit_code == 1
    assert recorded(ledger) == []


async def test_a_missing_position_is_no_event_to_be_skipped(ledger: Ledger) -> None:
    await stopped(ledger, Counting("other"))
    administer(ledger, "delete from event where partition = %s and position = %s", (ledger.partition, POISON))
    await follow(ledger, Counting("picky"))
    assert "missing" in checkpoint(ledger)[1]

    assert (await skip(ledger)).exit_code == 1
    assert recorded(ledger) == []


async def test_an_event_behind_a_new_epoch_is_not_what_stopped_the_consumer(ledger: Ledger) -> None:
    await stopped(ledger, Counting("picky"))
    administer(ledger, "update checkpoint set hash = null")  # as if what was applied last were gone
    administer(ledger, "update log_partition set epoch = epoch + 1 where partition = %s", (ledger.partition,))
    await ledger.reserve("anna", "on the new epoch")
    await follow(ledger, Counting("picky"))
    before = checkpoint(ledger)
    assert before[0] == 5
    assert "epoch" in before[1]

    assert (await skip(ledger, position=6)).exit_code == 1
    assert (recorded(ledger), checkpoint(ledger)) == ([], before)


async def test_a_reason_is_asked_for(ledger: Ledger) -> None:
    await stopped(ledger)

    said = await cli(ledger, "projections", "skip", "picky", "--partition", str(ledger.partition), "--position", "3", "--reason", "  ")

    assert said.exit_code == 1
    assert "reason" in said.output
    assert checkpoint(ledger)[0] == 2


async def test_the_same_fold_built_again_skips_it_too_and_a_newer_one_does_not(ledger: Ledger) -> None:
    await stopped(ledger)
    await skip(ledger)
    same, newer = Counting("picky", hated, generation=2), Counting("picky", hated, generation=3, version=1)

    await follow(ledger, same, newer)

    assert same.positions(ledger.partition) == [1, 2, 3, 4, 5, 6]
    assert same.skipped == [3]
    assert newer.positions(ledger.partition) == [1, 2]
    assert checkpoint(ledger, generation=3)[0] == 2


async def test_two_generations_of_one_fold_go_on_together_and_of_two_folds_one_at_a_time(ledger: Ledger) -> None:
    both = [Counting("picky", hated), Counting("picky", hated, generation=2)]
    await stopped(ledger, *both)
    assert (await skip(ledger)).exit_code == 0
    assert [checkpoint(ledger, generation=generation) for generation in (1, 2)] == [(2, None), (2, None)]


async def test_generations_of_two_folds_are_told_apart(ledger: Ledger) -> None:
    await stopped(ledger, Counting("picky", hated, version=1), Counting("picky", hated, generation=2, version=2))
    # Whatever else a row of the registry has is as with the quotas.
    generations = """
        insert into projection_generation select (jsonb_populate_record(g, jsonb_build_object(
          'name', 'picky', 'generation', %s::int, 'version', %s::int, 'state', %s::text))).*
        from projection_generation g where g.name = 'quotas' limit 1"""
    for generation, state in ((1, "current"), (2, "building")):
        administer(ledger, generations, (generation, generation, state))
    vague = await skip(ledger)
    place = ("--partition", str(ledger.partition), "--position", "3", "--reason", "one")
    clear = await cli(ledger, "projections", "skip", "picky", *place, "--generation", "2")

    assert (vague.exit_code, clear.exit_code) == (1, 0), vague.output + clear.output
    assert table(ledger) == [(ledger.partition, "picky", 2, 3)]
    assert [checkpoint(ledger, generation=generation)[1] is None for generation in (1, 2)] == [False, True]


async def test_nobody_applies_the_event_while_it_is_being_skipped(ledger: Ledger) -> None:
    await stopped(ledger)
    fixed = Counting("picky")
    released: list[object] = []

    async def record(_: operating.Poison) -> None:
        # Another operator has it tried again meanwhile, and a follower is there that could apply it.
        with pytest.raises(psycopg.errors.LockNotAvailable):
            administer(ledger, "set lock_timeout = '300ms'; update checkpoint set stopped = null where consumer = 'picky'")
        released.append(True)

    async with following(ledger, fixed), await AsyncConnection.connect(ledger.dsn, autocommit=True, options=operating.OPTIONS) as conn:
        assert await operating.skip(conn, "picky", ledger.partition, POISON, record)
        await until(lambda: len(fixed.seen) == 3)

    assert released
    assert fixed.skipped == [3]


async def test_a_follower_that_has_not_heard_of_a_skip_does_not_apply_the_event(ledger: Ledger) -> None:
    """It read the checkpoint before the consumer stopped and was let go on, so both look the same to it."""
    await stopped(ledger, Counting("other"))
    unaware = Counting("picky")
    async with following(ledger, unaware, pace=replace(QUICK, retry=600.0)) as follower:
        await caught_up(ledger, follower)
        administer(ledger, "update checkpoint set position = 0 where consumer = 'picky'")
        administer(ledger, "insert into skipped_event values (%s, 'picky', 0, 3)", (ledger.partition,))
        cursor = next(each for each in follower._cursors.all() if each.partition == ledger.partition)
        cursor.position, cursor.skips = 0, frozenset()
        unaware.seen.clear()
        await until(lambda: len(unaware.seen) >= 5)

    assert unaware.skipped == [3]
    assert unaware.positions(ledger.partition) == [1, 2, 3, 4, 5]


async def test_the_table_is_written_again_from_the_log(ledger: Ledger) -> None:
    await stopped(ledger)
    await skip(ledger)
    kept = table(ledger)
    administer(ledger, "delete from skipped_event")

    said = await cli(ledger, "projections", "skipped", "--restore")

    assert "a test's" in said.output
    assert table(ledger) == kept != []
    async with await AsyncConnection.connect(ledger.dsn, options=operating.OPTIONS) as conn:
        assert await skips.skipped(conn, ledger.partition, "picky", 0) == frozenset({3})
        assert await skips.skipped(conn, ledger.partition, "picky", 1) == frozenset()


class Allergic(Quotas):
    """The quotas, with a bug."""

    async def apply(self, conn: Connection, partition: int, rows: Sequence[Recorded]) -> Callable[[], None]:
        if any(row.position == POISON and row.type != SKIPPED for row in rows):
            raise ZeroDivisionError("a bug")
        return await super().apply(conn, partition, rows)


async def test_a_read_model_goes_on_with_a_stream_of_which_it_skipped_an_event(ledger: Ledger, reader: QuotaReader) -> None:
    await ledger.set_limits("anna", *LIMITS[:1])
    for number in range(4):
        await ledger.reserve("anna", f"r{number}")
    await follow(ledger, Allergic(CODEC))
    assert (await skip(ledger, "quotas")).exit_code == 0

    await follow(ledger, Allergic(CODEC))

    assert checkpoint(ledger, "quotas") == (6, None)
    assert table(ledger) == [(ledger.partition, "quotas", 1, 3)]
    shown = await reader.get(ledger.tenant, "anna", "tokens", ledger.now)
    assert shown is not None
    state = await ledger.state("anna")
    assert isinstance(state, Quota)
    assert shown.open_reservations == 3 == len(state.open) - 1


async def test_what_stopped_is_tried_again_when_an_operator_says_so(ledger: Ledger) -> None:
    await stopped(ledger)
    fixed = Counting("picky")
    async with following(ledger, fixed) as follower:
        await caught_up(ledger, follower)
        assert fixed.seen == []
        other = str((ledger.partition + 1) % 64)
        assert (await cli(ledger, "projections", "retry", "picky", "--partition", other)).exit_code == 1
        assert (await cli(ledger, "projections", "retry", "nobody")).exit_code == 1
        assert checkpoint(ledger)[1] is not None

        said = await cli(ledger, "projections", "retry", "picky", "--partition", str(ledger.partition))
        assert said.exit_code == 0, said.output
        await until(lambda: len(fixed.seen) == 3)

    assert fixed.positions(ledger.partition) == [3, 4, 5]
    assert count_events(ledger) == 5


async def test_one_tried_again_in_vain_stops_again(ledger: Ledger) -> None:
    await stopped(ledger)
    before = checkpoint(ledger)

    assert (await cli(ledger, "projections", "retry", "picky")).exit_code == 0
    assert checkpoint(ledger)[1] is None
    await follow(ledger, Counting("picky", hated))

    assert checkpoint(ledger) == before


@pytest.mark.parametrize("command", [("projections",), ("projections", "list")])
async def test_the_list_shows_how_everybody_stands(ledger: Ledger, command: tuple[str, ...]) -> None:
    await stopped(ledger, Counting("picky", hated), Counting("easy"))
    await follow(ledger, Quotas(CODEC))

    said = await cli(ledger, *command)

    assert said.exit_code == 0, said.output
    lines = {line.split()[1]: line for line in said.output.splitlines() if line.startswith("│")}
    assert "following" in lines["easy"]
    assert " 0 " in lines["easy"]
    assert "following" in lines["quotas"]
    assert "stopped on 1 partition" in lines["picky"]
    assert " 3 " in lines["picky"]
    assert f"picky 1, partition {ledger.partition}: stopped at 2: Position 3 (quota.reserved of quota-" in said.output
    assert "ValueError: no taste for 3" in said.output

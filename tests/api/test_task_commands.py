"""What an operator sees of tasks and does about them: the command line, /readyz and /metrics."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import httpx
import psycopg
import pytest
from typer.testing import CliRunner, Result

from api.app import create_health_app
from api.cli import app
from api.metrics import Metrics
from api.settings import Settings
from domain.catalog import DECIDERS
from eventstore.store import Store, partition_of
from projections import schema, task_table
from projections.tasks import Later, NewTask, Task, Tasks

TENANT = UUID(int=7)
PARTITION = partition_of(TENANT, 64)


@pytest.fixture
def queue(database_dsn: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A lane that stands still at 1 with 2 behind it, and one that waits."""
    monkeypatch.setenv("HOLDBOOK_DATABASE_URL", database_dsn)
    schema.create(database_dsn)

    async def fill() -> None:
        async with await task_table.connect(database_dsn) as conn:
            places = ("stuck", 1), ("stuck", 2), ("waits", 5)
            await task_table.put(
                conn, PARTITION, [NewTask("effect:bill", lane, number, TENANT, '{"secret":1}', None) for lane, number in places]
            )
            await conn.execute("update task_lane set stopped = 'ValueError: [bad] card' where lane = 'stuck'")
            await conn.execute("update task set reason = 'ValueError: [bad] card', attempts = 12 where lane = 'stuck' and number = 1")
            await conn.execute("update task_lane set due_at = '2999-01-01' where lane = 'waits'")
            await conn.execute("update task set due_at = '2999-01-01' where lane = 'waits'")

    asyncio.run(fill())
    return database_dsn


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["task", *arguments], env={"COLUMNS": "200"}, catch_exceptions=False)


def made(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def rows(dsn: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn, autocommit=True) as conn:
        return conn.execute(query).fetchall()


def test_lanes_are_listed_those_that_stand_still_first(queue: str) -> None:
    lines = [line for line in made("list").splitlines() if "effect:bill" in line]

    assert ["stuck" in lines[0], "waits" in lines[1]] == [True, True]
    for told in ("stopped", "ValueError: [bad] card", "12"):
        assert told in lines[0]
    assert "2999" in lines[1]
    assert "waits" not in made("list", "--stopped")
    assert "effect" not in made("list", "--consumer", "process:x")


def test_a_lane_is_retried_at_once(queue: str) -> None:
    made("retry", "effect:bill", "stuck")
    made("retry", "effect:bill", "waits")

    assert rows(queue, "select lane from task_lane where stopped is null and due_at < now() order by lane") == [("stuck",), ("waits",)]
    assert rows(queue, "select count(*) from task where due_at < now()") == [(3,)]


def test_a_task_is_skipped_by_a_recorded_command_and_the_lane_goes_on(queue: str) -> None:
    made("skip", "effect:bill", "stuck", "1", "--reason", "paid by hand")

    assert rows(queue, "select lane, number from task order by lane") == [("stuck", 2), ("waits", 5)]
    assert rows(queue, "select stopped from task_lane where lane = 'stuck'") == [(None,)]
    ((tenant, actor, payload),) = rows(queue, "select tenant_id, actor, payload from event where type = 'task.skipped'")
    assert (tenant, actor) == (TENANT, "operator:cli")
    assert {name: payload[name] for name in ("consumer", "lane", "number", "reason")} == {
        "consumer": "effect:bill", "lane": "stuck", "number": 1, "reason": "paid by hand",
    }  # fmt: skip


def test_a_skip_that_died_between_its_record_and_its_deed_is_completed_by_the_same_again(
    queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def dies(*_: Any) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(task_table, "skip", dies)
        assert CliRunner().invoke(app, ["task", "skip", "effect:bill", "stuck", "1", "--reason", "by hand"]).exit_code != 0
    assert rows(queue, "select count(*) from event where type = 'task.skipped'") == [(1,)]
    assert rows(queue, "select min(number) from task where lane = 'stuck'") == [(1,)]

    made("skip", "effect:bill", "stuck", "1", "--reason", "other words, the second time")

    assert rows(queue, "select payload->>'reason' from event where type = 'task.skipped'") == [("by hand",)]
    assert rows(queue, "select min(number) from task where lane = 'stuck'") == [(2,)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("skip", "effect:bill", "stuck", "2", "--reason", "x"), "does not stand still at 2"),
        (("skip", "effect:bill", "waits", "5", "--reason", "x"), "does not stand still at 5"),
        (("skip", "effect:bill", "none", "1", "--reason", "x"), "nothing to do"),
        (("skip", "effect:bill", "stuck", "1", "--reason", " "), "reason"),
        (("retry", "effect:bill", "none"), "nothing to do"),
    ],
)
def test_mistakes_are_told_in_words_and_change_nothing(queue: str, arguments: tuple[str, ...], said: str) -> None:
    result = run(*arguments)

    assert result.exit_code == 1
    assert said in result.stderr
    assert rows(queue, "select count(*) from task") == [(3,)]
    assert rows(queue, "select count(*) from event") == [(0,)]


def test_a_lane_that_is_being_worked_on_is_not_retried(queue: str) -> None:
    with psycopg.connect(queue, autocommit=True) as conn:
        conn.execute("update task_lane set claimed_by = gen_random_uuid(), leased_until = now() + interval '1 minute' where lane = 'waits'")

    assert "being worked on" in run("retry", "effect:bill", "waits").stderr
    assert "running" in made("list")


class Bill:
    consumer = "effect:bill"

    async def __call__(self, task: Task, now: datetime) -> Later | None:
        raise AssertionError("nothing is due")

    def retry_at(self, task: Task, now: datetime, error: Exception) -> datetime | None:
        return now


async def test_strangers_see_how_many_lanes_stand_still_and_nothing_of_what_is_in_them(database_dsn: str, queue: str) -> None:
    store = await Store.open(database_dsn, DECIDERS)
    tasks, metrics = Tasks(database_dsn, range(64), [Bill()], clock=lambda: datetime(2027, 1, 1, tzinfo=UTC)), Metrics(store)
    metrics.register_all([tasks])
    transport = httpx.ASGITransport(create_health_app(store, Settings(), None, metrics))
    async with httpx.AsyncClient(transport=transport, base_url="http://health") as client:
        before = (await client.get("/readyz")).json()
        running = asyncio.create_task(tasks.run())
        async with asyncio.timeout(60):
            while not tasks.stopped():  # noqa: ASYNC110  # figures are looked up in their own time
                await asyncio.sleep(0.01)
        ready, shown = await client.get("/readyz"), (await client.get("/metrics")).text
        tasks.stop()
        await running
    await store.drain()

    assert "stopped_lanes" not in before
    assert (ready.status_code, ready.json()["stopped_lanes"]) == (200, {"effect:bill": 1})
    assert 'holdbook_tasks_stopped_lanes{consumer="effect:bill"} 1.0' in shown
    assert 'holdbook_tasks_waiting{consumer="effect:bill"} 3.0' in shown
    assert "card" not in shown + ready.text
    assert "stuck" not in shown + ready.text

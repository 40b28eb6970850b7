"""``holdbook rebuild``, ``verify`` and ``projections drop``, as an operator gives them."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from typer.testing import CliRunner, Result

from api.cli import app
from domain.catalog import DECIDERS
from domain.identity.tenants import TENANT, CreateTenant, tenant_stream
from domain.quota import QUOTA, Limit, Reserve, SetLimits, quota_stream
from eventstore.codec import Codec
from eventstore.requests import Item, Options, Request
from eventstore.store import Store, partition_of
from projections import rebuilding, schema
from projections.catalog import PROJECTIONS
from projections.follower import Follower, Pace
from projections.generations import Roster

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"}, catch_exceptions=False)


def ask(dsn: str, query: str) -> list[tuple[object, ...]]:
    with psycopg.connect(dsn, autocommit=True) as conn:
        cursor = conn.execute(query.encode())
        return cursor.fetchall() if cursor.description else []


@pytest.fixture
async def partition(database_dsn: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """That of a tenant with some quotas, in a store whose read models have followed."""
    monkeypatch.setenv("HOLDBOOK_DATABASE_URL", database_dsn)
    monkeypatch.setattr(rebuilding, "LINGER_SECONDS", 0.0)
    schema.create(database_dsn)
    tenant_id = uuid4()
    store = await Store.open(database_dsn, DECIDERS, Options(snapshot_every=10))
    create = CreateTenant(tenant_id=tenant_id, name="Acme", zone="UTC")
    await store.submit(Request(tenant_id, uuid4(), (Item(TENANT, tenant_stream(tenant_id), create),), b"f"))
    stream = quota_stream(tenant_id, "anna", "tokens")
    limits = SetLimits(subject="anna", meter="tokens", limits=(Limit("life", 10**6),))
    await store.submit(Request(tenant_id, uuid4(), (Item(QUOTA, stream, limits),), b"f"))
    for number in range(40):
        reserve = Reserve(subject="anna", meter="tokens", amount=1, reservation_id=f"r{number}", ttl_seconds=900)
        await store.submit(Request(tenant_id, uuid4(), (Item(QUOTA, stream, reserve),), b"f"))
    await store.drain()
    await followed(database_dsn, store.partitions)
    return partition_of(tenant_id, store.partitions)


async def followed(dsn: str, partitions: int) -> None:
    follower = Follower(dsn, range(partitions), Roster(Codec(DECIDERS)), None, Pace(poll=0.01, lease=0))
    task = asyncio.create_task(follower.run())
    async with asyncio.timeout(120):
        while not follower.heads or follower.health().trouble or any(follower.lag().values()):  # noqa: ASYNC110  # it works in a task of its own
            await asyncio.sleep(0.01)
    follower.stop()
    await task


def test_every_read_model_is_rebuilt_and_verified(database_dsn: str, partition: int) -> None:
    for name in PROJECTIONS:
        done = run("rebuild", name, "--drop-old")
        assert done.exit_code == 0, done.output
        assert f"Generation 2 of {name} answers now." in done.stdout
        assert "Generation 1 is dropped." in done.stdout

    proved = run("rebuild", "quotas", "--verify")
    assert proved.exit_code == 0, proved.output
    assert "quotas is the fold of the log in 64 partitions." in proved.stdout
    whole = run("verify")
    assert whole.exit_code == 0, whole.output
    assert "The log is whole, and the read models are its fold." in whole.stdout
    assert ask(database_dsn, "select generation, state from projection_generation where name = 'quotas' order by 1") == [
        (1, "dropped"), (2, "current"), (3, "dropped"), (4, "dropped"),
    ]  # fmt: skip
    assert run("doctor").exit_code == 0


def test_a_read_model_that_is_not_the_fold_is_told_kept_and_replaced_by_force(database_dsn: str, partition: int) -> None:
    ask(database_dsn, "update quota_1 set open = open - 1")

    proved = run("rebuild", "quotas", "--verify")
    refused = run("rebuild", "quotas")
    whole = run("verify")

    for result in (proved, refused, whole):
        assert result.exit_code == 1
        assert f"quotas, partition {partition}, quota_1: quota-" in result.output
    assert "generation 1 is not the fold of the log" in refused.output
    assert "--force" in refused.output
    assert ask(database_dsn, "select generation from projection where name = 'quotas'") == [(1,)]
    forced = run("rebuild", "quotas", "--force")
    assert forced.exit_code == 0, forced.output
    assert "Generation 3 of quotas answers now." in forced.stdout
    assert run("rebuild", "quotas", "--verify").exit_code == 0


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        ("update event set payload = '{}' where position = 9", "the chain is broken at position 9"),
        ("delete from event where position = 9", "position 9 is missing"),
        ("update snapshot set state = replace(state::text, 'anna', 'Anna')::json where stream like 'quota-%'", "is not its fold"),
        ("delete from quota_reservation_1 where reservation_id = 'r7'", "quota_reservation_1: quota-"),
        ("update tenant_1 set name = 'Other'", "tenant_1: "),
        (
            "update checkpoint c set position = position - 2, hash = (select hash from event e where e.partition = c.partition "
            "and e.position = c.position - 2) where consumer = 'quotas' and position > 2",
            "quota_1: quota-",
        ),
        # A switch to a generation that is behind: its tables are there, and nothing is in them.
        (
            "create table quota_2 (like quota_1); create table quota_reservation_2 (like quota_reservation_1); "
            "create table quota_second_2 (like quota_second_1); "
            "insert into projection_generation values ('quotas', 2, 1, 1, 'current', '{quota_2}', now(), 'harm'); "
            "update projection_generation set state = 'old' where name = 'quotas' and generation = 1; "
            "update projection set generation = 2 where name = 'quotas'",
            "readers went back in time",
        ),
        ("update projection set generation = 5 where name = 'quotas'", "generation 5 answers queries of shape 1, and is not there"),
        ("drop table quota_second_1", "table quota_second_1 of generation 1, which answers, is not there"),
    ],
)
def test_verify_finds_what_is_broken(database_dsn: str, partition: int, harm: str, words: str) -> None:
    for statement in harm.split("; "):
        ask(database_dsn, statement)

    result = run("verify")

    assert result.exit_code == 1
    assert words in result.output


def test_verify_of_the_log_alone_writes_nothing(database_dsn: str, partition: int) -> None:
    before = ask(database_dsn, "select count(*) from projection_generation")
    ask(database_dsn, "update quota_1 set open = open - 1")

    result = run("verify", "--log-only")

    assert result.exit_code == 0, result.output
    assert "The log is whole." in result.stdout
    assert ask(database_dsn, "select count(*) from projection_generation") == before


def test_generations_are_listed_and_dropped(database_dsn: str, partition: int) -> None:
    assert run("rebuild", "quotas").exit_code == 0

    assert "answers queries" in run("projections", "drop", "quotas", "2").output
    assert "Generation 1 of quotas is dropped." in run("projections", "drop", "quotas", "1").stdout
    assert "There is no generation 1 of quotas." in run("projections", "drop", "quotas", "1").output
    assert run("rebuild", "nonsense").exit_code == 1
    assert ask(database_dsn, "select count(*) from pg_class where relname = 'quota_1'") == [(0,)]


def test_a_rebuild_that_was_killed_is_completed_by_the_same_command(database_dsn: str, partition: int) -> None:
    """The whole command in a process of its own, killed as soon as it has made the tables."""
    environment = {**os.environ, "HOLDBOOK_DATABASE_URL": database_dsn, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "api.cli", "rebuild", "quotas"],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    generations = "select count(*) from projection_generation where name = 'quotas'"
    while process.poll() is None and ask(database_dsn, generations) == [(1,)]:
        pass
    process.kill()
    process.wait()
    assert ask(database_dsn, generations) == [(2,)]

    done = run("rebuild", "quotas")

    assert done.exit_code == 0, done.output
    assert run("verify").exit_code == 0

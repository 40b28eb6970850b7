"""The command line against a real server, and processes that leave when they are told to."""

from __future__ import annotations

import concurrent.futures
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest
from typer.testing import CliRunner, Result

from api.cli import app

ROOT = Path(__file__).parents[2]
HOLDBOOK = [sys.executable, "-m", "api.cli"]


@pytest.fixture
def environment(database_dsn: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setenv("HOLDBOOK_DATABASE_URL", database_dsn)
    monkeypatch.setenv("HOLDBOOK_PORT", "0")
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"}, catch_exceptions=False)


def made(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


def test_tenants_and_keys_from_the_first_to_the_last(environment: dict[str, str]) -> None:
    assert "64 partitions" in made("init")
    assert "64 partitions" in made("migrate")
    tenant = made("tenant", "create", "Acme", "--zone", "Europe/Moscow")
    assert str(UUID(tenant)) == tenant
    assert "Europe/Moscow" in made("tenant", "list")
    assert "Acme" in made("tenant", "show", tenant)
    assert made("tenant", "create", "Acme", "--zone", "Europe/Moscow", "--id", tenant) == tenant

    account = str(uuid4())
    issued = run("key", "issue", tenant, "--account", account, "--name", "bot", "--scope", "usage:write", "--days", "7")
    text = issued.stdout.strip().splitlines()[-1]
    key_id = text.split("_")[3]
    listed = made("key", "list", tenant)
    assert key_id in listed
    assert account in listed
    assert "usage:write" in listed
    assert "never" in listed, "it was not used yet"
    assert text not in listed
    renewed = made("key", "renew", key_id, "--account", account, "--tenant", tenant, "--overlap-hours", "1").splitlines()[-1]
    assert renewed.split("_")[:3] == text.split("_")[:3]
    assert {key_id, renewed.split("_")[3]} <= set(made("key", "list", tenant).split())
    made("key", "revoke", key_id, "--account", account, "--tenant", tenant)
    assert key_id not in made("key", "list", tenant)


def test_the_text_of_a_key_is_nowhere_in_the_store(environment: dict[str, str], database_dsn: str) -> None:
    made("init")
    tenant = made("tenant", "create", "Acme")
    text = run("key", "issue", tenant).stdout.strip().splitlines()[-1]

    with psycopg.connect(database_dsn) as connection:
        stored = str(connection.execute("select stream, payload::text, reply::text, actor from event").fetchall())

    assert text.split("_", 4)[4] not in stored


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("tenant", "create", "Acme", "--zone", "Mars/Olympus"), "zone"),
        (("tenant", "show", str(uuid4())), "no such tenant"),
        (("key", "issue", str(uuid4())), "no such tenant"),
        (("key", "issue"), "HOLDBOOK_DEFAULT_TENANT"),
        (("key", "revoke", "00000000", "--account", str(uuid4()), "--tenant", str(uuid4())), "no such key"),
    ],
)
def test_mistakes_are_told_in_words(environment: dict[str, str], arguments: tuple[str, ...], said: str) -> None:
    made("init")

    result = run(*arguments)

    assert result.exit_code == 1
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_a_database_that_is_not_there_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDBOOK_DATABASE_URL", "postgresql://nobody:secret@127.0.0.1:1/none")

    result = run("migrate")

    assert result.exit_code == 1
    assert "cannot be reached" in result.stderr
    assert "secret" not in result.output


def test_the_doctor_finds_a_healthy_store_well_and_a_changed_event(environment: dict[str, str], database_dsn: str) -> None:
    made("init")
    made("tenant", "create", "Acme")
    assert "the chain holds" in made("doctor")

    with psycopg.connect(database_dsn) as connection:
        connection.execute("update event set actor = 'somebody else'")
    result = run("doctor")

    assert result.exit_code == 1
    assert "broken at position 1" in result.output


@contextmanager
def process(environment: dict[str, str], tmp_path: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running command and the line with which it says that it is ready."""
    with (tmp_path / f"{arguments[0]}.log").open("w+") as log:
        running = subprocess.Popen([*HOLDBOOK, *arguments], env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=log, text=True)
        assert running.stdout is not None
        try:
            ready = next((line for line in running.stdout if line.startswith("Holdbook")), "")
            log.seek(0)
            assert ready, log.read()
            yield running, ready
        finally:
            running.terminate()
            try:
                running.wait(120)
            finally:
                running.kill()
                running.stdout.close()


def test_serve_and_worker_work_together_and_sigterm_answers_what_was_taken(environment: dict[str, str], tmp_path: Path) -> None:
    made("init")
    tenant = made("tenant", "create", "Acme")
    key = run("key", "issue", tenant).stdout.strip().splitlines()[-1]
    answers: list[httpx.Response] = []
    stop = threading.Event()

    with process(environment, tmp_path, "worker"), process(environment, tmp_path, "serve") as (serving, ready):
        url = re.search(r"http://\S+", ready)
        assert url is not None
        client = httpx.Client(base_url=url.group(), headers={"Authorization": f"Bearer {key}"}, timeout=60, trust_env=False)
        limits = {"correlation_id": "l", "limits": [{"limit_id": "t", "amount": 10**6}]}
        at = client.put("/v1/quotas/messages/default/limits", json=limits).headers["Holdbook-Position"]
        while (usage := client.get("/v1/usage", params={"min_position": at})).status_code == 503:  # the worker may have only just begun
            assert usage.json()["code"] == "projection.behind"
        assert usage.json()["used"] == 0

        def storm(number: int) -> int:
            """Send until the server is gone; how many were acknowledged."""
            done = 0
            while not stop.is_set():
                try:
                    answer = client.post("/v1/usage/consume", json={"amount": 1, "correlation_id": f"{number}-{done}"})
                except httpx.TransportError:
                    break
                answers.append(answer)
                if answer.status_code != 200:
                    break
                done += 1
            return done

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            storms = [pool.submit(storm, number) for number in range(8)]
            while len(answers) <= 40 and not all(each.done() for each in storms):
                time.sleep(0.01)
            serving.send_signal(signal.SIGTERM)
            assert serving.wait(120) == 0
            stop.set()
            acknowledged = sum(each.result() for each in storms)
        client.close()

    assert acknowledged > 8
    assert {answer.status_code for answer in answers} <= {200, 503}
    with psycopg.connect(environment["HOLDBOOK_DATABASE_URL"]) as connection:
        row = connection.execute("select count(*) from event where type = 'quota.consumed'").fetchone()
    assert row is not None
    # Whoever was cut off without an answer may have been counted, at most one for each caller.
    assert acknowledged <= row[0] <= acknowledged + 8


def test_the_demonstration_runs_once_and_leaves_nothing(environment: dict[str, str], tmp_path: Path) -> None:
    environment = {**environment, "TMPDIR": str(tmp_path)}
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if str(parent) != "/" and parent.stat().st_uid == os.getuid() and parent.is_relative_to(tmp_path.parents[2]):
            parent.chmod(0o755)

    done = subprocess.run(
        [*HOLDBOOK, "demo", "--once"], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False
    )

    assert done.returncode == 0, done.stderr
    for told in ("quota.exceeded", "idempotency.key_reused", "(replayed)", "quota.reservation_expired", "100 results", "curl -s"):
        assert told in done.stdout
    assert re.search(r"[│|] 200 ", done.stdout)
    assert not re.search(r"[│|] 500 ", done.stdout), "a status; it may well take 500.1 milliseconds"
    assert list(tmp_path.glob("holdbook-demo-*")) == []

"""Exports, their verification and the deletion of tenants from the command line, and an export that is killed on its way."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from typer.testing import CliRunner, Result

from api.cli import app
from eventstore.rows import Row, leaf_hash, microseconds
from tests.support.tenants import ACME, GONE, PARTITION, opened, record, rows

ROOT = Path(__file__).parents[2]


@pytest.fixture
def dsn(database_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store with three tenants, and a signing key in the environment."""
    monkeypatch.setenv("HOLDBOOK_DATABASE_URL", database_dsn)
    (tmp_path / "public").write_text(made("audit", "key", "--new", str(tmp_path / "private")))
    monkeypatch.setenv("HOLDBOOK_AUDIT_KEY_FILE", str(tmp_path / "private"))

    async def fill() -> None:
        async with opened(database_dsn) as store:
            await record(store)

    asyncio.run(fill())
    return database_dsn


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"}, catch_exceptions=False)


def made(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


def refused(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    return " ".join(result.stderr.split())


def test_an_export_is_verified_with_the_file_and_the_public_key_alone(dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, mine, public = (str(tmp_path / name) for name in ("whole.jsonl", "mine.jsonl", "public"))
    assert made("audit", "key") == (tmp_path / "public").read_text()
    made("audit", "export", whole)
    made("tenant", "export", str(ACME), mine)
    monkeypatch.setenv("HOLDBOOK_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")

    assert "11 events in 64 partitions: complete and as signed" in made("audit", "verify", whole, "--public-key", public)
    assert "4 events and 6 hashes of others in 1 partitions" in made("audit", "verify", mine, "--public-key", public)
    assert (tmp_path / "public").read_text() in run("audit", "verify", mine).stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.jsonl", "private", "public", "whole.jsonl"]

    lines = Path(mine).read_bytes().splitlines(keepends=True)
    lines[3] = lines[3].replace(b"usage:read", b"usage:writ")
    Path(mine).write_bytes(b"".join(lines))
    assert f"partition {PARTITION}, position 3: the event is not the one that was hashed" in refused("audit", "verify", mine)


def test_an_export_may_end_at_a_position_or_a_moment(dsn: str, tmp_path: Path) -> None:
    moment = rows(dsn)[4].recorded_at
    for name, arguments in (
        ("position", ("--as-of-position", f"{PARTITION}:5")),
        ("moment", ("--tenant", str(ACME), "--as-of", moment.isoformat())),
        ("utc", ("--tenant", str(ACME), "--as-of", moment.replace(tzinfo=None).isoformat())),
    ):
        made("audit", "export", str(tmp_path / name), *arguments)
        head = json.loads((tmp_path / name).read_bytes().splitlines()[-1])
        assert (head["partition"], head["position"]) == (PARTITION, 5)


def test_mistakes_are_told_in_words(dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = str(tmp_path / "export")
    assert "not both" in refused("audit", "export", file, "--as-of-position", "1:1", "--as-of", "2026-01-01")
    assert "PARTITION:POSITION" in refused("audit", "export", file, "--as-of-position", "1")
    assert "no moment" in refused("audit", "export", file, "--as-of", "yesterday")
    assert "lives in partition" in refused("audit", "export", file, "--tenant", str(ACME), "--as-of-position", f"{PARTITION + 1}:1")
    assert "No such file" in refused("audit", "export", str(tmp_path / "no" / "where"))
    assert "It cannot be read" in refused("audit", "verify", str(tmp_path / "nothing"))
    assert "64 hex digits" in refused("audit", "verify", file, "--public-key", str(tmp_path / "private"))
    assert "never written over" in refused("audit", "key", "--new", str(tmp_path / "private"))
    (tmp_path / "there").write_text("mine")
    assert "exists" in refused("audit", "export", str(tmp_path / "there"))
    assert (tmp_path / "there").read_text() == "mine"
    monkeypatch.delenv("HOLDBOOK_AUDIT_KEY_FILE")
    assert "HOLDBOOK_AUDIT_KEY_FILE" in refused("audit", "export", file)
    secret = (tmp_path / "private").read_text().splitlines()[1]
    monkeypatch.setenv("HOLDBOOK_AUDIT_KEY", secret)
    answer = refused("audit", "key")
    assert "PKCS #8" in answer
    assert secret not in answer
    assert not (tmp_path / "export").exists()


def test_a_log_that_was_tampered_with_is_told_with_its_place(dsn: str, tmp_path: Path) -> None:
    with psycopg.connect(dsn) as conn:
        conn.execute("update event set actor = 'x' where partition = %s and position = 6", (PARTITION,))

    assert f"Partition {PARTITION} is broken at position 6" in refused("audit", "export", str(tmp_path / "export"))
    assert not (tmp_path / "export").exists()


def test_a_partial_export_is_gone_on_with_or_told_of(dsn: str, tmp_path: Path) -> None:
    whole, file, partial = tmp_path / "whole", tmp_path / "file", tmp_path / "file.partial"
    made("tenant", "export", str(ACME), str(whole))
    text = whole.read_bytes()
    ends = [place + 1 for place, byte in enumerate(text) if byte == 10]
    for kept in (0, 1, *(end + cut for end in ends for cut in (-1, 0, 1) if end + cut <= len(text))):
        partial.write_bytes(text[:kept])
        if kept == ends[2]:
            assert "--resume" in refused("tenant", "export", str(ACME), str(file))
        made("tenant", "export", str(ACME), str(file), "--resume")
        if kept >= ends[0]:
            assert file.read_bytes() == text
        assert not partial.exists()
        made("audit", "verify", str(file), "--public-key", str(tmp_path / "public"))
        file.unlink()
    partial.write_bytes(text[: ends[-2]] + bytes(100_000))  # what a machine that lost its power may leave, longer than what is missing
    made("tenant", "export", str(ACME), str(file), "--resume")
    assert file.read_bytes() == text


def test_a_partial_export_that_was_harmed_is_not_gone_on_with(dsn: str, tmp_path: Path) -> None:
    partial = tmp_path / "file.partial"
    made("tenant", "export", str(ACME), str(tmp_path / "whole"))
    lines = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
    partial.write_bytes(b"".join([*lines[:3], bytes(40) + b"\n"]))

    assert "is harmed" in refused("tenant", "export", str(ACME), str(tmp_path / "file"), "--resume")
    partial.write_bytes(b"".join(lines[:3]))
    assert "another tenant" in refused("audit", "export", str(tmp_path / "file"), "--resume")


@pytest.fixture
def long_log(dsn: str) -> int:
    """Enough events that an export takes a while; returns the last position."""
    log = rows(dsn)
    position, digest, last, made_rows = len(log), log[-1].hash, log[-1], []
    for number in range(position + 1, position + 40_001):
        row = last._replace(position=number, stream=f"note-{number}", command_id=UUID(int=number), payload=json.dumps("x" * 400))
        digest = sha256(digest + leaf_hash(PARTITION, *row[:7], microseconds(row.recorded_at), *row[8:15])).digest()
        made_rows.append(row._replace(hash=digest))
    with psycopg.connect(dsn) as conn, conn.cursor().copy(f"copy event (partition, {', '.join(Row._fields)}) from stdin") as copy:
        for row in made_rows:
            copy.write_row((PARTITION, *row))
    return position + 40_000


def test_an_export_that_was_killed_goes_on(long_log: int, dsn: str, tmp_path: Path) -> None:
    file, partial = tmp_path / "file", tmp_path / "file.partial"
    command = [sys.executable, "-m", "api.cli", "tenant", "export", str(ACME), str(file), "--resume"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    sizes = [2**20]
    for _ in range(3):
        running = subprocess.Popen(command, env=environment, cwd=tmp_path)
        deadline = time.monotonic() + 120
        while not partial.exists() or partial.stat().st_size < sizes[-1]:
            assert running.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.0005)
        running.send_signal(signal.SIGKILL)
        assert running.wait(60) == -signal.SIGKILL
        assert not file.exists()
        sizes.append(partial.stat().st_size + 2**20)

    made("tenant", "export", str(ACME), str(file), "--resume")
    assert f"{long_log - 6:,} events" in made("audit", "verify", str(file), "--public-key", str(tmp_path / "public"))
    lines = file.read_bytes().splitlines(keepends=True)
    made("tenant", "export", str(ACME), str(tmp_path / "at once"))
    assert (tmp_path / "at once").read_bytes().splitlines(keepends=True)[1:-1] == lines[1:-1]


def test_a_second_export_to_the_same_file_waits_for_nobody(dsn: str, tmp_path: Path) -> None:
    with (tmp_path / "file.partial").open("wb") as opened_elsewhere:
        fcntl.flock(opened_elsewhere, fcntl.LOCK_EX)
        assert "Another export" in refused("tenant", "export", str(ACME), str(tmp_path / "file"), "--resume")


def test_the_embedded_store_makes_its_key_when_it_is_first_needed(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDBOOK_DATA", str(home / "data"))
    public = made("audit", "key")
    assert public == made("audit", "key")
    assert len(bytes.fromhex(public)) == 32
    assert (home / "data" / "audit.key").stat().st_mode & 0o777 == 0o600
    made("tenant", "create", "Acme")
    made("audit", "export", str(tmp_path / "file"))
    (tmp_path / "public").write_text(public)
    assert "1 events in 64 partitions" in made("audit", "verify", str(tmp_path / "file"), "--public-key", str(tmp_path / "public"))


def test_a_tenant_is_deleted_once_and_for_all(dsn: str, tmp_path: Path) -> None:
    assert "--yes" in refused("tenant", "delete", str(ACME))
    assert "There is no such tenant" in refused("tenant", "delete", str(UUID(int=404)), "--yes")
    assert len(rows(dsn)) == 10

    assert "4 rows pruned" in made("tenant", "delete", str(ACME), "--yes")
    assert "0 rows pruned" in made("tenant", "delete", str(ACME), "--yes")
    assert "2 rows pruned" in made("tenant", "delete", str(GONE), "--yes"), "it was deleted before, and is pruned now"
    assert str(ACME) not in made("tenant", "list")
    assert "was deleted" in refused("tenant", "show", str(ACME))
    assert "was deleted" in refused("tenant", "create", "Acme", "--id", str(ACME))
    assert "no such tenant" in refused("key", "issue", str(ACME))
    made("migrate")
    assert "events hashed, the chain holds" in made("doctor")
    made("tenant", "export", str(ACME), str(tmp_path / "left"))
    assert "1 events and 6 hashes of others and 4 pruned" in made("audit", "verify", str(tmp_path / "left"))
    assert "Äcme" not in (tmp_path / "left").read_text()


def test_the_doctor_finds_rows_that_were_pruned_without_a_deletion(dsn: str) -> None:
    made("tenant", "delete", str(GONE), "--yes")
    with psycopg.connect(dsn) as conn:
        conn.execute("update event set tenant_id = %s where partition = %s and position = 5", (ACME, PARTITION))

    assert f"partition {PARTITION} is broken at position 5" in " ".join(run("doctor").stdout.split())

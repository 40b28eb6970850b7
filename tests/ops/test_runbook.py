"""The runbook, followed: its commands as they stand, on real servers, one of which is lost under load."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import psycopg
import pytest

from adapters.nats.bus import BusRefused, BusUnavailable, connected
from adapters.nats.names import STREAM
from adapters.nats.server import EmbeddedNats
from eventstore.backup.files import Directory
from eventstore.embedded import EmbeddedPostgres
from eventstore.store import partition_of
from tests.conftest import MASTER_KEY

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "runbook-restore.md"
PARTITIONS = 4  # building and verifying read models takes its time for each
SMALL = {"shared_buffers": "32MB", "max_wal_size": "256MB", "wal_buffers": "4MB"}
STEPS = [
    (kind, textwrap.dedent(text))
    for kind, text in re.findall(r"^ *```sh (\w+)\n(.*?)^ *```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
]


@dataclass
class Machine:
    """Where commands are run as a shell runs them, and processes started that are ended in the end."""

    home: Path
    environment: dict[str, str]
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def sh(self, text: str, *, check: bool = True) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text], env=self.environment, cwd=self.home, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 or not check, f"{text}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def start(self, text: str, ready: str) -> str:
        """Start a process, and wait until it says so; what it said."""
        with (self.home / f"log-{len(self.started)}").open("w") as log:
            process = subprocess.Popen(
                ["bash", "-c", f"exec env {text}"], env=self.environment, cwd=self.home, stdout=subprocess.PIPE, stderr=log, text=True
            )
        self.started.append(process)
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.search(ready, line):
                return found.group()
        raise AssertionError(f"{text} ended: {Path(log.name).read_text()[-3000:]}")

    def end(self) -> None:
        for process in self.started:
            process.send_signal(signal.SIGTERM)
        for process in self.started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(90)
            process.kill()
            process.communicate()
        self.started.clear()


@pytest.fixture
def machine(home: Path) -> Iterator[Machine]:
    programs = home / "bin"
    programs.mkdir()
    (programs / "holdbook").write_text(f'#!/bin/sh\nexec {sys.executable} -m api.cli "$@"\n')
    (programs / "holdbook").chmod(0o755)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HOLDBOOK_")},
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "200",
        "HOLDBOOK_MASTER_KEY": MASTER_KEY,
        "HOLDBOOK_PORT": "0",
        "HOLDBOOK_PARTITIONS": str(PARTITIONS),
        "HOLDBOOK_LOG_LEVEL": "warning",
        "BACKUP": str(home / "backup"),
    }
    found = Machine(home, environment)
    yield found
    found.end()


@dataclass
class Client:
    """Asks for one quota under keys of its own until it is stopped, and remembers every answer it got."""

    url: str
    headers: dict[str, str]
    answers: dict[str, httpx.Response] = field(default_factory=dict)

    async def consume(self, client: httpx.AsyncClient, key: str) -> httpx.Response:
        body = {"messages": 1, "correlation_id": key}
        return await client.post(f"{self.url}/v1/usage/consume", json=body, headers=self.headers)

    async def ask(self, until: asyncio.Event) -> None:
        async with httpx.AsyncClient(timeout=10, trust_env=False) as client:
            number = 0
            while not until.is_set():
                number += 1
                with contextlib.suppress(httpx.HTTPError):
                    answer = await self.consume(client, f"key-{number}")
                    if answer.status_code == 200:
                        self.answers[f"key-{number}"] = answer
                await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def asking(client: Client) -> AsyncIterator[None]:
    stop = asyncio.Event()
    task = asyncio.create_task(client.ask(stop))
    try:
        yield
    finally:
        stop.set()
        await task


async def until(condition: Any, limit: float = 180) -> None:
    async with asyncio.timeout(limit):
        while not await condition():  # noqa: ASYNC110  # other processes are waited for
            await asyncio.sleep(0.05)


def customer(machine: Machine) -> tuple[UUID, dict[str, str]]:
    """A tenant with a key, made by the commands on the old store."""
    tenant = machine.sh('HOLDBOOK_DATABASE_URL="$OLD" holdbook tenant create Acme').strip().splitlines()[-1]
    key = machine.sh(f'HOLDBOOK_DATABASE_URL="$OLD" holdbook key issue {tenant}').strip().splitlines()[-1]
    machine.environment["TENANT"] = tenant
    return UUID(tenant), {"Authorization": f"Bearer {key}"}


async def lag(machine: Machine, which: str) -> int:
    """Events that some read model has not applied; a generation that is built counts too."""
    listed = await asyncio.to_thread(machine.sh, f'HOLDBOOK_DATABASE_URL="${which}" holdbook projections')
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in listed.splitlines() if line.startswith("│")]
    standing = {row[0]: row for row in rows}
    assert not [row for row in rows if "stopped" in row[4]], listed
    if not {"quotas"} <= {row[0] for row in rows if row[4] == "following"}:
        return 1
    return sum(int(row[3]) for row in standing.values())


async def heads_on_bus(url: str, partition: int) -> tuple[int, int, str]:
    """The last message's; what no message has when there is none, or nobody answers yet."""
    with contextlib.suppress(BusRefused, BusUnavailable):
        async with connected(url, STREAM, "test") as bus:
            last = await bus.last(partition)
            if last is not None:
                return last.place.epoch, last.place.position, last.hash.hex()
    return 0, 0, ""


def head_in_log(dsn: str, partition: int) -> tuple[int, int, str]:
    with psycopg.connect(dsn) as conn:
        row = conn.execute(
            "select p.epoch, e.position, e.hash from log_partition p join event e using (partition) "
            "where p.partition = %s order by e.position desc limit 1",
            (partition,),
        ).fetchone()
    assert row is not None
    return row[0], row[1], bytes(row[2]).hex()


@pytest.mark.timeout(1200)
async def test_the_runbook_leads_from_a_lost_machine_to_one_that_serves(machine: Machine, home: Path) -> None:
    assert [kind for kind, _ in STEPS] == ["before", "before", "after", "background", "until", "after", "after", "background", "after"]
    bus = EmbeddedNats(home / "nats")
    await asyncio.to_thread(bus.start)
    machine.environment["HOLDBOOK_NATS_URL"] = bus.url
    old, new = EmbeddedPostgres(home / "old", settings=SMALL), EmbeddedPostgres(home / "new", settings=SMALL)
    try:
        await _follow(machine, bus, old, new)
    finally:
        machine.end()
        for server in (old, new, bus):
            await asyncio.to_thread(server.stop)


async def _follow(machine: Machine, bus: EmbeddedNats, old: EmbeddedPostgres, new: EmbeddedPostgres) -> None:
    steps = iter(STEPS)
    machine.environment["OLD"] = await asyncio.to_thread(old.start)
    await asyncio.to_thread(machine.sh, 'HOLDBOOK_DATABASE_URL="$OLD" holdbook migrate')
    await asyncio.to_thread(machine.start, 'HOLDBOOK_DATABASE_URL="$OLD" holdbook worker', "Holdbook works")
    url = await asyncio.to_thread(machine.start, 'HOLDBOOK_DATABASE_URL="$OLD" holdbook serve', r"http://\S+")
    tenant_id, headers = await asyncio.to_thread(customer, machine)
    partition = partition_of(tenant_id, PARTITIONS)
    client = Client(url, headers)
    async with httpx.AsyncClient(timeout=60, trust_env=False) as http:
        limits = {"limits": [{"limit_id": "total", "amount": 1_000_000}]}
        answer = await http.put(f"{url}/v1/quotas/messages/default/limits", json=limits, headers={**headers, "Idempotency-Key": "limits"})
        assert answer.status_code == 200, answer.text

    async def enough(more: int) -> bool:
        return len(client.answers) >= more

    async with asking(client):
        await until(lambda: enough(50))
        for _ in range(2):
            kind, text = next(steps)
            assert kind == "before"
            await asyncio.to_thread(machine.sh, text)
        backed_up = len(client.answers)
        await until(lambda: enough(backed_up + 50))
        await _published(bus, partition, beyond=int(list(client.answers.values())[49].headers["Holdbook-Position"]))
        _lose(old)
    machine.end()
    manifest = Directory(Path(machine.environment["BACKUP"])).manifest()
    assert manifest is not None
    kept = manifest.log[partition].position
    lost = {key for key, answer in client.answers.items() if int(answer.headers["Holdbook-Position"]) > kept}
    assert lost, "answers must be lost, or nothing is shown"
    assert len(lost) < len(client.answers)

    machine.environment["NEW"] = await asyncio.to_thread(new.start)
    served = ""
    for kind, text in steps:
        if kind == "background":
            served = await asyncio.to_thread(machine.start, text.strip(), r"http://\S+|Holdbook works")
        elif kind == "until":
            assert text.split() == ['HOLDBOOK_DATABASE_URL="$NEW"', "holdbook", "projections"]

            async def caught_up() -> bool:
                return await lag(machine, "NEW") == 0

            await until(caught_up, 240)
        else:
            said = await asyncio.to_thread(machine.sh, text)
            assert "tenant show" not in text or "Acme" in said

    await _clients_go_on(client, served, lost)

    async def same() -> bool:
        return await heads_on_bus(bus.url, partition) == head_in_log(machine.environment["NEW"], partition)

    await until(same)
    epoch, _, _ = head_in_log(machine.environment["NEW"], partition)
    assert epoch == 1


def _lose(server: EmbeddedPostgres) -> None:
    """The machine is gone: its server by SIGKILL, and every file of it."""
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while server.alive():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    # At once: for a moment the server's other processes may still make and remove files.
    lost = server.cluster.rename(server.cluster.with_name("lost"))
    shutil.rmtree(lost, ignore_errors=True)


async def _published(bus: EmbeddedNats, partition: int, *, beyond: int) -> None:
    async def there() -> bool:
        return (await heads_on_bus(bus.url, partition))[1] > beyond

    await until(there)


async def _clients_go_on(client: Client, url: str, lost: set[str]) -> None:
    """Every key again: the recorded answer for what was in the backup, and a decision for what was not."""
    client.url = url
    async with httpx.AsyncClient(timeout=120, trust_env=False) as http:
        for key, first in client.answers.items():
            again = await client.consume(http, key)
            assert again.status_code == 200, again.text
            assert again.headers["Holdbook-Epoch"] == "1"
            assert ("Idempotent-Replayed" in again.headers) == (key not in lost)
            if key not in lost:
                assert again.content == first.content
        once_more = [await client.consume(http, key) for key in lost]
        assert all("Idempotent-Replayed" in answer.headers for answer in once_more)

"""Everything is killed at random under load: what was acknowledged happened exactly once, and everything derived agrees with the log.

Two API processes, two workers, the PostgreSQL they write to and the NATS they publish to are killed, stopped for a moment and told to
drain, in an order that a seed gives. ``HOLDBOOK_CHAOS_SECONDS`` and ``HOLDBOOK_CHAOS_SEED`` make it longer, or the same again.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import httpx
import psycopg
import pytest

from eventstore.embedded import EmbeddedPostgres
from tests.support.nats import Servers, everything
from tests.support.nats_worlds import BusWorld, assert_equal, stored, until
from tests.support.processes import Managed, free_port, holdbook, surroundings

SECONDS = float(os.environ.get("HOLDBOOK_CHAOS_SECONDS", "12"))
SEED = int(os.environ.get("HOLDBOOK_CHAOS_SEED", "2027"))
CLIENTS = 8
ROOM = 100
EACH = 5
ENOUGH = 60
"""Answers that there must be to look at; a slow machine takes longer than it was given."""
SMALL = {"shared_buffers": "32MB", "max_wal_size": "256MB", "wal_buffers": "1MB"}


@dataclass
class Told:
    """An answer that a client may rely on, and what it was the answer to."""

    path: str
    key: str
    body: dict[str, Any]
    status: int
    text: bytes


@dataclass
class Site:
    """Where the clients send what, and what they were told."""

    urls: list[str]
    headers: dict[str, str]
    told: list[Told] = field(default_factory=list)
    retried: Counter[str] = field(default_factory=Counter)

    @property
    def enough(self) -> bool:
        """Whether there is enough to look at, of both kinds of answers."""
        return len(self.told) >= ENOUGH and {200, 409} <= {each.status for each in self.told}

    async def send(self, client: httpx.AsyncClient, random: Random, path: str, key: str, body: dict[str, Any]) -> Told:
        """Send until there is an answer that is final, to whichever process, always under the same key."""
        while True:
            try:
                answer = await client.post(
                    random.choice(self.urls) + path, json=body, headers={**self.headers, "Idempotency-Key": key}, timeout=5
                )
            except httpx.HTTPError as error:
                self.retried[type(error).__name__] += 1
            else:
                if answer.status_code < 500:
                    return Told(path, key, body, answer.status_code, answer.content)
                self.retried[str(answer.status_code)] += 1
            await asyncio.sleep(0.05)


async def one_client(site: Site, number: int, ended: asyncio.Event) -> None:
    random, n = Random(SEED * 1_000 + number), 0
    async with httpx.AsyncClient(trust_env=False) as client:
        while not ended.is_set():
            n += 1
            identity = f"{number}-{n}"
            reserved = await site.send(client, random, "/v1/usage/reserve", f"r-{identity}", {"messages": EACH})
            site.told.append(reserved)
            if reserved.status == 200 and random.random() < 0.8:
                held = json.loads(reserved.text)["reservation_id"]
                path, more = ("/v1/usage/commit", {"used": EACH}) if random.random() < 0.7 else ("/v1/usage/rollback", {})
                site.told.append(await site.send(client, random, path, f"e-{identity}", {"reservation_id": held, **more}))


async def monkey(random: Random, server: EmbeddedPostgres, bus: Servers, processes: list[Managed], site: Site) -> Counter[str]:
    """Do harm until the time is over and there is enough to look at; returns what was done how often."""
    done: Counter[str] = Counter()
    loop = asyncio.get_running_loop()
    began = loop.time()
    while (passed := loop.time() - began) < SECONDS or (passed < 10 * SECONDS and not (site.enough and sum(done.values()) >= SECONDS / 3)):
        await asyncio.sleep(random.uniform(0.3, 1.2))
        victims: list[Managed | EmbeddedPostgres | Servers] = [*processes, server, bus]
        victim = random.choice(victims)
        if isinstance(victim, EmbeddedPostgres):
            if victim.pid is not None and victim.alive():
                os.kill(victim.pid, signal.SIGKILL)
                done["postmaster killed"] += 1
        elif isinstance(victim, Servers):
            victim.end()
            victim.start()
            done["NATS killed"] += 1
        else:
            how = random.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM))
            victim.signal(how)
            done[f"{victim.arguments[0]} {how.name}"] += 1
            if how is signal.SIGSTOP:
                await asyncio.sleep(random.uniform(0.1, 1.5))
                victim.signal(signal.SIGCONT)
        for process in processes:
            process.ensure()
    return done


async def reachable(urls: list[str]) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        for url in urls:
            deadline = asyncio.get_running_loop().time() + 120
            while not await _answers(client, url + "/livez"):
                assert asyncio.get_running_loop().time() < deadline, f"{url} does not answer"
                await asyncio.sleep(0.05)


async def _answers(client: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await client.get(url)).status_code == 200
    except httpx.HTTPError:
        return False


async def kept_up(processes: list[Managed]) -> None:
    """Start again whichever has left, also one that was told to some time ago and had to drain first."""
    while True:
        for process in processes:
            process.ensure()
        await asyncio.sleep(0.02)


def ready_store(dsn: str) -> tuple[UUID, dict[str, str]]:
    """A store with a tenant, a key, and a quota with less room than will be asked for."""
    environment = surroundings(dsn)
    assert holdbook("init", environment=environment).returncode == 0
    tenant = holdbook("tenant", "create", "chaos", environment=environment).stdout.strip()
    key = holdbook("key", "issue", tenant, environment=environment).stdout.strip()
    return UUID(tenant), {"Authorization": f"Bearer {key}"}


@pytest.mark.timeout(900)
async def test_everything_is_killed_at_random_and_the_books_are_right(home: Path, tmp_path: Path) -> None:
    bus = Servers(home / "nats")
    with EmbeddedPostgres(home / "data", settings=SMALL) as server, ended_after(bus):
        tenant, headers = await asyncio.to_thread(ready_store, server.dsn)
        watching = asyncio.create_task(server.watch(lambda said: None, poll_seconds=0.02))
        ports = [free_port(), free_port()]
        site = Site([f"http://127.0.0.1:{port}" for port in ports], headers)
        environment = surroundings(server.dsn, HOLDBOOK_LOG_LEVEL="warning", HOLDBOOK_NATS_URL=bus.url)
        serving = [Managed(tmp_path / f"serve{n}", environment, "serve", "--port", str(port)) for n, port in enumerate(ports)]
        working = [Managed(tmp_path / f"worker{n}", environment, "worker") for n in range(2)]
        processes = [*serving, *working]
        keeping: asyncio.Task[None] | None = None
        try:
            for process in processes:
                process.ensure()
            await reachable(site.urls)
            limits = {"limits": [{"limit_id": "room", "amount": ROOM}]}
            async with httpx.AsyncClient(trust_env=False, headers=headers) as client:
                answer = await client.put(
                    site.urls[0] + "/v1/quotas/messages/default/limits", json=limits, headers={"Idempotency-Key": "limits"}, timeout=60
                )
                assert answer.status_code == 200, answer.text
            ended = asyncio.Event()
            clients = [asyncio.create_task(one_client(site, number, ended)) for number in range(CLIENTS)]
            done = await monkey(Random(SEED), server, bus, processes, site)
            ended.set()
            for process in processes:
                process.signal(signal.SIGCONT)
            keeping = asyncio.create_task(kept_up(processes))
            await reachable(site.urls)
            await asyncio.wait_for(asyncio.gather(*clients), 120)

            assert len(site.told) >= ENOUGH, (done, site.retried, len(site.told))
            assert sum(done.values()) >= SECONDS / 3, done
            assert set(Counter(each.status for each in site.told)) == {200, 409}, "both answers were given"
            await the_same_again(site)
            await the_stream_is_the_log(server.dsn, bus)
        finally:
            watching.cancel()
            if keeping is not None:
                keeping.cancel()
            ends = [await asyncio.to_thread(process.end) for process in processes if process.running]
        # One that was just starting again has not come to hear of SIGTERM yet.
        assert set(ends) <= {0, -signal.SIGTERM}, [process.said()[-2_000:] for process in processes]
        server.restart_if_dead()
        the_log_holds_it_once(server.dsn, tenant, site)
        await asyncio.to_thread(everything_agrees, server.dsn)


@contextmanager
def ended_after(bus: Servers) -> Iterator[None]:
    """NATS as long as it is needed."""
    bus.start()
    try:
        yield
    finally:
        bus.end()


async def the_stream_is_the_log(dsn: str, bus: Servers) -> None:
    """Each event was published once, in order, whoever was killed."""
    world = BusWorld(dsn)
    try:
        await until(lambda: _as_long(bus, world.count()), 120)
        assert_equal(await everything(bus.url), world.logs())
    finally:
        await world.close()


async def _as_long(bus: Servers, events: int) -> bool:
    return await stored(bus) >= events


async def the_same_again(site: Site) -> None:
    """Whoever asks again is told the same, byte for byte."""
    async with httpx.AsyncClient(trust_env=False) as client:
        random = Random(SEED)
        for told in random.sample(site.told, min(len(site.told), 200)):
            again = await site.send(client, random, told.path, told.key, told.body)
            assert (again.status, again.text) == (told.status, told.text), told


def the_log_holds_it_once(dsn: str, tenant: UUID, site: Site) -> None:
    with psycopg.connect(dsn) as conn:
        events = conn.execute(
            "select type, payload->>'reservation_id', reply::text from event where tenant_id = %s order by position", (tenant,)
        ).fetchall()
    replies = Counter(reply for _, _, reply in events if reply is not None)
    reserved = Counter(identity for type_, identity, _ in events if type_ == "quota.reserved")
    ended = Counter(identity for type_, identity, _ in events if type_ in ("quota.committed", "quota.rolled_back", "quota.expired"))
    assert set(reserved.values()) == {1}
    assert set(ended.values()) <= {1}
    for told in site.told:
        if told.status == 200:
            assert replies[told.text.decode()] == 1, told
    acknowledged = {json.loads(told.text)["reservation_id"] for told in site.told if told.path.endswith("reserve") and told.status == 200}
    assert acknowledged == set(reserved), "nothing that nobody was told of, nothing lost"
    refused = sum(type_ == "command.refused" for type_, _, _ in events)
    assert refused == sum(told.status == 409 for told in site.told)


def everything_agrees(dsn: str) -> None:
    """Chain, density, versions, and every read model against a fresh fold of the log."""
    found = holdbook("verify", environment=surroundings(dsn))
    assert found.returncode == 0, found.stdout + found.stderr

"""Keys change while everything runs, and nobody notices; and a process without the right keys does not start."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import jwt
import psycopg
import pytest

from api.auth import new_key
from domain.catalog import DECIDERS
from domain.identity.permissions import KEY_PERMISSIONS
from domain.identity.service_accounts import SERVICE_ACCOUNT, IssueKey, service_account_stream
from domain.identity.tenants import TENANT, CreateTenant, tenant_stream
from eventstore.master import LocalMasterKeys, new_master_key
from eventstore.requests import Item, Request
from eventstore.rewrapping import needed
from eventstore.sealing import Sealing
from eventstore.store import Store
from projections import schema
from tests.support.key_server import PURPOSE
from tests.support.processes import holdbook, surroundings

ROOT = Path(__file__).parents[2]
TOKEN_SECONDS = 10
OVERLAP_SECONDS = 5
TENANTS = [uuid4() for _ in range(6)]
PEOPLE = [uuid4() for _ in range(8)]


@contextmanager
def serving(environment: Mapping[str, str]) -> Iterator[str]:
    """A server's address; it must drain well in the end."""
    arguments = [sys.executable, "-m", "tests.support.key_server"]
    with subprocess.Popen(arguments, env=dict(environment), cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            line = next((line for line in process.stdout if "http://" in line), "")
            found = re.search(r"http://\S+", line)
            assert found is not None, f"it ended with {process.wait()}"
            yield found.group()
        finally:
            process.terminate()
            assert process.wait(120) == 0


class Load:
    """Requests without a pause, each of which must be answered well."""

    def __init__(self, urls: list[str], keys: Mapping[UUID, str], sealed: dict[tuple[UUID, UUID], str]) -> None:
        self.urls, self.keys, self.sealed = urls, keys, sealed
        self.answered = {"token": 0, "old token": 0, "person": 0, "command": 0}
        self.kids: dict[str, float] = {}
        self._stop = asyncio.Event()
        self._client = httpx.AsyncClient(timeout=30, trust_env=False)

    async def post(self, url: str, **content: object) -> str:
        answer = await self._client.post(url, **content)  # type: ignore[arg-type]  # passed on
        assert answer.status_code == 200, (url, answer.status_code, answer.text)
        return answer.text

    async def tokens(self) -> None:
        """What one process made is accepted by each, at once and until it is over."""
        kept: list[tuple[float, str]] = []
        for number in itertools.count():
            if self._stop.is_set():
                return
            text = await self.post(self.urls[number % 2] + "/test/mint")
            self.kids.setdefault(jwt.get_unverified_header(text)["kid"], time.time())
            for url in self.urls:
                assert await self.post(url + "/test/verify", content=text) == "someone"
                self.answered["token"] += 1
            kept = [each for each in kept if time.monotonic() - each[0] < TOKEN_SECONDS - 2]
            for _, old in kept[:3]:
                assert await self.post(self.urls[number % 2] + "/test/verify", content=old) == "someone"
                self.answered["old token"] += 1
            kept.append((time.monotonic(), text))

    async def people(self) -> None:
        """What one process sealed is opened by another, which seals it anew."""
        for number, place in enumerate(itertools.cycle(self.sealed)):
            if self._stop.is_set():
                return
            told = {"tenant_id": place[0].hex, "person_id": place[1].hex, "sealed": self.sealed[place]}
            self.sealed[place] = await self.post(self.urls[number % 2] + "/test/through", json=told)
            self.answered["person"] += 1

    async def commands(self) -> None:
        """Commands of all tenants, whose fingerprints are made with the tenants' keys; the second time is a replay."""
        for number, tenant_id in enumerate(itertools.cycle(self.keys)):
            if self._stop.is_set():
                return
            headers = {"Authorization": f"Bearer {self.keys[tenant_id]}", "Idempotency-Key": f"key-{number}"}
            body = {"limits": [{"limit_id": "total", "amount": 100 + number}]}
            for url in self.urls:
                answer = await self._client.put(f"{url}/v1/quotas/messages/default/limits", json=body, headers=headers)
                assert answer.status_code == 200, answer.text
            assert answer.headers["Idempotent-Replayed"] == "true"
            self.answered["command"] += 1

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Meanwhile; whatever was not answered well is raised in the end."""
        work: list[Callable[[], Awaitable[None]]] = [self.tokens, self.people, self.commands]
        async with self._client, asyncio.TaskGroup() as group:
            for each in work:
                group.create_task(each())  # type: ignore[arg-type]  # they are coroutines
            await self.all_answered()
            yield
            await self.all_answered()
            self._stop.set()

    async def all_answered(self, more: int = 20) -> None:
        """Every kind of request was answered some times more."""
        wanted = {kind: count + more for kind, count in self.answered.items()}
        await until(lambda: all(self.answered[kind] >= count for kind, count in wanted.items()))


async def until(true: Callable[[], bool], seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not true():  # other processes set no event of ours
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def filled(dsn: str, master: LocalMasterKeys) -> tuple[dict[UUID, str], dict[tuple[UUID, UUID], str]]:
    """Tenants with an API key each, and people with something sealed."""
    await asyncio.to_thread(schema.create, dsn)
    store = await Store.open(dsn, DECIDERS, master=master)
    keys, sealed = {}, {}
    for tenant_id in TENANTS:
        account_id = uuid4()
        key = new_key(tenant_id, account_id)
        issue = IssueKey(key_id=key.key_id, secret_hash=key.secret_hash, scopes=tuple(KEY_PERMISSIONS), name="test")
        for item in (
            Item(TENANT, tenant_stream(tenant_id), CreateTenant(tenant_id=tenant_id, name="Acme")),
            Item(SERVICE_ACCOUNT, service_account_stream(account_id), issue),
        ):
            assert not (await store.submit(Request(tenant_id, uuid4(), (item,), b""))).refused
        keys[tenant_id] = key.text
        await store.tenant_key(tenant_id)
        for person_id in PEOPLE:
            sealed[tenant_id, person_id] = await store.sealing.seal(tenant_id, person_id, PURPOSE, person_id.hex)
    await store.drain()
    return keys, sealed


async def test_the_key_of_tokens_changes_and_no_request_fails(database_dsn: str) -> None:
    text = new_master_key()
    environment = surroundings(
        database_dsn, HOLDBOOK_MASTER_KEY=text, HOLDBOOK_TOKEN_SECONDS=str(TOKEN_SECONDS), HOLDBOOK_LOG_LEVEL="warning", COLUMNS="200"
    )
    keys, sealed = await filled(database_dsn, LocalMasterKeys(text))
    with serving(environment) as one, serving(environment) as two:
        load = Load([one, two], keys, sealed)
        async with load.running():
            (old,) = load.kids
            said = await asyncio.to_thread(holdbook, "key", "rotate", "signing", "--overlap", str(OVERLAP_SECONDS), environment=environment)
            assert said.returncode == 0, said.stderr
            new = said.stdout.strip()
            async with httpx.AsyncClient(trust_env=False) as client:
                for url in (one, two):
                    answer = await client.get(f"{url}/.well-known/jwks.json")
                    assert {key["kid"] for key in answer.json()["keys"]} >= {old}
            await until(lambda: new in load.kids)
            with psycopg.connect(database_dsn) as conn:
                times = conn.execute("select signs_from, signs_from - made_at from signing_key where kid = %s", (new,)).fetchone()
            assert times is not None
            assert times[1] == timedelta(seconds=OVERLAP_SECONDS)
            assert load.kids[new] >= times[0].timestamp(), "it signed before every process knew it"
            listed = await asyncio.to_thread(holdbook, "key", "list-signing", environment=environment)
            # Until what the old key signed is over, it is accepted; the load asks for that all the time.
            await asyncio.sleep(TOKEN_SECONDS)
            await load.all_answered()
        assert set(load.kids) == {old, new}
    assert re.search(rf"{old}.*verifies", listed.stdout), listed.stdout
    assert re.search(rf"{new}.*signs", listed.stdout), listed.stdout


async def test_the_master_key_changes_and_no_request_fails(database_dsn: str) -> None:
    old, new = new_master_key(), new_master_key()
    keys, sealed = await filled(database_dsn, LocalMasterKeys(old))
    both = surroundings(database_dsn, HOLDBOOK_MASTER_KEY=f"{new}\n{old}", HOLDBOOK_LOG_LEVEL="warning", COLUMNS="200")
    # Processes that do not wrap with the new key yet run beside those that do.
    earlier = {**both, "HOLDBOOK_MASTER_KEY": f"{old}\n{new}"}
    rows = len(TENANTS) * (1 + len(PEOPLE))

    with serving(both) as one, serving(earlier) as two:
        load = Load([one, two], keys, sealed)
        async with load.running():
            before = await asyncio.to_thread(holdbook, "key", "rotate", "master", "--check", environment=both)
            assert re.search(rf"{old.partition(':')[0]}.* {rows}.*must stay", before.stdout), before.stdout + before.stderr
            said = await asyncio.to_thread(holdbook, "key", "rotate", "master", environment=both)
            assert said.returncode == 0, said.stderr
            await load.all_answered(more=len(sealed))
        after = await asyncio.to_thread(holdbook, "key", "rotate", "master", "--check", environment=both)
        assert "Every other line may go." in after.stdout, after.stdout

    alone = {**both, "HOLDBOOK_MASTER_KEY": new}
    with serving(alone) as one, serving(alone) as two:
        async with Load([one, two], keys, load.sealed).running():
            pass
    store = await Store.open(database_dsn, DECIDERS, wakeups=False, master=LocalMasterKeys(new))
    assert set(await needed(store)) == {new.partition(":")[0]}
    await opens_all(store.sealing, load.sealed)
    await store.drain()


async def opens_all(sealing: Sealing, sealed: Mapping[tuple[UUID, UUID], str]) -> None:
    for (tenant_id, person_id), text in sealed.items():
        assert await sealing.open(tenant_id, person_id, PURPOSE, text) == person_id.hex


@pytest.mark.parametrize("command", ["serve", "worker", "up"])
def test_a_process_without_a_master_key_says_what_to_do_and_does_not_start(command: str, database_dsn: str) -> None:
    environment = surroundings(database_dsn, HOLDBOOK_PORT="0")
    del environment["HOLDBOOK_MASTER_KEY"]

    said = holdbook(command, environment=environment)

    assert said.returncode == 1
    assert "HOLDBOOK_MASTER_KEY_FILE" in said.stderr
    assert "Traceback" not in said.stderr


@pytest.mark.parametrize("command", ["serve", "worker", "up"])
def test_a_process_with_another_master_key_does_not_start(command: str, database_dsn: str) -> None:
    right = new_master_key()
    asyncio.run(_open(database_dsn, right))
    wrong = new_master_key()

    said = holdbook(command, environment=surroundings(database_dsn, HOLDBOOK_PORT="0", HOLDBOOK_MASTER_KEY=wrong))

    assert said.returncode == 1
    assert f"The store knows {right.partition(':')[0]}" in " ".join(said.stderr.split())
    assert wrong.partition(":")[2] not in said.stderr + said.stdout


async def _open(dsn: str, text: str) -> None:
    await (await Store.open(dsn, DECIDERS, wakeups=False, master=LocalMasterKeys(text))).drain()


def test_a_fresh_master_key_is_printed_and_is_one() -> None:
    said = holdbook("key", "make-master", environment=surroundings("postgresql://nowhere.invalid/none"))

    LocalMasterKeys(said.stdout)
    assert said.stdout.count("\n") == 1


def test_with_the_embedded_database_the_key_is_made_and_its_loss_is_no_new_beginning(home: Path) -> None:
    data = home / "data"
    environment = {**surroundings(""), "HOLDBOOK_DATA": str(data), "HOLDBOOK_PARTITIONS": "2", "HOLDBOOK_DATABASE_URL": ""}
    for name in ("HOLDBOOK_DATABASE_URL", "HOLDBOOK_MASTER_KEY"):
        del environment[name]
    first = holdbook("tenant", "create", "Acme", environment=environment)
    assert first.returncode == 0, first.stderr
    file = data / "master.key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    text = file.read_text()
    assert holdbook("tenant", "create", "Bolt", environment=environment).returncode == 0
    assert file.read_text() == text

    file.unlink()
    lost = holdbook("tenant", "create", "Cove", environment=environment)

    assert lost.returncode == 1
    assert "The master key of this process is not the one" in " ".join(lost.stderr.split())
    assert os.path.exists(data)
    file.write_text(text)
    assert holdbook("tenant", "create", "Cove", environment=environment).returncode == 0

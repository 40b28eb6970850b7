"""Webhooks in one process as a server runs them: a store, the follower that queues, the queue, and whoever sends.

``python -m tests.support.webhooks JSON`` is such a process of its own, which ends itself by SIGKILL at a named point: ``sent`` after
the receiver's answer and before it is noted, ``noted`` after the note and before the task is removed, ``given_up`` after the note
that a message failed and before the endpoint is disabled, ``disabled`` after that and before the task is removed.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg

from adapters.webhooks import signing
from adapters.webhooks.addresses import Addresses
from adapters.webhooks.sending import Sender
from api.delivering import Delivering
from api.services import running
from domain.catalog import DECIDERS
from domain.kernel.decider import Command
from domain.quota import QUOTA, Consume, SetLimits, quota_stream
from domain.webhooks import WEBHOOKS, Endpoint, RegisterEndpoint, webhooks_stream
from eventstore.requests import Item, Outcome, Request
from eventstore.store import Store, partition_of
from projections.follower import Follower, Pace
from projections.tasks import Tasks
from projections.webhook_deliveries import Deliveries, Note, Place
from projections.webhooks import Webhooks

ROOT = Path(__file__).parents[2]
QUICK = Pace(poll=0.02, poll_idle=0.05, rest=0.001, retry=0.1)
SOURCE = "https://ledger.example.com"
TENANT = UUID("7e7a7e57-0000-4000-8000-000000000007")
SECONDS = 120


class Clock:
    """The time of day, and as much more as a test has let pass."""

    def __init__(self) -> None:
        self.passed = timedelta()
        self._standing: datetime | None = None

    def __call__(self) -> datetime:
        return (self._standing or datetime.now(UTC)) + self.passed

    def stand_still(self) -> None:
        """From now on only what a test lets pass: no attempt comes by itself. An hour ahead, so that what the database finds due is due."""
        self._standing = datetime.now(UTC) + timedelta(hours=1)


@dataclass
class Post:
    """What a test does and sees."""

    dsn: str
    store: Store
    tasks: Tasks
    handler: Delivering
    clock: Clock

    async def ask(self, command: Command, tenant: UUID = TENANT) -> Outcome:
        return await self._submit(Item(WEBHOOKS, webhooks_stream(tenant), command), tenant)

    async def register(self, url: str, *types: str, tenant: UUID = TENANT) -> UUID:
        await self.limit(tenant)
        endpoint_id = uuid4()
        await self.ask(RegisterEndpoint(endpoint_id=endpoint_id, url=url, types=types), tenant)
        return endpoint_id

    async def use(self, count: int = 1, tenant: UUID = TENANT, trace: str | None = None) -> list[str]:
        """Consume so often, and tell the ids of the events."""
        stream = quota_stream(tenant, "anna", "tokens")
        ids = []
        for _ in range(count):
            command = Consume(subject="anna", meter="tokens", amount=1, reservation_id=uuid4().hex)
            request = Request(tenant, uuid4(), (Item(QUOTA, stream, command),), b"f", trace=trace)
            await self.store.submit(request)
            ids.append(f"{request.command_id}:0")
        return ids

    async def limit(self, tenant: UUID = TENANT) -> None:
        """Have the tenant's quota exist, before any endpoint that would be told of it."""
        stream = quota_stream(tenant, "anna", "tokens")
        if (await self.store.state(QUOTA, tenant, stream)).version:
            return
        await self._submit(Item(QUOTA, stream, SetLimits(subject="anna", meter="tokens", limits=())), tenant)

    async def endpoint(self, endpoint_id: UUID, tenant: UUID = TENANT) -> Endpoint:
        found = (await self.store.state(WEBHOOKS, tenant, webhooks_stream(tenant))).state.find(endpoint_id)
        assert isinstance(found, Endpoint)
        return found

    async def secret(self, endpoint_id: UUID, number: int, tenant: UUID = TENANT) -> str:
        return signing.secret(await self.store.tenant_key(tenant), endpoint_id, number)

    def rows(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """As the owner of the database."""
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            return conn.execute(query, parameters).fetchall()

    def delivery(self, message_id: str, endpoint_id: UUID) -> tuple[Any, ...]:
        """State, attempts, last status, last error and next attempt of the last delivery of a message."""
        query = (
            "select state, attempts, last_status, last_error, next_at from webhook_delivery "
            "where message_id = %s and endpoint_id = %s order by number desc limit 1"
        )
        return next(iter(self.rows(query, message_id, endpoint_id)), ("nothing", 0, None, None, None))

    async def until(self, query: str, *parameters: Any, seconds: float = SECONDS) -> None:
        """Wait until a query finds something."""
        async with asyncio.timeout(seconds):
            while not self.rows(query, *parameters):  # noqa: ASYNC110  # what is waited for is in the database
                await asyncio.sleep(0.01)

    async def until_state(self, message_id: str, endpoint_id: UUID, state: str, attempts: int = 0) -> None:
        query = "select 1 from webhook_delivery where message_id = %s and endpoint_id = %s and state = %s and attempts >= %s"
        await self.until(query, message_id, endpoint_id, state, attempts)

    async def until_queued(self, message_id: str) -> None:
        await self.until("select 1 from webhook_delivery where message_id = %s", message_id)

    async def until_known(self) -> None:
        """Wait until the follower has come to the log's present end, so that who sends knows what was asked before."""
        ((partition, head),) = self.rows("select partition, max(position) from event group by partition order by 2 desc limit 1")
        await self.until("select 1 from checkpoint where consumer = 'webhooks' and partition = %s and position >= %s", partition, head)

    async def until_idle(self) -> None:
        """Wait until no task is left."""
        await self.until("select 1 where not exists (select from task)")

    async def let_pass(self, more: timedelta) -> None:
        """Have the clock go on at once, when all lanes were left: one just being left would lose its lease, and its task be run again."""
        await self.until("select 1 where not exists (select from task_lane where claimed_by is not null)")
        self.clock.passed += more
        self.tasks.wake()

    async def _submit(self, item: Item, tenant: UUID) -> Outcome:
        return await self.store.submit(Request(tenant, uuid4(), (item,), b"f"))


@asynccontextmanager
async def post(dsn: str, *, sends: bool = True, lease_seconds: float = 15.0, addresses: Addresses | None = None) -> AsyncIterator[Post]:
    """All of it, running; without ``sends`` nothing but the store and the follower runs."""
    async with AsyncExitStack() as stack:
        store = await Store.open(dsn, DECIDERS)
        stack.push_async_callback(store.drain)
        deliveries = await Deliveries.open(dsn)
        stack.push_async_callback(deliveries.close)
        clock = Clock()
        # A receiver that a test holds has time until the test lets go.
        sender = Sender(addresses or Addresses(allow_private=True, allow_http=True), timeout_seconds=120)
        handler = Delivering(store, deliveries, sender, SOURCE)
        tasks = Tasks(dsn, range(store.partitions), [handler], clock=clock, lease_seconds=lease_seconds)
        tasks.poll_seconds = 0.05
        follower = Follower(dsn, range(store.partitions), [Webhooks(store.codec, tasks.wake)], store.waker, QUICK)
        await stack.enter_async_context(running([tasks, follower] if sends else [follower]))
        found = Post(dsn, store, tasks, handler, clock)
        await found.until("select 1 from checkpoint where consumer = 'webhooks' having count(*) = %s", store.partitions)
        yield found


def partition(store: Store, tenant: UUID = TENANT) -> int:
    """Where the tenant lives."""
    return partition_of(tenant, store.partitions)


# A process of its own


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _doomed(point: str) -> None:
    """Have this process end itself at the point."""
    note, call, disable = Deliveries.note, Delivering.__call__, Delivering._disable

    async def noting(self: Deliveries, place: Place, told: Note) -> None:
        if point == "sent":
            _die()
        await note(self, place, told)

    async def calling(self: Delivering, *arguments: Any) -> Any:
        answer = await call(self, *arguments)
        if point == "noted":
            _die()
        return answer

    async def disabling(self: Delivering, *arguments: Any) -> None:
        if point == "given_up":
            _die()
        await disable(self, *arguments)
        if point == "disabled":
            _die()

    Deliveries.note = noting  # type: ignore[method-assign, assignment]  # a function put in place of a method, here and below
    Delivering.__call__ = calling  # type: ignore[method-assign, assignment]
    Delivering._disable = disabling  # type: ignore[method-assign, assignment]


async def _main(plan: dict[str, Any]) -> None:
    _doomed(plan["point"])
    async with post(plan["dsn"], lease_seconds=1.0):
        print("ready", flush=True)
        await asyncio.sleep(600)


class SendingProcess:
    """The other end."""

    def __init__(self, dsn: str, point: str) -> None:
        command = [sys.executable, "-m", "tests.support.webhooks", json.dumps({"dsn": dsn, "point": point})]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def wait_until_killed(self, seconds: float = 180) -> str:
        """Wait for its end by its own hand, and tell what it said."""
        said, complaints = self.process.communicate(timeout=seconds)
        assert self.process.returncode == -signal.SIGKILL, complaints
        return said + complaints

    def end(self) -> None:
        """Whatever happened: it is gone afterwards."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


if __name__ == "__main__":
    asyncio.run(_main(json.loads(sys.argv[1])))

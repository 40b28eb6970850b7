"""A store with quotas, and followers over it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from domain.catalog import DECIDERS
from domain.kernel.decider import Command, Rejected
from domain.quota import (
    QUOTA,
    Adjust,
    Commit,
    Consume,
    Expire,
    Grant,
    Limit,
    Mode,
    Overdraft,
    Quota,
    Reserve,
    Rollback,
    SetLimits,
    State,
    VoidGrant,
    Window,
    quota_stream,
)
from domain.quota.view import QuotaView, view
from eventstore.codec import Codec
from eventstore.requests import Item, Outcome, Request
from eventstore.store import Store, partition_of
from projections import schema
from projections.consumer import Consumer
from projections.follower import Follower, Pace
from projections.quota_queries import QuotaReader
from projections.quotas import Quotas
from projections.readers import Readers

START = datetime(2027, 3, 28, 0, 30, tzinfo=UTC)
"""Shortly before the clocks of Europe change."""
CODEC = Codec(DECIDERS)
QUICK = Pace(poll=0.02, poll_idle=0.05, rest=0.001, retry=0.1, lease=1.0)

LIMITS = (
    Limit("life", 10**6, overflow=True),
    Limit("hour", 500, Window("hour")),
    Limit("month", 2**63 - 1, Window("month", anchor_day=31)),
    Limit("brief", 200, Window("rolling", seconds=5)),
    Limit("long", 900, Window("rolling", seconds=3_600)),
)


@dataclass
class Ledger:
    """A store of one tenant's quotas whose clock the test moves."""

    dsn: str
    store: Store
    tenant: UUID
    now: datetime = START

    async def send(self, subject: str, command: Command, meter: str = "tokens") -> Outcome:
        stream = quota_stream(self.tenant, subject, meter)
        item = Item(QUOTA, stream, command)
        return await self.store.submit(Request(self.tenant, uuid4(), (item,), b"f", occurred_at=self.now))

    async def view(self, subject: str, at: datetime) -> QuotaView | None:
        """What the log says."""
        state = await self.state(subject)
        return view(state, at) if isinstance(state, Quota) else None

    async def state(self, subject: str, meter: str = "tokens") -> State:
        """The fold of the log."""
        return (await self.store.state(QUOTA, self.tenant, quota_stream(self.tenant, subject, meter))).state  # type: ignore[no-any-return]  # a quota's

    @property
    def partition(self) -> int:
        return partition_of(self.tenant, self.store.partitions)

    async def set_limits(self, subject: str, *limits: Limit, meter: str = "tokens", overdraft: str = "none") -> None:
        kind: Any = overdraft
        await self.send(subject, SetLimits(subject=subject, meter=meter, limits=limits, overdraft=Overdraft(kind)), meter)

    async def reserve(self, subject: str, reservation: str, amount: int = 1, ttl_seconds: int = 900) -> None:
        await self.send(
            subject, Reserve(subject=subject, meter="tokens", amount=amount, reservation_id=reservation, ttl_seconds=ttl_seconds)
        )

    async def traffic(self, random: Random, commands: int, subjects: Sequence[str]) -> None:
        """Random commands, most of which succeed, over a while that covers many windows."""
        made: dict[str, list[str]] = {subject: [] for subject in subjects}
        for number in range(commands):
            self.now += timedelta(seconds=random.choice((0, 0, 0, 0.3, 0.3, 1, 1, 1, 4, 4, 4, 30, 30, 300, 1_000, 50_000)))
            subject = random.choice(subjects)
            command = self._any_command(random, subject, made[subject], number)
            try:
                await self.send(subject, command)
            except Rejected:
                continue

    def _any_command(self, random: Random, subject: str, made: list[str], number: int) -> Command:
        target: dict[str, Any] = {"subject": subject, "meter": "tokens"}
        some = random.choice(made[-8:]) if made else "none"
        identity = f"{subject}-{number}"
        match random.randrange(20):
            case 0:
                chosen = tuple(random.sample(LIMITS, random.randrange(len(LIMITS) + 1)))
                kind: Any = random.choice(("none", "soft"))
                return SetLimits(**target, zone=random.choice(("UTC", "Europe/Moscow")), limits=chosen, overdraft=Overdraft(kind))
            case 1:
                ends = self.now + timedelta(seconds=random.choice((10, 10_000)))
                return Grant(**target, grant_id=identity, amount=random.choice((50, 2**63 - 1)), expires_at=ends)
            case 2:
                return VoidGrant(grant_id=f"{subject}-{random.randrange(number + 1)}")
            case 3:
                return Adjust(**target, amount=random.choice((-30, 40)), reason="test")
            case 4:
                return Expire()
            case 5 | 6:
                return Consume(**target, amount=random.randrange(1, 60), reservation_id=identity)
            case 7 | 8 | 9:
                return Commit(reservation_id=some, used=random.randrange(50), final=False, ttl_seconds=random.choice((None, 100, 9_999)))
            case 10 | 11 | 12:
                return Commit(reservation_id=some, used=random.choice((0, 5, 40, 2**63 - 1)))
            case 13:
                return Rollback(reservation_id=some)
            case _:
                made.append(identity)
                mode = random.choice((Mode.NORMAL, Mode.BEST_EFFORT, Mode.ADJUST))
                amount, ttl_seconds = random.choice((1, 7, 60, 2**62)), random.choice((1, 20, 5_000, 200_000))
                return Reserve(**target, amount=amount, reservation_id=identity, ttl_seconds=ttl_seconds, mode=mode)


@pytest.fixture
async def ledger(database_dsn: str) -> AsyncIterator[Ledger]:
    schema.create(database_dsn)
    store = await Store.open(database_dsn, DECIDERS)
    yield Ledger(database_dsn, store, uuid4())
    await store.drain()


@pytest.fixture
async def readers(ledger: Ledger) -> AsyncIterator[Readers]:
    opened = await Readers.open(ledger.dsn)
    yield opened
    await opened.close()


@pytest.fixture
def reader(readers: Readers) -> QuotaReader:
    return readers.quotas


@asynccontextmanager
async def following(ledger: Ledger, *consumers: Consumer, pace: Pace = QUICK) -> AsyncIterator[Follower]:
    """A running follower; by default it feeds the quotas."""
    follower = Follower(ledger.dsn, range(ledger.store.partitions), consumers or [Quotas(CODEC)], None, pace)
    task = asyncio.create_task(follower.run())
    try:
        yield follower
    finally:
        follower.stop()
        await task


async def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for something that a task or a server does in its own time."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # what is waited for is in the database or another task, without an event of its own
            await asyncio.sleep(0.01)


async def caught_up(ledger: Ledger, follower: Follower) -> None:
    """Wait until the follower has either applied or refused to apply all there is. A lock that another one held too long passes."""
    at_start = count_events(ledger)

    def done() -> bool:
        halted = {halt.partition for halt in follower.health().halted if halt.error != "LockNotAvailable"}
        known = sum(head for head, _ in follower.heads.values())
        behind = [p for p, events in follower.lag().items() if events and p not in halted]
        return known >= at_start and not behind and follower.health().trouble is None

    await until(done)


async def follow(ledger: Ledger, *consumers: Consumer, pace: Pace = QUICK) -> Follower:
    """Follow to the end with caches that start cold."""
    async with following(ledger, *consumers, pace=pace) as follower:
        await caught_up(ledger, follower)
        return follower


def administer(ledger: Ledger, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """As the owner of the database."""
    with psycopg.connect(ledger.dsn, autocommit=True) as conn:
        cursor = conn.execute(statement, parameters)
        return cursor.fetchall() if cursor.description else []


def count_events(ledger: Ledger, where: str = "true") -> int:
    """How many events the log has."""
    ((count,),) = administer(ledger, f"select count(*) from event where {where}")
    return int(count)


TABLES = ("quota", "quota_reservation", "quota_second")


def dump(ledger: Ledger, generation: int = 1) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of the quotas' tables."""
    return {table: sorted(administer(ledger, f"select t::text from {table}_{generation} t")) for table in TABLES}

"""Retention by the worker: what is older than the policy goes, nothing else, whoever looks and how many; and people who stay away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import psycopg
import pytest
import pytest_asyncio

from api import server
from api.people import Profile, create_items, login_of_email, open_profile, seal_profile, user_state
from api.privacy.retaining import Purge, Retaining
from api.settings import Settings
from domain.catalog import DECIDERS
from domain.identity.signins import SIGNIN, RecordSuccess, signin_stream
from domain.identity.tenants import TENANT, CreateTenant, tenant_stream
from domain.identity.users import Active, ErasedUser, user_stream
from domain.privacy.retention import RETENTION, ResetRetention, SetRetention, retention_stream
from eventstore.requests import Item, Request
from eventstore.store import Store, partition_of
from projections import schema
from projections.footprints import Idle
from projections.telemetry import TelemetryRow, keep

OLD = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)


@dataclass
class Kept:
    """A store that a follower reads, and a service for which it is any time of the test's choosing."""

    dsn: str
    store: Store

    async def tenant(self) -> UUID:
        tenant_id = uuid4()
        await self.submit(tenant_id, Item(TENANT, tenant_stream(tenant_id), CreateTenant(tenant_id=tenant_id, name="Acme")))
        return tenant_id

    async def submit(self, tenant_id: UUID, *items: Item, at: datetime | None = None) -> None:
        outcome = await self.store.submit(Request(tenant_id, uuid4(), items, b"", occurred_at=at))
        assert not outcome.refused, outcome.reply

    async def policy(self, tenant_id: UUID, kind: str, days: int | None) -> None:
        await self.submit(tenant_id, Item(RETENTION, retention_stream(tenant_id), SetRetention(kind=kind, days=days)))

    async def telemetry(self, tenant_id: UUID, *days_ago: int) -> None:
        rows = [TelemetryRow(uuid4(), OLD - timedelta(days=days), uuid4(), "app.started", "{}") for days in days_ago]
        assert self.store.pool is not None
        await keep(self.store.pool, partition_of(tenant_id, self.store.partitions), tenant_id, rows)

    async def ages(self, tenant_id: UUID) -> list[int]:
        query = "select at from telemetry where tenant_id = %s order by at desc"
        async with await psycopg.AsyncConnection.connect(self.dsn, options="-c role=holdbook_follower") as conn:
            return [(OLD - at).days for (at,) in await (await conn.execute(query, (tenant_id,))).fetchall()]

    def retaining(self) -> Retaining:
        return Retaining(self.dsn, self.store)


async def until(true: Callable[[], Awaitable[bool]], seconds: float = 60.0) -> None:
    end = asyncio.get_running_loop().time() + seconds
    while not await true():
        assert asyncio.get_running_loop().time() < end, "it did not come to this"
        await asyncio.sleep(0.02)


class Still(Retaining):
    """In place of the worker's own, so that a test alone says when it looks."""

    async def once(self) -> None:
        """Does not look."""


@pytest_asyncio.fixture
async def kept(database_dsn: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Kept]:
    monkeypatch.setattr(server, "Retaining", Still)
    async with AsyncExitStack() as stack:
        schema.create(database_dsn)
        store = await Store.open(database_dsn, DECIDERS)
        stack.push_async_callback(store.drain)
        await stack.enter_async_context(server.following(database_dsn, store, settings=Settings()))
        yield Kept(database_dsn, store)


@pytest.mark.asyncio
async def test_what_is_older_than_the_policy_goes_and_nothing_else(kept: Kept) -> None:
    usual, short, long = [await kept.tenant() for _ in range(3)]
    await kept.policy(short, "telemetry", 3)
    await kept.policy(long, "telemetry", 100)
    for tenant_id in (usual, short, long):
        await kept.telemetry(tenant_id, 0, 2, 5, 29, 31, 99, 101)

    retaining = kept.retaining()
    await retaining.once()

    assert await kept.ages(usual) == [0, 2, 5, 29]
    assert await kept.ages(short) == [0, 2]
    assert await kept.ages(long) == [0, 2, 5, 29, 31, 99]
    assert retaining.removed["telemetry"] == 3 + 5 + 1


@pytest.mark.asyncio
async def test_a_shorter_policy_holds_at_the_next_run_and_a_reset_brings_the_default_back(kept: Kept) -> None:
    tenant_id = await kept.tenant()
    await kept.policy(tenant_id, "telemetry", 100)
    await kept.telemetry(tenant_id, 1, 20, 50)
    retaining = kept.retaining()
    await retaining.once()
    assert await kept.ages(tenant_id) == [1, 20, 50]

    await kept.submit(tenant_id, Item(RETENTION, retention_stream(tenant_id), ResetRetention(kind="telemetry")))
    await retaining.once()
    assert await kept.ages(tenant_id) == [1, 20]

    await kept.policy(tenant_id, "telemetry", 10)
    await retaining.once()
    assert await kept.ages(tenant_id) == [1]


@pytest.mark.asyncio
async def test_two_workers_at_once_remove_it_once_in_short_statements(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    tenant_id = await kept.tenant()
    await kept.telemetry(tenant_id, *([40] * 25), 1)
    monkeypatch.setattr("api.privacy.retaining.AT_ONCE", 10)
    workers = [kept.retaining() for _ in range(2)]

    await asyncio.gather(*(worker.once() for worker in workers))

    assert await kept.ages(tenant_id) == [1]
    assert sum(worker.removed["telemetry"] for worker in workers) == 25


@pytest.mark.asyncio
async def test_one_that_dies_in_between_leaves_the_rest_to_the_next(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    tenant_id = await kept.tenant()
    await kept.telemetry(tenant_id, *([40] * 25))
    monkeypatch.setattr("api.privacy.retaining.AT_ONCE", 10)
    from projections import telemetry

    calls = []

    async def dies(*arguments: object) -> int:
        calls.append(arguments)
        if len(calls) == 2:
            raise ConnectionError
        return await telemetry.purge(*arguments)  # type: ignore[arg-type]  # as they came

    broken = Retaining(kept.dsn, kept.store, [Purge("telemetry", telemetry.tenants, dies)])
    with pytest.raises(ConnectionError):
        await broken.once()
    assert len(await kept.ages(tenant_id)) == 15

    await kept.retaining().once()

    assert await kept.ages(tenant_id) == []


@pytest.mark.asyncio
async def test_the_service_looks_by_itself_and_leaves_when_told(kept: Kept) -> None:
    tenant_id = await kept.tenant()
    await kept.telemetry(tenant_id, 40)
    service = kept.retaining()
    service.first_seconds = 0.0
    task = asyncio.create_task(service.run())

    async def gone() -> bool:
        return await kept.ages(tenant_id) == []

    await until(gone)
    service.stop()
    await asyncio.wait_for(task, 60)


async def person(kept: Kept, tenant_id: UUID, role: str, days_ago: int) -> UUID:
    """Somebody who came so many days ago."""
    user_id, at = uuid4(), datetime.now(UTC) - timedelta(days=days_ago)
    profile = await seal_profile(kept.store.sealing, tenant_id, user_id, Profile(f"{user_id.hex}@example.org", "N"))
    login = await login_of_email(kept.store.sealing, tenant_id, f"{user_id.hex}@example.org")
    await kept.submit(tenant_id, *create_items(tenant_id, user_id, role, profile, login), at=at)
    return user_id


async def listed(kept: Kept, *people: UUID) -> None:
    """Wait until the read model knows them."""

    async def known() -> bool:
        async with await psycopg.AsyncConnection.connect(kept.dsn) as conn:
            cursor = await conn.execute("select person_id from footprint_1 where person_id = any(%s)", (list(people),))
            return len(await cursor.fetchall()) >= len(people)

    await until(known)


@pytest.mark.asyncio
async def test_people_who_stay_away_are_erased_where_the_tenant_says_so(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """``at`` of the commands is of the past; the log's own times are not, so the log's word for who was there last is set aside here."""
    tenant_id, other = await kept.tenant(), await kept.tenant()
    await kept.policy(tenant_id, "inactive_people", 60)
    came = (("member", 70), ("member", 50), ("owner", 400), ("owner", 400))
    gone, here, owner, second = [await person(kept, tenant_id, role, days) for role, days in came]
    elsewhere = await person(kept, other, "member", 400)
    await listed(kept, gone, here, owner, second, elsewhere)
    before = await user_state(kept.store, tenant_id, gone)
    assert isinstance(before, Active)

    async def long_ago(*_: object) -> datetime:
        return datetime.now(UTC) - timedelta(days=70)

    monkeypatch.setattr("api.privacy.retaining._last_there", long_ago)
    workers = [kept.retaining() for _ in range(2)]
    await asyncio.gather(*(worker.once() for worker in workers))

    assert isinstance(await user_state(kept.store, tenant_id, gone), ErasedUser)
    assert await open_profile(kept.store.sealing, tenant_id, gone, before.profile) is None
    for kept_tenant, kept_person in ((tenant_id, here), (tenant_id, owner), (tenant_id, second), (other, elsewhere)):
        assert isinstance(await user_state(kept.store, kept_tenant, kept_person), Active)
    await workers[0].once()


@pytest.mark.asyncio
async def test_the_log_is_asked_when_they_were_last_there(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read model that stands still must erase nobody: the log says that they were there a moment ago."""
    tenant_id = await kept.tenant()
    await kept.policy(tenant_id, "inactive_people", 60)
    user_id = await person(kept, tenant_id, "member", 70)
    await listed(kept, user_id)
    await kept.submit(tenant_id, Item(SIGNIN, signin_stream(user_id), RecordSuccess(method="password")))

    async def stale(*_: object) -> list[Idle]:
        return [Idle(user_id, [user_stream(user_id)])]

    monkeypatch.setattr("api.privacy.retaining.footprints.idle", stale)
    await kept.retaining().once()

    assert isinstance(await user_state(kept.store, tenant_id, user_id), Active)

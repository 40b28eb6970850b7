"""The people of each tenant and the tenants themselves: what is live equals what is built anew, and one tenant never sees another's."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from random import Random
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from domain.identity import users
from domain.identity.tenants import (
    TENANT,
    AddOwner,
    ChangeTenantSettings,
    CreateTenant,
    DeleteTenant,
    ResumeTenant,
    SuspendTenant,
    tenant_stream,
)
from domain.identity.users import USER, user_stream
from domain.kernel.decider import Command, Rejected
from eventstore.pruning import prune
from eventstore.requests import Item, Request
from projections import schema
from projections.follower import Pace
from projections.people import People, PersonRow
from projections.readers import Readers
from projections.tenants import Tenants, list_tenants
from tests.projections.conftest import CODEC, START, Ledger, administer, follow

STEPS = Pace(batch=3, poll=0.02, rest=0.001)
ROLES = ("owner", "member", "support")


async def send(ledger: Ledger, user_id: UUID, command: Command) -> None:
    ledger.now += timedelta(seconds=1)
    item = Item(USER, user_stream(user_id), command)
    await ledger.store.submit(Request(ledger.tenant, uuid4(), (item,), b"f", occurred_at=ledger.now))


async def operate(ledger: Ledger, command: Command) -> None:
    item = Item(TENANT, tenant_stream(ledger.tenant), command)
    await ledger.store.submit(Request(ledger.tenant, uuid4(), (item,), b"f", occurred_at=ledger.now))


def invitation(user_id: UUID, random: Random, ledger: Ledger) -> users.InviteUser:
    login, ends = f"{user_id.int:032x}", ledger.now + timedelta(seconds=random.choice((2, 10_000)))
    return users.InviteUser(user_id=user_id, role=random.choice(ROLES), profile=f"sealed {random.random()}", login=login, expires_at=ends)


async def doings(ledger: Ledger, people: Sequence[UUID], commands: int, random: Random) -> None:
    """Random commands, many of which are refused."""
    for number in range(commands):
        user_id = random.choice(people)
        command: Command = random.choice((
            invitation(user_id, random, ledger),
            users.CreateUser(user_id=user_id, role="owner", profile=f"sealed {number}", login=f"{user_id.int:032x}"),
            users.AcceptInvitation(password="hash", profile=random.choice((None, f"own {number}"))),
            users.ChangeProfile(profile=f"changed {number}"),
            users.ChangeRole(role=random.choice(ROLES)),
            users.SuspendUser(),
            users.ResumeUser(),
            users.SetPassword(password=f"hash {number}"),
            users.AddLogin(login=f"{number:032x}"),
            random.choice((users.EraseUser(), users.ResumeUser(), users.ResumeUser(), users.ResumeUser())),
        ))  # fmt: skip
        try:
            await send(ledger, user_id, command)
        except Rejected:
            continue


def table(ledger: Ledger, name: str = "person_1") -> list[tuple[Any, ...]]:
    return sorted(administer(ledger, f"select t::text from {name} t"))


async def expected(ledger: Ledger, people: Sequence[UUID]) -> dict[UUID, tuple[str, str, str]]:
    """What the states say."""
    found = {}
    for user_id in people:
        state = (await ledger.store.state(USER, ledger.tenant, user_stream(user_id))).state
        if isinstance(state, users.Invited | users.Active | users.Suspended):
            found[user_id] = state.role, users.status(state), state.profile
    return found


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_the_list_is_what_the_states_say_and_the_same_when_built_anew(ledger: Ledger, readers: Readers, seed: int) -> None:
    random = Random(seed)
    people = [UUID(int=random.getrandbits(128), version=4) for _ in range(12)]
    await operate(ledger, CreateTenant(tenant_id=ledger.tenant, name="Acme"))
    for _ in range(3):
        await doings(ledger, people, 60, random)
        await follow(ledger, People(CODEC), pace=STEPS)

    with psycopg.connect(ledger.dsn) as conn:
        schema.create_generation(conn, "people", 2)
    await follow(ledger, People(CODEC, 2))

    rows = await readers.people.list(ledger.tenant, limit=200)
    assert {row.user_id: (row.role, row.status, row.profile) for row in rows} == await expected(ledger, people)
    assert len(rows) > 3
    assert {row.status for row in rows} >= {"active", "suspended"}
    assert table(ledger) == table(ledger, "person_2")


async def test_pages_and_filters_leave_nobody_out(ledger: Ledger, readers: Readers) -> None:
    random, people = Random(5), [uuid4() for _ in range(20)]
    await doings(ledger, people, 200, random)
    await follow(ledger, People(CODEC))
    whole = await readers.people.list(ledger.tenant, limit=200)
    assert whole == sorted(whole, key=lambda row: (row.created_at, row.user_id))

    for role in (None, *ROLES):
        for status in (None, "invited", "active", "suspended"):
            found: list[PersonRow] = []
            place = None
            while True:
                page = await readers.people.list(ledger.tenant, role=role, status=status, after=place, limit=3)
                found += page
                if len(page) < 3:
                    break
                place = page[-1].created_at, page[-1].user_id
            assert found == [row for row in whole if role in (None, row.role) and status in (None, row.status)]


async def test_one_tenant_never_sees_the_people_of_another(ledger: Ledger, readers: Readers) -> None:
    while True:
        other = Ledger(ledger.dsn, ledger.store, uuid4())
        if other.partition == ledger.partition:
            break
    for each in (ledger, other):
        await doings(each, [uuid4() for _ in range(5)], 40, Random(1))
    await follow(ledger, People(CODEC))

    mine, theirs = await readers.people.list(ledger.tenant), await readers.people.list(other.tenant)
    assert mine
    assert theirs
    assert {row.user_id for row in mine}.isdisjoint(row.user_id for row in theirs)


@pytest.mark.parametrize("pruned", [False, True])
async def test_of_a_deleted_tenant_nobody_is_left(ledger: Ledger, readers: Readers, *, pruned: bool) -> None:
    await operate(ledger, CreateTenant(tenant_id=ledger.tenant, name="Acme"))
    await doings(ledger, [uuid4() for _ in range(5)], 40, Random(1))
    await follow(ledger, People(CODEC), pace=STEPS)
    assert table(ledger)
    await operate(ledger, DeleteTenant(tenant_id=ledger.tenant))
    await follow(ledger, People(CODEC), pace=STEPS)
    if pruned:
        assert prune(ledger.dsn, ledger.tenant)
    with psycopg.connect(ledger.dsn) as conn:
        schema.create_generation(conn, "people", 2)
    await follow(ledger, People(CODEC, 2))

    assert table(ledger) == table(ledger, "person_2") == []


async def test_tenants_have_settings_and_a_status_also_when_built_anew(ledger: Ledger) -> None:
    others = [Ledger(ledger.dsn, ledger.store, uuid4(), START + timedelta(seconds=n)) for n in range(3)]
    for each in others:
        await operate(each, CreateTenant(tenant_id=each.tenant, name="Acme"))
        await operate(each, AddOwner(user_id=uuid4()))
    settings = ChangeTenantSettings(name="New", zone="Asia/Tokyo", locale="ja", currency="JPY", registration="open")
    await operate(others[0], settings)
    await operate(others[1], SuspendTenant())
    await operate(others[2], SuspendTenant())
    await operate(others[2], ResumeTenant())
    await follow(ledger, Tenants(CODEC), pace=STEPS)
    with psycopg.connect(ledger.dsn) as conn:
        schema.create_generation(conn, "tenants", 2)
    await follow(ledger, Tenants(CODEC, 2))

    found = await list_tenants(ledger.dsn)
    assert [row.tenant_id for row in found] == [each.tenant for each in others]
    assert [row[1:7] for row in found] == [
        ("New", "Asia/Tokyo", "ja", "JPY", "open", "active"),
        ("Acme", "UTC", "en", "EUR", "invited", "suspended"),
        ("Acme", "UTC", "en", "EUR", "invited", "active"),
    ]
    assert [row.tenant_id for row in await list_tenants(ledger.dsn, status="suspended")] == [others[1].tenant]
    assert await list_tenants(ledger.dsn, after=(found[0].created_at, found[0].tenant_id), limit=1) == found[1:2]
    assert table(ledger, "tenant_1") == table(ledger, "tenant_2")

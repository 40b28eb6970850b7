"""The read model of sessions: those that the log says are alive, however it was cut into batches, and built anew the same."""

from __future__ import annotations

from datetime import timedelta
from random import Random
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from domain.identity.sessions import (
    SESSION,
    EndSession,
    ExpireSession,
    ExtendSession,
    RefreshSession,
    Session,
    StartSession,
    session_stream,
)
from domain.identity.signins import SIGNIN, SignIn, SignOutEverywhere, signin_stream
from domain.identity.tenants import TENANT, CreateTenant, DeleteTenant, tenant_stream
from domain.identity.users import USER, CreateUser, EraseUser, user_stream
from domain.kernel.decider import Command, Decider, Rejected
from eventstore.pruning import prune
from eventstore.requests import Item, Request
from projections import schema
from projections.follower import Pace
from projections.readers import Readers
from projections.sessions import Sessions
from tests.projections.conftest import CODEC, Ledger, administer, follow

SMALL = Pace(batch=3, poll=0.02, rest=0.001)


async def send(ledger: Ledger, decider: Decider[Any], stream: str, command: Command) -> None:
    await ledger.store.submit(Request(ledger.tenant, uuid4(), (Item(decider, stream, command),), b"f", occurred_at=ledger.now))


def people(ledger: Ledger) -> list[UUID]:
    return [UUID(int=ledger.tenant.int ^ number) for number in (1, 2, 3)]


async def traffic(ledger: Ledger, random: Random, count: int) -> list[UUID]:
    """What people do with their sessions, and what is refused."""
    made: list[UUID] = []
    for _ in range(count):
        ledger.now += timedelta(seconds=random.choice((1, 5, 60, 4_000)))
        user_id = random.choice(people(ledger))
        kind: Any = random.choice(("token", "browser"))
        if not made or random.random() < 0.3:
            made.append(uuid4())
            start = StartSession(
                session_id=made[-1], user_id=user_id, kind=kind, device=None, lifetime_seconds=80_000, idle_seconds=40_000
            )  # fmt: skip
            await send(ledger, SESSION, session_stream(made[-1]), start)
            continue
        if random.random() < 0.02:
            await send(ledger, SIGNIN, signin_stream(user_id), SignOutEverywhere())
            continue
        command: Command = ExtendSession()
        match random.randrange(10):
            case 0:
                command = RefreshSession(number=random.choice((1, 2)))
            case 1:
                command = EndSession(reason="logout")
            case 2 | 3:
                command = ExpireSession()
            case _:
                pass
        try:
            await send(ledger, SESSION, session_stream(random.choice(made[-6:])), command)
        except Rejected:
            continue
    return made


async def alive(ledger: Ledger, made: list[UUID]) -> dict[UUID, tuple[Any, ...]]:
    """By the log: not ended, and begun after their person was last signed out everywhere."""
    found = {}
    for session_id in made:
        state = (await ledger.store.state(SESSION, ledger.tenant, session_stream(session_id))).state
        if not isinstance(state, Session) or not state.alive(ledger.now):
            continue
        signin: SignIn = (await ledger.store.state(SIGNIN, ledger.tenant, signin_stream(state.user_id))).state
        if signin.signed_out_at is None or state.started_at > signin.signed_out_at:
            found[session_id] = (state.kind, state.device, state.started_at, state.rotated_at, state.until)
    return found


async def shown(ledger: Ledger, readers: Readers) -> dict[UUID, tuple[Any, ...]]:
    found = {}
    for user_id in people(ledger):
        for row in await readers.sessions.list(ledger.tenant, user_id, ledger.now):
            found[row.session_id] = row[1:]
    return found


def rows(ledger: Ledger, generation: int = 1) -> list[tuple[Any, ...]]:
    return sorted(administer(ledger, f"select t::text from session_{generation} t"))


def second_generation(ledger: Ledger) -> Sessions:
    with psycopg.connect(ledger.dsn) as conn:
        schema.create_generation(conn, "sessions", 2)
    return Sessions(CODEC, 2)


async def test_live_is_what_is_built_anew_and_what_the_log_says(ledger: Ledger, readers: Readers) -> None:
    random = Random(3)
    made = await traffic(ledger, random, 120)
    await follow(ledger, Sessions(CODEC), pace=SMALL)
    made += await traffic(ledger, random, 60)
    await follow(ledger, Sessions(CODEC), pace=SMALL)
    await follow(ledger, second_generation(ledger))

    expected = await alive(ledger, made)
    assert await shown(ledger, readers) == expected
    assert 3 < len(expected) < len(made), "or the traffic says little"
    assert rows(ledger, 1) == rows(ledger, 2)


async def test_an_erased_persons_sessions_go_and_nobody_elses(ledger: Ledger, readers: Readers) -> None:
    one, two, _ = people(ledger)
    for user_id in (one, two):
        await send(ledger, USER, user_stream(user_id), CreateUser(user_id=user_id, role="member", profile="sealed", login="a" * 32))
        start = StartSession(session_id=user_id, user_id=user_id, kind="token", device=None, lifetime_seconds=60, idle_seconds=60)
        await send(ledger, SESSION, session_stream(user_id), start)
    await send(ledger, USER, user_stream(one), EraseUser())
    await follow(ledger, Sessions(CODEC), pace=SMALL)

    assert list(await shown(ledger, readers)) == [two]


@pytest.mark.parametrize("pruned", [False, True])
async def test_of_a_deleted_tenant_nothing_stays(ledger: Ledger, pruned: bool) -> None:
    await send(ledger, TENANT, tenant_stream(ledger.tenant), CreateTenant(tenant_id=ledger.tenant, name="Acme"))
    await traffic(ledger, Random(7), 20)
    await follow(ledger, Sessions(CODEC), pace=SMALL)
    assert rows(ledger)

    await send(ledger, TENANT, tenant_stream(ledger.tenant), DeleteTenant(tenant_id=ledger.tenant))
    await follow(ledger, Sessions(CODEC), pace=SMALL)
    if pruned:
        assert prune(ledger.dsn, ledger.tenant)
    await follow(ledger, second_generation(ledger))

    assert rows(ledger, 1) == rows(ledger, 2) == []


async def test_a_reader_sees_one_tenant_also_without_asking_for_it(ledger: Ledger) -> None:
    await traffic(ledger, Random(1), 1)
    await follow(ledger, Sessions(CODEC))

    for tenant_id, seen in ((ledger.tenant, True), (uuid4(), False), ("", False)):
        with psycopg.connect(ledger.dsn) as conn:
            conn.execute("set role holdbook_reader")
            conn.execute(f"set app.tenant_id = '{tenant_id}'")
            assert bool(conn.execute("select from session_1").fetchall()) is seen

"""The read models of sender accounts and of API keys: what the log says, however it was cut into batches and by whom it was read."""

from __future__ import annotations

from datetime import timedelta
from random import Random
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from domain.identity.service_accounts import SERVICE_ACCOUNT, IssueKey, RevokeKey, RotateKey, service_account_stream
from domain.identity.tenants import TENANT, CreateTenant, DeleteTenant, tenant_stream
from domain.kernel.decider import Command, Decider, Rejected
from domain.privacy.people import PERSON, RecordErasure, person_of, person_stream
from domain.sender_account import (
    SENDER,
    ChangeSender,
    ExcludeSender,
    FloodWait,
    PeerFlood,
    Probe,
    RegisterSender,
    ReportSignal,
    RestoreSender,
    Sent,
    Timeout,
    sender_stream,
    situation,
)
from eventstore.pruning import prune
from eventstore.requests import Item, Request
from projections import schema
from projections.follower import Pace
from projections.keys import Keys
from projections.readers import Readers
from projections.senders import Senders
from tests.projections.conftest import CODEC, Ledger, administer, follow

OWNERS = ("anna", uuid4().hex)
SENDERS = tuple(f"sender-{number}" for number in range(6))
ACCOUNTS = tuple(UUID(int=number) for number in (1, 2))
SMALL = Pace(batch=3, poll=0.02, rest=0.001)


async def send(ledger: Ledger, decider: Decider[Any], stream: str, command: Command) -> None:
    request = Request(ledger.tenant, uuid4(), (Item(decider, stream, command),), b"f", occurred_at=ledger.now)
    await ledger.store.submit(request)


async def of_sender(ledger: Ledger, sender_id: str, command: Command) -> None:
    await send(ledger, SENDER, sender_stream(ledger.tenant, sender_id), command)


async def erase(ledger: Ledger, owner: str) -> None:
    person_id = person_of(ledger.tenant, owner)
    await send(ledger, PERSON, person_stream(ledger.tenant, person_id), RecordErasure(person_id=person_id))


async def traffic(ledger: Ledger, random: Random, count: int) -> None:
    for sender_id in SENDERS:
        label = f"sealed {sender_id}" if random.random() < 0.8 else ""
        owner = OWNERS[SENDERS.index(sender_id) % 2]
        await of_sender(ledger, sender_id, RegisterSender(sender_id=sender_id, owner=owner, label=label, cooldown_seconds=20))
    for _ in range(count):
        ledger.now += timedelta(seconds=random.choice((0, 0, 1, 10, 30, 1_000)))
        sender_id = random.choice(SENDERS)
        signal: Any = random.choice((Sent(), Timeout(), PeerFlood(), FloodWait(50), Probe(True), Probe(False)))
        command: Command = ReportSignal(sender_id=sender_id, signal=signal)
        match random.randrange(12):
            case 0:
                command = ExcludeSender(sender_id=sender_id)
            case 1 | 2:
                command = RestoreSender(sender_id=sender_id)
            case 3:
                command = ChangeSender(sender_id=sender_id, label=f"sealed {random.random()}", cooldown_seconds=random.randrange(1, 90))
            case _:
                pass
        await of_sender(ledger, sender_id, command)


async def keys(ledger: Ledger, random: Random, count: int) -> None:
    made: list[tuple[UUID, str]] = []
    for number in range(count):
        ledger.now += timedelta(hours=random.randrange(1, 30))
        key_id, account_id = f"{number:08x}", random.choice(ACCOUNTS)
        old = random.choice(made) if made else (account_id, "ffffffff")
        days = random.choice((None, 1, 10))
        expires_at = None if days is None else ledger.now + timedelta(days=days)
        command: Command = IssueKey(key_id=key_id, secret_hash=f"{number:064x}", scopes=("usage:read",), name="bot", expires_at=expires_at)
        match random.randrange(5):
            case 0:
                account_id, command = old[0], RevokeKey(key_id=old[1])
            case 1 | 2:
                account_id = old[0]
                command = RotateKey(key_id=old[1], new_key_id=key_id, secret_hash=f"{number:064x}", overlap_seconds=3_600)
            case _:
                pass
        try:
            await send(ledger, SERVICE_ACCOUNT, service_account_stream(UUID(int=account_id.int ^ ledger.tenant.int)), command)
        except Rejected:
            continue
        made.append((account_id, key_id))


def rows(ledger: Ledger, generation: int = 1) -> dict[str, list[tuple[Any, ...]]]:
    tables = ("sender", "api_key")
    return {table: sorted(administer(ledger, f"select t::text from {table}_{generation} t")) for table in tables}


def second_generation(ledger: Ledger) -> tuple[Senders, Keys]:
    with psycopg.connect(ledger.dsn) as conn:
        for name in ("senders", "keys"):
            schema.create_generation(conn, name, 2)
    return Senders(CODEC, 2), Keys(CODEC, 2)


async def test_live_is_what_is_built_anew_and_what_the_log_says(ledger: Ledger, readers: Readers) -> None:
    random = Random(5)
    await traffic(ledger, random, 150)
    await keys(ledger, random, 60)
    await follow(ledger, Senders(CODEC), Keys(CODEC), pace=SMALL)
    await traffic_goes_on(ledger, random)
    await follow(ledger, Senders(CODEC), Keys(CODEC), pace=SMALL)
    await follow(ledger, *second_generation(ledger))

    assert rows(ledger, 1) == rows(ledger, 2)
    long_ago = ledger.now - timedelta(days=365_000)
    found = {row.sender_id: row for row in await readers.senders.list(ledger.tenant, long_ago)}
    assert sorted(found) == sorted(SENDERS)
    for sender_id, row in found.items():
        state: Any = (await ledger.store.state(SENDER, ledger.tenant, sender_stream(ledger.tenant, sender_id))).state
        told = {"state": row.state, "errors": row.errors, "reason": row.reason, "until": row.until}
        assert told == situation(state)
        assert (row.label, row.cooldown_seconds) == (state.account.label, state.account.cooldown_seconds)
    assert len({row.state for row in found.values()}) > 1, "or the traffic says little"
    shown = await readers.keys.list(ledger.tenant)
    kept = []
    for account_id in ACCOUNTS:
        stream = service_account_stream(UUID(int=account_id.int ^ ledger.tenant.int))
        kept += [(key.key_id, key.expires_at) for key in (await ledger.store.state(SERVICE_ACCOUNT, ledger.tenant, stream)).state.keys]
    assert sorted((row.key_id, row.expires_at) for row in shown) == sorted(kept)
    assert len(kept) > 5


async def traffic_goes_on(ledger: Ledger, random: Random) -> None:
    for sender_id in SENDERS[:3]:
        await of_sender(ledger, sender_id, ReportSignal(sender_id=sender_id, signal=random.choice((PeerFlood(), Timeout()))))


async def test_the_label_of_an_erased_person_goes_and_no_other(ledger: Ledger, readers: Readers) -> None:
    for owner in OWNERS:
        await of_sender(ledger, owner, RegisterSender(sender_id=owner, owner=owner, label="sealed"))
    await erase(ledger, OWNERS[0])
    await follow(ledger, Senders(CODEC), pace=SMALL)
    await erase(ledger, OWNERS[0])
    await follow(ledger, Senders(CODEC), pace=SMALL)

    assert {row.owner: row.label for row in await readers.senders.list(ledger.tenant, ledger.now)} == {OWNERS[0]: "", OWNERS[1]: "sealed"}
    await follow(ledger, *second_generation(ledger))
    assert rows(ledger, 1)["sender"] == rows(ledger, 2)["sender"]


@pytest.mark.parametrize("pruned", [False, True])
async def test_of_a_deleted_tenant_nothing_stays(ledger: Ledger, pruned: bool) -> None:
    random = Random(7)
    await send(ledger, TENANT, tenant_stream(ledger.tenant), CreateTenant(tenant_id=ledger.tenant, name="Acme"))
    await traffic(ledger, random, 20)
    await keys(ledger, random, 10)
    await follow(ledger, Senders(CODEC), Keys(CODEC), pace=SMALL)
    administer(ledger, "insert into key_use values (%s, %s, %s, 'a', now())", (ledger.partition, ledger.tenant, ledger.tenant))
    assert all(rows(ledger).values())

    await send(ledger, TENANT, tenant_stream(ledger.tenant), DeleteTenant(tenant_id=ledger.tenant))
    await follow(ledger, Senders(CODEC), Keys(CODEC), pace=SMALL)
    if pruned:
        assert prune(ledger.dsn, ledger.tenant)
    await follow(ledger, *second_generation(ledger))

    assert rows(ledger, 1) == rows(ledger, 2) == {"sender": [], "api_key": []}
    assert administer(ledger, "select count(*) from key_use") == [(0 if pruned else 1,)]


async def test_a_reader_sees_one_tenant_also_without_asking_for_it(ledger: Ledger) -> None:
    await traffic(ledger, Random(1), 0)
    await keys(ledger, Random(5), 20)
    await follow(ledger, Senders(CODEC), Keys(CODEC))
    administer(ledger, "insert into key_use values (%s, %s, %s, 'a', now())", (ledger.partition, ledger.tenant, ledger.tenant))

    for tenant_id, seen in ((ledger.tenant, True), (uuid4(), False), ("", False)):
        with psycopg.connect(ledger.dsn) as conn:
            conn.execute("set role holdbook_reader")
            conn.execute(f"set app.tenant_id = '{tenant_id}'")
            for table in ("sender_1", "api_key_1", "key_use"):
                assert bool(conn.execute(f"select from {table}").fetchall()) is seen, table

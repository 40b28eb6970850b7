"""The license read model: what one read by a person's key finds is what the log says, however it was folded."""

import asyncio
from datetime import timedelta
from random import Random
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from domain.identity.devices import DEVICES, BindDevice, RenameDevice, SetDeviceLimit, UnbindDevice, devices_stream
from domain.identity.licenses import (
    LICENSE,
    ActiveLicense,
    NoLicense,
    SetLicense,
    SuspendedLicense,
    SuspendLicense,
    license_stream,
    terms_of,
)
from domain.identity.tenants import TENANT, CreateTenant, DeleteTenant, tenant_stream
from domain.identity.users import USER, CreateUser, EraseUser, user_stream
from domain.kernel.decider import Command, Decider
from domain.quota import Quota
from domain.quota.limits import Limit, Window
from domain.quota.view import view
from eventstore.requests import Item, Request
from projections import schema
from projections.consumer import ProjectionBehind
from projections.follower import Pace
from projections.license_queries import LicenseRow
from projections.licenses import Licenses
from projections.readers import Readers
from tests.projections.conftest import CODEC, LIMITS, Ledger, administer, follow

STEPS = Pace(batch=7, poll=0.02, rest=0.001)
ANNA, BORIS = UUID(int=0xA11A), UUID(int=0xB0B1)


def table(ledger: Ledger, generation: int = 1) -> list[tuple[Any, ...]]:
    """Every row, byte for byte."""
    return sorted(administer(ledger, f"select t::text from license_{generation} t"))


def second_generation(ledger: Ledger) -> Licenses:
    with psycopg.connect(ledger.dsn) as conn:
        schema.create_generation(conn, "licenses", 2)
    return Licenses(CODEC, 2)


async def operate(ledger: Ledger, decider: Decider[Any], stream: str, *commands: Command) -> int:
    """Commands one after the other; the position of the last."""
    for command in commands:
        outcome = await ledger.store.submit(
            Request(ledger.tenant, uuid4(), (Item(decider, stream, command),), b"f", occurred_at=ledger.now)
        )
    return outcome.position


def bind(number: int) -> BindDevice:
    return BindDevice(device_id=UUID(int=number), fingerprint=f"{number:032x}", name=f"sealed-{number}", limit_if_unset=5)


def licensed(user_id: UUID, plan: str = "pro") -> SetLicense:
    return SetLicense(user_id=user_id, plan=plan, valid_until=None, devices=3, meters=("tokens",))


def plan_of(row: LicenseRow) -> str | None:
    terms = terms_of(row.license)
    return None if terms is None else terms.plan


async def person(ledger: Ledger, user_id: UUID) -> None:
    """Somebody with a license, two devices and a quota."""
    created = CreateUser(user_id=user_id, role="member", profile="sealed", login="ab" * 16)
    await operate(ledger, USER, user_stream(user_id), created)
    await operate(ledger, LICENSE, license_stream(user_id), licensed(user_id))
    await operate(ledger, DEVICES, devices_stream(user_id), SetDeviceLimit(limit=3), bind(1), bind(2))
    await ledger.set_limits(user_id.hex, Limit("life", 100))


async def test_a_row_holds_what_the_log_says_at_every_moment(ledger: Ledger, readers: Readers) -> None:
    random = Random(5)
    for user_id in (ANNA, BORIS):
        await ledger.set_limits(user_id.hex, *LIMITS)
    for _ in range(6):
        await ledger.traffic(random, 60, (ANNA.hex, BORIS.hex, "somebody"))
        await follow(ledger, Licenses(CODEC), pace=STEPS)
        for user_id in (ANNA, BORIS):
            found = await readers.licenses.get(ledger.tenant, user_id)
            (quota,) = found.quotas
            for later in (0, 1, 20, 400, 5_000, 10**6):
                at = ledger.now + timedelta(seconds=later)
                assert view(quota, at) == await ledger.view(user_id.hex, at)


async def test_license_and_devices_are_found_with_the_quotas(ledger: Ledger, readers: Readers) -> None:
    await person(ledger, ANNA)
    await ledger.set_limits(ANNA.hex, Limit("day", 5, Window("day")), meter="messages")
    await ledger.set_limits("customer-1", Limit("life", 7))
    await operate(ledger, LICENSE, license_stream(ANNA), SuspendLicense())
    await operate(
        ledger, DEVICES, devices_stream(ANNA), RenameDevice(device_id=UUID(int=2), name="new"), UnbindDevice(device_id=UUID(int=1))
    )
    await follow(ledger, Licenses(CODEC))

    found = await readers.licenses.get(ledger.tenant, ANNA)

    assert isinstance(found.license, SuspendedLicense)
    assert (found.license.terms.plan, found.devices.limit) == ("pro", 3)
    assert [(device.device_id, device.name) for device in found.devices.bound] == [(UUID(int=2), "new")]
    assert [quota.terms.meter for quota in found.quotas] == ["messages", "tokens"]
    assert len(table(ledger)) == 4, "what is nobody's is not kept"


async def test_nobody_has_nothing(ledger: Ledger, readers: Readers) -> None:
    await person(ledger, ANNA)
    await follow(ledger, Licenses(CODEC))

    found = await readers.licenses.get(ledger.tenant, BORIS)
    elsewhere = await readers.licenses.get(uuid4(), ANNA)

    for row in (found, elsewhere):
        assert (row.license, row.devices, row.quotas) == (NoLicense(), DEVICES.initial, ())


async def test_people_asked_for_at_once_each_have_their_own(ledger: Ledger, readers: Readers) -> None:
    await person(ledger, ANNA)
    await operate(ledger, LICENSE, license_stream(BORIS), licensed(BORIS, "free"))
    await follow(ledger, Licenses(CODEC))
    wanted = [(ledger.tenant, ANNA), (ledger.tenant, BORIS), (ledger.tenant, UUID(int=0xC0)), (uuid4(), ANNA), (ledger.tenant, ANNA)]

    for _ in range(2):  # the first time the generation is not known yet
        found = await asyncio.gather(*(readers.licenses.get(tenant, who) for tenant, who in wanted))

        assert [plan_of(row) for row in found] == ["pro", "free", None, None, "pro"]
        assert [len(row.devices.bound) for row in found] == [2, 0, 0, 0, 2]
        assert [len(row.quotas) for row in found] == [1, 0, 0, 0, 1]


async def test_batches_of_any_size_end_in_the_same_rows(ledger: Ledger) -> None:
    await person(ledger, ANNA)
    for batch in (1, 7, 50):
        await ledger.traffic(Random(batch), 60, (ANNA.hex, BORIS.hex, "somebody"))
        await operate(ledger, DEVICES, devices_stream(ANNA), bind(batch + 10), UnbindDevice(device_id=UUID(int=batch + 10)))
        await follow(ledger, Licenses(CODEC), pace=Pace(batch=batch, poll=0.02, rest=0.001))

    await follow(ledger, second_generation(ledger))

    assert table(ledger, 1) == table(ledger, 2)
    assert table(ledger)


async def test_the_rows_of_an_erased_person_go_and_stay_away(ledger: Ledger, readers: Readers) -> None:
    """Also when whoever folds had the person in memory while another one came to the erasure."""
    for user_id in (ANNA, BORIS):
        await person(ledger, user_id)
    await ledger.reserve(ANNA.hex, "open", 3)
    first = Licenses(CODEC)
    await follow(ledger, first)
    await operate(ledger, USER, user_stream(ANNA), EraseUser())
    await follow(ledger, Licenses(CODEC))
    assert {row.split(",")[2] for (row,) in table(ledger)} == {str(BORIS)}

    ledger.now += timedelta(hours=1)
    await ledger.reserve(ANNA.hex, "after the expiry", 1)
    await follow(ledger, first)
    await ledger.reserve(ANNA.hex, "once more", 1)
    await follow(ledger, Licenses(CODEC))

    assert {row.split(",")[2] for (row,) in table(ledger)} == {str(BORIS)}
    assert (await readers.licenses.get(ledger.tenant, ANNA)).quotas == ()
    for pace in (STEPS, Pace(batch=500)):
        with psycopg.connect(ledger.dsn, autocommit=True) as conn:
            conn.execute("drop table if exists license_2")
            conn.execute("delete from checkpoint where consumer = 'licenses' and generation = 2")
            conn.execute("delete from projection_generation where name = 'licenses' and generation = 2")
        await follow(ledger, second_generation(ledger), pace=pace)
        assert table(ledger, 1) == table(ledger, 2)


async def test_the_rows_of_a_deleted_tenant_go(ledger: Ledger) -> None:
    await operate(ledger, TENANT, tenant_stream(ledger.tenant), CreateTenant(tenant_id=ledger.tenant, name="Acme"))
    await person(ledger, ANNA)
    await follow(ledger, Licenses(CODEC), pace=STEPS)
    assert table(ledger)

    await operate(ledger, TENANT, tenant_stream(ledger.tenant), DeleteTenant(tenant_id=ledger.tenant))
    await follow(ledger, Licenses(CODEC), pace=STEPS)

    assert not table(ledger)


async def test_a_query_waits_for_the_position_it_names(ledger: Ledger, readers: Readers) -> None:
    await person(ledger, ANNA)
    await follow(ledger, Licenses(CODEC))
    wanted = await operate(ledger, LICENSE, license_stream(ANNA), licensed(ANNA, "free"))

    with pytest.raises(ProjectionBehind):
        await readers.licenses.get(ledger.tenant, ANNA, wanted, timeout_seconds=0.05)
    await follow(ledger, Licenses(CODEC))

    found = await readers.licenses.get(ledger.tenant, ANNA, wanted, timeout_seconds=5)
    assert isinstance(found.license, ActiveLicense)
    assert found.license.terms.plan == "free"


async def test_a_reader_goes_over_to_the_generation_that_answers_next(ledger: Ledger, readers: Readers) -> None:
    await person(ledger, ANNA)
    await follow(ledger, Licenses(CODEC))
    before = await readers.licenses.get(ledger.tenant, ANNA)
    await follow(ledger, second_generation(ledger))
    await operate(ledger, LICENSE, license_stream(ANNA), licensed(ANNA, "next"))
    await follow(ledger, Licenses(CODEC, 2))

    administer(ledger, "update projection set generation = 2 where name = 'licenses'")
    switched = await readers.licenses.get(ledger.tenant, ANNA)
    administer(ledger, "update projection set generation = 1 where name = 'licenses'")
    back = await readers.licenses.get(ledger.tenant, ANNA)
    administer(ledger, "update projection set generation = 2 where name = 'licenses'")
    administer(ledger, "drop table license_1")
    dropped = await readers.licenses.get(ledger.tenant, ANNA)

    assert [_plan(row) for row in (before, switched, back, dropped)] == ["pro", "next", "pro", "next"]
    assert all(isinstance(quota, Quota) for quota in dropped.quotas)


def _plan(row: LicenseRow) -> str:
    assert isinstance(row.license, ActiveLicense)
    return row.license.terms.plan

"""Erasure: recorded at once and everywhere, unreadable from then on in every process, completed by whoever is left, and nothing else."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest

from api import passwords
from api.people import PASSWORD, PROFILE, Profile, create_items, login_of_email, open_profile, seal_profile, user_state
from api.privacy import erasing
from domain.catalog import DECIDERS
from domain.identity.devices import DEVICES, BindDevice, devices_stream
from domain.identity.licenses import LICENSE, RevokedLicense, SetLicense, license_stream
from domain.identity.logins import LOGIN, ClaimLogin, Login, NoLogin, login_stream
from domain.identity.signins import SIGNIN, signin_stream
from domain.identity.tenants import TENANT, tenant_stream
from domain.identity.users import USER, Active, AddLogin, ErasedUser, SetPassword, user_stream
from domain.privacy.people import PERSON, ErasedPerson, person_stream
from eventstore.requests import Item, Request
from eventstore.sealing import Erased
from eventstore.store import Store
from tests.api.conftest import Site
from tests.support.doors import door_by_a_clock

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOT = Path(__file__).parents[2]
EMAIL, NAME = "erasmus.marker@example.org", "Erasmus Q. Marker"


async def until(true: Callable[[], Awaitable[bool]], seconds: float = 60.0) -> None:
    """Wait for a condition."""
    end = asyncio.get_running_loop().time() + seconds
    while not await true():
        assert asyncio.get_running_loop().time() < end, "it did not come to this"
        await asyncio.sleep(0.02)


async def person(site: Site, role: str = "member", email: str = EMAIL, tenant_id: UUID | None = None) -> UUID:
    """Somebody with a profile, a password, a device and a license."""
    tenant_id, user_id = tenant_id or site.account.tenant_id, uuid4()
    sealing = site.store.sealing
    profile = await seal_profile(sealing, tenant_id, user_id, Profile(email, NAME))
    password = await sealing.seal(tenant_id, user_id, PASSWORD, "$argon2id$never-really")
    login = await login_of_email(sealing, tenant_id, email)
    device = BindDevice(
        device_id=uuid4(), fingerprint="ab" * 16, name=await sealing.seal(tenant_id, user_id, "device.name", "Marker's laptop")
    )
    license_ = SetLicense(user_id=user_id, plan="pro", valid_until=None, devices=3, meters=())
    items = (
        *create_items(tenant_id, user_id, role, profile, login, password),
        Item(DEVICES, devices_stream(user_id), device),
        Item(LICENSE, license_stream(user_id), license_),
    )
    outcome = await site.store.submit(Request(tenant_id, uuid4(), items, b""))
    assert not outcome.refused, outcome.reply
    return user_id


async def readable(store: Store, tenant_id: UUID, user_id: UUID, sealed: str) -> bool:
    return await open_profile(store.sealing, tenant_id, user_id, sealed) is not None


async def test_everything_of_a_person_ends_in_one_batch(site: Site) -> None:
    tenant_id, user_id = site.account.tenant_id, await person(site)
    before = await user_state(site.store, tenant_id, user_id)
    assert isinstance(before, Active)
    login = login_stream(before.logins[0])

    answer = await site.post(f"/v1/privacy/{user_id.hex}/erase", {"confirm": True}, key="erase")
    again = await site.post(f"/v1/privacy/{user_id.hex}/erase", {"confirm": True}, key="erase")

    assert (answer.status_code, answer.json()) == (200, {"person_id": user_id.hex, "status": "erased"})
    assert (again.content, again.headers["Idempotent-Replayed"]) == (answer.content, "true")
    user, held, signin, devices, license_, erased = await site.store.states(
        tenant_id,
        [
            (USER, user_stream(user_id)), (LOGIN, login), (SIGNIN, signin_stream(user_id)), (DEVICES, devices_stream(user_id)),
            (LICENSE, license_stream(user_id)), (PERSON, person_stream(tenant_id, user_id)),
        ],
    )  # fmt: skip
    assert user.state == ErasedUser(user_id)
    assert held.state == NoLogin()
    assert signin.state.signed_out_at is not None
    assert devices.state.bound == ()
    assert isinstance(license_.state, RevokedLicense)
    assert isinstance(erased.state, ErasedPerson)
    batches = {row.command_id for row in await site.rows() if row.type in ("user.erased", "privacy.subject_erased", "login.released")}
    assert len(batches) == 1
    assert not await readable(site.store, tenant_id, user_id, before.profile)
    with pytest.raises(Erased):
        await site.store.sealing.seal(tenant_id, user_id, PROFILE, "anew")


async def test_who_was_erased_can_register_again_as_somebody_new(site: Site) -> None:
    first = await person(site, email="again@example.org")

    await site.post(f"/v1/privacy/{first.hex}/erase", {"confirm": True}, key="erase")
    second = await person(site, email="again@example.org")

    state = await user_state(site.store, site.account.tenant_id, second)
    assert first != second
    assert isinstance(state, Active)
    assert await readable(site.store, site.account.tenant_id, second, state.profile)


async def test_another_process_cannot_read_it_within_two_seconds(site: Site, module_database: str) -> None:
    tenant_id, user_id = site.account.tenant_id, await person(site, email="two@example.org")
    state = await user_state(site.store, tenant_id, user_id)
    assert isinstance(state, Active)
    other = await Store.open(module_database, DECIDERS, wakeups=False)
    try:
        assert await readable(other, tenant_id, user_id, state.profile)

        await site.post(f"/v1/privacy/{user_id.hex}/erase", {"confirm": True}, key="erase")
        erased = time.monotonic()

        async def gone() -> bool:
            asked = time.monotonic()
            if not await readable(other, tenant_id, user_id, state.profile):
                return True
            assert asked - erased < 2, "however long the answer took"
            return False

        await until(gone)
    finally:
        await other.drain()


async def test_a_process_that_dies_before_the_destruction_is_completed_by_the_worker(site: Site, module_database: str) -> None:
    tenant_id, user_id = site.account.tenant_id, await person(site, email="dying@example.org")
    state = await user_state(site.store, tenant_id, user_id)
    assert isinstance(state, Active)
    assert await readable(site.store, tenant_id, user_id, state.profile)

    command = [sys.executable, "-m", "tests.support.dying_erasure", str(tenant_id), user_id.hex]
    environment = {**os.environ, "HOLDBOOK_DATABASE_URL": module_database}
    died = await asyncio.to_thread(subprocess.run, command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)

    assert died.returncode == -9, died.stderr
    assert isinstance(await user_state(site.store, tenant_id, user_id), ErasedUser)

    async def gone() -> bool:
        return not await readable(site.store, tenant_id, user_id, state.profile)

    await until(gone)


async def test_what_is_added_at_the_same_moment_is_released_as_well(site: Site) -> None:
    """The batch is made of what was seen; a login added between the looking and the recording is not in it."""
    tenant_id, user_id = site.account.tenant_id, await person(site, email="race@example.org")
    seen = await user_state(site.store, tenant_id, user_id)
    late = await site.store.sealing.digest(tenant_id, "login.telegram", "4711")
    batch = await erasing.items(site.store, tenant_id, user_id, seen)
    assert login_stream(late) not in {item.stream for item in batch}
    await site.store.submit(
        Request(
            tenant_id,
            uuid4(),
            (Item(LOGIN, login_stream(late), ClaimLogin(user_id=user_id)), Item(USER, user_stream(user_id), AddLogin(login=late))),
            b"",
        )
    )
    assert (await site.store.state(LOGIN, tenant_id, login_stream(late))).state == Login(user_id)
    await site.store.submit(Request(tenant_id, uuid4(), batch, b""))  # from here on the worker completes it as well

    await asyncio.gather(*(erasing.complete(site.store, tenant_id, user_id) for _ in range(3)))

    assert (await site.store.state(LOGIN, tenant_id, login_stream(late))).state == NoLogin()
    released = [row for row in await site.rows() if row.type == "login.released" and row.stream == login_stream(late)]
    assert len(released) == 1


async def test_the_last_owner_stays(site: Site) -> None:
    tenant_id = site.account.tenant_id
    owner = await person(site, "owner", "owner@example.org")
    second = await person(site, "owner", "second@example.org")
    environment = {**os.environ, "HOLDBOOK_DATABASE_URL": str(site.store.pool.conninfo)}  # type: ignore[union-attr]  # on a database

    def erase(user_id: UUID) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "api.cli", "privacy", "erase", user_id.hex, "--tenant", str(tenant_id), "--yes"]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)

    first = await asyncio.to_thread(erase, owner)
    last = await asyncio.to_thread(erase, second)

    assert (first.returncode, last.returncode) == (0, 1), first.stderr + last.stderr
    assert "tenant.last_owner" in last.stderr
    state = await user_state(site.store, tenant_id, second)
    assert isinstance(state, Active)
    assert await readable(site.store, tenant_id, second, state.profile)
    assert (await site.store.state(TENANT, tenant_id, tenant_stream(tenant_id))).state.owners == (second,)


@pytest.mark.parametrize("role", ["owner", "admin"])
async def test_a_key_counts_as_an_administrator(site: Site, role: str) -> None:
    user_id = await person(site, role, f"{role}-of-keys@example.org")

    answer = await site.post(f"/v1/privacy/{user_id.hex}/erase", {"confirm": True}, key="erase")

    assert (answer.status_code, answer.json()["code"]) == (403, "users.role_not_yours")
    assert isinstance(await user_state(site.store, site.account.tenant_id, user_id), Active)


@pytest.mark.parametrize(
    ("body", "field"), [({}, "confirm"), ({"confirm": False}, "confirm"), ({"confirm": True, "subject": "x"}, "subject")]
)
async def test_it_must_be_meant(site: Site, body: dict[str, object], field: str) -> None:
    before = len(await site.rows())

    answer = await site.post("/v1/privacy/tg:1/erase", body, key="erase")

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == field
    assert len(await site.rows()) == before


async def test_the_tenant_itself_is_nobody(site: Site) -> None:
    tenant_id = site.account.tenant_id
    sealed = await site.store.sealing.seal(tenant_id, tenant_id, "telegram.bot_token", "123:abc")

    answer = await site.post(f"/v1/privacy/{tenant_id.hex}/erase", {"confirm": True}, key="erase")

    assert (answer.status_code, answer.json()["code"]) == (404, "privacy.not_a_person")
    assert await site.store.sealing.open(tenant_id, tenant_id, "telegram.bot_token", sealed) == "123:abc"


async def test_a_stranger_erases_nobody(site: Site) -> None:
    user_id = await person(site, email="mine@example.org")
    state = await user_state(site.store, site.account.tenant_id, user_id)
    assert isinstance(state, Active)
    other = await site.issue(await site.tenant())
    poor = await site.issue(site.account.tenant_id, ("usage:write", "users:admin"))

    theirs = await site.post(f"/v1/privacy/{user_id.hex}/erase", {"confirm": True}, account=other, key="erase")
    without = await site.post(f"/v1/privacy/{user_id.hex}/erase", {"confirm": True}, account=poor, key="erase")
    ours = await site.post(f"/v1/privacy/{user_id.hex}/erase", {"confirm": True}, key="erase")

    assert theirs.status_code == 200  # of a person of their own tenant that never was
    assert without.status_code == 403
    assert ours.status_code == 200, ours.text


async def signed_in(site: Site, email: str, role: str = "member") -> tuple[UUID, dict[str, str]]:
    """Somebody with a session of their own, and the headers of their requests."""
    user_id = await person(site, role, email)
    hashed = await passwords.hash("correct horse battery")
    sealed = await site.store.sealing.seal(site.account.tenant_id, user_id, PASSWORD, hashed)
    await site.operate(site.account.tenant_id, USER, user_stream(user_id), SetPassword(password=sealed))
    body = {"email": email, "password": "correct horse battery", "device_fingerprint": "fingerprint-1"}
    answer = await site.client.post("/v1/auth/login", json=body, headers={"Holdbook-Tenant": str(site.account.tenant_id)})
    assert answer.status_code == 200, answer.text
    return user_id, {"Authorization": f"Bearer {answer.json()['token']}", "Idempotency-Key": uuid4().hex}


async def test_people_erase_themselves_and_nobody_else(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = door_by_a_clock(site, monkeypatch)
    user_id, headers = await signed_in(site, "self@example.org")
    other = await person(site, email="other@example.org")

    theirs = await site.client.post(f"/v1/privacy/{other.hex}/erase", json={"confirm": True}, headers=headers)
    own = await site.client.post("/v1/privacy/me/erase", json={"confirm": True}, headers=headers)

    assert (theirs.status_code, theirs.json()["code"]) == (403, "auth.permission_missing")
    assert (own.status_code, own.json()) == (200, {"person_id": user_id.hex, "status": "erased"})
    assert isinstance(await user_state(site.store, site.account.tenant_id, other), Active)
    clock.pass_a_second()
    assert (await site.client.get("/v1/privacy/me/export", headers=headers)).status_code == 401


async def test_the_last_owner_does_not_erase_themselves(site: Site) -> None:
    user_id, headers = await signed_in(site, "alone@example.org", "owner")

    answer = await site.client.post("/v1/privacy/me/erase", json={"confirm": True}, headers=headers)
    export = await site.client.get("/v1/privacy/me/export", headers=headers)

    assert (answer.status_code, answer.json()["code"]) == (409, "tenant.last_owner")
    assert export.json()["now"]["profile"]["email"] == "alone@example.org"
    assert isinstance(await user_state(site.store, site.account.tenant_id, user_id), Active)


async def rows_with(site: Site, text: str) -> list[str]:
    """Every table but the log that holds a text somewhere."""
    assert site.store.pool is not None
    found = []
    async with await psycopg.AsyncConnection.connect(str(site.store.pool.conninfo)) as conn:
        tables = await (await conn.execute("select tablename from pg_tables where schemaname = 'public' order by 1")).fetchall()
        for (table,) in tables:
            query = f'select count(*) from "{table}" t where position(%s in t::text) > 0'
            row = await (await conn.execute(query, (text,))).fetchone()
            if row is not None and row[0] and table != "event":
                found.append(table)
    return found


async def test_read_models_forget_and_the_log_proves_the_rest(site: Site, module_database: str) -> None:
    user_id = await person(site, email="models@example.org")
    tenant_id = site.account.tenant_id
    state = await user_state(site.store, tenant_id, user_id)
    devices = (await site.store.state(DEVICES, tenant_id, devices_stream(user_id))).state
    assert isinstance(state, Active)

    async def listed() -> bool:
        return any(table.startswith("person_") for table in await rows_with(site, state.profile))

    await until(listed)
    await site.post(f"/v1/privacy/{user_id.hex}/erase", {"confirm": True}, key="erase")

    async def forgotten() -> bool:
        sealed = (state.profile, str(state.password), devices.bound[0].name)
        return not [table for text in sealed for table in await rows_with(site, text)]

    await until(forgotten)
    environment = {**os.environ, "HOLDBOOK_DATABASE_URL": module_database}
    command = [sys.executable, "-m", "api.cli", "verify"]
    proof = await asyncio.to_thread(subprocess.run, command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert proof.returncode == 0, proof.stdout + proof.stderr

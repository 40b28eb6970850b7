"""What is sealed can be opened by the same store for the same person and purpose, by nobody else, and not after the key was destroyed."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Collection, Mapping
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from eventstore import sealing as sealing_module
from eventstore.keyring import MemoryKeys
from eventstore.master import BadMasterKey, LocalMasterKeys, NoMasterKey, WrongMasterKey, new_master_key
from eventstore.rewrapping import needed, rewrap
from eventstore.sealing import FRESH_SECONDS, PREFIX, Erased, SealBroken, Sealing
from eventstore.store import Store
from tests.support.till import TILL

TENANT, OTHER_TENANT = UUID(int=1), UUID(int=2)
PERSON, OTHER_PERSON = UUID(int=11), UUID(int=12)
PURPOSE = "user.profile"


class World:
    """Processes on one store, or one store in memory."""

    def __init__(self, dsn: str | None) -> None:
        self.dsn = dsn
        self.stores: list[Store] = []

    async def open(self) -> Sealing:
        if self.dsn is None:
            self.stores = self.stores or [Store.in_memory([TILL])]
        else:
            self.stores.append(await Store.open(self.dsn, [TILL], wakeups=False))
        return self.stores[-1].sealing


@pytest_asyncio.fixture(params=["memory", "postgres"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    found = World(request.getfixturevalue("database_dsn") if request.param == "postgres" else None)
    yield found
    for store in found.stores:
        await store.drain()


async def test_what_was_sealed_can_be_opened(world: World) -> None:
    sealing = await world.open()

    sealed = await sealing.seal(TENANT, PERSON, PURPOSE, "anna@example.org")

    assert sealed.startswith(PREFIX)
    assert "anna" not in sealed
    assert await sealing.open(TENANT, PERSON, PURPOSE, sealed) == "anna@example.org"
    assert await (await world.open()).open(TENANT, PERSON, PURPOSE, sealed) == "anna@example.org"


async def test_two_seals_of_one_text_differ(world: World) -> None:
    sealing = await world.open()

    assert await sealing.seal(TENANT, PERSON, PURPOSE, "a") != await sealing.seal(TENANT, PERSON, PURPOSE, "a")


@pytest.mark.parametrize(
    ("tenant_id", "person_id", "purpose"),
    [(OTHER_TENANT, PERSON, PURPOSE), (TENANT, OTHER_PERSON, PURPOSE), (TENANT, PERSON, "user.password")],
    ids=["tenant", "person", "purpose"],
)
async def test_it_cannot_be_moved(world: World, tenant_id: UUID, person_id: UUID, purpose: str) -> None:
    sealing = await world.open()
    sealed = await sealing.seal(TENANT, PERSON, PURPOSE, "anna@example.org")
    await sealing.seal(tenant_id, person_id, purpose, "something of their own")

    with pytest.raises(SealBroken):
        await sealing.open(tenant_id, person_id, purpose, sealed)


async def test_what_nobody_has_a_key_for_cannot_be_opened_and_makes_none(world: World) -> None:
    sealing = await world.open()
    sealed = await sealing.seal(TENANT, PERSON, PURPOSE, "anna@example.org")

    assert await sealing.open(TENANT, OTHER_PERSON, PURPOSE, sealed) is None
    assert await sealing.shred(TENANT, OTHER_PERSON) is False


async def test_what_was_sealed_for_an_erased_person_says_nothing_any_more(world: World) -> None:
    sealing = await world.open()
    sealed = await sealing.seal(TENANT, PERSON, PURPOSE, "anna@example.org")

    assert await sealing.shred(TENANT, PERSON) is True

    assert await sealing.open(TENANT, PERSON, PURPOSE, sealed) is None
    with pytest.raises(Erased):
        await sealing.seal(TENANT, PERSON, PURPOSE, "anna@example.org")
    with pytest.raises(Erased):
        await sealing.person_secret(TENANT, PERSON, "fingerprint")
    assert await sealing.shred(TENANT, PERSON) is False


async def test_one_who_never_had_a_key_gets_none_after_the_erasure(world: World) -> None:
    await (await world.open()).shred(TENANT, PERSON)

    with pytest.raises(Erased):
        await (await world.open()).seal(TENANT, PERSON, PURPOSE, "anna@example.org")


async def test_secrets_and_digests_are_the_same_in_every_process_and_differ_by_everything_else(world: World) -> None:
    one, two = await world.open(), await world.open()
    secrets = [
        await one.secret(TENANT, "a"),
        await one.secret(TENANT, "b"),
        await one.secret(OTHER_TENANT, "a"),
        await one.person_secret(TENANT, PERSON, "a"),
        await one.person_secret(TENANT, OTHER_PERSON, "a"),
        await one.tenant_key(TENANT),
    ]

    assert len(set(secrets)) == len(secrets)
    assert {len(secret) for secret in secrets} == {32}
    assert await two.secret(TENANT, "a") == secrets[0]
    assert await two.person_secret(TENANT, PERSON, "a") == secrets[3]
    digest = await one.digest(TENANT, "login.email", "anna@example.org")
    assert len(bytes.fromhex(digest)) == 16
    assert await two.digest(TENANT, "login.email", "anna@example.org") == digest
    others = [(OTHER_TENANT, "login.email", "anna@example.org"), (TENANT, "login", "anna@example.org"), (TENANT, "login.email", "a")]
    assert digest not in [await one.digest(*other) for other in others]


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=300), st.data())
def test_whatever_was_sealed_opens_and_whatever_was_changed_does_not(clear: str, data: st.DataObject) -> None:
    async def check() -> None:
        sealing = Sealing()
        if any(0xD800 <= ord(letter) <= 0xDFFF for letter in clear):
            return
        sealed = await sealing.seal(TENANT, PERSON, PURPOSE, clear)
        assert await sealing.open(TENANT, PERSON, PURPOSE, sealed) == clear

        text = bytearray(base64.urlsafe_b64decode(sealed[len(PREFIX) :] + "=" * (-len(sealed[len(PREFIX) :]) % 4)))
        text[data.draw(st.integers(0, len(text) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        flipped = PREFIX + base64.urlsafe_b64encode(text).decode().rstrip("=")
        place = data.draw(st.integers(0, len(sealed) - 1))
        other = data.draw(st.characters(codec="ascii").filter(lambda letter: letter != sealed[place]))
        for changed in (flipped, sealed[:place] + other + sealed[place + 1 :], sealed[:place], sealed + other, sealed.removeprefix(PREFIX)):
            with pytest.raises(SealBroken):
                await sealing.open(TENANT, PERSON, PURPOSE, changed)

    asyncio.run(check())


@pytest.mark.parametrize("clear", ["", "a", "ab"], ids=len)
async def test_a_sealed_text_can_be_written_in_one_way_only(clear: str) -> None:
    """The last character may have bits that say nothing."""
    sealing = Sealing()
    sealed = await sealing.seal(TENANT, PERSON, PURPOSE, clear)

    for other in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_":
        if other != sealed[-1]:
            with pytest.raises(SealBroken):
                await sealing.open(TENANT, PERSON, PURPOSE, sealed[:-1] + other)
    for changed in (sealed + "=", sealed + "\n", " " + sealed, sealed[:9] + "\n" + sealed[9:]):
        with pytest.raises(SealBroken):
            await sealing.open(TENANT, PERSON, PURPOSE, changed)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_within_two_seconds_no_process_opens_what_is_erased(world: World) -> None:
    """`FRESH_SECONDS` by a clock of the test's own."""
    clock, here = Clock(), await world.open()
    there = Sealing(here._keys, clock=clock)
    sealed = await here.seal(TENANT, PERSON, PURPOSE, "anna@example.org")
    assert await there.open(TENANT, PERSON, PURPOSE, sealed) == "anna@example.org"

    await here.shred(TENANT, PERSON)
    clock.now = FRESH_SECONDS
    assert await there.open(TENANT, PERSON, PURPOSE, sealed) == "anna@example.org", "it was read a moment ago"
    clock.now += 0.001

    assert clock.now < 2
    assert await there.open(TENANT, PERSON, PURPOSE, sealed) is None
    with pytest.raises(Erased):
        await there.seal(TENANT, PERSON, PURPOSE, "anna@example.org")


class SlowKeys:
    """Keys whose reading the test lets come to its end."""

    def __init__(self, keys: Any) -> None:
        self.keys, self.go, self.began, self.reads = keys, asyncio.Event(), asyncio.Event(), 0

    async def tenant(self, tenant_id: UUID) -> bytes:
        return bytes(await self.keys.tenant(tenant_id))

    async def people(self, tenant_id: UUID, people: Collection[UUID], *, make: bool) -> Mapping[UUID, bytes | None]:
        self.reads += 1
        self.began.set()
        found: Mapping[UUID, bytes | None] = await self.keys.people(tenant_id, people, make=make)
        await self.go.wait()
        return found

    async def shred(self, tenant_id: UUID, person_id: UUID) -> bool:
        return bool(await self.keys.shred(tenant_id, person_id))


async def test_a_key_that_was_being_read_while_it_was_destroyed_is_not_kept() -> None:
    keys = SlowKeys(MemoryKeys())
    sealing = Sealing(keys)
    sealing_now = asyncio.create_task(sealing.seal(TENANT, PERSON, PURPOSE, "anna@example.org"))
    await keys.began.wait()

    await sealing.shred(TENANT, PERSON)
    keys.go.set()
    sealed = await sealing_now

    assert await sealing.open(TENANT, PERSON, PURPOSE, sealed) is None


async def test_keys_of_many_people_are_read_together() -> None:
    keys = SlowKeys(MemoryKeys())
    keys.go.set()
    writing, reading = Sealing(keys), Sealing(keys)
    people = [UUID(int=number) for number in range(200)]
    sealed = [(person, PURPOSE, await writing.seal(TENANT, person, PURPOSE, person.hex)) for person in people]
    keys.reads = 0

    assert await reading.open_all(TENANT, sealed) == [person.hex for person in people]
    assert keys.reads == 1


async def test_one_who_stops_waiting_stops_nobody_else() -> None:
    keys = SlowKeys(MemoryKeys())
    sealing = Sealing(keys)
    one, two = (asyncio.create_task(sealing.seal(TENANT, PERSON, PURPOSE, "a")) for _ in range(2))
    await keys.began.wait()
    one.cancel()
    keys.go.set()

    assert await sealing.open(TENANT, PERSON, PURPOSE, await two) == "a"
    with pytest.raises(asyncio.CancelledError):
        await one


async def test_what_the_database_does_not_answer_is_told_to_all_who_wait_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = MemoryKeys()
    sealing = Sealing(keys)
    answering = keys.people

    async def down(*_: Any, **__: Any) -> Mapping[UUID, bytes | None]:
        raise psycopg.OperationalError

    monkeypatch.setattr(keys, "people", down)
    said = await asyncio.gather(*(sealing.seal(TENANT, PERSON, PURPOSE, "a") for _ in range(3)), return_exceptions=True)
    assert {type(each) for each in said} == {psycopg.OperationalError}
    monkeypatch.setattr(keys, "people", answering)

    assert await sealing.seal(TENANT, PERSON, PURPOSE, "a")


async def test_keys_are_remembered_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing_module, "REMEMBERED", 5)
    clock = Clock()
    sealing = Sealing(MemoryKeys(), clock=clock)
    for number in range(20):
        await sealing.seal(UUID(int=number), PERSON, PURPOSE, "a")
        await sealing.digest(UUID(int=number), "a", "a")
    assert len(sealing._people) <= 5
    assert len(sealing._tenants) <= 5

    clock.now = FRESH_SECONDS * 2
    await sealing.seal(TENANT, PERSON, PURPOSE, "a")
    assert len(sealing._people) == 1, "no key of a person is kept for longer than it is used"


async def opened(dsn: str, text: str | None = None) -> Store:
    return await Store.open(dsn, [TILL], wakeups=False, master=None if text is None else LocalMasterKeys(text))


def rows(dsn: str, query: str) -> list[Any]:
    with psycopg.connect(dsn) as conn:
        return conn.execute(query.encode()).fetchall()


async def test_no_key_is_stored_bare(database_dsn: str) -> None:
    store = await opened(database_dsn)
    key = await store.tenant_key(TENANT)
    await store.sealing.seal(TENANT, PERSON, PURPOSE, "anna@example.org")

    found = str(rows(database_dsn, "select t::text from tenant_key t") + rows(database_dsn, "select t::text from subject_key t"))

    assert key.hex() not in found
    assert "(None," not in str(rows(database_dsn, "select wrapped, key from tenant_key"))
    assert rows(database_dsn, "select count(*) from tenant_key where key is not null") == [(0,)]
    await store.drain()


async def test_a_bare_key_of_before_stays_the_same_and_is_wrapped_when_it_is_read(
    database_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOLDBOOK_MASTER_KEY")
    before = await opened(database_dsn)
    key = await before.tenant_key(TENANT)
    assert rows(database_dsn, "select key, wrapped from tenant_key") == [(key, None)]
    with pytest.raises(NoMasterKey):
        await before.sealing.seal(TENANT, PERSON, PURPOSE, "anna@example.org")
    await before.drain()

    text = new_master_key()
    stores = [await opened(database_dsn, text) for _ in range(2)]
    assert await asyncio.gather(*(store.tenant_key(TENANT) for store in stores)) == [key, key]

    assert rows(database_dsn, "select key, master_id from tenant_key") == [(None, text.partition(":")[0])]
    for store in stores:
        await store.drain()
    bare = await opened(database_dsn)
    with pytest.raises(NoMasterKey):
        await bare.tenant_key(TENANT)
    await bare.drain()


async def test_another_master_key_is_refused_at_the_start_and_makes_nothing(database_dsn: str) -> None:
    text = new_master_key()
    store = await opened(database_dsn, text)
    await store.tenant_key(TENANT)
    await store.drain()
    name = text.partition(":")[0]
    before = rows(database_dsn, "select * from master_key")

    for wrong in (new_master_key(), f"{name}:{new_master_key().partition(':')[2]}", f"{new_master_key()}\n{name}:{'A' * 43}="):
        with pytest.raises(WrongMasterKey):
            await opened(database_dsn, wrong)

    assert rows(database_dsn, "select * from master_key") == before
    again = await opened(database_dsn, f"{new_master_key()}\n{text}")
    assert len(rows(database_dsn, "select * from master_key")) == 2, "a rotation begins"
    await again.drain()


async def test_two_first_starts_with_different_master_keys_do_not_both_succeed(database_dsn: str) -> None:
    said = await asyncio.gather(*(opened(database_dsn, new_master_key()) for _ in range(4)), return_exceptions=True)

    stores = [each for each in said if isinstance(each, Store)]
    assert len(stores) == 1
    assert {type(each) for each in said} == {Store, WrongMasterKey}
    await stores[0].drain()


async def test_a_wrapped_key_cannot_be_put_into_another_row(database_dsn: str) -> None:
    store = await opened(database_dsn)
    for person in (PERSON, OTHER_PERSON):
        await store.sealing.seal(TENANT, person, PURPOSE, "a")
    with psycopg.connect(database_dsn) as conn:
        conn.execute(
            "update subject_key k set wrapped = o.wrapped from subject_key o where k.person_id = %s and o.person_id = %s",
            (PERSON, OTHER_PERSON),
        )
    store.sealing._people.clear()

    with pytest.raises(WrongMasterKey):
        await store.sealing.seal(TENANT, PERSON, PURPOSE, "a")
    await store.drain()


async def test_two_processes_at_once_make_one_key_for_a_person(database_dsn: str) -> None:
    stores = [await opened(database_dsn) for _ in range(3)]
    for number in range(20):
        person = UUID(int=100 + number)
        sealed = await asyncio.gather(*(store.sealing.seal(TENANT, person, PURPOSE, str(number)) for store in stores))
        for store in stores:
            assert [await store.sealing.open(TENANT, person, PURPOSE, text) for text in sealed] == [str(number)] * 3
    for store in stores:
        await store.drain()


async def test_a_key_is_never_made_anew_by_processes_that_race_with_the_erasure(database_dsn: str) -> None:
    stores = [await opened(database_dsn) for _ in range(4)]
    for number in range(40):
        person = uuid4()
        if number % 2:
            await stores[0].sealing.seal(TENANT, person, PURPOSE, "before")

        async def seal(store: Store, person: UUID = person) -> str | None:
            try:
                return await store.sealing.seal(TENANT, person, PURPOSE, "at the same time")
            except Erased:
                return None

        raced = [seal(store) for store in stores[:3]]
        sealed, _ = await asyncio.gather(asyncio.gather(*raced), stores[3].sealing.shred(TENANT, person))

        fresh = await opened(database_dsn)
        assert [await fresh.sealing.open(TENANT, person, PURPOSE, text) for text in sealed if text] == [None] * len([*filter(None, sealed)])
        with pytest.raises(Erased):
            await fresh.sealing.seal(TENANT, person, PURPOSE, "afterwards")
        await fresh.drain()
    assert rows(database_dsn, "select count(*), count(wrapped), count(master_id), count(shredded_at) from subject_key") == [(40, 0, 0, 40)]
    for store in stores:
        await store.drain()


async def test_rewrapping_changes_every_row_once_and_no_key(database_dsn: str) -> None:
    old, new = new_master_key(), new_master_key()
    store = await opened(database_dsn, old)
    people = [UUID(int=1_000 + number) for number in range(23)]
    sealed = {person: await store.sealing.seal(TENANT, person, PURPOSE, person.hex) for person in people}
    keys = {UUID(int=number): await store.tenant_key(UUID(int=number)) for number in range(7)}
    await store.sealing.shred(TENANT, people[0])
    await store.drain()
    store = await opened(database_dsn, f"{new}\n{old}")
    assert await needed(store) == {old.partition(":")[0]: len(people) - 1 + len(keys)}

    assert await rewrap(store, at_once=4) == len(people) - 1 + len(keys)

    assert await needed(store) == {new.partition(":")[0]: len(people) - 1 + len(keys)}
    assert await rewrap(store, at_once=4) == 0
    await store.drain()
    store = await opened(database_dsn, new)
    assert {tenant: await store.tenant_key(tenant) for tenant in keys} == keys
    assert [await store.sealing.open(TENANT, person, PURPOSE, text) for person, text in sealed.items()] == [
        None,
        *(person.hex for person in people[1:]),
    ]
    await store.drain()


async def test_rewrapping_that_is_interrupted_goes_on_and_several_at_once_do_no_harm(database_dsn: str) -> None:
    old, new = new_master_key(), new_master_key()
    store = await opened(database_dsn, old)
    sealed = {UUID(int=number): await store.sealing.seal(TENANT, UUID(int=number), PURPOSE, "a") for number in range(1, 30)}
    await store.drain()
    stores = [await opened(database_dsn, f"{new}\n{old}") for _ in range(3)]

    class Interrupted(Exception):
        pass

    def interrupt(done: int) -> None:
        if done >= 10:
            raise Interrupted

    with pytest.raises(Interrupted):
        await rewrap(stores[0], interrupt, at_once=5)
    assert (await needed(stores[0]))[new.partition(":")[0]] == 10
    done = await asyncio.gather(*(rewrap(store, at_once=3) for store in stores))

    assert sum(done) == len(sealed) - 10
    assert await needed(stores[0]) == {new.partition(":")[0]: len(sealed)}
    assert [await stores[1].sealing.open(TENANT, person, PURPOSE, text) for person, text in sealed.items()] == ["a"] * len(sealed)
    for store in stores:
        await store.drain()


async def test_rewrapping_does_not_bring_back_what_is_destroyed_meanwhile(database_dsn: str) -> None:
    """The key is destroyed between the reading and the writing of its row."""
    old, new = new_master_key(), new_master_key()
    store = await opened(database_dsn, old)
    sealed = await store.sealing.seal(TENANT, PERSON, PURPOSE, "a")
    await store.drain()
    master = LocalMasterKeys(f"{new}\n{old}")
    store, other = await Store.open(database_dsn, [TILL], wakeups=False, master=master), await opened(database_dsn, f"{new}\n{old}")
    wrap = master.wrap

    async def slow(key: bytes, context: bytes) -> tuple[str, bytes]:
        await other.sealing.shred(TENANT, PERSON)
        return await wrap(key, context)

    master.wrap = slow  # type: ignore[method-assign]  # the moment in between
    assert await rewrap(store) == 0

    assert await other.sealing.open(TENANT, PERSON, PURPOSE, sealed) is None
    assert rows(database_dsn, "select wrapped from subject_key") == [(None,)]
    for each in (store, other):
        await each.drain()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "no colon",
        "a:",
        "a:AAAA",
        f"a b:{'A' * 43}=",
        f":{'A' * 43}=",
        f"a:{'A' * 43}=\na:{'A' * 43}=",
        f"a:{'A' * 42}!=",
        "ü:AAAA",
    ],
)
def test_what_is_no_master_key_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(BadMasterKey) as raised:
        LocalMasterKeys(text)

    assert "AAAA" not in str(raised.value)
    assert raised.value.__cause__ is None


def test_a_master_key_does_not_show_itself() -> None:
    text = new_master_key()

    assert text.partition(":")[2][:10] not in repr(LocalMasterKeys(text)) + str(vars(LocalMasterKeys(text)))

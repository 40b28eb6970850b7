"""The proof that the trust tests can fail: each guard is switched off in turn, and a check named beside it must go red.

(That row-level security is a guard of this kind is shown with the tests of the read models.)
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any
from uuid import UUID

import pytest
from hypothesis import Phase

from domain.kernel.decider import Event
from domain.quota import QUOTA, Commit, Committed, Limit, Reserve, Rollback, SetLimits, admission, quota_stream, reservation_id, settling
from eventstore import deciding, postgres, writer
from eventstore.log import Known, Tail
from eventstore.memory import MemoryLog
from eventstore.rows import Row
from eventstore.states import States
from eventstore.store import Store
from eventstore.writer import Outcome
from tests.eventstore import test_store_contract as contract
from tests.eventstore.test_quota_machine import in_memory, run_machine
from tests.support.till import Open, Take
from tests.support.worlds import TENANT, MemoryWorld, PostgresWorld, World, ask, broken

STREAM = quota_stream(TENANT, "ann", "tokens")
TERMINAL = {"quota.committed", "quota.rolled_back", "quota.expired"}

Check = Callable[[World], Awaitable[None]]
Off = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(params=["memory", "postgres"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    memory = request.param == "memory"
    made: World = MemoryWorld() if memory else PostgresWorld(request.getfixturevalue("database_dsn"))
    yield made
    await made.close()


# Checks


async def quota_of(world: World, amount: int) -> Store:
    store = await world.open(deciders=[QUOTA])
    await submit(store, SetLimits(subject="ann", meter="tokens", limits=(Limit("all", amount),)))
    return store


async def submit(store: Store, command: Any) -> Outcome:
    return await store.submit(ask((STREAM, command), decider=QUOTA))


def reserve(number: int, amount: int) -> Reserve:
    identity = reservation_id(STREAM, ask(("", Take(take_id="")), body="").command_id, number)
    return Reserve(subject="ann", meter="tokens", amount=amount, reservation_id=identity)


async def never_more_than_the_limit(world: World) -> None:
    store = await quota_of(world, 10)
    outcomes = await asyncio.gather(*(submit(store, reserve(n, 3)) for n in range(8)))

    assert sum(not outcome.refused for outcome in outcomes) == 3
    assert sum(json.loads(row.payload)["amount"] for row in world.rows() if row.type == "quota.reserved") <= 10


async def a_reservation_ends_once(world: World) -> None:
    store = await quota_of(world, 10)
    held = reserve(0, 5)
    await submit(store, held)
    ends = (Commit(reservation_id=held.reservation_id, used=2), Rollback(reservation_id=held.reservation_id))
    await asyncio.gather(*(submit(store, ends[n % 2]) for n in range(6)))

    ended = Counter(json.loads(row.payload)["reservation_id"] for row in world.rows() if row.type in TERMINAL)
    assert ended == {held.reservation_id: 1}


async def another_body_is_refused(world: World) -> None:
    await contract.test_the_same_key_with_another_body_is_refused_and_changes_nothing(world, await till_of_ten(world))


async def a_cached_state_is_never_stale(world: World) -> None:
    await contract.test_a_cached_state_is_never_stale(world)


async def duplicates_in_two_processes_are_one(world: World) -> None:
    await contract.test_two_at_once_in_two_processes_share_one_outcome(world, await till_of_ten(world))


async def a_lost_tail_is_noticed(world: World) -> None:
    await contract.test_a_lost_tail_that_others_wrote_over_is_noticed(world, await till_of_ten(world))


async def another_tenants_stream_does_not_exist(world: World) -> None:
    await contract.test_another_tenants_stream_does_not_exist(world, await till_of_ten(world))


async def refusals_are_for_ever(world: World) -> None:
    await contract.test_a_refusal_is_recorded_and_replayed_even_when_there_is_room_later(world, await till_of_ten(world))


async def two_processes_at_once_get_along(world: World) -> None:
    stores = [await till_of_ten(world), await world.open()]
    await stores[0].submit(ask(("till-a", Open(room=1_000))))

    async def caller(number: int) -> None:
        for n in range(15):
            await stores[number % 2].submit(ask(("till-a", Take(take_id=f"{number}-{n}"))))

    await asyncio.gather(*(caller(number) for number in range(10)))
    assert broken(world) is None


async def till_of_ten(world: World) -> Store:
    store = await world.open()
    await store.submit(ask(("till-a", Open(room=10))))
    return store


# Switches


def no_room_check(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(admission, "_fitting", lambda state, rooms, left, command: command.amount)


def no_terminal_check(patch: pytest.MonkeyPatch) -> None:
    def again(command: Commit, state: Any, events: list[Event]) -> list[Event]:
        return [*events, Committed(command.reservation_id, command.used, command.used, 0, command.at)]

    patch.setattr(settling, "_commit_again", again)


def no_fingerprint_check(patch: pytest.MonkeyPatch) -> None:
    replay = deciding.Work._replay
    patch.setattr(
        deciding.Work, "_replay", lambda work, request, before: replay(work, request, before._replace(fingerprint=request.fingerprint))
    )


def no_catching_up(patch: pytest.MonkeyPatch) -> None:
    def look_away(states: States, tail: Tail, at_most: int) -> Sequence[Row]:
        rows = tail.rows[1:] if states.position else tail.rows
        if rows:
            states.position, states.digest = rows[-1].position, rows[-1].hash
        return rows

    patch.setattr(States, "catch_up", look_away)


def no_replay_of_what_was_caught_up(patch: pytest.MonkeyPatch) -> None:
    catch_up = States.catch_up

    def told_nothing(states: States, tail: Tail, at_most: int) -> Sequence[Row]:
        catch_up(states, tail, at_most)
        return []

    patch.setattr(States, "catch_up", told_nothing)
    patch.setattr(writer, "_SHORT", 0)  # as in long batches, whose ids are looked up before the lock


def no_look_up(patch: pytest.MonkeyPatch) -> None:
    async def nothing(log: MemoryLog, command_ids: Sequence[UUID]) -> list[Known]:
        return []

    patch.setattr(MemoryLog, "known", nothing)
    patch.setattr(postgres, "_KNOWN", postgres._KNOWN + " and false")


def no_hash_check(patch: pytest.MonkeyPatch) -> None:
    catch_up = States.catch_up

    def trusting(states: States, tail: Tail, at_most: int) -> Sequence[Row]:
        if tail.rows:
            states.digest = tail.rows[0].hash
        return catch_up(states, tail, at_most)

    patch.setattr(States, "catch_up", trusting)


def no_tenant_check(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(States, "get", lambda states, stream, tenant_id: states._cache[stream]._replace(tenant_id=tenant_id))


def refusals_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(deciding.Work, "_refuse", lambda work, request, rejected: rejected)


def no_lock(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(postgres, "LOCK", postgres.LOCK.replace("for update", ""))


GUARDS: dict[str, tuple[Off, Check]] = {
    "room at reserve": (no_room_check, never_more_than_the_limit),
    "one terminal event": (no_terminal_check, a_reservation_ends_once),
    "body fingerprint": (no_fingerprint_check, another_body_is_refused),
    "catching up under the lock": (no_catching_up, a_cached_state_is_never_stale),
    "known command ids": (no_look_up, refusals_are_for_ever),
    "replays among what was caught up": (no_replay_of_what_was_caught_up, duplicates_in_two_processes_are_one),
    "the hash of the last event folded": (no_hash_check, a_lost_tail_is_noticed),
    "a stream's tenant": (no_tenant_check, another_tenants_stream_does_not_exist),
    "refusals are recorded": (refusals_are_forgotten, refusals_are_for_ever),
}


@pytest.mark.parametrize("guard", GUARDS)
async def test_with_the_guard_the_check_holds(world: World, guard: str) -> None:
    _, check = GUARDS[guard]
    await check(world)


@pytest.mark.parametrize("guard", GUARDS)
async def test_without_the_guard_the_check_goes_red(world: World, guard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    switch_off, check = GUARDS[guard]
    switch_off(monkeypatch)

    with pytest.raises((Exception, pytest.fail.Exception)):
        await check(world)


@pytest.mark.parametrize(
    "guard", ["room at reserve", "one terminal event", "body fingerprint", "catching up under the lock", "refusals are recorded"]
)
def test_without_the_guard_the_machine_goes_red(guard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    switch_off, _ = GUARDS[guard]
    switch_off(monkeypatch)

    with asyncio.Runner() as runner, pytest.raises((Exception, pytest.fail.Exception)):
        run_machine(in_memory(runner), 100, 50, phases=[Phase.generate], database=None, report_multiple_bugs=False)


async def test_the_lock_is_a_guard(database_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    world = PostgresWorld(database_dsn)
    await two_processes_at_once_get_along(world)

    no_lock(monkeypatch)
    with pytest.raises((Exception, pytest.fail.Exception)):
        await two_processes_at_once_get_along(world)
    await world.close()

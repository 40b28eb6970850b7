"""The test kit: it says what is so, and it notices what is wrong."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from domain.kernel.process import Effect, Happened, Named, Process, Tools, idempotency_key, process_command_id
from projections.reactions import NameTwice
from tests.support.kit import NOW, World, given, happened, react
from tests.support.kit_run import Run
from tests.support.till import TILL, Full, NotOpen, Open, Opened, Take, Taken
from tests.support.trial import NOTICE, TRIAL, Begin, Begun, Bought, Buy, End, Ended, Extend, Extended, Lock, Locked, Remind, Reminded

END = NOW + timedelta(days=10)
OTHER = UUID(int=5)


def welcome(one: Happened) -> Sequence[Named]:
    """A till for each trial, and something taken from it."""
    return [Named("open", TILL, f"till-{one.stream}", Open(room=2)), Named("take", TILL, f"till-{one.stream}", Take(take_id="gift"))]


WELCOME = Process("welcome", (Begun,), welcome)


async def nobody(one: Happened, tools: Tools) -> Sequence[Named]:
    raise AssertionError("the real world")


BILL = Effect("bill", (Ended,), nobody)


def buying(one: Happened, tools: Tools) -> Sequence[Named]:
    return [Named("begin again", TRIAL, one.stream, Extend(days=30))] if tools.attempt else []


# Aggregates


def test_events_and_refusals_of_an_aggregate() -> None:
    given(TRIAL).when(Begin(days=10)).then(Begun(END))
    given(TRIAL, Begun(END)).when(End()).then()
    given(TRIAL, Begun(END)).when(End(), at=END).then(Ended(END))
    given(TRIAL, Begun(END), Locked()).when(End(), at=END).refused("trial.locked")
    given(TILL).when(Take(take_id="a")).refused("till.not_open")
    given(TILL, Opened(5, NOW)).when(Take(take_id="a", amount=0)).refused("till.invalid", "amount")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: given(TRIAL).when(Begin(days=10)).then(),
        lambda: given(TRIAL).when(Begin(days=10)).then(Begun(END), Locked()),
        lambda: given(TRIAL).when(Begin(days=10)).refused("trial.locked"),
        lambda: given(TRIAL).when(Buy()).then(),
        lambda: given(TRIAL).when(Buy()).refused("trial.locked"),
        lambda: given(TRIAL).when(Open(room=1)),
        lambda: react(WELCOME).given(Begun(END)).then(),
        lambda: react(WELCOME).given(Ended(END)).then(Named("open", TILL, "till-any-1", Open(room=2))),
    ],
)
def test_what_is_not_so_is_noticed(wrong: Any) -> None:
    with pytest.raises(AssertionError):
        wrong()


# Processes


def test_a_process_alone() -> None:
    react(WELCOME).given(Begun(END), Ended(END)).then(
        Named("open", TILL, "till-any-1", Open(room=2)), Named("take", TILL, "till-any-1", Take(take_id="gift"))
    )


def test_a_process_that_is_not_pure_or_gives_a_name_twice_is_noticed() -> None:
    numbers = itertools.count()
    unsteady = Process("unsteady", (Begun,), lambda one: [Named(f"take {next(numbers)}", TILL, "till-1", Take(take_id="a"))])
    twice = Process("twice", (Begun,), lambda one: [Named("take", TILL, "till-1", Take(take_id=name)) for name in "ab"])

    with pytest.raises(AssertionError, match="pure"):
        react(unsteady).given(Begun(END))
    with pytest.raises(AssertionError, match="unique"):
        react(twice).given(Begun(END))


def test_ids_depend_on_process_event_and_name_and_on_nothing_else() -> None:
    one = happened(Begun(END))
    ids = {
        process_command_id("a", one, "x"), process_command_id("b", one, "x"), process_command_id("a", one, "y"),
        process_command_id("a", one._replace(ordinal=1), "x"), process_command_id("a", happened(Begun(END), position=2), "x"),
    }  # fmt: skip

    assert len(ids) == 5
    assert process_command_id("a", one._replace(event=Ended(END), position=9, trace="t"), "x") == process_command_id("a", one, "x")
    assert idempotency_key("a", one) != idempotency_key("b", one)
    assert idempotency_key("a", one) == idempotency_key("a", one._replace(position=9))


# Everything together


async def test_commands_of_processes_follow_and_so_do_theirs() -> None:
    chained = Process("chained", (Taken,), lambda one: [Named("buy", TRIAL, one.stream.removeprefix("till-"), Buy())])
    run = Run([TRIAL, TILL], [WELCOME, chained])

    await run.when("trial-1", Begin(days=10))

    run.then(Begun(END), Opened(2, NOW), Taken("gift", 1, NOW), Bought(NOW))
    causes = [(row.actor, row.cause) for row in next(iter(run._partitions.values())).log.rows]
    assert [actor for actor, _ in causes] == [None, "process:welcome", "process:welcome", "process:chained"]
    assert causes[1][1] == causes[2][1] is not None


async def test_nothing_reacts_to_what_was_given() -> None:
    run = Run([TRIAL, TILL], [WELCOME])

    await run.given("trial-1", Begun(END))
    await run.when("trial-1", Buy())

    run.then(Bought(NOW))


async def test_a_refusal_is_an_answer() -> None:
    greedy = Process("greedy", (Begun,), lambda one: [Named(str(n), TILL, "till-1", Take(take_id=str(n))) for n in range(3)])
    run = Run([TRIAL, TILL], [greedy])
    await run.given("till-1", Opened(1, NOW))

    await run.when("trial-1", Begin(days=10))
    await run.when("trial-2", Begin(days=10), tenant_id=OTHER)

    run.then(Begun(END), Taken("0", 1, NOW))
    run.then(Begun(END), tenant_id=OTHER)
    assert run.refused == [("process:greedy", Full.code)] * 2 + [("process:greedy", NotOpen.code)] * 3


async def test_a_process_may_act_for_another_tenant() -> None:
    across = Process("across", (Begun,), lambda one: [Named("open", TILL, "till-1", Open(room=1), tenant_id=OTHER)])
    run = Run([TRIAL, TILL], [across])

    await run.when("trial-1", Begin(days=10))

    run.then(Begun(END))
    run.then(Opened(1, NOW), tenant_id=OTHER)


async def test_processes_that_feed_each_other_for_ever_are_noticed() -> None:
    circle = Process("circle", (Extended,), lambda one: [Named("on", TRIAL, one.stream, Extend(days=1))])
    run = Run([TRIAL], [circle])
    await run.given("trial-1", Begun(NOW))

    with pytest.raises(AssertionError, match="feed each other"):
        await run.when("trial-1", Extend(days=1))


async def test_a_process_whose_names_change_is_noticed() -> None:
    numbers = itertools.count()
    unsteady = Process("unsteady", (Begun,), lambda one: [Named(f"{next(numbers)}", TILL, "till-1", Open(room=1))])

    with pytest.raises(AssertionError, match="run again"):
        await Run([TRIAL, TILL], [unsteady]).when("trial-1", Begin(days=10))


async def test_two_commands_of_one_name_are_refused() -> None:
    twice = Process("twice", (Begun,), lambda one: [Named("open", TILL, f"till-{n}", Open(room=1)) for n in "ab"])

    with pytest.raises(NameTwice, match="open"):
        await Run([TRIAL, TILL], [twice]).when("trial-1", Begin(days=10))


async def test_an_effect_asks_the_world_again_under_the_same_key_until_it_answers() -> None:
    def answer(one: Happened, tools: Tools) -> Sequence[Named]:
        if tools.attempt < 2:
            raise ConnectionError("not now")
        return [Named("thank", TILL, "till-1", Open(room=7))]

    world = World(bill=answer)
    run = Run([TRIAL, TILL], [BILL], world)
    await run.given("trial-1", Begun(END))

    await run.until(END)

    run.then(Reminded(END - NOTICE), Ended(END), Opened(7, END))
    assert [asked.attempt for asked in world.asked] == [0, 1, 2, 0, 1, 2], "run twice, as may happen any day"
    assert [asked.event for asked in world.done("bill")] == [Ended(END)]
    assert len({asked.idempotency_key for asked in world.asked}) == 1


async def test_an_effect_that_never_succeeds_is_told_of() -> None:
    def never(one: Happened, tools: Tools) -> Sequence[Named]:
        raise ConnectionError("not now")

    run = Run([TRIAL, TILL], [BILL], World(bill=never))
    await run.given("trial-1", Begun(END))

    with pytest.raises(ConnectionError):
        await run.until(END)


# Deadlines


async def test_deadlines_come_in_order_at_their_moments() -> None:
    run = Run([TRIAL])
    await run.given("trial-1", Begun(END))
    await run.given("trial-2", Begun(END + timedelta(days=1)))

    await run.until(END - NOTICE - timedelta(microseconds=1))
    run.then()
    await run.until(END - NOTICE)
    run.then(Reminded(END - NOTICE))
    await run.until(END + timedelta(days=30))

    later = END + timedelta(days=1)
    run.then(Reminded(END - NOTICE), Reminded(later - NOTICE), Ended(END), Ended(later))


async def test_a_deadline_that_was_moved_or_ended_does_not_come() -> None:
    run = Run([TRIAL])
    await run.given("trial-1", Begun(END))
    await run.given("trial-2", Begun(END))

    await run.when("trial-1", Extend(days=5))
    await run.when("trial-2", Buy())
    await run.until(END + timedelta(days=30))

    moved = END + timedelta(days=5)
    run.then(Extended(moved), Bought(NOW), Reminded(moved - NOTICE), Ended(moved))


async def test_a_deadline_that_is_refused_for_good_is_over() -> None:
    run = Run([TRIAL])
    await run.given("trial-1", Begun(END))

    await run.when("trial-1", Lock())
    await run.until(END + timedelta(days=30))

    run.then(Locked(), Reminded(END - NOTICE))
    assert run.refused == [("process:deadline:end", "trial.locked")]


def test_an_aggregate_without_deadlines_has_no_command_for_one() -> None:
    assert TILL.deadlines(Opened(1, NOW)) == ()
    with pytest.raises(LookupError, match="end"):
        TILL.when_due("end", NOW)
    assert TRIAL.when_due("remind", NOW) == Remind()

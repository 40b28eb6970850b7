"""The quota's efficient state and the oracle's naive list answer every sequence of commands alike."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from domain.kernel.decider import Rejected
from domain.quota import (
    QUOTA,
    Adjust,
    Commit,
    Consume,
    Expire,
    FrozenQuota,
    Grant,
    Limit,
    Mode,
    Overdraft,
    Quota,
    Reserve,
    Rollback,
    SetLimits,
    State,
    ThresholdCrossed,
    VoidGrant,
    Window,
)
from domain.quota.view import view
from tests.support.quota_oracle import Oracle, Outcome

START = datetime(2026, 3, 28, 20, 59, 58, 750_000, tzinfo=UTC)
"""Shortly before a day, a week and a change of clocks in Europe, on the last days of a month."""

SUBJECT: dict[str, Any] = {"subject": "anna", "meter": "letters"}

Story = list[tuple[float, Any]]
"""(seconds since the command before, command)"""

windows = st.sampled_from(
    [
        Window("lifetime"),
        Window("hour"),
        Window("day"),
        Window("week", anchor_day=3),
        Window("month"),
        Window("month", anchor_day=31),
        Window("year", anchor_day=29, anchor_month=2),
        Window("rolling", seconds=1),
        Window("rolling", seconds=20),
        Window("rolling", seconds=86_400),
    ]
)
percents = st.lists(st.sampled_from([1, 50, 80, 100]), unique=True, max_size=3).map(tuple)


def limits(limit_id: str) -> st.SearchStrategy[Limit]:
    return st.builds(Limit, st.just(limit_id), st.sampled_from([0, 10, 10, 25, 60]), windows, st.booleans(), percents)


overdrafts = st.sampled_from([Overdraft(), Overdraft(), Overdraft("bounded", 7), Overdraft("soft")])
new_limits = st.builds(
    SetLimits,
    subject=st.just("anna"),
    meter=st.just("letters"),
    zone=st.sampled_from(["UTC", "UTC", "Europe/Berlin", "Asia/Kathmandu"]),
    limits=st.lists(st.sampled_from("abc"), unique=True, max_size=3).flatmap(lambda ids: st.tuples(*map(limits, ids))),
    overdraft=overdrafts,
    max_open=st.sampled_from([3, 100, 100]),
)
amounts = st.integers(1, 30)
modes = st.sampled_from([Mode.NORMAL, Mode.NORMAL, Mode.NORMAL, Mode.BEST_EFFORT, Mode.CHECK_ONLY, Mode.ADJUST])
seconds = st.sampled_from([5, 30, 4_000, 100_000, 100_000])
kinds = st.sampled_from(
    ["reserve"] * 7 + ["commit"] * 4 + ["progress"] * 3 + ["rollback", "rollback", "consume", "consume", "grant", "grant"]
    + ["adjust", "expire", "void", "limits"]
)  # fmt: skip
waits = st.sampled_from([0.0] * 6 + [0.25, 0.25, 1.0, 1.5, 1.5, 7.0, 21.0, 3_700.0, 90_000.0, 3_000_000.0, -3.0, -90_000.0])


@st.composite
def grants(draw: st.DrawFn) -> Grant:
    """A grant around the start of the story: half of them expire within it, half of those roll over."""
    amount = draw(st.integers(1, 40))
    command = Grant(**SUBJECT, grant_id=draw(st.sampled_from("ghi")), amount=amount, priority=draw(st.integers(0, 1)))
    if draw(st.booleans()):
        command.effective_at = START + timedelta(seconds=draw(st.sampled_from([-100, 0, 15, 5_000])))
    if draw(st.booleans()):
        command.expires_at = START + timedelta(seconds=draw(st.sampled_from([200_000, 20, 6_000])))
        if draw(st.booleans()):
            command.rollover_amount = draw(st.integers(1, amount))
            command.rollover_until = command.expires_at + timedelta(seconds=draw(st.sampled_from([50, 100_000])))
    return command


@st.composite
def stories(draw: st.DrawFn) -> Story:
    """Limits first, then commands with the seconds before each; most are about reservations that were made before."""
    story: Story = [(0.0, draw(new_limits))]
    made: list[str] = ["never made"]
    for _ in range(draw(st.integers(2, 30))):
        story.append((draw(waits), draw(commands(draw(kinds), made))))
    return story


def commands(kind: str, made: list[str]) -> st.SearchStrategy[Any]:
    fresh = f"r{len(made)}"
    known = st.sampled_from(made[::-1])
    match kind:
        case "reserve" | "consume":
            made.append(fresh)
            wanted: st.SearchStrategy[dict[str, Any]] = st.builds(
                dict, amount=amounts, reservation_id=st.sampled_from([fresh] * 9 + [made[1]]), mode=modes
            )
            if kind == "consume":
                return wanted.map(lambda fields: Consume(**SUBJECT, **fields))
            return st.tuples(wanted, seconds).map(lambda pair: Reserve(**SUBJECT, **pair[0], ttl_seconds=pair[1]))
        case "commit":
            return st.builds(Commit, reservation_id=known, used=st.sampled_from([0, 3, 5, 8, 15, 30]))
        case "progress":
            return st.builds(Commit, reservation_id=known, used=st.integers(0, 12), final=st.just(False), ttl_seconds=st.none() | seconds)
        case "rollback":
            return st.builds(Rollback, reservation_id=known)
        case "grant":
            return grants()
        case "adjust":
            return st.builds(lambda amount: Adjust(**SUBJECT, amount=amount, reason="correction"), st.sampled_from([-20, -3, 2, 9]))
        case "expire":
            return st.builds(Expire)
        case "void":
            return st.builds(VoidGrant, grant_id=st.sampled_from("ghi"))
        case _:
            return new_limits


def run(command: Any, state: State) -> tuple[Outcome, State, Sequence[Any]]:
    try:
        events = QUOTA.decide(command, state)
    except Rejected as refusal:
        return ("rejected", refusal.code), state, ()
    after = state
    for fact in events:
        after = QUOTA.evolve(after, fact)
    return ("accepted", dict(QUOTA.reply(command, state, after, events))), after, events


def thawed(state: State) -> State:
    """The state after its snapshot went through JSON."""
    return QUOTA.thaw(msgspec.json.decode(msgspec.json.encode(QUOTA.freeze(state)), type=FrozenQuota))


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(stories())
def test_every_answer_is_the_oracles(story: Story) -> None:
    oracle, state, at = Oracle(), QUOTA.initial, START
    versions: list[tuple[State, FrozenQuota]] = []

    for wait, command in story:
        at += timedelta(seconds=wait)
        command.at = at
        expected = oracle.apply(command)
        outcome, after, events = run(command, state)
        again, after_thaw, _ = run(command, thawed(state))
        event(f"{type(command).__name__} {outcome[0]} {outcome[1] if outcome[0] == 'rejected' else ''}")

        assert outcome == expected
        assert again == expected
        assert QUOTA.freeze(after_thaw) == QUOTA.freeze(after)
        if outcome[0] == "accepted":
            told = [(fact.limit_id, fact.percent) for fact in events if isinstance(fact, ThresholdCrossed)]
            assert told == oracle.crossed
        state = after
        versions.append((state, QUOTA.freeze(state)))

    assert [QUOTA.freeze(version) for version, _ in versions] == [frozen for _, frozen in versions]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(stories(), st.sampled_from([0.0, 30.0, 5_000.0, 200_000.0]))
def test_the_view_shows_what_the_oracle_counts(story: Story, later: float) -> None:
    oracle, state, at = Oracle(), QUOTA.initial, START
    for wait, command in story:
        at += timedelta(seconds=wait)
        command.at = at
        oracle.apply(command)
        _, state, _ = run(command, state)
    at += timedelta(seconds=later)

    assert isinstance(state, Quota)
    seen = view(state, at)
    oracle.apply(Expire(at=at))

    still_open = [use for use in oracle.reservations.values() if use.status == "open"]
    rooms = {standing.limit.limit_id: oracle.room(standing, at) for standing in oracle.standing}
    assert seen.remaining == oracle.remaining(at)
    assert seen.credits_remaining == oracle.credits(at)
    assert (seen.open_reservations, seen.reserved) == (len(still_open), sum(use.left() for use in still_open))
    assert seen.used == sum(use.booked for use in oracle.uses)
    assert {limit.limit_id: limit.amount - limit.used - limit.reserved for limit in seen.limits} == rooms
    assert {limit.limit_id: limit.overdrawn for limit in seen.limits} == {key: max(0, -room) for key, room in rooms.items()}

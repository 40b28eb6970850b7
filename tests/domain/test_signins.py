"""Signing in: given failures, when somebody tries, then events or a wait; and what holds whatever is tried, and whenever."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.identity.signins import (
    LOCK_SECONDS,
    LOCK_SECONDS_AT_MOST,
    SIGNIN,
    Failed,
    Locked,
    RecordFailure,
    RecordSuccess,
    SignedOutEverywhere,
    SignIn,
    SignOutEverywhere,
    Succeeded,
    Unlock,
    Unlocked,
    signin_stream,
    wait_seconds,
)
from domain.kernel.decider import Command, Event, Rejected

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
AN_HOUR = timedelta(hours=1)
IN_AN_HOUR_AT_MOST = 12
"""Failures an hour without a success: nine by 12:02:07, then locks of 15, 30 and 60 minutes."""


def after(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def folded(events: list[Event]) -> SignIn:
    state = SIGNIN.initial
    for event in events:
        state = SIGNIN.evolve(state, event)
    return state


def failed(failures: int) -> SignIn:
    """So many failures in a row, the last one now."""
    until = after(wait_seconds(failures))
    return folded([Locked(failures, until, NOW) if failures >= 10 else Failed(failures, until if failures > 2 else None, NOW)])


def then(state: SignIn, when: Command, at: datetime = NOW) -> list[Event] | str:
    when.at = at
    try:
        return list(SIGNIN.decide(when, state))
    except Rejected as refusal:
        return f"{refusal.code} {refusal.details.get('retry_at') or refusal.field_name or ''}".strip()


def succeed(method: str = "password", signed_out_at: datetime | None = None) -> RecordSuccess:
    return RecordSuccess(method=method, signed_out_at=signed_out_at)


def test_waits_begin_with_the_third_failure_double_and_end_at_a_day() -> None:
    waits = [wait_seconds(failures) for failures in range(1, 21)]

    assert waits == [0, 0, 1, 2, 4, 8, 16, 32, 64, 900, 1800, 3600, 7200, 14400, 28800, 57600, 86400, 86400, 86400, 86400]
    assert wait_seconds(10**6) == LOCK_SECONDS_AT_MOST


@pytest.mark.parametrize(
    ("state", "when", "at", "expected"),
    [
        (SignIn(), RecordFailure(), NOW, [Failed(1, None, NOW)]),
        (failed(1), RecordFailure(), after(-1), [Failed(2, None, after(-1))]),
        (failed(2), RecordFailure(), NOW, [Failed(3, after(1), NOW)]),
        (failed(3), RecordFailure(), after(0.999), f"signin.slowed_down {after(1).isoformat()}"),
        (failed(3), RecordFailure(), after(1), [Failed(4, after(3), after(1))]),
        (failed(9), RecordFailure(), after(64), [Locked(10, after(64 + LOCK_SECONDS), after(64))]),
        (failed(10), RecordFailure(), after(899), f"signin.locked {after(900).isoformat()}"),
        (failed(10), RecordFailure(), after(900), [Locked(11, after(900 + 2 * LOCK_SECONDS), after(900))]),
        (SignIn(), succeed(), NOW, [Succeeded("password", NOW)]),
        (failed(3), succeed(), after(0.999), f"signin.slowed_down {after(1).isoformat()}"),
        (failed(3), succeed(), after(1), [Succeeded("password", after(1))]),
        (failed(10), succeed(), after(899), f"signin.locked {after(900).isoformat()}"),
        (failed(10), succeed(), after(900), [Succeeded("password", after(900))]),
        (failed(10), succeed("telegram"), NOW, [Succeeded("telegram", NOW)]),
        (failed(10), succeed("invitation"), NOW, [Succeeded("invitation", NOW)]),
        (SignIn(), succeed("guess"), NOW, "signin.invalid method"),
        (SignIn(), Unlock(), NOW, []),
        (failed(10), Unlock(), NOW, [Unlocked(NOW)]),
        (SignIn(), SignOutEverywhere(), NOW, [SignedOutEverywhere(NOW)]),
    ],
)
def test_what_a_try_leads_to(state: SignIn, when: Command, at: datetime, expected: list[Event] | str) -> None:
    assert then(state, when, at) == expected


def test_a_success_that_looked_at_the_proof_before_everything_was_ended_lets_nobody_in() -> None:
    ended = folded([SignedOutEverywhere(NOW)])

    assert then(ended, succeed(signed_out_at=None)) == "signin.changed"
    assert then(ended, succeed("telegram", signed_out_at=after(-1))) == "signin.changed"
    assert then(ended, succeed(signed_out_at=NOW)) == [Succeeded("password", NOW)]


def test_a_success_and_an_administrator_end_the_row_and_nothing_else() -> None:
    row = [SignedOutEverywhere(after(-9)), Locked(10, after(900), NOW)]

    for end in (Succeeded("telegram", NOW), Unlocked(NOW)):
        assert folded([*row, end]) == SignIn(signed_out_at=after(-9))
    assert folded([Locked(10, after(900), NOW), SignedOutEverywhere(NOW)]).failures == 10


def test_states_come_back_from_snapshots_and_a_stream_is_of_one_person() -> None:
    state = folded([Locked(10, after(900), NOW)])

    assert SIGNIN.thaw(SIGNIN.freeze(state)) == state
    assert state.locked_until == after(900)
    assert failed(9).locked_until is None
    assert signin_stream(UUID(int=7)) == "signin-00000000000000000000000000000007"


def test_replies_hold_states_alone() -> None:
    for command in (RecordFailure(at=NOW), succeed(), SignOutEverywhere(), Unlock()):
        reply: dict[str, Any] = dict(SIGNIN.reply(command, SignIn(), failed(1), []))
        assert set(reply) <= {"status", "failures"}


# Whatever is tried, and whenever

_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["wrong", "wrong", "wrong", "right", "telegram", "out", "unlock"]),
        st.one_of(st.floats(0, 130), st.floats(0, 90_000), st.floats(-1e7, 1e7)),
    ),
    max_size=120,
)
"""What is tried, and by how many seconds the clock moved before it: mostly on, sometimes anywhere."""


class Person:
    """Somebody's stream, as a writer keeps it: the time of an event is never before that of the one before."""

    def __init__(self) -> None:
        self.state, self.events = SIGNIN.initial, list[Event]()
        self.clock = self.last = NOW

    def step(self, what: str, seconds: float) -> bool:
        """Whether it was let through."""
        self.clock += timedelta(seconds=seconds)
        at = max(self.clock, self.last)
        command: Command = {
            "wrong": RecordFailure(at=at),
            "right": RecordSuccess(at=at, method="password", signed_out_at=self.state.signed_out_at),
            "telegram": RecordSuccess(at=at, method="telegram", signed_out_at=self.state.signed_out_at),
            "out": SignOutEverywhere(at=at),
            "unlock": Unlock(at=at),
        }[what]
        try:
            made = SIGNIN.decide(command, self.state)
        except Rejected:
            return False
        for event in made:
            self.state = SIGNIN.evolve(self.state, event)
            self.events.append(event)
            self.last = at
        return True


@settings(max_examples=400, deadline=None)
@given(_STEPS)
def test_the_log_of_failures_is_bounded_in_every_hour(steps: list[tuple[str, float]]) -> None:
    person = Person()
    for what, seconds in steps:
        person.step(what, seconds)

    rows: list[list[datetime]] = [[]]
    for event in person.events:
        if isinstance(event, Failed | Locked):
            rows[-1].append(event.at)
        elif isinstance(event, Succeeded | Unlocked):
            rows.append([])
    for row in rows:
        for since in row:
            assert sum(since <= at < since + AN_HOUR for at in row) <= IN_AN_HOUR_AT_MOST
        assert sum(at < row[0] + 24 * AN_HOUR for at in row) <= 20


@settings(max_examples=400, deadline=None)
@given(_STEPS)
def test_who_must_wait_is_never_let_in_and_after_the_wait_always_is(steps: list[tuple[str, float]]) -> None:
    person = Person()
    for what, seconds in steps:
        before, count = person.state, len(person.events)
        let_in = person.step(what, seconds)
        at = max(person.clock, person.last)
        if what in ("wrong", "right"):
            assert let_in == (before.wait_until is None or at >= before.wait_until), "neither early nor late"
            assert let_in or (person.state == before and len(person.events) == count), "a refusal leaves nothing"
        if person.state.wait_until is not None and person.state.last_failed_at is not None:
            assert person.state.wait_until - person.state.last_failed_at <= timedelta(seconds=LOCK_SECONDS_AT_MOST)
            assert person.state.wait_until - at <= timedelta(seconds=LOCK_SECONDS_AT_MOST), "nor longer because the clock went back"

    person.clock = person.last
    assert person.step("right", LOCK_SECONDS_AT_MOST), "nobody is locked for ever"
    assert person.state.failures == 0


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 10), min_size=50, max_size=300))
def test_a_flood_of_guesses_is_as_slow_as_a_patient_one(pauses: list[float]) -> None:
    person = Person()
    for pause in pauses:
        person.step("wrong", pause)

    looked_at = len(person.events)
    seconds = (person.clock - NOW).total_seconds()  # not the pauses' sum, which floats round otherwise
    assert looked_at <= 3 or seconds >= sum(wait_seconds(failures) for failures in range(1, looked_at))

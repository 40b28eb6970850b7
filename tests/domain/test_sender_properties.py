"""What holds for sender accounts whatever is reported, in any order and at any pace."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from domain import sender_account as domain
from domain.kernel.decider import Command, Rejected
from domain.sender_account import (
    SENDER,
    ChangeSender,
    CheckSender,
    Cooldown,
    EndCooldown,
    Excluded,
    ExcludeSender,
    FloodWait,
    PeerFlood,
    Probe,
    ReportSignal,
    RestoreSender,
    Sent,
    Timeout,
    settled,
)

START = datetime(2027, 3, 28, 0, 30, tzinfo=UTC)

signals = st.one_of(
    st.sampled_from([Sent(), Sent(), Timeout(), PeerFlood(), PeerFlood(), Probe(False)]),
    st.just(Probe(True)),
    st.builds(FloodWait, st.sampled_from([1, 9, 10, 11, 40, 100, 5_000])),
    st.builds(lambda seconds: Probe(False, START + timedelta(seconds=seconds)), st.integers(0, 3_000)),
)
commands = st.one_of(
    st.builds(lambda signal: ReportSignal(sender_id="one", signal=signal), signals),
    st.builds(lambda signal: ReportSignal(sender_id="one", signal=signal), signals),
    st.builds(lambda: ExcludeSender(sender_id="one")),
    st.builds(lambda: RestoreSender(sender_id="one")),
    st.builds(lambda base: ChangeSender(sender_id="one", cooldown_seconds=base, cooldown_cap_seconds=90), st.sampled_from([1, 10, 40])),
    st.builds(EndCooldown),
)
pauses = st.sampled_from([0.0, 0.0, 0.0, 0.5, 1.0, 5.0, 9.999999, 10.0, 10.000001, 20.0, 90.0, 1_000.0])
histories = st.lists(st.tuples(pauses, commands), max_size=60)
accounts = st.builds(
    lambda most, base: domain.Registered("one", "anna", "", most, base, 90, START), st.integers(1, 6), st.sampled_from([1, 10, 40, 90])
)


def take(state: Any, command: Command, at: datetime) -> tuple[Any, Sequence[Any]]:
    command.at = at
    events = SENDER.decide(command, state)
    for event in events:
        state = SENDER.evolve(state, event)
    return state, events


def may_send(state: Any, at: datetime) -> bool:
    try:
        take(state, CheckSender(sender_id="one"), at)
    except Rejected:
        return False
    return True


@settings(max_examples=300, deadline=None)
@given(accounts, histories)
def test_a_flood_wait_is_waited_for(registered: domain.Registered, history: list[tuple[float, Command]]) -> None:
    """Whatever comes between, nobody may send before the seconds that any FloodWait heard outside an exclusion named."""
    state, at = SENDER.evolve(SENDER.initial, registered), START
    wait = START
    for pause, command in history:
        at += timedelta(seconds=pause)
        heard = not isinstance(state, Excluded)
        state, _ = take(state, command, at)
        if heard and isinstance(command, ReportSignal) and isinstance(command.signal, FloodWait):
            wait = max(wait, at + timedelta(seconds=command.signal.seconds))
        for moment in (at, wait - timedelta(microseconds=1)):
            if at <= moment < wait:
                assert not may_send(state, moment)


@settings(max_examples=300, deadline=None)
@given(accounts, histories)
def test_a_backoff_is_at_most_the_cap(registered: domain.Registered, history: list[tuple[float, Command]]) -> None:
    """Longer waits are only those that the messenger itself named."""
    state, at = SENDER.evolve(SENDER.initial, registered), START
    named = START
    for pause, command in history:
        at += timedelta(seconds=pause)
        if isinstance(command, ReportSignal) and isinstance(command.signal, FloodWait):
            named = max(named, at + timedelta(seconds=command.signal.seconds))
        if isinstance(command, ReportSignal) and isinstance(command.signal, Probe) and command.signal.limited_until is not None:
            named = max(named, command.signal.limited_until)
        state, events = take(state, command, at)
        for event in events:
            if isinstance(event, domain.CooldownStarted | domain.CooldownMoved):
                assert event.until > at
                assert event.until <= max(at + timedelta(seconds=90), named)


@settings(max_examples=300, deadline=None)
@given(accounts, histories)
def test_only_a_probe_shortens_and_only_a_restoration_ends_an_exclusion(
    registered: domain.Registered, history: list[tuple[float, Command]]
) -> None:
    state, at = SENDER.evolve(SENDER.initial, registered), START
    for pause, command in history:
        at += timedelta(seconds=pause)
        before = settled(state, at)
        state, _ = take(state, command, at)
        freeing = isinstance(command, ReportSignal) and command.signal == Probe(True)
        if isinstance(before, Cooldown) and not freeing and not isinstance(state, Excluded):
            assert isinstance(state, Cooldown)
            assert state.until >= before.until
            assert (state.errors, state.step) == (before.errors, before.step)
        if isinstance(before, Excluded) and not isinstance(command, RestoreSender):
            assert isinstance(state, Excluded)
            assert (state.errors, state.reason, state.not_before) == (before.errors, before.reason, before.not_before)


@settings(max_examples=300, deadline=None)
@given(accounts, histories)
def test_whether_the_deadline_comes_in_time_late_or_never_changes_no_answer(
    registered: domain.Registered, history: list[tuple[float, Command]]
) -> None:
    lazy = prompt = late = SENDER.evolve(SENDER.initial, registered)
    at = START
    for number, (pause, command) in enumerate(history):
        if isinstance(command, EndCooldown):
            continue
        at += timedelta(seconds=pause)
        if isinstance(prompt, Cooldown) and prompt.until <= at:
            prompt, _ = take(prompt, EndCooldown(), prompt.until)
        if number % 3 == 0:
            late, _ = take(late, EndCooldown(), at)
        answers = []
        moved = []
        for state in (lazy, prompt, late):
            after, _ = take(state, command, at)
            moved.append(after)
            answers.append((SENDER.reply(command, state, after, []), settled(after, at), may_send(after, at)))
        lazy, prompt, late = moved
        assert answers[0] == answers[1] == answers[2]


@settings(max_examples=300, deadline=None)
@given(accounts, st.lists(pauses, min_size=2, max_size=12))
@example(domain.Registered("one", "anna", "", 6, 1, 90, START), [0.0] * 12)
def test_floods_without_a_proof_between_wait_ever_longer_up_to_the_cap(registered: domain.Registered, gaps: list[float]) -> None:
    state: Any = SENDER.evolve(SENDER.initial, registered)
    at, last = START, timedelta(0)
    for gap in gaps:
        now: Any = settled(state, at)
        backoff = now.account.backoff(now.step)
        at += min(timedelta(seconds=gap), max(last - timedelta(microseconds=1), timedelta(0)))  # not long enough to prove anything
        state, _ = take(state, ReportSignal(sender_id="one", signal=Sent()), at)
        state, _ = take(state, ReportSignal(sender_id="one", signal=PeerFlood()), at)
        if isinstance(state, Excluded):
            assert registered.max_consecutive_errors == 1
            return
        assert state.until - at == backoff
        assert backoff >= last
        assert backoff == min(max(2 * last, timedelta(seconds=registered.cooldown_seconds)), timedelta(seconds=90))
        at, last = state.until, backoff


@settings(max_examples=300, deadline=None)
@given(accounts, histories)
def test_no_event_without_a_change_and_no_change_without_an_event(
    registered: domain.Registered, history: list[tuple[float, Command]]
) -> None:
    state, at = SENDER.evolve(SENDER.initial, registered), START
    for pause, command in history:
        at += timedelta(seconds=pause)
        before = state
        state, events = take(state, command, at)
        assert bool(events) == (state != before)
        assert SENDER.thaw(SENDER.freeze(state)) == state

"""Sender accounts: given events, when a signal comes, then events or a refusal; and what holds whatever comes, whenever."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest

from domain import sender_account as domain
from domain.kernel.deadlines import Done, Due
from domain.kernel.decider import Command, Event, Rejected
from domain.sender_account import (
    SENDER,
    Account,
    Active,
    ChangeSender,
    CheckSender,
    Cooldown,
    EndCooldown,
    Excluded,
    ExcludeSender,
    FloodWait,
    NoSender,
    PeerFlood,
    Probe,
    RegisterSender,
    ReportSignal,
    RestoreSender,
    Sent,
    Timeout,
    sender_stream,
    settled,
)

AT = datetime(2027, 3, 28, 0, 30, tzinfo=UTC)
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "sender-accounts.md"
REGISTERED = domain.Registered("one", "anna", "sealed", 5, 300, 1_000, AT)
ACCOUNT = Account("one", "anna", "sealed", 5, 300, 1_000)


def after(seconds: float) -> datetime:
    return AT + timedelta(seconds=seconds)


def given(*events: Event) -> Any:
    state: Any = SENDER.initial
    for event in events:
        state = SENDER.evolve(state, event)
    return state


def when(state: Any, command: Command, at: datetime = AT) -> Sequence[Event]:
    command.at = at
    return SENDER.decide(command, state)


def report(state: Any, signal: domain.Signal, at: datetime = AT) -> Sequence[Event]:
    return when(state, ReportSignal(sender_id="one", signal=signal), at)


def play(state: Any, *steps: tuple[float, domain.Signal]) -> Any:
    """The state after signals at these seconds."""
    for seconds, signal in steps:
        for event in report(state, signal, after(seconds)):
            state = SENDER.evolve(state, event)
    return state


def refused(state: Any, command: Command, at: datetime = AT) -> Rejected:
    with pytest.raises(Rejected) as caught:
        when(state, command, at)
    return caught.value


ACTIVE = given(REGISTERED)


def test_a_sender_begins_active_and_an_id_is_taken_once() -> None:
    register = RegisterSender(sender_id="one", owner="anna", label="sealed", cooldown_cap_seconds=1_000)

    assert when(SENDER.initial, register) == [REGISTERED]
    assert Active(ACCOUNT) == ACTIVE
    assert refused(ACTIVE, register).code == "sender.exists"


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"max_consecutive_errors": 0}, "max_consecutive_errors"),
        ({"cooldown_seconds": 0}, "cooldown_seconds"),
        ({"cooldown_seconds": 31 * 86_400}, "cooldown_seconds"),
        ({"cooldown_seconds": 10, "cooldown_cap_seconds": 9}, "cooldown_cap_seconds"),
        ({"cooldown_cap_seconds": 31 * 86_400}, "cooldown_cap_seconds"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], field: str) -> None:
    for refusal in (
        refused(SENDER.initial, RegisterSender(sender_id="one", owner="anna", **settings)),
        refused(ACTIVE, ChangeSender(sender_id="one", **settings)),
    ):
        assert (refusal.code, refusal.field_name, refusal.frozen) == ("sender.invalid", field, False)


@pytest.mark.parametrize(
    ("signal", "field"),
    [
        (FloodWait(0), "seconds"),
        (FloodWait(367 * 86_400), "seconds"),
        (Probe(False, AT + timedelta(days=4_000)), "limited_until"),
        (Probe(True, AT), "limited_until"),
        (Probe(False, datetime(2027, 4, 1)), "limited_until"),  # noqa: DTZ001  # without an offset it is no moment
    ],
)
def test_a_signal_that_makes_no_sense_is_refused(signal: domain.Signal, field: str) -> None:
    assert refused(ACTIVE, ReportSignal(sender_id="one", signal=signal)).field_name == field


def test_what_does_not_exist_and_what_is_somebody_elses_are_the_same() -> None:
    for make in (ChangeSender, ExcludeSender, RestoreSender, CheckSender):
        missing, others = refused(NoSender(), make(sender_id="one")), refused(ACTIVE, make(sender_id="one", only_of="bert"))
        assert (missing.code, missing.details, missing.frozen) == ("sender.not_found", {"sender_id": "one"}, False)
        assert (others.code, others.details) == (missing.code, missing.details)
        when(ACTIVE, make(sender_id="one", only_of="anna"))
    assert refused(NoSender(), ReportSignal(sender_id="one", signal=Sent())).code == "sender.not_found"
    assert refused(ACTIVE, ReportSignal(sender_id="one", signal=Sent(), only_of="bert")).code == "sender.not_found"


def test_a_change_to_the_same_is_none() -> None:
    change = ChangeSender(sender_id="one", label="sealed", cooldown_cap_seconds=1_000)

    assert when(ACTIVE, change) == []
    change.label = "other"
    cooling = play(ACTIVE, (0, PeerFlood()))
    (changed,) = when(cooling, change, after(1))
    renamed: Any = SENDER.evolve(cooling, changed)
    assert (renamed.account.label, renamed.until) == ("other", cooling.until)


SIGNALS: dict[str, Command] = {
    "`sent`": ReportSignal(sender_id="one", signal=Sent()),
    "`timeout`": ReportSignal(sender_id="one", signal=Timeout()),
    "`peer_flood`": ReportSignal(sender_id="one", signal=PeerFlood()),
    "`flood_wait`": ReportSignal(sender_id="one", signal=FloodWait(250)),
    "`probe`, free": ReportSignal(sender_id="one", signal=Probe(True)),
    "`probe`, limited": ReportSignal(sender_id="one", signal=Probe(False)),
    "`exclude`": ExcludeSender(sender_id="one"),
    "`restore`": RestoreSender(sender_id="one"),
}
STATES = {
    "active": Active(ACCOUNT, errors=1),
    "active, one error short of the limit": Active(ACCOUNT, errors=4),
    "cooldown of a flood or limit": play(ACTIVE, (0, PeerFlood())),
    "cooldown of a flood wait": play(ACTIVE, (0, FloodWait(200))),
    "excluded": Excluded(ACCOUNT, 5, "errors"),
}


def test_the_page_has_the_table_that_the_code_has() -> None:
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]

    assert rows[0] == ["signal", *STATES]
    told = {row[0]: row[1:] for row in rows[1:]}
    done = {
        name: [" and ".join(f"`{event.event_name}`" for event in when(state, command, after(10))) or "nothing" for state in STATES.values()]
        for name, command in SIGNALS.items()
    }
    assert told == done


def test_backoff_doubles_to_its_cap_and_floods_of_one_cooldown_are_one() -> None:
    state, lengths = ACTIVE, []
    at = 0.0
    for _ in range(4):
        state = play(state, (at, PeerFlood()), (at, PeerFlood()), (at, PeerFlood()))
        lengths.append((state.until - after(at)).total_seconds())
        assert state.errors == 1
        at += lengths[-1]
        state = play(state, (at, Sent()))

    assert lengths == [300, 600, 1_000, 1_000]
    assert state == Active(ACCOUNT, 0, 4, after(at + 1_000))
    assert play(state, (at + 999, Sent())).step == 4
    assert play(state, (at + 1_000, Sent())) == Active(ACCOUNT)


def test_a_message_sent_by_a_sender_without_a_past_leaves_nothing() -> None:
    assert report(ACTIVE, Sent()) == []
    assert report(play(ACTIVE, (0, Timeout())), Sent()) == [domain.Recovered("one", 0, AT)]


def test_a_flood_wait_lasts_its_seconds_whatever_the_cap_and_a_probe_say() -> None:
    (started,) = report(ACTIVE, FloodWait(5_000))
    assert started == domain.CooldownStarted("one", "flood_wait", after(5_000), after(5_000), 0, 1, AT)
    state = SENDER.evolve(ACTIVE, started)

    assert report(state, Probe(True), after(10)) == []
    short = play(ACTIVE, (0, FloodWait(100)))
    assert (short.until, short.not_before) == (after(300), after(100))
    assert play(short, (10, Probe(True))).until == after(100)
    assert isinstance(play(short, (110, Probe(True))), Active)
    assert play(short, (10, Probe(True)), (20, Probe(True))).until == after(100)


def test_a_limit_lasts_until_the_moment_it_named_and_a_probe_may_take_it_back() -> None:
    limited = play(ACTIVE, (0, Probe(False, after(90_000))))

    assert (limited.until, limited.errors, limited.reason) == (after(90_000), 0, "limited")
    assert play(limited, (10, PeerFlood())) == limited
    assert play(ACTIVE, (0, Probe(False, after(-50)))).until == after(300)
    assert isinstance(play(limited, (100, Probe(True))), Active)


def test_restoring_waits_for_a_flood_wait_of_before() -> None:
    state = play(Active(ACCOUNT, 4), (0, FloodWait(5_000)))
    assert state == Excluded(ACCOUNT, 5, "errors", after(5_000))

    restored = when(state, RestoreSender(sender_id="one"), after(10))
    assert [type(event) for event in restored] == [domain.Restored, domain.CooldownStarted]
    state = given(REGISTERED, domain.SenderWasExcluded("one", "errors", 5, after(5_000), AT), *restored)
    assert (state.until, state.errors, state.step) == (after(5_000), 0, 0)
    cooling = play(ACTIVE, (0, FloodWait(5_000)))
    (excluded,) = when(cooling, ExcludeSender(sender_id="one"), after(5))
    assert given(REGISTERED, excluded).not_before == after(5_000)


def test_a_check_refuses_with_the_moment_and_records_nothing() -> None:
    cooling = play(ACTIVE, (0, PeerFlood()))
    check = CheckSender(sender_id="one")

    refusal = refused(cooling, check, after(299.999))
    assert (refusal.code, refusal.details["retry_at"], refusal.frozen) == ("sender.cooling_down", after(300), True)
    assert when(cooling, check, after(300)) == ()
    assert when(ACTIVE, check) == ()
    refusal = refused(Excluded(ACCOUNT, 5, "errors"), check)
    assert (refusal.code, refusal.details["reason"], refusal.frozen) == ("sender.excluded", "errors", True)


def test_the_deadline_ends_what_is_over_and_nothing_else() -> None:
    cooling = play(ACTIVE, (0, PeerFlood()))

    assert when(cooling, EndCooldown(), after(299)) == ()
    assert when(cooling, EndCooldown(), after(301)) == [domain.CooldownEnded("one", "over", after(300), after(301))]
    assert when(ACTIVE, EndCooldown()) == ()
    assert when(NoSender(), EndCooldown()) == ()
    assert SENDER.when_due("cooldown", AT) == EndCooldown()


def test_each_event_says_what_becomes_of_the_deadline() -> None:
    (started,) = report(ACTIVE, PeerFlood())
    cooling: Any = SENDER.evolve(ACTIVE, started)
    (moved,), (ended,), (excluded,) = (
        report(cooling, PeerFlood(), after(10)),
        report(cooling, Probe(True), after(10)),
        when(cooling, ExcludeSender(sender_id="one"), after(10)),
    )

    assert SENDER.deadlines(started) == [Due("cooldown", after(300))]
    assert SENDER.deadlines(moved) == [Due("cooldown", after(310))]
    assert SENDER.deadlines(ended) == SENDER.deadlines(excluded) == [Done("cooldown")]
    assert SENDER.deadlines(REGISTERED) == ()


def test_replies_say_how_the_sender_stands_and_whose_it_is_not() -> None:
    command = ReportSignal(sender_id="one", signal=PeerFlood(), at=AT)
    cooling = play(ACTIVE, (0, PeerFlood()))
    told = SENDER.reply(command, ACTIVE, cooling, [])
    assert told == {"sender_id": "one", "state": "cooldown", "errors": 1, "reason": "peer_flood", "until": after(300)}
    command.at = after(300)
    assert SENDER.reply(command, cooling, cooling, [])["state"] == "active"


@pytest.mark.parametrize("state", [NoSender(), ACTIVE, *STATES.values(), Excluded(ACCOUNT, 1, "asked", AT), Active(ACCOUNT, 1, 2, AT)])
def test_a_snapshot_is_the_state(state: Any) -> None:
    frozen = SENDER.freeze(state)
    stored = msgspec.json.decode(msgspec.json.encode(frozen), type=SENDER.frozen_type)

    assert SENDER.thaw(stored) == state
    assert settled(state, AT) == state or isinstance(state, Cooldown)


def test_streams_differ_by_tenant_and_id_and_hold_neither() -> None:
    one, other = UUID(int=1), UUID(int=2)
    assert len({sender_stream(one, "a"), sender_stream(one, "b"), sender_stream(other, "a")}) == 3
    assert "desk" not in sender_stream(one, "desk")


def test_every_event_names_the_sender() -> None:
    assert all(fields(event)[0].name == "sender_id" for event in SENDER.events)  # type: ignore[arg-type]  # each is a dataclass

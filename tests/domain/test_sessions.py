"""Sessions: one row for each rule, and what holds whatever an owner and a thief do in whatever order."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.identity.sessions import (
    AGAIN_SECONDS,
    EXTEND_SECONDS,
    GRACE_SECONDS,
    SESSION,
    Ended,
    EndSession,
    ExpireSession,
    ExtendSession,
    InvalidSession,
    RefreshSession,
    Session,
    SessionEnded,
    SessionExists,
    SessionNotFound,
    SessionRefreshed,
    SessionStarted,
    SessionState,
    StartSession,
)
from domain.kernel.deadlines import Done, Due
from domain.kernel.decider import Command, Event, Rejected
from eventstore.codec import Codec

ID, USER, DESK, PHONE = UUID(int=1), UUID(int=2), "d" * 32, "e" * 32
AT = datetime(2026, 3, 29, 0, 59, tzinfo=UTC)
LIFETIME, IDLE = 30 * 86_400, 7 * 86_400


def after(seconds: float) -> datetime:
    return AT + timedelta(seconds=seconds)


def started(kind: Any = "token", device: str | None = DESK, idle: int = IDLE, lifetime: int = LIFETIME) -> SessionStarted:
    return SessionStarted(ID, USER, kind, device, idle, after(lifetime), AT)


def refreshed(number: int, seconds: float) -> SessionRefreshed:
    return SessionRefreshed(number, min(after(LIFETIME), after(seconds + IDLE)), after(seconds))


def start(**changed: Any) -> StartSession:
    fields = {"session_id": ID, "user_id": USER, "kind": "token", "device": DESK, "lifetime_seconds": LIFETIME, "idle_seconds": IDLE}
    return StartSession(**{**fields, **changed})


def refresh(number: int, device: str | None = DESK, *, late: bool = False) -> RefreshSession:
    return RefreshSession(number=number, device=device, late=late)


def folded(*events: Event) -> SessionState:
    state = SESSION.initial
    for each in events:
        state = SESSION.evolve(state, each)
    return state


def decided(state: SessionState, command: Command, at: datetime) -> list[Event]:
    command.at = at
    return list(SESSION.decide(command, state))


def ended(reason: Any, seconds: float) -> SessionEnded:
    return SessionEnded(reason, after(seconds))


GIVEN_WHEN_THEN: list[tuple[str, list[Event], Command, float, list[Event] | type[Rejected]]] = [
    ("a start", [], start(), 0, [started()]),
    ("a start again, its answer was lost", [started()], start(), AGAIN_SECONDS - 1, []),
    ("a start again, too late", [started()], start(), AGAIN_SECONDS, SessionExists),
    ("a start again, when the clock went back", [started()], start(), -1, SessionExists),
    ("a start again after a refresh", [started(), refreshed(2, 1)], start(), 2, SessionExists),
    ("a start again from another device", [started()], start(device=PHONE), 1, SessionExists),
    ("a start again of another kind", [started()], start(kind="browser"), 1, SessionExists),
    ("a start again of somebody else's", [started()], start(user_id=UUID(int=9)), 1, SessionExists),
    ("a start of one that ended", [started(), ended("logout", 1)], start(), 2, SessionExists),
    ("a device that is no digest", [], start(device="desk"), 0, InvalidSession),
    ("no lifetime", [], start(lifetime_seconds=0), 0, InvalidSession),
    ("no idle time", [], start(idle_seconds=0), 0, InvalidSession),
    ("a refresh", [started()], refresh(1), 5, [refreshed(2, 5)]),
    ("a refresh of nothing", [], refresh(1), 0, SessionNotFound),
    ("the next refresh", [started(), refreshed(2, 5)], refresh(2), 6, [refreshed(3, 6)]),
    ("the one before, its answer was lost", [started(), refreshed(2, 5)], refresh(1), 5 + GRACE_SECONDS - 0.001, []),
    ("the one before, too late", [started(), refreshed(2, 5)], refresh(1), 5 + GRACE_SECONDS, [ended("reuse", 5 + GRACE_SECONDS)]),
    ("the one before, late by another clock", [started(), refreshed(2, 5)], refresh(1, late=True), 6, [ended("reuse", 6)]),
    ("the one before, when the clock went back", [started(), refreshed(2, 5)], refresh(1), 4, [ended("reuse", 4)]),
    ("the one before, from another device", [started(), refreshed(2, 5)], refresh(1, PHONE), 6, [ended("device", 6)]),
    ("an older one", [started(), refreshed(2, 5), refreshed(3, 6)], refresh(1), 7, [ended("reuse", 7)]),
    ("one that was not given out", [started()], refresh(2), 5, [ended("reuse", 5)]),
    ("the live one from another device", [started()], refresh(1, PHONE), 5, [ended("device", 5)]),
    ("the live one without a device", [started()], refresh(1, None), 5, [ended("device", 5)]),
    ("a device where none was named", [started(device=None)], refresh(1, PHONE), 5, [ended("device", 5)]),
    ("a refresh of one that ended", [started(), ended("logout", 1)], refresh(1), 2, []),
    ("the last moment before idle", [started()], refresh(1), IDLE - 1, [refreshed(2, IDLE - 1)]),
    ("idle", [started()], refresh(1), IDLE, [ended("expired", IDLE)]),
    ("idle, and stolen", [started(), refreshed(2, 5)], refresh(1), 5 + IDLE, [ended("expired", 5 + IDLE)]),
    ("the end in any case", [started(), refreshed(9, LIFETIME - 5)], refresh(9), LIFETIME, [ended("expired", LIFETIME)]),
    ("a browser has no refresh tokens", [started("browser")], refresh(1), 5, SessionNotFound),
    ("a browser in use", [started("browser")], ExtendSession(), EXTEND_SECONDS, [refreshed(2, EXTEND_SECONDS)]),
    ("a browser in use all the time", [started("browser")], ExtendSession(), EXTEND_SECONDS - 1, []),
    ("a browser that was idle", [started("browser")], ExtendSession(), IDLE, [ended("expired", IDLE)]),
    ("a browser's session that ended", [started("browser"), ended("logout", 1)], ExtendSession(), EXTEND_SECONDS, []),
    ("a family of tokens is not extended", [started()], ExtendSession(), EXTEND_SECONDS, SessionNotFound),
    ("leaving", [started()], EndSession(reason="logout"), 3, [ended("logout", 3)]),
    ("leaving twice", [started(), ended("logout", 3)], EndSession(reason="logout"), 4, []),
    ("leaving nothing", [], EndSession(reason="logout"), 4, SessionNotFound),
    ("the deadline", [started()], ExpireSession(), IDLE, [ended("expired", IDLE)]),
    ("the deadline that was moved", [started(), refreshed(2, 5)], ExpireSession(), IDLE, []),
    ("the deadline of one that ended", [started(), ended("logout", 3)], ExpireSession(), IDLE, []),
]  # fmt: skip


@pytest.mark.parametrize(("given", "when", "at", "then"), [row[1:] for row in GIVEN_WHEN_THEN], ids=[row[0] for row in GIVEN_WHEN_THEN])
def test_each_rule(given: list[Event], when: Command, at: float, then: list[Event] | type[Rejected]) -> None:
    state = folded(*given)
    if isinstance(then, list):
        assert decided(state, when, after(at)) == then
    else:
        with pytest.raises(then):
            decided(state, when, after(at))


def test_the_reply_says_the_live_number_or_why_it_ended() -> None:
    alive = folded(started(), refreshed(2, 5))
    assert SESSION.reply(refresh(1), alive, alive, ())["number"] == 2

    over = folded(started(), ended("reuse", 5))
    assert SESSION.reply(refresh(1), over, over, ()) == {
        "session_id": ID.hex, "user_id": USER.hex, "status": "ended", "reason": "reuse",
    }  # fmt: skip


def test_the_deadline_is_where_the_session_ends_unused() -> None:
    assert SESSION.deadlines(started()) == (Due("expiry", after(IDLE)),)
    assert SESSION.deadlines(started(idle=LIFETIME * 2)) == (Due("expiry", after(LIFETIME)),)
    assert SESSION.deadlines(refreshed(2, 5)) == (Due("expiry", after(5 + IDLE)),)
    assert SESSION.deadlines(ended("logout", 1)) == (Done("expiry"),)
    assert isinstance(SESSION.when_due("expiry", AT), ExpireSession)
    with pytest.raises(LookupError):
        SESSION.when_due("other", AT)


@pytest.mark.parametrize("events", [[], [started()], [started(device=None), refreshed(2, 5)], [started("browser"), ended("reuse", 3)]])
def test_a_snapshot_is_the_state(events: list[Event]) -> None:
    codec, state = Codec([SESSION]), folded(*events)

    assert codec.thaw(SESSION, codec.freeze(SESSION, state)) == state
    assert msgspec.json.decode(codec.freeze(SESSION, state))


# What holds in any order

IDLE_IN_PLAY = 100
"""Long enough for several steps without use, short enough to be met."""


class Play:
    """A session that an owner and a thief who copied the owner's token and device use, by the log's time."""

    def __init__(self) -> None:
        self.now = AT
        self.state = folded(started(idle=IDLE_IN_PLAY, lifetime=400))
        self.holds: dict[str, int | None] = {"owner": 1, "thief": None}

    def use(self, who: str, *, lost: bool = False) -> None:
        """Refresh with the newest token one has; without an answer one goes on with the old one."""
        number = self.holds[who]
        if number is None:
            return
        before = self.state
        command = refresh(number)
        events = decided(before, command, self.now)
        self.state = folded_on(before, events)
        self._check(before, events)
        reply = SESSION.reply(command, before, self.state, events)
        if reply["status"] == "active" and not lost:
            self.holds[who] = reply["number"]

    def steal(self) -> None:
        self.holds["thief"] = self.holds["owner"]

    def works(self, who: str) -> bool:
        number = self.holds[who]
        if number is None or not isinstance(self.state, Session):
            return False
        return not any(isinstance(each, SessionEnded) for each in decided(self.state, refresh(number), self.now))

    def _check(self, before: SessionState, events: list[Event]) -> None:
        if isinstance(before, Ended):
            assert not events
            assert self.state == before
        if isinstance(before, Session) and isinstance(self.state, Session):
            assert self.state.number - before.number in (0, 1)
            assert self.state.until <= self.state.expires_at == before.expires_at


def folded_on(state: SessionState, events: list[Event]) -> SessionState:
    for each in events:
        state = SESSION.evolve(state, each)
    return state


STEPS = st.one_of(
    st.tuples(st.just("use"), st.sampled_from(["owner", "thief"]), st.booleans()),
    st.tuples(st.just("steal")),
    st.tuples(st.just("wait"), st.sampled_from([0.0, 0.001, 1.0, GRACE_SECONDS - 0.001, GRACE_SECONDS, 40.0, -5.0])),
)


def played(steps: list[tuple[Any, ...]]) -> Play:
    play = Play()
    for step in steps:
        match step:
            case ("use", who, lost):
                play.use(who, lost=lost)
            case ("steal",):
                play.steal()
            case ("wait", seconds):
                play.now += timedelta(seconds=seconds)
            case _:
                raise AssertionError(step)
    return play


@given(st.lists(STEPS, max_size=25), st.permutations(["owner", "thief"]))
def test_owner_and_thief_never_both_go_on(steps: list[tuple[Any, ...]], order: list[str]) -> None:
    """Once both have used what they have, each beyond the grace of the other's use, at most one of them still holds what works."""
    play = played(steps)
    for who in order:
        play.use(who)
        play.now += timedelta(seconds=GRACE_SECONDS)

    assert not (play.works("owner") and play.works("thief"))


@given(st.lists(STEPS, max_size=25))
def test_beyond_the_grace_one_number_is_live_at_most(steps: list[tuple[Any, ...]]) -> None:
    play = played(steps)
    if not isinstance(play.state, Session):
        return
    at = max(play.now, play.state.rotated_at) + timedelta(seconds=GRACE_SECONDS)

    live = [number for number in range(play.state.number + 3) if not _ends(decided(play.state, refresh(number), at))]

    assert live in ([], [play.state.number])
    assert live or not play.state.alive(at)


def _ends(events: list[Event]) -> bool:
    return any(isinstance(each, SessionEnded) for each in events)


@given(st.lists(st.tuples(st.booleans(), st.floats(0, GRACE_SECONDS - 0.01)), max_size=20))
def test_an_owner_alone_who_asks_again_within_the_grace_stays_in(answers: list[tuple[bool, float]]) -> None:
    play = Play()
    for lost, pause in answers:
        play.use("owner", lost=lost)
        if lost:
            play.now += timedelta(seconds=pause)
            play.use("owner")

    assert play.works("owner")

"""Sessions: that a person is signed in, on one device, until they leave, stay away too long, or a thief shows up.

A session of kind ``token`` is a family of refresh tokens, of which only a number is kept: the tokens are made of it at the edge. One number
is live at a time, and each refresh makes the next. The number before may be shown again by the same device for some seconds, because
an answer can be lost; whatever else is shown was stolen or shown by a thief's victim, nobody can tell which, and so the whole family ends:
both must sign in again. The same holds for the live number from another device. That ending must be recorded, so it is no refusal: the
command succeeds, and its reply says that the session has ended and why.

A session of kind ``browser`` is a cookie, which does not change while it lives; use of it moves the end, at most once an hour.

A session that ended never lives again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar, Literal, assert_never
from uuid import UUID

from domain.kernel.deadlines import Done, Due
from domain.kernel.decider import Command, Decider, Event, Rejected, event

__all__ = [
    "SESSION", "EndSession", "Ended", "ExpireSession", "ExtendSession", "NoSession", "RefreshSession", "Session", "SessionEnded",
    "SessionRefreshed", "SessionStarted", "StartSession", "session_stream",
]  # fmt: skip

GRACE_SECONDS = 10
"""For how long after a refresh the token before it may be shown again."""
AGAIN_SECONDS = 30
"""For how long a start may be repeated, when its answer was lost, as long as the session was not refreshed."""
EXTEND_SECONDS = 3600
"""How long the use of a browser session is not recorded again."""
MAX_SECONDS = 366 * 86_400

Kind = Literal["token", "browser"]
Reason = Literal["logout", "replaced", "admin", "reuse", "device", "expired", "password"]
"""Why a session ended: its person left, or began another in the same browser; an administrator ended it; a refresh token was used twice, or
from another device; it was not used, or its time was over; the password was changed."""

_EXPIRY = "expiry"


def session_stream(session_id: UUID) -> str:
    """The stream of a session."""
    return f"session-{session_id.hex}"


# Events. Stored for ever: never rename or remove a class or a field; a change of shape is a new version and an upcast.


@event("session.started")
@dataclass(frozen=True, slots=True)
class SessionStarted(Event):
    """A person signed in. ``device`` is the keyed digest of its fingerprint; the session ends at ``expires_at`` in any case."""

    session_id: UUID
    user_id: UUID
    kind: Kind
    device: str | None
    idle_seconds: int
    expires_at: datetime
    at: datetime


@event("session.refreshed")
@dataclass(frozen=True, slots=True)
class SessionRefreshed(Event):
    """The session was used: of a family of tokens, ``number`` is the live one from now on. ``until`` is its end unless it is used again."""

    number: int
    until: datetime
    at: datetime


@event("session.ended")
@dataclass(frozen=True, slots=True)
class SessionEnded(Event):
    """Nothing of it works any more."""

    reason: Reason
    at: datetime


# Commands


@dataclass(slots=True, kw_only=True)
class StartSession(Command):
    session_id: UUID
    user_id: UUID
    kind: Kind
    device: str | None
    lifetime_seconds: int
    idle_seconds: int


@dataclass(slots=True, kw_only=True)
class RefreshSession(Command):
    """``late``: whoever takes the command saw the refresh so long ago, by a clock that never goes back, that nothing is shown again."""

    number: int
    device: str | None = None
    late: bool = False


@dataclass(slots=True, kw_only=True)
class ExtendSession(Command):
    """A browser session is in use."""


@dataclass(slots=True, kw_only=True)
class EndSession(Command):
    reason: Reason


@dataclass(slots=True, kw_only=True)
class ExpireSession(Command):
    """The deadline's command."""


SessionCommand = StartSession | RefreshSession | ExtendSession | EndSession | ExpireSession
SessionEvent = SessionStarted | SessionRefreshed | SessionEnded


# State


@dataclass(frozen=True, slots=True)
class NoSession:
    """Nobody began it."""


@dataclass(frozen=True, slots=True)
class Session:
    """It lives. ``number`` is live since ``rotated_at``; unused, it ends at ``until``."""

    session_id: UUID
    user_id: UUID
    kind: Kind
    device: str | None
    started_at: datetime
    expires_at: datetime
    idle_seconds: int
    number: int
    rotated_at: datetime
    until: datetime

    def alive(self, at: datetime) -> bool:
        """Whether it has not come to its end by then."""
        return at < self.until


@dataclass(frozen=True, slots=True)
class Ended:
    """It lived until ``at``."""

    session_id: UUID
    user_id: UUID
    reason: Reason
    at: datetime


SessionState = NoSession | Session | Ended


# Decide


class InvalidSession(Rejected):
    """A field of the session makes no sense."""

    code: ClassVar[str] = "session.invalid"
    frozen: ClassVar[bool] = False
    status: ClassVar[str] = "invalid"


class SessionExists(Rejected):
    """There is such a session already, or there was.

    Not frozen: nothing that a stranger sends again and again may make the log grow.
    """

    code: ClassVar[str] = "session.exists"
    frozen: ClassVar[bool] = False


class SessionNotFound(Rejected):
    """There is no such session."""

    code: ClassVar[str] = "session.not_found"
    frozen: ClassVar[bool] = False
    status: ClassVar[str] = "not_found"


def decide_session(command: SessionCommand, state: SessionState) -> Sequence[Event]:
    """The checks come in this order: shape of the command, existence, the session's time, the device, the number."""
    match command:
        case StartSession():
            return _start(command, state)
        case RefreshSession():
            return _refresh(command, state)
        case ExtendSession():
            return _extend(command, state)
        case EndSession():
            return _end(command, state)
        case ExpireSession():
            return _expire(command, state)
        case _:
            assert_never(command)


def _start(command: StartSession, state: SessionState) -> Sequence[Event]:
    if command.device is not None and not re.fullmatch(r"[0-9a-f]{32}", command.device):
        raise InvalidSession("device")
    if not 1 <= command.lifetime_seconds <= MAX_SECONDS:
        raise InvalidSession("lifetime_seconds")
    if not 1 <= command.idle_seconds <= MAX_SECONDS:
        raise InvalidSession("idle_seconds")
    match state:
        case NoSession():
            expires_at = command.at + timedelta(seconds=command.lifetime_seconds)
            return [
                SessionStarted(
                    command.session_id, command.user_id, command.kind, command.device, command.idle_seconds, expires_at, command.at
                )
            ]
        case Session():
            same = (state.user_id, state.kind, state.device) == (command.user_id, command.kind, command.device)
            if not same or state.number != 1 or not _within(command.at, state.started_at, AGAIN_SECONDS):
                raise SessionExists()
            return ()
        case Ended():
            raise SessionExists()
        case _:
            assert_never(state)


def _within(at: datetime, since: datetime, seconds: int) -> bool:
    """Not when the clock went back: nobody knows then how much time has passed."""
    return timedelta() <= at - since < timedelta(seconds=seconds)


def _refresh(command: RefreshSession, state: SessionState) -> Sequence[Event]:
    match state:
        case NoSession():
            raise SessionNotFound()
        case Session() if state.kind != "token":
            raise SessionNotFound()
        case Session() if not state.alive(command.at):
            return [SessionEnded("expired", command.at)]
        case Session() if command.device != state.device:
            return [SessionEnded("device", command.at)]
        case Session() if command.number == state.number:
            return [_used(state, command.at)]
        case Session():
            before = command.number == state.number - 1 and not command.late
            if before and _within(command.at, state.rotated_at, GRACE_SECONDS):
                return ()
            # Older than that, or a number that is not given out yet: the log may have lost its end in a failover, or our secret is known.
            return [SessionEnded("reuse", command.at)]
        case Ended():
            return ()
        case _:
            assert_never(state)


def _used(state: Session, at: datetime) -> SessionRefreshed:
    return SessionRefreshed(state.number + 1, min(state.expires_at, at + timedelta(seconds=state.idle_seconds)), at)


def _extend(command: ExtendSession, state: SessionState) -> Sequence[Event]:
    match state:
        case NoSession():
            raise SessionNotFound()
        case Session() if state.kind != "browser":
            raise SessionNotFound()
        case Session() if not state.alive(command.at):
            return [SessionEnded("expired", command.at)]
        case Session():
            return () if command.at - state.rotated_at < timedelta(seconds=EXTEND_SECONDS) else [_used(state, command.at)]
        case Ended():
            return ()
        case _:
            assert_never(state)


def _end(command: EndSession, state: SessionState) -> Sequence[Event]:
    match state:
        case NoSession():
            raise SessionNotFound()
        case Session():
            return [SessionEnded(command.reason, command.at)]
        case Ended():
            return ()
        case _:
            assert_never(state)


def _expire(command: ExpireSession, state: SessionState) -> Sequence[Event]:
    return [SessionEnded("expired", command.at)] if isinstance(state, Session) and not state.alive(command.at) else ()


# Evolve


def evolve_session(state: SessionState, event: SessionEvent) -> SessionState:
    """Never refuses."""
    match event:
        case SessionStarted():
            return Session(
                event.session_id, event.user_id, event.kind, event.device, event.at, event.expires_at, event.idle_seconds,
                1, event.at, first_end(event),
            )  # fmt: skip  # what was said, then what follows from it
        case SessionRefreshed():
            assert isinstance(state, Session)
            return Session(
                state.session_id, state.user_id, state.kind, state.device, state.started_at, state.expires_at, state.idle_seconds,
                event.number, event.at, event.until,
            )  # fmt: skip  # as above
        case SessionEnded():
            assert isinstance(state, Session)
            return Ended(state.session_id, state.user_id, event.reason, event.at)
        case _:
            assert_never(event)


def first_end(event: SessionStarted) -> datetime:
    """When a session ends that is not used after it was started."""
    return min(event.expires_at, event.at + timedelta(seconds=event.idle_seconds))


# Reply


def reply_session(command: SessionCommand, before: SessionState, after: SessionState, events: Sequence[Event]) -> Mapping[str, Any]:
    """Ids and states alone. ``number`` is that of the token which is live now."""
    match after:
        case NoSession():
            return {"status": "none"}
        case Session():
            return {
                "session_id": after.session_id.hex,
                "user_id": after.user_id.hex,
                "status": "active",
                "number": after.number,
                "until": after.until,
            }
        case Ended():
            return {"session_id": after.session_id.hex, "user_id": after.user_id.hex, "status": "ended", "reason": after.reason}
        case _:
            assert_never(after)


# Deadlines


def session_deadlines(event: SessionEvent) -> Sequence[Due | Done]:
    """A session that nobody uses ends by itself."""
    match event:
        case SessionStarted():
            return (Due(_EXPIRY, first_end(event)),)
        case SessionRefreshed():
            return (Due(_EXPIRY, event.until),)
        case SessionEnded():
            return (Done(_EXPIRY),)
        case _:
            assert_never(event)


def session_due(name: str, at: datetime) -> Command:
    """See :attr:`domain.kernel.decider.Decider.when_due`."""
    if name != _EXPIRY:
        raise LookupError(f"no deadline is named {name}")
    return ExpireSession()


# Freeze and thaw


@dataclass(frozen=True, slots=True)
class FrozenSession:
    """One of the three situations, the others None: no union of plain classes can be told apart in a snapshot."""

    session: Session | None = None
    ended: Ended | None = None


def freeze_session(state: SessionState) -> FrozenSession:
    match state:
        case NoSession():
            return FrozenSession()
        case Session():
            return FrozenSession(session=state)
        case Ended():
            return FrozenSession(ended=state)
        case _:
            assert_never(state)


def thaw_session(frozen: FrozenSession) -> SessionState:
    return frozen.session or frozen.ended or NoSession()


SESSION: Decider[SessionState] = Decider(
    category="session",
    commands=(StartSession, RefreshSession, ExtendSession, EndSession, ExpireSession),
    events=(SessionStarted, SessionRefreshed, SessionEnded),
    initial=NoSession(),
    decide=decide_session,
    evolve=evolve_session,
    reply=reply_session,
    frozen_type=FrozenSession,
    freeze=freeze_session,
    thaw=thaw_session,
    refusals=(InvalidSession, SessionExists, SessionNotFound),
    deadlines=session_deadlines,
    when_due=session_due,
)

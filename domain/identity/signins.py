"""Signing in: what was tried under a person's name, and how long one must wait before the next try.

Three passwords may be wrong without more ado. From then on the next try must wait, for 1 second, then 2, 4 and so on; the tenth failure
in a row locks signing in by password for 15 minutes, and each one after that for twice as long as before, up to a day. A success ends
the row, and so does an administrator. A try during a wait is refused without looking at the password and leaves nothing, so that
guessing fills no log: 12 failures an hour at most between two successes.

Waits concern what can be guessed. A proof that cannot, of Telegram or an invitation, is a success at any time, and whoever resets the
password ends the wait: this is how the owner of a name that somebody else has locked gets in.

Whoever signed in is signed out everywhere by a moment: sessions that began at it or before it are over. A success names the moment that
was known when the password was looked at, so that a password changed meanwhile lets nobody in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, ClassVar, assert_never
from uuid import UUID

from domain.kernel.decider import Command, Decider, Event, Rejected, event

__all__ = [
    "METHODS", "SIGNIN", "RecordFailure", "RecordSuccess", "SignIn", "SignInChanged", "SignInLocked", "SignInSlowedDown",
    "SignOutEverywhere", "Unlock", "signin_stream",
]  # fmt: skip

FREE_FAILURES = 3
LOCKING_FAILURES = 10
LOCK_SECONDS = 15 * 60
LOCK_SECONDS_AT_MOST = 24 * 3600
METHODS = ("password", "telegram", "invitation")


def signin_stream(user_id: UUID) -> str:
    """The stream of a person's signing in."""
    return f"signin-{user_id.hex}"


# Events. Stored for ever: never rename or remove a class or a field; a change of shape is a new version and an upcast.


@event("signin.failed")
@dataclass(frozen=True, slots=True)
class Failed(Event):
    """A wrong password; ``failures`` in a row, this one included. No other is looked at before ``wait_until``, if that is given."""

    failures: int
    wait_until: datetime | None
    at: datetime


@event("signin.locked")
@dataclass(frozen=True, slots=True)
class Locked(Event):
    """A wrong password, and one too many: signing in by password is locked until that moment."""

    failures: int
    wait_until: datetime
    at: datetime


@event("signin.succeeded")
@dataclass(frozen=True, slots=True)
class Succeeded(Event):
    """Somebody signed in."""

    method: str
    at: datetime


@event("signin.signed_out_everywhere")
@dataclass(frozen=True, slots=True)
class SignedOutEverywhere(Event):
    """Every session that began until now is over."""

    at: datetime


@event("signin.unlocked")
@dataclass(frozen=True, slots=True)
class Unlocked(Event):
    """An administrator ended the wait and the row of failures."""

    at: datetime


# Commands


@dataclass(slots=True, kw_only=True)
class RecordFailure(Command):
    """The password was wrong."""


@dataclass(slots=True, kw_only=True)
class RecordSuccess(Command):
    """The proof was right. ``signed_out_at`` is what the state said before the proof was looked at."""

    method: str
    signed_out_at: datetime | None = None


@dataclass(slots=True, kw_only=True)
class SignOutEverywhere(Command):
    """End every session, as after a change of the password."""


@dataclass(slots=True, kw_only=True)
class Unlock(Command):
    """Let the person try again at once."""


SignInCommand = RecordFailure | RecordSuccess | SignOutEverywhere | Unlock
SignInEvent = Failed | Locked | Succeeded | SignedOutEverywhere | Unlocked


# State


@dataclass(frozen=True, slots=True)
class SignIn:
    """``failures`` in a row, the last one at ``last_failed_at``; no password is looked at before ``wait_until``."""

    failures: int = 0
    last_failed_at: datetime | None = None
    wait_until: datetime | None = None
    signed_out_at: datetime | None = None

    @property
    def locked_until(self) -> datetime | None:
        """The end of the lock-out, if the wait is one; it may be over."""
        return self.wait_until if self.failures >= LOCKING_FAILURES else None

    def waits_until(self, at: datetime) -> datetime | None:
        """Until when a try at this moment must wait; None when it need not."""
        return self.wait_until if self.wait_until is not None and at < self.wait_until else None


def wait_seconds(failures: int) -> int:
    """How long one waits after so many failures in a row."""
    if failures < FREE_FAILURES:
        return 0
    if failures < LOCKING_FAILURES:
        return int(2 ** (failures - FREE_FAILURES))
    doublings = min(failures - LOCKING_FAILURES, 10)  # bounded, for the failures of years are no exponent
    return min(int(LOCK_SECONDS * 2**doublings), LOCK_SECONDS_AT_MOST)


# Decide


class InvalidSignIn(Rejected):
    """A field of the sign-in makes no sense."""

    code: ClassVar[str] = "signin.invalid"
    frozen: ClassVar[bool] = False
    status: ClassVar[str] = "invalid"


class SignInSlowedDown(Rejected):
    """Several passwords were wrong; wait a little before the next.

    Not frozen, as the next two are not: an attempt leaves nothing, or guessing would fill the log.
    """

    code: ClassVar[str] = "signin.slowed_down"
    frozen: ClassVar[bool] = False


class SignInLocked(Rejected):
    """Too many passwords were wrong; signing in by password is locked for a while."""

    code: ClassVar[str] = "signin.locked"
    frozen: ClassVar[bool] = False


class SignInChanged(Rejected):
    """The person was signed out everywhere while they signed in; sign in again."""

    code: ClassVar[str] = "signin.changed"
    frozen: ClassVar[bool] = False


def decide_signin(command: SignInCommand, state: SignIn) -> Sequence[Event]:
    """The checks come in this order: shape of the command, the wait, what happened meanwhile."""
    match command:
        case RecordFailure():
            return _fail(command, state)
        case RecordSuccess():
            return _succeed(command, state)
        case SignOutEverywhere():
            return [SignedOutEverywhere(command.at)]
        case Unlock():
            return [Unlocked(command.at)] if state.failures else ()
        case _:
            assert_never(command)


def _check_wait(state: SignIn, at: datetime) -> None:
    until = state.waits_until(at)
    if until is None:
        return
    kind = SignInLocked if state.locked_until is not None else SignInSlowedDown
    raise kind(retry_at=until.isoformat())


def _fail(command: RecordFailure, state: SignIn) -> Sequence[Event]:
    _check_wait(state, command.at)
    failures = state.failures + 1
    if failures < FREE_FAILURES:
        return [Failed(failures, None, command.at)]
    until = command.at + timedelta(seconds=wait_seconds(failures))
    kind = Locked if failures >= LOCKING_FAILURES else Failed
    return [kind(failures, until, command.at)]


def _succeed(command: RecordSuccess, state: SignIn) -> Sequence[Event]:
    if command.method not in METHODS:
        raise InvalidSignIn("method")
    if command.method == "password":
        _check_wait(state, command.at)
    if command.signed_out_at != state.signed_out_at:
        raise SignInChanged()
    return [Succeeded(command.method, command.at)]


# Evolve


def evolve_signin(state: SignIn, event: SignInEvent) -> SignIn:
    """Never refuses."""
    match event:
        case Failed() | Locked():
            return replace(state, failures=event.failures, last_failed_at=event.at, wait_until=event.wait_until)
        case Succeeded() | Unlocked():
            return SignIn(signed_out_at=state.signed_out_at)
        case SignedOutEverywhere():
            return replace(state, signed_out_at=event.at)
        case _:
            assert_never(event)


# Reply


def reply_signin(command: SignInCommand, before: SignIn, after: SignIn, events: Sequence[Event]) -> Mapping[str, Any]:
    match command:
        case RecordFailure():
            return {"status": "failed", "failures": after.failures}
        case RecordSuccess():
            return {"status": "signed_in"}
        case SignOutEverywhere():
            return {"status": "signed_out"}
        case Unlock():
            return {"status": "unlocked"}
        case _:
            assert_never(command)


# Freeze and thaw


def _same(state: SignIn) -> SignIn:
    return state


SIGNIN: Decider[SignIn] = Decider(
    category="signin",
    commands=(RecordFailure, RecordSuccess, SignOutEverywhere, Unlock),
    events=(Failed, Locked, Succeeded, SignedOutEverywhere, Unlocked),
    initial=SignIn(),
    decide=decide_signin,
    evolve=evolve_signin,
    reply=reply_signin,
    frozen_type=SignIn,
    freeze=_same,
    thaw=_same,
    refusals=(InvalidSignIn, SignInSlowedDown, SignInLocked, SignInChanged),
)

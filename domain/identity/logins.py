"""Logins: what a person signs in with, and whose it is.

A login is known by a keyed digest alone, never by the e-mail address or the account of a messenger that it was made of. Each belongs to
one person of its tenant at most: it is claimed in one atomic batch with whatever gives it to the person, so that of two who ask for the
same one at once, one gets it. Who is erased releases theirs, and somebody else may claim it then.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, assert_never
from uuid import UUID

from domain.kernel.decider import Command, Decider, Event, Rejected, event

__all__ = ["LOGIN", "ClaimLogin", "Login", "LoginTaken", "NoLogin", "ReleaseLogin", "is_login", "login_stream"]

_DIGEST = re.compile(r"[0-9a-f]{32}")


def login_stream(digest: str) -> str:
    """The stream of a login; the digest is 32 hex digits."""
    return f"login-{digest}"


def is_login(text: str) -> bool:
    """Whether it has the shape of a login's digest, so that nothing else ever stands in a stream's name."""
    return _DIGEST.fullmatch(text) is not None


# Events. Stored for ever: never rename or remove a class or a field; a change of shape is a new version and an upcast.


@event("login.claimed")
@dataclass(frozen=True, slots=True)
class LoginClaimed(Event):
    """The login is a person's from now on."""

    user_id: UUID
    at: datetime


@event("login.released")
@dataclass(frozen=True, slots=True)
class LoginReleased(Event):
    """The login is nobody's any more."""

    user_id: UUID
    at: datetime


# Commands


@dataclass(slots=True, kw_only=True)
class ClaimLogin(Command):
    user_id: UUID


@dataclass(slots=True, kw_only=True)
class ReleaseLogin(Command):
    """Whoever does not have the login releases nothing."""

    user_id: UUID


LoginCommand = ClaimLogin | ReleaseLogin
LoginEvent = LoginClaimed | LoginReleased


# State


@dataclass(frozen=True, slots=True)
class NoLogin:
    """It is nobody's."""


@dataclass(frozen=True, slots=True)
class Login:
    user_id: UUID


LoginState = NoLogin | Login


# Decide


class LoginTaken(Rejected):
    """Somebody of this tenant signs in with this already."""

    code: ClassVar[str] = "login.taken"


def decide_login(command: LoginCommand, state: LoginState) -> Sequence[Event]:
    """There is one check: whose the login is."""
    match command:
        case ClaimLogin():
            if isinstance(state, Login) and state.user_id != command.user_id:
                raise LoginTaken()
            return () if isinstance(state, Login) else [LoginClaimed(command.user_id, command.at)]
        case ReleaseLogin():
            return [LoginReleased(command.user_id, command.at)] if state == Login(command.user_id) else ()
        case _:
            assert_never(command)


# Evolve


def evolve_login(state: LoginState, event: LoginEvent) -> LoginState:
    """Never refuses."""
    match event:
        case LoginClaimed():
            return Login(event.user_id)
        case LoginReleased():
            return NoLogin()
        case _:
            assert_never(event)


# Reply


def reply_login(command: LoginCommand, before: LoginState, after: LoginState, events: Sequence[Event]) -> Mapping[str, Any]:
    match command:
        case ClaimLogin():
            return {"user_id": command.user_id.hex, "status": "claimed"}
        case ReleaseLogin():
            return {"user_id": command.user_id.hex, "status": "released"}
        case _:
            assert_never(command)


# Freeze and thaw


@dataclass(frozen=True, slots=True)
class FrozenLogin:
    """A login for a snapshot."""

    user_id: UUID | None = None


def freeze_login(state: LoginState) -> FrozenLogin:
    return FrozenLogin(state.user_id) if isinstance(state, Login) else FrozenLogin()


def thaw_login(frozen: FrozenLogin) -> LoginState:
    return NoLogin() if frozen.user_id is None else Login(frozen.user_id)


LOGIN: Decider[LoginState] = Decider(
    category="login",
    commands=(ClaimLogin, ReleaseLogin),
    events=(LoginClaimed, LoginReleased),
    initial=NoLogin(),
    decide=decide_login,
    evolve=evolve_login,
    reply=reply_login,
    frozen_type=FrozenLogin,
    freeze=freeze_login,
    thaw=thaw_login,
    refusals=(LoginTaken,),
)

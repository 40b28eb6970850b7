"""Users: the people of a tenant, each with one role.

A person is invited and accepts, or is created at once; may be suspended and resumed; and in the end erased, after which nothing is left
but the id. An invitation ends; one that ended may be made again, under another number, and a token is good for its number alone.

The profile and the password's hash come sealed and stay so: this module never looks into them. What somebody signs in with is claimed in
``domain.identity.logins``, and who owns the tenant stands in ``domain.identity.tenants``: both are changed in one atomic batch with the
user. What such a batch must hold depends on the user's situation, so a command may say which one its sender saw (`situation`), and is
refused, leaving nothing, when it has changed since.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, ClassVar, assert_never
from uuid import UUID

from domain.identity.logins import is_login
from domain.identity.permissions import ROLES
from domain.kernel.decider import Command, Decider, Event, Rejected, event

__all__ = [
    "USER", "AcceptInvitation", "Active", "AddLogin", "ChangeProfile", "ChangeRole", "CreateUser", "EraseUser", "ErasedUser", "InviteUser",
    "Invited", "NoUser", "RequestReset", "ResumeUser", "SetPassword", "SuspendUser", "Suspended", "UserState", "situation", "user_stream",
]  # fmt: skip

MAX_SEALED = 8_192
MAX_LOGINS = 10


def user_stream(user_id: UUID) -> str:
    """The stream of a user."""
    return f"user-{user_id.hex}"


# Events. Stored for ever: never rename or remove a class or a field; a change of shape is a new version and an upcast.


@event("user.invited")
@dataclass(frozen=True, slots=True)
class UserInvited(Event):
    """Somebody was invited; ``number`` counts the invitations of this user. ``profile`` is sealed, ``login`` is a digest."""

    user_id: UUID
    number: int
    role: str
    profile: str
    login: str
    expires_at: datetime
    at: datetime


@event("user.accepted")
@dataclass(frozen=True, slots=True)
class InvitationAccepted(Event):
    """The invited became active. Both texts are sealed; without ``profile`` that of the invitation stays."""

    password: str | None
    profile: str | None
    at: datetime


@event("user.created")
@dataclass(frozen=True, slots=True)
class UserCreated(Event):
    """Somebody became active without an invitation. ``profile`` and ``password`` are sealed, ``login`` is a digest."""

    user_id: UUID
    role: str
    profile: str
    password: str | None
    login: str
    at: datetime


@event("user.profile_changed")
@dataclass(frozen=True, slots=True)
class ProfileChanged(Event):
    """The person's e-mail address or name is another; sealed."""

    profile: str
    at: datetime


@event("user.role_changed")
@dataclass(frozen=True, slots=True)
class RoleChanged(Event):
    """The person may do something else from now on."""

    role: str
    at: datetime


@event("user.suspended")
@dataclass(frozen=True, slots=True)
class UserSuspended(Event):
    """The person may do nothing until resumed."""

    at: datetime


@event("user.resumed")
@dataclass(frozen=True, slots=True)
class UserResumed(Event):
    """The person may do again what their role may."""

    at: datetime


@event("user.reset_requested")
@dataclass(frozen=True, slots=True)
class ResetRequested(Event):
    """A token was made with which the password may be set once, as long as nobody set it since ``version``."""

    version: int
    expires_at: datetime
    at: datetime


@event("user.password_set")
@dataclass(frozen=True, slots=True)
class PasswordSet(Event):
    """The person has another password; its hash is sealed."""

    password: str
    at: datetime


@event("user.login_added")
@dataclass(frozen=True, slots=True)
class LoginAdded(Event):
    """The person may sign in with something more; a digest."""

    login: str
    at: datetime


@event("user.erased")
@dataclass(frozen=True, slots=True)
class UserErased(Event):
    """Nothing of the person is left but the id."""

    at: datetime


# Commands


@dataclass(slots=True, kw_only=True)
class InviteUser(Command):
    """Invite somebody who is not there yet, or whose invitation ended."""

    user_id: UUID
    role: str
    profile: str
    login: str
    expires_at: datetime


@dataclass(slots=True, kw_only=True)
class AcceptInvitation(Command):
    """``number`` is that of the invitation the token was made for. The batch must add an owner to the tenant when the role is that."""

    password: str | None
    profile: str | None = None
    number: int | None = None
    seen: str | None = None


@dataclass(slots=True, kw_only=True)
class CreateUser(Command):
    """The batch must add an owner to the tenant when the role is that."""

    user_id: UUID
    role: str
    profile: str
    password: str | None = None
    login: str


@dataclass(slots=True, kw_only=True)
class ChangeProfile(Command):
    profile: str


@dataclass(slots=True, kw_only=True)
class ChangeRole(Command):
    role: str
    seen: str | None = None


@dataclass(slots=True, kw_only=True)
class SuspendUser(Command):
    seen: str | None = None


@dataclass(slots=True, kw_only=True)
class ResumeUser(Command):
    seen: str | None = None


@dataclass(slots=True, kw_only=True)
class RequestReset(Command):
    """Make a token known with which the password may be set once until ``expires_at``."""

    expires_at: datetime
    seen: str | None = None


@dataclass(slots=True, kw_only=True)
class SetPassword(Command):
    """``version`` is how often the password had been set when the sender looked; without it that does not matter."""

    password: str
    version: int | None = None


@dataclass(slots=True, kw_only=True)
class AddLogin(Command):
    login: str


@dataclass(slots=True, kw_only=True)
class EraseUser(Command):
    """The batch must remove the user from the tenant's owners and release the logins."""


UserCommand = (
    InviteUser
    | AcceptInvitation
    | CreateUser
    | ChangeProfile
    | ChangeRole
    | SuspendUser
    | ResumeUser
    | RequestReset
    | SetPassword
    | AddLogin
    | EraseUser
)
UserEvent = (
    UserInvited
    | InvitationAccepted
    | UserCreated
    | ProfileChanged
    | RoleChanged
    | UserSuspended
    | UserResumed
    | ResetRequested
    | PasswordSet
    | LoginAdded
    | UserErased
)


# State


@dataclass(frozen=True, slots=True)
class NoUser:
    """Nobody has this id."""


@dataclass(frozen=True, slots=True)
class Invited:
    """May accept until ``expires_at``; ``number`` is the invitation's."""

    user_id: UUID
    role: str
    profile: str
    login: str
    number: int
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Active:
    """May do what the role may. ``version`` is how often the password was set."""

    user_id: UUID
    role: str
    profile: str
    password: str | None
    logins: tuple[str, ...]
    version: int = 0


@dataclass(frozen=True, slots=True)
class Suspended:
    """May do nothing for now. ``version`` as of :class:`Active`."""

    user_id: UUID
    role: str
    profile: str
    password: str | None
    logins: tuple[str, ...]
    version: int = 0


@dataclass(frozen=True, slots=True)
class ErasedUser:
    """Gone for ever."""

    user_id: UUID


UserState = NoUser | Invited | Active | Suspended | ErasedUser


def status(state: UserState) -> str:
    """The situation in one word; ``none`` of nobody."""
    match state:
        case NoUser():
            return "none"
        case Invited():
            return "invited"
        case Active():
            return "active"
        case Suspended():
            return "suspended"
        case ErasedUser():
            return "erased"
        case _:
            assert_never(state)


def situation(state: UserState) -> str:
    """Status and role in one text, for ``seen``: what a batch about this user must hold depends on both, and who may send it."""
    return f"{status(state)} {state.role}" if isinstance(state, Invited | Active | Suspended) else status(state)


# Decide


class InvalidUser(Rejected):
    """A field of the user makes no sense."""

    code: ClassVar[str] = "user.invalid"
    frozen: ClassVar[bool] = False
    status: ClassVar[str] = "invalid"


class UserNotFound(Rejected):
    """There is no such user."""

    code: ClassVar[str] = "user.not_found"
    frozen: ClassVar[bool] = False
    status: ClassVar[str] = "not_found"


class UserExists(Rejected):
    """There is a user with this id already."""

    code: ClassVar[str] = "user.exists"


class UserIsErased(Rejected):
    """The user was erased; nothing more is recorded about them."""

    code: ClassVar[str] = "user.erased"
    frozen: ClassVar[bool] = False


class UserChanged(Rejected):
    """The user was changed by somebody else meanwhile; look again and decide anew."""

    code: ClassVar[str] = "user.changed"
    frozen: ClassVar[bool] = False


class InvitationExpired(Rejected):
    """The invitation has expired, or there is a newer one; ask for another."""

    code: ClassVar[str] = "user.invitation_expired"


class NotInvited(Rejected):
    """The invitation was accepted before."""

    code: ClassVar[str] = "user.not_invited"


class StillInvited(Rejected):
    """The user has not accepted the invitation yet."""

    code: ClassVar[str] = "user.still_invited"


class UserIsSuspended(Rejected):
    """The user is suspended."""

    code: ClassVar[str] = "user.suspended"


class PasswordChanged(Rejected):
    """The password was set since; what was given for setting it works once."""

    code: ClassVar[str] = "user.password_changed"


class TooManyLogins(Rejected):
    """The user has as many ways to sign in as one may have."""

    code: ClassVar[str] = "user.too_many_logins"


def decide_user(command: UserCommand, state: UserState) -> Sequence[Event]:
    """The checks come in this order: shape of the command, existence, erasure, what the sender saw, status, the rule itself."""
    _check_shape(command)
    match command:
        case InviteUser():
            return _invite(command, state)
        case CreateUser():
            return _create(command, state)
        case AcceptInvitation():
            return _accept(command, _known(state, command.seen))
        case ChangeProfile():
            person = _active(state)
            return () if person.profile == command.profile else [ProfileChanged(command.profile, command.at)]
        case ChangeRole():
            there = _known(state, command.seen)
            return () if there.role == command.role else [RoleChanged(command.role, command.at)]
        case SuspendUser():
            joined = _joined(state, command.seen)
            return () if isinstance(joined, Suspended) else [UserSuspended(command.at)]
        case ResumeUser():
            joined = _joined(state, command.seen)
            return () if isinstance(joined, Active) else [UserResumed(command.at)]
        case RequestReset():
            return [ResetRequested(_active(state, command.seen).version, command.expires_at, command.at)]
        case SetPassword():
            person = _active(state)
            if command.version is not None and command.version != person.version:
                raise PasswordChanged()
            return [PasswordSet(command.password, command.at)]
        case AddLogin():
            return _add_login(command, _active(state))
        case EraseUser():
            return _erase(command, state)
        case _:
            assert_never(command)


def _check_shape(command: UserCommand) -> None:
    role, login = getattr(command, "role", None), getattr(command, "login", None)
    if role is not None and role not in ROLES:
        raise InvalidUser("role")
    if login is not None and not is_login(login):
        raise InvalidUser("login")
    for name in ("profile", "password"):
        sealed = getattr(command, name, None)
        if sealed is not None and not 1 <= len(sealed) <= MAX_SEALED:
            raise InvalidUser(name)
    expires_at = getattr(command, "expires_at", None)
    if expires_at is not None and (expires_at.utcoffset() is None or expires_at <= command.at):
        raise InvalidUser("expires_at")


def _known(state: UserState, seen: str | None = None) -> Invited | Active | Suspended:
    if isinstance(state, NoUser):
        raise UserNotFound()
    if isinstance(state, ErasedUser):
        raise UserIsErased()
    if seen is not None and seen != situation(state):
        raise UserChanged()
    return state


def _joined(state: UserState, seen: str | None = None) -> Active | Suspended:
    there = _known(state, seen)
    if isinstance(there, Invited):
        raise StillInvited()
    return there


def _active(state: UserState, seen: str | None = None) -> Active:
    joined = _joined(state, seen)
    if isinstance(joined, Suspended):
        raise UserIsSuspended()
    return joined


def _invite(command: InviteUser, state: UserState) -> Sequence[Event]:
    number = 1
    match state:
        case NoUser():
            pass
        case Invited():
            if command.at < state.expires_at or state.login != command.login:
                raise UserExists()
            number = state.number + 1
        case Active() | Suspended():
            raise UserExists()
        case ErasedUser():
            raise UserIsErased()
        case _:
            assert_never(state)
    return [UserInvited(command.user_id, number, command.role, command.profile, command.login, command.expires_at, command.at)]


def _create(command: CreateUser, state: UserState) -> Sequence[Event]:
    if isinstance(state, ErasedUser):
        raise UserIsErased()
    if not isinstance(state, NoUser):
        raise UserExists()
    return [UserCreated(command.user_id, command.role, command.profile, command.password, command.login, command.at)]


def _accept(command: AcceptInvitation, state: Invited | Active | Suspended) -> Sequence[Event]:
    if not isinstance(state, Invited):
        raise NotInvited()
    if command.at >= state.expires_at or command.number not in (None, state.number):
        raise InvitationExpired()
    return [InvitationAccepted(command.password, command.profile, command.at)]


def _add_login(command: AddLogin, state: Active) -> Sequence[Event]:
    if command.login in state.logins:
        return ()
    if len(state.logins) >= MAX_LOGINS:
        raise TooManyLogins(max_logins=MAX_LOGINS)
    return [LoginAdded(command.login, command.at)]


def _erase(command: EraseUser, state: UserState) -> Sequence[Event]:
    if isinstance(state, NoUser):
        raise UserNotFound()
    return () if isinstance(state, ErasedUser) else [UserErased(command.at)]


# Evolve


def evolve_user(state: UserState, event: UserEvent) -> UserState:
    """Never refuses."""
    match event:
        case UserInvited():
            return Invited(event.user_id, event.role, event.profile, event.login, event.number, event.expires_at)
        case UserCreated():
            version = 0 if event.password is None else 1
            return Active(event.user_id, event.role, event.profile, event.password, (event.login,), version)
        case InvitationAccepted():
            assert isinstance(state, Invited)
            version = 0 if event.password is None else 1
            return Active(state.user_id, state.role, event.profile or state.profile, event.password, (state.login,), version)
        case UserErased():
            assert not isinstance(state, NoUser)
            return ErasedUser(state.user_id)
        case ResetRequested():
            return state
        case _:
            assert isinstance(state, Invited | Active | Suspended)
            return _evolve_known(state, event)


def _evolve_known(
    state: Invited | Active | Suspended, event: ProfileChanged | RoleChanged | UserSuspended | UserResumed | PasswordSet | LoginAdded
) -> UserState:
    match event:
        case ProfileChanged():
            return replace(state, profile=event.profile)
        case RoleChanged():
            return replace(state, role=event.role)
        case _:
            assert not isinstance(state, Invited)
    match event:
        case UserSuspended():
            return Suspended(state.user_id, state.role, state.profile, state.password, state.logins, state.version)
        case UserResumed():
            return Active(state.user_id, state.role, state.profile, state.password, state.logins, state.version)
        case PasswordSet():
            return replace(state, password=event.password, version=state.version + 1)
        case LoginAdded():
            return replace(state, logins=(*state.logins, event.login))
        case _:
            assert_never(event)


# Reply


def reply_user(command: UserCommand, before: UserState, after: UserState, events: Sequence[Event]) -> Mapping[str, Any]:
    """Ids and states; of an invitation and of a reset what their tokens are derived from, and nothing that opens anything."""
    assert not isinstance(after, NoUser)
    told: dict[str, Any] = {"user_id": after.user_id.hex, "status": status(after)}
    if not isinstance(after, ErasedUser):
        told["role"] = after.role
    match command, after:
        case InviteUser(), Invited():
            return {**told, "number": after.number, "expires_at": after.expires_at.isoformat()}
        case RequestReset(), Active():
            return {**told, "version": after.version, "expires_at": command.expires_at.isoformat()}
        case _:
            return told


# Freeze and thaw


@dataclass(frozen=True, slots=True)
class FrozenUser:
    """A user for a snapshot; one without an id was never there."""

    user_id: UUID | None = None
    status: str = "none"
    role: str = ""
    profile: str = ""
    password: str | None = None
    logins: tuple[str, ...] = ()
    version: int = 0
    number: int = 0
    expires_at: datetime | None = None


def freeze_user(state: UserState) -> FrozenUser:
    match state:
        case NoUser():
            return FrozenUser()
        case ErasedUser():
            return FrozenUser(state.user_id, "erased")
        case Invited():
            logins = (state.login,)
            return FrozenUser(
                state.user_id, "invited", state.role, state.profile, None, logins, number=state.number, expires_at=state.expires_at
            )
        case Active() | Suspended():
            return FrozenUser(state.user_id, status(state), state.role, state.profile, state.password, state.logins, state.version)
        case _:
            assert_never(state)


def thaw_user(frozen: FrozenUser) -> UserState:
    if frozen.user_id is None:
        return NoUser()
    if frozen.status == "erased":
        return ErasedUser(frozen.user_id)
    if frozen.expires_at is not None:
        return Invited(frozen.user_id, frozen.role, frozen.profile, frozen.logins[0], frozen.number, frozen.expires_at)
    kind = Active if frozen.status == "active" else Suspended
    return kind(frozen.user_id, frozen.role, frozen.profile, frozen.password, frozen.logins, frozen.version)


USER: Decider[UserState] = Decider(
    category="user",
    commands=(
        InviteUser, AcceptInvitation, CreateUser, ChangeProfile, ChangeRole, SuspendUser, ResumeUser, RequestReset, SetPassword, AddLogin,
        EraseUser,
    ),
    events=(
        UserInvited, InvitationAccepted, UserCreated, ProfileChanged, RoleChanged, UserSuspended, UserResumed, ResetRequested, PasswordSet,
        LoginAdded, UserErased,
    ),
    initial=NoUser(),
    decide=decide_user,
    evolve=evolve_user,
    reply=reply_user,
    frozen_type=FrozenUser,
    freeze=freeze_user,
    thaw=thaw_user,
    refusals=(
        InvalidUser, UserNotFound, UserExists, UserIsErased, UserChanged, InvitationExpired, NotInvited, StillInvited, UserIsSuspended,
        PasswordChanged, TooManyLogins,
    ),
)  # fmt: skip

"""Users: given events, when a command, then events or a refusal."""

from dataclasses import fields
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from domain.identity import users
from domain.identity.users import (
    USER,
    AcceptInvitation,
    AddLogin,
    ChangeProfile,
    ChangeRole,
    CreateUser,
    ErasedUser,
    EraseUser,
    InvitationAccepted,
    InviteUser,
    LoginAdded,
    PasswordSet,
    ProfileChanged,
    RequestReset,
    ResetRequested,
    ResumeUser,
    RoleChanged,
    SetPassword,
    SuspendUser,
    UserCreated,
    UserErased,
    UserInvited,
    UserResumed,
    UserState,
    UserSuspended,
    situation,
)
from domain.kernel.decider import Command, Event
from tests.domain.test_tenants import then

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SOON, LONG_AGO = NOW + timedelta(days=7), NOW - timedelta(days=1)
ANNA = UUID(int=1)
LOGIN, OTHER = "ab" * 16, "cd" * 16


def invite(role: str = "member", login: str = LOGIN, profile: str = "sealed", expires_at: datetime = SOON) -> InviteUser:
    return InviteUser(user_id=ANNA, role=role, profile=profile, login=login, expires_at=expires_at)


def create(role: str = "member", password: str | None = None) -> CreateUser:
    return CreateUser(user_id=ANNA, role=role, profile="sealed", password=password, login=LOGIN)


INVITED = UserInvited(ANNA, 1, "member", "sealed", LOGIN, SOON, NOW)
EXPIRED = UserInvited(ANNA, 1, "member", "sealed", LOGIN, LONG_AGO, LONG_AGO - timedelta(days=7))
JUST_ENDED = UserInvited(ANNA, 1, "member", "sealed", LOGIN, NOW, LONG_AGO)
AGAIN = UserInvited(ANNA, 2, "member", "sealed", LOGIN, SOON, NOW)
ACCEPTED = InvitationAccepted("hash", None, NOW)
CREATED = UserCreated(ANNA, "member", "sealed", "hash", LOGIN, NOW)
SUSPENDED, RESUMED, ERASED = UserSuspended(NOW), UserResumed(NOW), UserErased(NOW)
PASSWORD = PasswordSet("hash2", NOW)


def folded(*events: Event) -> UserState:
    state = USER.initial
    for event in events:
        state = USER.evolve(state, event)
    return state


@pytest.mark.parametrize(
    ("given", "when", "expected"),
    [
        ([], invite(), [INVITED]),
        ([INVITED], invite(), "user.exists"),
        ([EXPIRED], invite(role="admin"), [UserInvited(ANNA, 2, "admin", "sealed", LOGIN, SOON, NOW)]),
        ([JUST_ENDED], invite(), [UserInvited(ANNA, 2, "member", "sealed", LOGIN, SOON, NOW)]),
        ([EXPIRED], invite(login=OTHER), "user.exists"),
        ([INVITED, ACCEPTED], invite(), "user.exists"),
        ([CREATED, SUSPENDED], invite(), "user.exists"),
        ([INVITED, ERASED], invite(), "user.erased"),
        ([], invite(role="god"), "user.invalid role"),
        ([], invite(login="anna@example.com"), "user.invalid login"),
        ([], invite(profile=""), "user.invalid profile"),
        ([], invite(profile="x" * 8_193), "user.invalid profile"),
        ([], invite(expires_at=NOW), "user.invalid expires_at"),
        ([], invite(expires_at=SOON.replace(tzinfo=None)), "user.invalid expires_at"),
        ([INVITED], AcceptInvitation(password="hash"), [ACCEPTED]),
        ([INVITED], AcceptInvitation(password="hash", number=1, seen="invited member"), [ACCEPTED]),
        ([INVITED], AcceptInvitation(password="hash", number=2), "user.invitation_expired"),
        ([INVITED], AcceptInvitation(password="hash", seen="invited owner"), "user.changed"),
        ([INVITED], AcceptInvitation(password=""), "user.invalid password"),
        ([EXPIRED], AcceptInvitation(password="hash"), "user.invitation_expired"),
        ([JUST_ENDED], AcceptInvitation(password="hash"), "user.invitation_expired"),
        ([EXPIRED, AGAIN], AcceptInvitation(password="hash", number=1), "user.invitation_expired"),
        ([EXPIRED, AGAIN], AcceptInvitation(password="hash", number=2), [ACCEPTED]),
        ([INVITED, ACCEPTED], AcceptInvitation(password="hash"), "user.not_invited"),
        ([INVITED, ERASED], AcceptInvitation(password="hash"), "user.erased"),
        ([], AcceptInvitation(password="hash"), "user.not_found"),
        ([], create(password="hash"), [CREATED]),
        ([CREATED], create(password="hash"), "user.exists"),
        ([INVITED], create(), "user.exists"),
        ([CREATED, ERASED], create(), "user.erased"),
        ([], create(role="god"), "user.invalid role"),
    ],
)  # fmt: skip
def test_somebody_comes_in(given: list[Event], when: Command, expected: object) -> None:
    assert then(USER, given, when) == expected  # type: ignore[arg-type]  # state types differ by decider


@pytest.mark.parametrize(
    ("given", "when", "expected"),
    [
        ([CREATED], ChangeRole(role="admin"), [RoleChanged("admin", NOW)]),
        ([INVITED], ChangeRole(role="admin"), [RoleChanged("admin", NOW)]),
        ([CREATED, SUSPENDED], ChangeRole(role="admin"), [RoleChanged("admin", NOW)]),
        ([CREATED], ChangeRole(role="member"), []),
        ([CREATED], ChangeRole(role="admin", seen="active member"), [RoleChanged("admin", NOW)]),
        ([CREATED], ChangeRole(role="admin", seen="active owner"), "user.changed"),
        ([CREATED, SUSPENDED], ChangeRole(role="admin", seen="active member"), "user.changed"),
        ([CREATED], ChangeRole(role="god"), "user.invalid role"),
        ([], ChangeRole(role="admin"), "user.not_found"),
        ([CREATED], SuspendUser(), [SUSPENDED]),
        ([CREATED, SUSPENDED], SuspendUser(), []),
        ([CREATED], SuspendUser(seen="active owner"), "user.changed"),
        ([INVITED], SuspendUser(), "user.still_invited"),
        ([CREATED, SUSPENDED], ResumeUser(), [RESUMED]),
        ([CREATED], ResumeUser(), []),
        ([CREATED, SUSPENDED], ResumeUser(seen="suspended owner"), "user.changed"),
        ([INVITED], ResumeUser(), "user.still_invited"),
        ([CREATED], ChangeProfile(profile="other"), [ProfileChanged("other", NOW)]),
        ([CREATED], ChangeProfile(profile="sealed"), []),
        ([CREATED, SUSPENDED], ChangeProfile(profile="other"), "user.suspended"),
        ([INVITED], ChangeProfile(profile="other"), "user.still_invited"),
        ([CREATED], RequestReset(expires_at=SOON), [ResetRequested(1, SOON, NOW)]),
        ([CREATED, PASSWORD], RequestReset(expires_at=SOON), [ResetRequested(2, SOON, NOW)]),
        ([CREATED], RequestReset(expires_at=NOW), "user.invalid expires_at"),
        ([CREATED, SUSPENDED], RequestReset(expires_at=SOON), "user.suspended"),
        ([CREATED], SetPassword(password="hash2", version=1), [PASSWORD]),
        ([CREATED, PASSWORD], SetPassword(password="hash2", version=1), "user.password_changed"),
        ([CREATED, PASSWORD], SetPassword(password="hash2"), [PASSWORD]),
        ([CREATED, SUSPENDED], SetPassword(password="hash2"), "user.suspended"),
        ([CREATED], AddLogin(login=OTHER), [LoginAdded(OTHER, NOW)]),
        ([CREATED], AddLogin(login=LOGIN), []),
        ([CREATED], AddLogin(login="anna"), "user.invalid login"),
        ([CREATED, *(LoginAdded(f"{n:032x}", NOW) for n in range(9))], AddLogin(login=OTHER), "user.too_many_logins"),
        ([CREATED], EraseUser(), [ERASED]),
        ([INVITED], EraseUser(), [ERASED]),
        ([CREATED, ERASED], EraseUser(), []),
        ([], EraseUser(), "user.not_found"),
    ],
)
def test_somebody_is_changed(given: list[Event], when: Command, expected: object) -> None:
    assert then(USER, given, when) == expected  # type: ignore[arg-type]  # as above


@pytest.mark.parametrize(
    "when",
    [
        ChangeRole(role="admin"), SuspendUser(), ResumeUser(), ChangeProfile(profile="p"), RequestReset(expires_at=SOON),
        SetPassword(password="p"), AddLogin(login=OTHER), invite(), create(), AcceptInvitation(password="p"),
    ],
    ids=lambda command: type(command).__name__,
)  # fmt: skip
def test_nothing_more_is_recorded_about_the_erased(when: Command) -> None:
    assert then(USER, [CREATED, ERASED], when) == "user.erased"  # type: ignore[arg-type]  # as above


def test_of_the_erased_nothing_is_left_but_the_id() -> None:
    state = folded(CREATED, PASSWORD, ERASED)

    assert state == ErasedUser(ANNA)
    assert USER.reply(EraseUser(), folded(CREATED), state, [ERASED]) == {"user_id": ANNA.hex, "status": "erased"}
    frozen = USER.freeze(state)
    assert {field.name: getattr(frozen, field.name) for field in fields(frozen) if getattr(frozen, field.name) != field.default} == {
        "user_id": ANNA,
        "status": "erased",
    }


@pytest.mark.parametrize(
    "events",
    [(), (INVITED,), (INVITED, ACCEPTED), (CREATED,), (CREATED, SUSPENDED), (CREATED, PASSWORD, SUSPENDED, RESUMED), (CREATED, ERASED)],
)
def test_freezing_and_thawing_change_nothing(events: tuple[Event, ...]) -> None:
    state = folded(*events)

    assert USER.thaw(USER.freeze(state)) == state


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ((), "none"),
        ((INVITED,), "invited member"),
        ((CREATED, RoleChanged("owner", NOW)), "active owner"),
        ((CREATED, SUSPENDED), "suspended member"),
        ((CREATED, SUSPENDED, RESUMED), "active member"),
        ((CREATED, ERASED), "erased"),
    ],
)
def test_the_situation_says_status_and_role(events: tuple[Event, ...], expected: str) -> None:
    assert situation(folded(*events)) == expected


def test_the_invited_keep_their_login_and_the_profile_of_whoever_says_none() -> None:
    kept, given = folded(INVITED, ACCEPTED), folded(INVITED, InvitationAccepted("hash", "own", NOW))

    assert isinstance(kept, users.Active)
    assert isinstance(given, users.Active)
    assert (kept.profile, given.profile, kept.logins, kept.version) == ("sealed", "own", (LOGIN,), 1)


def test_replies_hold_nothing_personal_and_nothing_that_opens_anything() -> None:
    state = folded(CREATED)
    for command in (create(password="hash"), ChangeProfile(profile="sealed"), SetPassword(password="hash"), AddLogin(login=LOGIN)):
        told = str(USER.reply(command, state, state, []))

        assert not any(text in told for text in ("sealed", "hash", LOGIN))


def test_the_reply_of_an_invitation_says_what_its_token_is_made_of() -> None:
    reply = USER.reply(invite(), USER.initial, folded(INVITED), [INVITED])

    assert reply == {"user_id": ANNA.hex, "status": "invited", "role": "member", "number": 1, "expires_at": SOON.isoformat()}

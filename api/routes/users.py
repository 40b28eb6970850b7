"""The people of a tenant: who they are, invitations, roles, suspension, and one's own profile."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, ClassVar, Literal
from uuid import UUID, uuid5

import msgspec
from fastapi import APIRouter, Path, Query, Request
from pydantic import ConfigDict, Field, PrivateAttr
from starlette.responses import Response

from api import paging, people
from api.auth import Principal
from api.bodies import MAX_AMOUNT, Body, CommandBody
from api.edge import Edge, ask, run, take
from api.openapi import command, query
from api.people import Profile
from api.problems import Problem
from domain.identity.logins import LOGIN, ClaimLogin, Login, login_stream
from domain.identity.permissions import ROLES
from domain.identity.tenants import PLATFORM, TENANT, RemoveOwner, tenant_stream
from domain.identity.users import (
    USER,
    Active,
    ChangeProfile,
    ChangeRole,
    ErasedUser,
    Invited,
    InviteUser,
    NoUser,
    RequestReset,
    ResumeUser,
    SuspendUser,
    UserNotFound,
    situation,
    status,
    user_stream,
)
from eventstore.requests import Item
from eventstore.sealing import Sealing
from eventstore.store import Store
from projections.people import PersonRow

router = APIRouter(tags=["people"])

READ, ADMIN, SELF = "users:read", "users:admin", "self:manage"
RESET_SECONDS = 3_600
_ID = r"^[0-9a-f]{32}$"
_encode = msgspec.json.Encoder().encode

UserPath = Annotated[str, Path(pattern=_ID)]
Role = Literal["owner", "admin", "manager", "member", "support", "operator"]
Email = Annotated[
    str,
    Field(max_length=254, pattern=r"^[^@\s\x00-\x1f\x7f-\x9f]{1,64}@[^@\s\x00-\x1f\x7f-\x9f]{1,189}$", examples=["anna@example.com"]),
]
PersonName = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$", examples=["Anna"])]
ExpiresIn = Annotated[int, Field(ge=600, le=30 * 86_400, description="Seconds for which the invitation may be accepted.")]


def _in_seconds(seconds: int) -> datetime:
    """A moment from now, in whole seconds: that is what a token can say."""
    return datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=seconds)


# Commands


class Invite(CommandBody):
    """Invite somebody. Nothing is sent: the answer's token is for the inviter to hand on."""

    operation: ClassVar[str] = "invite_user"
    permission: ClassVar[str] = ADMIN

    email: Annotated[Email, Field(description="What they will sign in with; in any case, it is found in any other.")]
    name: PersonName | None = None
    role: Role
    expires_in_seconds: ExpiresIn = 7 * 86_400

    _login: str = PrivateAttr("")
    _profile: str = PrivateAttr("")
    _holder: UUID | None = PrivateAttr(None)
    _again: UUID | None = PrivateAttr(None)

    async def look(self, store: Store, principal: Principal) -> None:
        people.require_grant(principal, self.role)
        await self.find(store, principal.tenant_id)

    async def find(self, store: Store, tenant_id: UUID) -> None:
        """Whose the login is; an invitation that ended is made again for the same user."""
        self._login = await people.login_of_email(store.sealing, tenant_id, self.email)
        login = (await store.state(LOGIN, tenant_id, login_stream(self._login))).state
        if isinstance(login, Login):
            self._holder = login.user_id
            holder = await people.user_state(store, tenant_id, login.user_id)
            if isinstance(holder, Invited) and holder.login == self._login and holder.expires_at <= datetime.now(UTC):
                self._again = login.user_id

    async def seal(self, sealing: Sealing, tenant_id: UUID, command_id: UUID) -> None:
        profile = Profile(self.email.strip(), self.name)
        self._profile = await people.seal_profile(sealing, tenant_id, self.user_id(command_id), profile)

    def user_id(self, command_id: UUID) -> UUID:
        """Of the same command always the same, unless somebody's invitation is made again."""
        return self._again or uuid5(command_id, "user")

    def items(self, tenant_id: UUID, command_id: UUID, index: int = 0) -> tuple[Item, ...]:
        user_id = self.user_id(command_id)
        invite = InviteUser(
            user_id=user_id, role=self.role, profile=self._profile, login=self._login, expires_at=_in_seconds(self.expires_in_seconds)
        )
        claim = Item(LOGIN, login_stream(self._login), ClaimLogin(user_id=user_id))
        return claim, Item(USER, user_stream(user_id), invite)

    def person(self, tenant_id: UUID, command_id: UUID) -> UUID | None:
        # The login's holder is, after the first time, the one who was invited by this very command.
        return self._holder or uuid5(command_id, "user")


class _OfUser(CommandBody):
    permission: ClassVar[str] = ADMIN
    path_fields: ClassVar[tuple[str, ...]] = ("user_id",)

    user_id: Annotated[str, Field(pattern=_ID)]

    _seen: str = PrivateAttr("")
    _active: bool = PrivateAttr(False)
    _role: str = PrivateAttr("")

    @property
    def uuid(self) -> UUID:
        """The id as the domain has it."""
        return UUID(self.user_id)

    @property
    def stream(self) -> str:
        """The user's stream."""
        return user_stream(self.uuid)

    async def look(self, store: Store, principal: Principal) -> None:
        await self.find(store, principal.tenant_id)
        people.require_grant(principal, self._role)

    async def find(self, store: Store, tenant_id: UUID) -> None:
        """The situation that the command is meant for; another one refuses it."""
        state = await people.known_user(store, tenant_id, self.uuid)
        self._seen, self._active, self._role = situation(state), isinstance(state, Active), state.role


class ChangeUserRole(_OfUser):
    """Give a user another role, at once for every session."""

    operation: ClassVar[str] = "change_user_role"

    role: Role

    async def look(self, store: Store, principal: Principal) -> None:
        await super().look(store, principal)
        people.require_grant(principal, self.role)

    async def find(self, store: Store, tenant_id: UUID) -> None:
        await super().find(store, tenant_id)
        if (self.role == "operator") != (tenant_id == PLATFORM):
            raise Problem("users.role_not_yours", details={"role": self.role, "may_give": []})

    def items(self, tenant_id: UUID, command_id: UUID, index: int = 0) -> tuple[Item, ...]:
        owner = people.owner_item(tenant_id, self.uuid, self.role, active=self._active)
        return owner, Item(USER, self.stream, ChangeRole(role=self.role, seen=self._seen))


class SuspendPerson(_OfUser):
    """Refuse a user everything until they are resumed."""

    operation: ClassVar[str] = "suspend_user"

    def items(self, tenant_id: UUID, command_id: UUID, index: int = 0) -> tuple[Item, ...]:
        owner = Item(TENANT, tenant_stream(tenant_id), RemoveOwner(user_id=self.uuid))
        return owner, Item(USER, self.stream, SuspendUser(seen=self._seen))


class ResumePerson(_OfUser):
    """Let a suspended user in again."""

    operation: ClassVar[str] = "resume_user"

    def items(self, tenant_id: UUID, command_id: UUID, index: int = 0) -> tuple[Item, ...]:
        return people.owner_item(tenant_id, self.uuid, self._role), Item(USER, self.stream, ResumeUser(seen=self._seen))


class ResetPassword(_OfUser):
    """Make a token with which the user sets a new password, once and within the hour."""

    operation: ClassVar[str] = "reset_password"

    def item(self, tenant_id: UUID, command_id: UUID, index: int) -> Item:
        return Item(USER, self.stream, RequestReset(expires_at=_in_seconds(RESET_SECONDS), seen=self._seen))


class ChangeMe(CommandBody):
    """Change one's own profile."""

    operation: ClassVar[str] = "change_me"
    permission: ClassVar[str] = SELF

    name: PersonName | None

    _user_id: UUID = PrivateAttr(UUID(int=0))
    _was: Profile = PrivateAttr(default_factory=Profile)
    _profile: str = PrivateAttr("")

    async def look(self, store: Store, principal: Principal) -> None:
        self._user_id = own_id(principal)
        state = await people.known_user(store, principal.tenant_id, self._user_id)
        profile = await people.open_profile(store.sealing, principal.tenant_id, self._user_id, state.profile)
        self._was = profile or Profile()

    async def seal(self, sealing: Sealing, tenant_id: UUID, command_id: UUID) -> None:
        self._profile = await people.seal_profile(sealing, tenant_id, self._user_id, msgspec.structs.replace(self._was, name=self.name))

    def item(self, tenant_id: UUID, command_id: UUID, index: int) -> Item:
        return Item(USER, user_stream(self._user_id), ChangeProfile(profile=self._profile))

    def person(self, tenant_id: UUID, command_id: UUID) -> UUID | None:
        return self._user_id


def own_id(principal: Principal) -> UUID:
    """The id of the person who asks; a key is nobody."""
    if principal.user_id is None:
        raise Problem("auth.permission_missing", permission=SELF)
    return principal.user_id


# Answers


class Person(Body):
    """One of the tenant's people. Of an erased one nothing is left but the id."""

    user_id: str
    status: Literal["invited", "active", "suspended", "erased"]
    role: Role | None = None
    email: str | None = None
    name: str | None = None


class PersonInList(Person):
    """One of the tenant's people, and since when."""

    created_at: datetime
    changed_at: datetime


class PersonList(Body):
    """One page."""

    users: list[PersonInList]


class Me(Person):
    """Who asks, and what they may do."""

    tenant_id: str
    permissions: list[str]


class UserStatus(Body):
    """What became of the user."""

    user_id: str
    status: Literal["invited", "active", "suspended"]
    role: Role


class Invitation(UserStatus):
    """The invitation; with the token it is accepted."""

    expires_at: datetime
    invitation_token: str


class PasswordReset(UserStatus):
    """With the token a new password may be set once."""

    expires_at: datetime
    reset_token: str


_USER = "0d5b2f7c11a34e2a91b064c34f0d8c55"
_PERSON: dict[str, Any] = {"user_id": _USER, "status": "active", "role": "member", "email": "anna@example.com", "name": "Anna"}
LISTED_EXAMPLE: dict[str, Any] = {**_PERSON, "created_at": "2026-11-21T05:45:00Z", "changed_at": "2026-11-21T05:45:00Z"}
_STATUS: dict[str, Any] = {"user_id": _USER, "status": "active", "role": "member"}
_ME: dict[str, Any] = {**_PERSON, "tenant_id": "6f1c8f0e2b7a4c5d9e3f1a2b3c4d5e6f", "permissions": sorted(ROLES["member"])}
_TOLD_TOKEN = f"6f1c8f0e2b7a4c5d9e3f1a2b3c4d5e6f_{_USER}_1_1795844700_..."
_INVITED: dict[str, Any] = {
    **_STATUS, "status": "invited", "expires_at": "2026-11-28T05:45:00Z", "invitation_token": f"hbi_{_TOLD_TOKEN}",
}  # fmt: skip
OWNER_EXAMPLE: dict[str, Any] = {**_INVITED, "role": "owner"}
_RESET: dict[str, Any] = {**_STATUS, "expires_at": "2026-11-21T06:45:00Z", "reset_token": f"hbp_{_TOLD_TOKEN}"}
_KEY = {"correlation_id": "console-41"}
_CHANGE_REFUSALS = ("user.changed", "user.erased", "user.still_invited", "tenant.last_owner")


class PeopleQuery(Body):
    """Which people are wanted."""

    # Query values are text, so they cannot be strict.
    model_config = ConfigDict(extra="forbid", strict=False)

    role: Role | None = None
    status: Literal["invited", "active", "suspended"] | None = None
    cursor: paging.Cursor = None
    limit: Annotated[int, Field(ge=1, le=200)] = 50
    min_position: Annotated[int | None, Field(ge=0, le=MAX_AMOUNT, description="Wait until the read model has come so far.")] = None


def _told(model: type[CommandBody], reply: type[Body], answer: Any, *refusals: str, **body: Any) -> dict[str, Any]:
    examples = {"user": {**body, **_KEY}}
    return command(model, reply, model.operation, body=examples, answer=answer, refusals=refusals, missing="user.not_found")


async def page_of(request: Request, edge: Edge, tenant_id: UUID, asked_for: PeopleQuery) -> Response:
    """A page of a tenant's people, for whoever may see them."""
    rows = await edge.readers.people.list(
        tenant_id,
        role=asked_for.role,
        status=asked_for.status,
        after=place_in_time(asked_for.cursor),
        limit=asked_for.limit,
        min_position=asked_for.min_position,
    )
    last = (rows[-1].created_at.isoformat(), rows[-1].user_id.hex) if len(rows) == asked_for.limit else None
    sealing = edge.store.sealing
    profiles = await people.open_profiles(sealing, tenant_id, [(row.user_id, row.profile) for row in rows])
    answer = paging.page(request, {"users": [_listed(*each) for each in zip(rows, profiles, strict=True)]}, last)
    answer.headers["Cache-Control"] = "no-store"
    return answer


def place_in_time(cursor: str | None) -> tuple[datetime, UUID] | None:
    """The place in a list in the order of time, from its cursor."""
    found = paging.place(cursor, 2)
    if found is None:
        return None
    try:
        at, id_ = datetime.fromisoformat(found[0]), UUID(found[1])
    except ValueError:
        raise paging.not_a_cursor() from None
    if at.utcoffset() is None:
        raise paging.not_a_cursor()
    return at, id_


def _listed(row: PersonRow, profile: Profile | None) -> dict[str, Any]:
    shown = {"user_id": row.user_id.hex, "status": row.status, "role": row.role, **_in_clear(profile)}
    return {**shown, "created_at": row.created_at.astimezone(UTC), "changed_at": row.changed_at.astimezone(UTC)}


def _in_clear(profile: Profile | None) -> dict[str, Any]:
    return {} if profile is None else {"email": profile.email, "name": profile.name}


async def shown(edge: Edge, tenant_id: UUID, user_id: UUID) -> dict[str, Any]:
    """One of the people with the profile in clear, from the log itself."""
    state = await people.user_state(edge.store, tenant_id, user_id)
    if isinstance(state, NoUser):
        raise UserNotFound(user_id=user_id.hex)
    if isinstance(state, ErasedUser):
        return {"user_id": user_id.hex, "status": "erased"}
    profile = await people.open_profile(edge.store.sealing, tenant_id, user_id, state.profile)
    return {"user_id": user_id.hex, "status": status(state), "role": state.role, **_in_clear(profile)}


def private(content: Any) -> Response:
    """An answer that nobody on the way keeps."""
    return Response(_encode(content), headers={"Cache-Control": "no-store"}, media_type="application/json")


@router.get("/v1/users", **query(PersonList, "list_users", permission=READ, answer={"users": [LISTED_EXAMPLE]}, found=False))
async def list_users(request: Request, asked_for: Annotated[PeopleQuery, Query()]) -> Response:
    """The tenant's people, those who came first first. The Link header leads to the next page."""
    edge, _, principal = await ask(request, READ)
    return await page_of(request, edge, principal.tenant_id, asked_for)


@router.get("/v1/users/{user_id}", **query(Person, "get_user", permission=READ, answer=_PERSON, missing="user.not_found"))
async def get_user(request: Request, user_id: UserPath) -> Response:
    """One of the tenant's people."""
    edge, _, principal = await ask(request, READ)
    return private(await shown(edge, principal.tenant_id, UUID(user_id)))


@router.post(
    "/v1/invitations",
    **_told(Invite, Invitation, _INVITED, "login.taken", "user.exists", email="anna@example.com", name="Anna", role="member"),
)
async def invite(request: Request) -> Response:
    """Invite somebody by their e-mail address. The token is shown to the inviter, who hands it on; the same key gives the same one."""
    edge, _, principal = asked = await ask(request, ADMIN)
    return await with_invitation(await take(asked, request, Invite), edge.store.sealing, principal.tenant_id)


async def with_invitation(answer: Response, sealing: Sealing, tenant_id: UUID) -> Response:
    """The answer to an invitation with its token, which is derived from what the answer says."""

    async def token(told: dict[str, Any]) -> dict[str, str]:
        expires_at = datetime.fromisoformat(told["expires_at"])
        text = await people.invitation_token(sealing, tenant_id, UUID(told["user_id"]), told.pop("number"), expires_at)
        return {"invitation_token": text}

    return await _amended(answer, token)


@router.put("/v1/users/{user_id}/role", **_told(ChangeUserRole, UserStatus, _STATUS, *_CHANGE_REFUSALS, role="member"))
async def change_role(request: Request, user_id: UserPath) -> Response:
    """Give a user another role. Whoever does it must be allowed to give the new one and to take the old one away."""
    return await run(request, ChangeUserRole, {"user_id": user_id})


@router.post("/v1/users/{user_id}/suspend", **_told(SuspendPerson, UserStatus, {**_STATUS, "status": "suspended"}, *_CHANGE_REFUSALS))
async def suspend_user(request: Request, user_id: UserPath) -> Response:
    """Refuse a user everything, within a second, until they are resumed."""
    return await run(request, SuspendPerson, {"user_id": user_id})


@router.post("/v1/users/{user_id}/resume", **_told(ResumePerson, UserStatus, _STATUS, *_CHANGE_REFUSALS[:3]))
async def resume_user(request: Request, user_id: UserPath) -> Response:
    """Let a suspended user in again."""
    return await run(request, ResumePerson, {"user_id": user_id})


@router.post("/v1/users/{user_id}/reset-password", **_told(ResetPassword, PasswordReset, _RESET, *_CHANGE_REFUSALS[:3], "user.suspended"))
async def reset_password(request: Request, user_id: UserPath) -> Response:
    """A token with which the user sets a new password: once, within the hour. It is shown to whoever asks, who hands it on."""
    edge, _, principal = asked = await ask(request, ADMIN)

    async def token(told: dict[str, Any]) -> dict[str, str]:
        expires_at = datetime.fromisoformat(told["expires_at"])
        text = await people.reset_token(edge.store.sealing, principal.tenant_id, UUID(user_id), told.pop("version"), expires_at)
        return {"reset_token": text}

    return await _amended(await take(asked, request, ResetPassword, {"user_id": user_id}), token)


async def _amended(answer: Response, more: Callable[[dict[str, Any]], Awaitable[dict[str, str]]]) -> Response:
    """A success with what is derived from it and not kept."""
    if answer.status_code != 200:
        return answer
    told = msgspec.json.decode(bytes(answer.body))
    derived = await more(told)
    amended = private({**told, **derived})
    for name, value in answer.headers.items():
        if name not in ("content-length", "content-type"):
            amended.headers[name] = value
    return amended


@router.get("/v1/me", **query(Me, "get_me", permission=SELF, answer=_ME, missing="user.not_found"))
async def get_me(request: Request) -> Response:
    """Who asks, and what they may do."""
    edge, _, principal = await ask(request, SELF)
    told = await shown(edge, principal.tenant_id, own_id(principal))
    return private({**told, "tenant_id": principal.tenant_id.hex, "permissions": sorted(principal.permissions)})


@router.put("/v1/me", **_told(ChangeMe, UserStatus, _STATUS, "user.erased", "user.suspended", name="Anna"))
async def change_me(request: Request) -> Response:
    """Change one's own name; without one it is forgotten by whoever asks from now on."""
    return await run(request, ChangeMe)

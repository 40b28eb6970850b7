"""How a person gets a password and changes it: by an invitation, by the old one, by what an administrator gave for it.

Every change ends every session of the person, so that whoever else knew the old password is out at once. These addresses take no
idempotency key: invitations and resets work once and say so, and whoever changed the password signs in with the new one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal
from uuid import UUID, uuid4

import msgspec
from fastapi import APIRouter, Path, Request
from pydantic import Field
from starlette.responses import Response

from api import passwords, people, signing_in
from api.auth import Principal
from api.bodies import Body, CommandBody
from api.edge import ask, edge_of, run, submit
from api.openapi import command, problem
from api.passwords import Password
from api.problems import Problem
from api.public import DEVICE, PASSWORD, SIGNED_IN, body_of, public
from api.signing_in import SignedInAnswer, Wanted, let_in, living_tenant, standing_and_user, success
from domain.identity.signins import SIGNIN, SignOutEverywhere, Unlock, signin_stream
from domain.identity.users import USER, Active, Invited, SetPassword, UserChanged, UserIsErased, user_stream
from eventstore.origins import with_origin
from eventstore.requests import Item
from eventstore.requests import Request as StoreRequest
from eventstore.sealing import Sealing
from eventstore.store import Store

router = APIRouter(tags=["auth"])

TokenText = Annotated[str, Field(min_length=4, max_length=300, repr=False)]
UserPath = Annotated[str, Path(pattern=r"^[0-9a-f]{32}$")]


class AcceptBody(Wanted):
    """An invitation and the password one wants."""

    invitation_token: TokenText
    password: Password
    name: Annotated[str | None, Field(min_length=1, max_length=200)] = None


class PasswordBody(Body):
    """The password one has, and the one one wants."""

    old: Password
    new: Password


class ResetBody(Body):
    """What was given for setting a new password, and that."""

    reset_token: TokenText
    password: Password


class UnlockBody(CommandBody):
    """Let a person try their password again at once."""

    operation: ClassVar[str] = "unlock_user"
    permission: ClassVar[str] = "users:admin"
    path_fields: ClassVar[tuple[str, ...]] = ("user_id",)

    user_id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]

    async def look(self, store: Store, principal: Principal) -> None:
        # Ending the wait again and again would be guessing without one, so it is for those alone who could set another role too.
        user = await people.known_user(store, principal.tenant_id, UUID(self.user_id))
        people.require_grant(principal, user.role)

    def item(self, tenant_id: UUID, command_id: UUID, index: int) -> Item:
        return Item(SIGNIN, signin_stream(UUID(self.user_id)), Unlock())


# Answers


class PasswordIsSet(Body):
    """Every session of the person is over: sign in with the new password."""

    status: Literal["password_set"]


class Unlocked(Body):
    """The next password is looked at."""

    status: Literal["unlocked"]


_UNLOCK = {"correlation_id": "console-8"}


@router.post(
    "/v1/auth/accept",
    **public(
        AcceptBody,
        SignedInAnswer,
        "accept_invitation",
        {"invitation_token": "hbi_6f1c8f0e2b7a4c5d9e3f1a2b3c4d5e6f_...", "password": PASSWORD, "name": "Ada", **DEVICE},
        SIGNED_IN,
        "auth.token_not_good",
    ),
)
async def accept_invitation(request: Request) -> Response:
    """Accept an invitation, with a password for the next time, and be signed in. Works once."""
    body = await body_of(request, AcceptBody)
    edge = edge_of(request)
    token = await _token(request, body.invitation_token, people.read_invitation)
    tenant_id, user_id = token.tenant_id, token.user_id
    standing, user = await standing_and_user(edge, tenant_id, user_id)
    if not isinstance(user, Invited) or user.number != token.number or user.expires_at <= datetime.now(UTC):
        raise _not_good(request, tenant_id)
    sealing = edge.store.sealing
    profile = await people.open_profile(sealing, tenant_id, user_id, user.profile)
    if profile is None:
        raise _not_good(request, tenant_id)
    passwords.check(body.password, profile.email)
    resealed = None
    if body.name is not None:
        profile.name = body.name
        resealed = await people.seal_profile(sealing, tenant_id, user_id, profile)
    password = await sealing.seal(tenant_id, user_id, people.PASSWORD, await passwords.hash(body.password))
    items = people.accept_items(tenant_id, user, token.number, password, resealed)
    try:
        answer = await let_in(request, tenant_id, user_id, body, (*items, success(user_id, "invitation", standing)))
    except (UserChanged, UserIsErased):  # somebody else accepted it at once, or ended it
        raise _not_good(request, tenant_id) from None
    edge.metrics.signed_in("invitation", "success")
    return answer


@router.post(
    "/v1/auth/reset",
    **public(
        ResetBody,
        PasswordIsSet,
        "set_password_by_reset",
        {"reset_token": "hbp_...", "password": PASSWORD},
        {"status": "password_set"},
        "auth.token_not_good",
    ),
)
async def set_password_by_reset(request: Request) -> Response:
    """Set a new password with what an administrator gave for it. Works once, ends every session, and any wait."""
    body = await body_of(request, ResetBody)
    edge = edge_of(request)
    token = await _token(request, body.reset_token, lambda sealing, text: people.read_reset(sealing, text, datetime.now(UTC)))
    tenant_id, user_id = token.tenant_id, token.user_id
    user = await people.user_state(edge.store, tenant_id, user_id)
    if not isinstance(user, Active) or user.version != token.number:
        raise _not_good(request, tenant_id)
    await _check_new(edge.store.sealing, tenant_id, user, body.password, "password")
    items = (*await _new_password(edge.store.sealing, tenant_id, user, body.password), Item(SIGNIN, signin_stream(user_id), Unlock()))
    headers = dict(request.scope["headers"])
    origin_id = await edge.origin(request.scope, headers, tenant_id, user_id)
    try:
        outcome = await edge.store.submit(StoreRequest(tenant_id, uuid4(), items, b"", actor=with_origin(f"user:{user_id.hex}", origin_id)))
    except UserIsErased:
        raise _not_good(request, tenant_id) from None
    if outcome.refused:
        raise _not_good(request, tenant_id)
    return _json({"status": "password_set"})


_CHANGE = command(
    PasswordBody,
    PasswordIsSet,
    "change_password",
    body={"body": {"old": PASSWORD, "new": "staple battery correct"}},
    answer={"status": "password_set"},
    refusals=("user.password_changed",),
    missing="user.not_found",
)
_CHANGE["openapi_extra"] = {**_CHANGE["openapi_extra"], "x-permission": "self:manage", "parameters": []}
_CHANGE["responses"][429] = problem(429, "auth.slow_down")


@router.post("/v1/auth/password", **_CHANGE)
async def change_password(request: Request) -> Response:
    """Change one's own password. Every session is over, this one too: whoever else knew the old password is out at once."""
    asked = await ask(request, "self:manage")
    edge, tenant_id, user_id = asked.edge, asked.principal.tenant_id, asked.principal.user_id
    assert user_id is not None, "keys have no such permission"
    body = await body_of(request, PasswordBody)
    standing, user = await standing_and_user(edge, tenant_id, user_id)
    if not isinstance(user, Active) or user.password is None:
        raise Problem("auth.password_wrong")
    await _check_new(edge.store.sealing, tenant_id, user, body.new, "new")
    signing_in.check_wait(standing)
    hashed = await edge.store.sealing.open(tenant_id, user_id, people.PASSWORD, user.password)
    if not (await passwords.verify(body.old, hashed)).right:
        await signing_in.wrong_old_password(asked)
        raise Problem("auth.password_wrong")
    items = await _new_password(edge.store.sealing, tenant_id, user, body.new)
    outcome = await submit(asked, uuid4(), items, b"", 256)
    if outcome.refused:
        raise Problem("auth.password_wrong")  # it was changed at once by somebody else, so the old one is not theirs any more
    return _json({"status": "password_set"})


@router.post(
    "/v1/users/{user_id}/unlock",
    **command(
        UnlockBody, Unlocked, "unlock_user", body={"unlock": _UNLOCK}, answer={"status": "unlocked"}, refusals=(), missing="user.not_found"
    ),
)
async def unlock_user(request: Request, user_id: UserPath) -> Response:
    """End the wait that wrong passwords brought about."""
    return await run(request, UnlockBody, {"user_id": user_id})


async def _token(request: Request, text: str, read: Callable[[Sealing, str], Awaitable[people.Token | None]]) -> people.Token:
    """What a genuine token says. A tenant that is only claimed is asked for first: nothing is made for one that is not there."""
    edge, tenant_id = edge_of(request), people.tenant_of_token(text)
    if tenant_id is None or await living_tenant(edge, tenant_id) is None:
        raise _not_good(request, None)
    try:
        token = await read(edge.store.sealing, text)
    except ValueError:  # an end that no calendar has
        token = None
    if token is None:
        raise _not_good(request, tenant_id)
    return token


def _not_good(request: Request, tenant_id: UUID | None) -> Problem:
    signing_in.note(request, tenant_id, "token", "refused")
    return Problem("auth.token_not_good")


async def _check_new(sealing: Sealing, tenant_id: UUID, user: Active, password: str, field: str) -> None:
    profile = await people.open_profile(sealing, tenant_id, user.user_id, user.profile)
    passwords.check(password, profile.email if profile is not None else None, field)


async def _new_password(sealing: Sealing, tenant_id: UUID, user: Active, password: str) -> tuple[Item, ...]:
    """Set it, unless somebody did meanwhile, and end every session."""
    sealed = await sealing.seal(tenant_id, user.user_id, people.PASSWORD, await passwords.hash(password))
    command_ = SetPassword(password=sealed, version=user.version)
    return (
        Item(USER, user_stream(user.user_id), command_),
        Item(SIGNIN, signin_stream(user.user_id), SignOutEverywhere()),
    )


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json", headers={"Cache-Control": "no-store"})

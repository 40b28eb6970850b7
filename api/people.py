"""People between the API and the domain: profiles sealed and opened, what they sign in with, tokens of invitations and of resets.

A token is derived and never kept: from the user's id, the number it is good for and its end, under a secret of the tenant. The same
invitation always has the same one, so a replayed request is answered with the same token, and none of them is in the log.
"""

from __future__ import annotations

import asyncio
import hmac
import re
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from api.auth import Principal
from api.problems import Problem
from domain.identity.logins import LOGIN, ClaimLogin, login_stream
from domain.identity.permissions import GRANTS
from domain.identity.tenants import TENANT, AddOwner, RemoveOwner, tenant_stream
from domain.identity.users import (
    USER,
    AcceptInvitation,
    Active,
    CreateUser,
    ErasedUser,
    Invited,
    NoUser,
    Suspended,
    UserIsErased,
    UserNotFound,
    UserState,
    situation,
    user_stream,
)
from eventstore.requests import Item
from eventstore.sealing import Sealing
from eventstore.store import Store

PROFILE, PASSWORD = "user.profile", "user.password"
"""Purposes of what is sealed with a user's key."""

_TOKEN = re.compile(r"hb([ip])_([0-9a-f]{32})_([0-9a-f]{32})_([0-9]{1,9})_([0-9]{1,11})_([A-Za-z0-9_-]{43})")
_SECRETS = {"i": "invitation", "p": "password-reset"}


class Profile(msgspec.Struct, omit_defaults=True):
    """What is personal about a user."""

    email: str | None = None
    name: str | None = None
    telegram: dict[str, Any] | None = None
    """Of somebody who came by Telegram: id and user name there."""


class Token(NamedTuple):
    """What a genuine token says; whether it still is good is for who reads it to see from the user's state."""

    tenant_id: UUID
    user_id: UUID
    number: int
    """Of the invitation, or how often the password had been set."""
    expires_at: datetime


async def seal_profile(sealing: Sealing, tenant_id: UUID, user_id: UUID, profile: Profile) -> str:
    """The profile as commands and events have it. Raises `Erased`."""
    return await sealing.seal(tenant_id, user_id, PROFILE, msgspec.json.encode(profile).decode())


async def open_profile(sealing: Sealing, tenant_id: UUID, user_id: UUID, sealed: str | None) -> Profile | None:
    """The profile in clear, for an answer to somebody who may see it; None of an erased person."""
    clear = None if sealed is None else await sealing.open(tenant_id, user_id, PROFILE, sealed)
    return None if clear is None else msgspec.json.decode(clear, type=Profile)


async def open_profiles(sealing: Sealing, tenant_id: UUID, sealed: Sequence[tuple[UUID, str]]) -> list[Profile | None]:
    """As :func:`open_profile`, of several users; their keys are read together."""
    return list(await asyncio.gather(*(open_profile(sealing, tenant_id, user_id, text) for user_id, text in sealed)))


async def login_of_email(sealing: Sealing, tenant_id: UUID, email: str) -> str:
    """Under which an e-mail address is found, however it is written."""
    return await sealing.digest(tenant_id, "login.email", email.strip().casefold())


# Tokens


async def invitation_token(sealing: Sealing, tenant_id: UUID, user_id: UUID, number: int, expires_at: datetime) -> str:
    """What the invited accepts with; for the inviter to hand on."""
    return await _token(sealing, "i", Token(tenant_id, user_id, number, expires_at))


async def reset_token(sealing: Sealing, tenant_id: UUID, user_id: UUID, version: int, expires_at: datetime) -> str:
    """What a password may be set with, once: setting it raises the version that the token is bound to."""
    return await _token(sealing, "p", Token(tenant_id, user_id, version, expires_at))


async def read_invitation(sealing: Sealing, text: str) -> Token | None:
    """What an invitation's token says; None when it is not genuine. Tenant, number and end are for `AcceptInvitation` to check."""
    return await _read(sealing, "i", text)


async def read_reset(sealing: Sealing, text: str, at: datetime) -> Token | None:
    """What a reset's token says; None when it is not genuine or has ended. Its number is the ``version`` for `SetPassword`."""
    token = await _read(sealing, "p", text)
    return None if token is None or at >= token.expires_at else token


def tenant_of_token(text: str) -> UUID | None:
    """Which tenant a token names, before anything of it is checked."""
    match = _TOKEN.fullmatch(text)
    return None if match is None else UUID(match[2])


async def _token(sealing: Sealing, kind: str, token: Token) -> str:
    end = int(token.expires_at.timestamp())
    said = f"{token.tenant_id.hex}_{token.user_id.hex}_{token.number}_{end}"
    mac = hmac.digest(await sealing.secret(token.tenant_id, _SECRETS[kind]), said.encode(), "sha256")
    return f"hb{kind}_{said}_{urlsafe_b64encode(mac).decode().rstrip('=')}"


async def _read(sealing: Sealing, kind: str, text: str) -> Token | None:
    match = _TOKEN.fullmatch(text)
    if match is None or match[1] != kind:
        return None
    token = Token(UUID(match[2]), UUID(match[3]), int(match[4]), datetime.fromtimestamp(int(match[5]), UTC))
    return token if hmac.compare_digest(await _token(sealing, kind, token), text) else None


# Batches


def owner_item(tenant_id: UUID, user_id: UUID, role: str, *, active: bool = True) -> Item:
    """What must go with every change of a user's role or status, so that the tenant knows its active owners."""
    if active and role == "owner":
        return Item(TENANT, tenant_stream(tenant_id), AddOwner(user_id=user_id))
    return Item(TENANT, tenant_stream(tenant_id), RemoveOwner(user_id=user_id))


def accept_items(tenant_id: UUID, state: Invited, number: int, password: str | None, profile: str | None = None) -> tuple[Item, ...]:
    """All that happens when an invitation is accepted; both texts sealed. The last reply is the user's."""
    command = AcceptInvitation(password=password, profile=profile, number=number, seen=situation(state))
    return owner_item(tenant_id, state.user_id, state.role), Item(USER, user_stream(state.user_id), command)


def create_items(tenant_id: UUID, user_id: UUID, role: str, profile: str, login: str, password: str | None = None) -> tuple[Item, ...]:
    """All that happens when somebody is created at once; profile and password sealed. The last reply is the user's."""
    command = CreateUser(user_id=user_id, role=role, profile=profile, password=password, login=login)
    claim = Item(LOGIN, login_stream(login), ClaimLogin(user_id=user_id))
    return claim, owner_item(tenant_id, user_id, role), Item(USER, user_stream(user_id), command)


# Who may do what to whom


def grants(principal: Principal) -> frozenset[str]:
    """Which roles one may give and take away; a key with ``users:admin`` counts as an administrator."""
    return GRANTS.get(principal.role or "admin", frozenset())


def require_grant(principal: Principal, *roles: str) -> None:
    """Refuse with 403 when one of these is not for this one to give, or to take away."""
    mine = grants(principal)
    for role in roles:
        if role not in mine:
            raise Problem("users.role_not_yours", details={"role": role, "may_give": sorted(mine)})


async def user_state(store: Store, tenant_id: UUID, user_id: UUID) -> UserState:
    """From the log itself: what was done a moment ago is there."""
    found: UserState = (await store.state(USER, tenant_id, user_stream(user_id))).state
    return found


async def known_user(store: Store, tenant_id: UUID, user_id: UUID) -> Invited | Active | Suspended:
    """The user's state; refuses, as the domain does, one who is not there or was erased."""
    state = await user_state(store, tenant_id, user_id)
    if isinstance(state, NoUser):
        raise UserNotFound(user_id=user_id.hex)
    if isinstance(state, ErasedUser):
        raise UserIsErased()
    return state

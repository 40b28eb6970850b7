"""Service accounts: programs that act for a tenant by their API keys.

A key is known by an id and the SHA-256 of its secret, may do what its scopes say, and ends when it expires or is revoked. The secret itself
never reaches this module. A service account begins with its first key.

Names of keys are labels for operators, kept for ever: they must not be those of natural persons.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, assert_never
from uuid import UUID

from domain.identity.permissions import KEY_PERMISSIONS
from domain.kernel.decider import Command, Decider, Event, Rejected, event

__all__ = ["SERVICE_ACCOUNT", "IssueKey", "Key", "RevokeKey", "ServiceAccount", "service_account_stream"]

MAX_NAME = 100
MAX_KEYS = 100
REVOKED_REMEMBERED = 1_000


def service_account_stream(account_id: UUID) -> str:
    """The stream of a service account."""
    return f"service-{account_id.hex}"


# Events. Stored for ever: never rename or remove a class or a field; a change of shape is a new version and an upcast.


@event("service.key_issued")
@dataclass(frozen=True, slots=True)
class KeyIssued(Event):
    """A service account got a key; ``secret_hash`` is the SHA-256 of its secret in hex."""

    key_id: str
    secret_hash: str
    scopes: tuple[str, ...]
    name: str
    expires_at: datetime | None
    at: datetime


@event("service.key_revoked")
@dataclass(frozen=True, slots=True)
class KeyRevoked(Event):
    """A key ended before its time."""

    key_id: str
    at: datetime


# Commands


@dataclass(slots=True, kw_only=True)
class IssueKey(Command):
    key_id: str
    secret_hash: str
    scopes: tuple[str, ...]
    name: str
    expires_at: datetime | None = None


@dataclass(slots=True, kw_only=True)
class RevokeKey(Command):
    key_id: str


AccountCommand = IssueKey | RevokeKey
AccountEvent = KeyIssued | KeyRevoked


# State


@dataclass(frozen=True, slots=True)
class Key:
    key_id: str
    secret_hash: str
    scopes: tuple[str, ...]
    name: str
    expires_at: datetime | None

    def valid(self, at: datetime) -> bool:
        """Whether the key has not expired at that moment."""
        return self.expires_at is None or at < self.expires_at


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    """``keys`` were issued and not revoked; ``revoked`` are the ids of those revoked last."""

    keys: tuple[Key, ...] = ()
    revoked: tuple[str, ...] = ()

    def find(self, key_id: str) -> Key | None:
        """The key with this id, unless it was revoked."""
        return next((key for key in self.keys if key.key_id == key_id), None)


# Decide


class InvalidKey(Rejected):
    """A field of the key makes no sense."""

    code: ClassVar[str] = "service.key_invalid"
    frozen: ClassVar[bool] = False
    status: ClassVar[str] = "invalid"


class KeyExists(Rejected):
    """Another key has this id."""

    code: ClassVar[str] = "service.key_exists"


class TooManyKeys(Rejected):
    """The service account has as many keys as it may have; revoke one first."""

    code: ClassVar[str] = "service.too_many_keys"


class KeyNotFound(Rejected):
    """The service account has no such key."""

    code: ClassVar[str] = "service.key_not_found"
    frozen: ClassVar[bool] = False
    status: ClassVar[str] = "not_found"


def decide_account(command: AccountCommand, state: ServiceAccount) -> Sequence[Event]:
    """The checks come in this order: shape of the command, existence of the key, number of keys."""
    match command:
        case IssueKey():
            return _issue(command, state)
        case RevokeKey():
            return _revoke(command, state)
        case _:
            assert_never(command)


def _issue(command: IssueKey, state: ServiceAccount) -> Sequence[Event]:
    _check_key(command)
    known = state.find(command.key_id)
    if known is not None and known == _key(command):
        return ()
    if known is not None or command.key_id in state.revoked:
        raise KeyExists(key_id=command.key_id)
    if len(state.keys) >= MAX_KEYS:
        raise TooManyKeys(max_keys=MAX_KEYS)
    return [KeyIssued(command.key_id, command.secret_hash, command.scopes, command.name, command.expires_at, command.at)]


def _check_key(command: IssueKey) -> None:
    if not re.fullmatch(r"[0-9a-f]{8}", command.key_id):
        raise InvalidKey("key_id")
    if not re.fullmatch(r"[0-9a-f]{64}", command.secret_hash):
        raise InvalidKey("secret_hash")
    if not command.scopes or len(set(command.scopes)) != len(command.scopes) or not set(command.scopes) <= set(KEY_PERMISSIONS):
        raise InvalidKey("scopes")
    if not 1 <= len(command.name) <= MAX_NAME:
        raise InvalidKey("name")
    if command.expires_at is not None and (command.expires_at.utcoffset() is None or command.expires_at <= command.at):
        raise InvalidKey("expires_at")


def _key(source: IssueKey | KeyIssued) -> Key:
    return Key(source.key_id, source.secret_hash, source.scopes, source.name, source.expires_at)


def _revoke(command: RevokeKey, state: ServiceAccount) -> Sequence[Event]:
    if command.key_id in state.revoked:
        return ()
    if state.find(command.key_id) is None:
        raise KeyNotFound(key_id=command.key_id)
    return [KeyRevoked(command.key_id, command.at)]


# Evolve


def evolve_account(state: ServiceAccount, event: AccountEvent) -> ServiceAccount:
    """Never refuses."""
    match event:
        case KeyIssued():
            return ServiceAccount((*state.keys, _key(event)), state.revoked)
        case KeyRevoked():
            keys = tuple(key for key in state.keys if key.key_id != event.key_id)
            return ServiceAccount(keys, (*state.revoked, event.key_id)[-REVOKED_REMEMBERED:])
        case _:
            assert_never(event)


# Reply


def reply_account(command: AccountCommand, before: ServiceAccount, after: ServiceAccount, events: Sequence[Event]) -> Mapping[str, Any]:
    match command:
        case IssueKey():
            expires_at = command.expires_at.isoformat() if command.expires_at else None
            return {"key_id": command.key_id, "name": command.name, "scopes": command.scopes, "expires_at": expires_at}
        case RevokeKey():
            return {"key_id": command.key_id, "status": "revoked"}
        case _:
            assert_never(command)


# Freeze and thaw


def _same(state: ServiceAccount) -> ServiceAccount:
    return state


SERVICE_ACCOUNT: Decider[ServiceAccount] = Decider(
    category="service",
    commands=(IssueKey, RevokeKey),
    events=(KeyIssued, KeyRevoked),
    initial=ServiceAccount(),
    decide=decide_account,
    evolve=evolve_account,
    reply=reply_account,
    frozen_type=ServiceAccount,
    freeze=_same,
    thaw=_same,
    refusals=(InvalidKey, KeyExists, TooManyKeys, KeyNotFound),
)

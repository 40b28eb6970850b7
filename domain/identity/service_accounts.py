"""Service accounts: programs that act for a tenant by their API keys.

A key is known by an id and the SHA-256 of its secret, may do what its scopes say, and ends when it expires or is revoked. The secret itself
never reaches this module. A service account begins with its first key.

A key is rotated by a new one with the same name and scopes; the old one goes on for an overlap, so that whoever uses it can change over
without a refused request. A key that was to expire is followed by one that lasts as long as it would have.

Names of keys are labels for operators, kept for ever: they must not be those of natural persons.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, ClassVar, assert_never
from uuid import UUID

from domain.identity.permissions import KEY_PERMISSIONS
from domain.kernel.decider import Command, Decider, Event, Rejected, event

__all__ = ["SERVICE_ACCOUNT", "IssueKey", "Key", "RevokeKey", "RotateKey", "ServiceAccount", "service_account_stream"]

MAX_NAME = 100
MAX_KEYS = 100
REVOKED_REMEMBERED = 1_000
OVERLAP_SECONDS = 24 * 3600
MAX_OVERLAP_SECONDS = 30 * 24 * 3600


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


@event("service.key_replaced")
@dataclass(frozen=True, slots=True)
class KeyReplaced(Event):
    """Another key was issued in a key's place, which ends at ``expires_at``."""

    key_id: str
    by_key_id: str
    expires_at: datetime
    at: datetime


# Commands


@dataclass(slots=True, kw_only=True)
class IssueKey(Command):
    """``begins``: the account may be a new one."""

    key_id: str
    secret_hash: str
    scopes: tuple[str, ...]
    name: str
    expires_at: datetime | None = None
    begins: bool = True


@dataclass(slots=True, kw_only=True)
class RotateKey(Command):
    """``may_give`` are the scopes that the one who asks may hand out: a new key shows its text to them."""

    key_id: str
    new_key_id: str
    secret_hash: str
    overlap_seconds: int
    expires_at: datetime | None = None
    may_give: frozenset[str] = frozenset(KEY_PERMISSIONS)


@dataclass(slots=True, kw_only=True)
class RevokeKey(Command):
    key_id: str


AccountCommand = IssueKey | RevokeKey | RotateKey
AccountEvent = KeyIssued | KeyRevoked | KeyReplaced


# State


@dataclass(frozen=True, slots=True)
class Key:
    key_id: str
    secret_hash: str
    scopes: tuple[str, ...]
    name: str
    expires_at: datetime | None
    lifetime: timedelta | None
    """From its issue to when it was to expire; a rotation may end it before."""

    def valid(self, at: datetime) -> bool:
        """Whether the key has not expired at that moment."""
        return self.expires_at is None or at < self.expires_at


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    """``keys`` were issued and not revoked; ``revoked`` are the ids of those that ended last.

    Keys that expired stay among ``keys`` until the next one is issued.
    """

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


class AccountNotFound(Rejected):
    """There is no such service account."""

    code: ClassVar[str] = "service.account_not_found"
    frozen: ClassVar[bool] = False
    status: ClassVar[str] = "not_found"


class KeyExpired(Rejected):
    """The key has expired; issue another one."""

    code: ClassVar[str] = "service.key_expired"


class ScopesNotYours(Rejected):
    """The key may do what you may not, so you cannot be given its successor."""

    code: ClassVar[str] = "service.scopes_not_yours"
    frozen: ClassVar[bool] = False


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
        case RotateKey():
            return _rotate(command, state)
        case _:
            assert_never(command)


def _issue(command: IssueKey, state: ServiceAccount) -> Sequence[Event]:
    _check_key(command)
    if not command.begins and state == ServiceAccount():
        raise AccountNotFound
    issued = KeyIssued(command.key_id, command.secret_hash, command.scopes, command.name, command.expires_at, command.at)
    known = state.find(command.key_id)
    if known is not None and replace(known, lifetime=None) == replace(_key(issued), lifetime=None):
        return ()
    _check_room(command.key_id, state, command.at)
    return [issued]


def _check_room(key_id: str, state: ServiceAccount, at: datetime) -> None:
    if state.find(key_id) is not None or key_id in state.revoked:
        raise KeyExists(key_id=key_id)
    if sum(key.valid(at) for key in state.keys) >= MAX_KEYS:
        raise TooManyKeys(max_keys=MAX_KEYS)


def _check_secret(key_id: str, secret_hash: str) -> None:
    if not re.fullmatch(r"[0-9a-f]{8}", key_id):
        raise InvalidKey("key_id")
    if not re.fullmatch(r"[0-9a-f]{64}", secret_hash):
        raise InvalidKey("secret_hash")


def _check_key(command: IssueKey) -> None:
    _check_secret(command.key_id, command.secret_hash)
    if not command.scopes or len(set(command.scopes)) != len(command.scopes) or not set(command.scopes) <= set(KEY_PERMISSIONS):
        raise InvalidKey("scopes")
    if not 1 <= len(command.name) <= MAX_NAME:
        raise InvalidKey("name")
    _check_end(command.expires_at, command.at)


def _check_end(expires_at: datetime | None, at: datetime) -> None:
    if expires_at is not None and (expires_at.utcoffset() is None or expires_at <= at):
        raise InvalidKey("expires_at")


def _key(issued: KeyIssued) -> Key:
    lifetime = None if issued.expires_at is None else issued.expires_at - issued.at
    return Key(issued.key_id, issued.secret_hash, issued.scopes, issued.name, issued.expires_at, lifetime)


def _rotate(command: RotateKey, state: ServiceAccount) -> Sequence[Event]:
    _check_secret(command.new_key_id, command.secret_hash)
    _check_end(command.expires_at, command.at)
    if not 0 <= command.overlap_seconds <= MAX_OVERLAP_SECONDS:
        raise InvalidKey("overlap_seconds")
    old = state.find(command.key_id)
    if old is None:
        raise KeyNotFound(key_id=command.key_id)
    if not old.valid(command.at):
        raise KeyExpired(key_id=command.key_id)
    if not set(old.scopes) <= command.may_give:
        raise ScopesNotYours(key_id=command.key_id)
    _check_room(command.new_key_id, state, command.at)
    expires_at = command.expires_at or (None if old.lifetime is None else command.at + old.lifetime)
    ends = command.at + timedelta(seconds=command.overlap_seconds)
    return [
        KeyIssued(command.new_key_id, command.secret_hash, old.scopes, old.name, expires_at, command.at),
        KeyReplaced(old.key_id, command.new_key_id, ends if old.expires_at is None else min(ends, old.expires_at), command.at),
    ]


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
            expired = tuple(key.key_id for key in state.keys if not key.valid(event.at))
            keys = tuple(key for key in state.keys if key.key_id not in expired)
            return ServiceAccount((*keys, _key(event)), (*state.revoked, *expired)[-REVOKED_REMEMBERED:])
        case KeyReplaced():
            keys = tuple(replace(key, expires_at=event.expires_at) if key.key_id == event.key_id else key for key in state.keys)
            return ServiceAccount(keys, state.revoked)
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
        case RotateKey():
            new, old = after.find(command.new_key_id), after.find(command.key_id)
            assert new is not None, "it was issued just now"
            assert old is not None, "it was valid until now"
            told = {"key_id": new.key_id, "name": new.name, "scopes": new.scopes, "expires_at": new.expires_at}
            return {**told, "old_key_id": old.key_id, "old_expires_at": old.expires_at}
        case RevokeKey():
            return {"key_id": command.key_id, "status": "revoked"}
        case _:
            assert_never(command)


# Freeze and thaw


def _same(state: ServiceAccount) -> ServiceAccount:
    return state


SERVICE_ACCOUNT: Decider[ServiceAccount] = Decider(
    category="service",
    commands=(IssueKey, RevokeKey, RotateKey),
    events=(KeyIssued, KeyRevoked, KeyReplaced),
    initial=ServiceAccount(),
    decide=decide_account,
    evolve=evolve_account,
    reply=reply_account,
    frozen_type=ServiceAccount,
    freeze=_same,
    thaw=_same,
    state_schema=2,
    refusals=(InvalidKey, KeyExists, TooManyKeys, AccountNotFound, KeyExpired, ScopesNotYours, KeyNotFound),
)

"""Who may ask: tenants, and the API keys of their service accounts.

A tenant is an organisation; everything belongs to one. A service account acts for a tenant by its keys: each is known by
an id and the SHA-256 of its secret, may do what its scopes say, and ends when it expires or is revoked. The secret itself
never reaches this module. A service account begins with its first key.

A tenant that was deleted stays deleted: nothing more is recorded for it, its id is never used again, and what the log
held of it is pruned to digests (``eventstore.pruning``).

Names of tenants and keys are labels for operators, kept for ever: they must not be those of natural persons.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, ClassVar, assert_never
from uuid import UUID
from zoneinfo import ZoneInfo

from domain.kernel.decider import Command, Decider, Event, Rejected, event

__all__ = [
    "SCOPES", "SERVICE_ACCOUNT", "TENANT", "CreateTenant", "DeleteTenant", "DeletedTenant", "IssueKey", "Key", "RevokeKey",
    "ServiceAccount", "Tenant", "TenantDeleted", "TenantIsDeleted", "service_account_stream", "tenant_stream",
]  # fmt: skip

SCOPES: Mapping[str, str] = {
    "usage:write": "Reserve, commit, roll back and consume; cancel reservations.",
    "usage:read": "Read quotas, usage and open reservations.",
    "quota:admin": "Set limits, grant and void credits, adjust what is used.",
    "usage:import": "Record use at a moment of the past.",
    "audit:read": "Read everything that was recorded, by whom and when.",
    "webhooks:admin": "Register webhooks, see their secrets and deliveries, send again.",
}
"""What a key may be allowed, and what each means."""

MAX_NAME = 100
MAX_KEYS = 100
REVOKED_REMEMBERED = 1_000


def tenant_stream(tenant_id: UUID) -> str:
    """The stream of a tenant."""
    return f"tenant-{tenant_id.hex}"


def service_account_stream(account_id: UUID) -> str:
    """The stream of a service account."""
    return f"service-{account_id.hex}"


# Events. Stored for ever: never rename or remove a class or a field; a change of shape is a new version and an upcast.


@event("tenant.created")
@dataclass(frozen=True, slots=True)
class TenantCreated(Event):
    """A tenant began."""

    tenant_id: UUID
    name: str
    zone: str
    at: datetime


@event("tenant.deleted")
@dataclass(frozen=True, slots=True)
class TenantDeleted(Event):
    """A tenant ended, and everything that was its with it. The only event of the tenant that is never pruned."""

    tenant_id: UUID
    at: datetime


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
class CreateTenant(Command):
    """``zone`` is the IANA time zone of the tenant's calendar."""

    tenant_id: UUID
    name: str
    zone: str = "UTC"


@dataclass(slots=True, kw_only=True)
class DeleteTenant(Command):
    tenant_id: UUID


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


TenantCommand = CreateTenant | DeleteTenant
TenantEvent = TenantCreated | TenantDeleted
AccountCommand = IssueKey | RevokeKey
AccountEvent = KeyIssued | KeyRevoked


# State


@dataclass(frozen=True, slots=True)
class NoTenant:
    """Nobody made this tenant yet."""


@dataclass(frozen=True, slots=True)
class Tenant:
    tenant_id: UUID
    name: str
    zone: str


@dataclass(frozen=True, slots=True)
class DeletedTenant:
    """Gone for ever; its name is not kept."""

    tenant_id: UUID


TenantState = NoTenant | Tenant | DeletedTenant


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


class InvalidTenant(Rejected):
    """A field of the tenant makes no sense."""

    code: ClassVar[str] = "tenant.invalid"
    frozen: ClassVar[bool] = False
    status: ClassVar[str] = "invalid"


class TenantExists(Rejected):
    """Another tenant has this id."""

    code: ClassVar[str] = "tenant.exists"


class TenantNotFound(Rejected):
    """There is no such tenant."""

    code: ClassVar[str] = "tenant.not_found"
    frozen: ClassVar[bool] = False
    status: ClassVar[str] = "not_found"


class TenantIsDeleted(Rejected):
    """The tenant was deleted; nothing more is recorded for it.

    Not frozen: the refusal would itself be a record of the tenant, and the same answer comes for ever without it.
    """

    code: ClassVar[str] = "tenant.deleted"
    frozen: ClassVar[bool] = False


def decide_tenant(command: TenantCommand, state: TenantState) -> Sequence[Event]:
    """The checks come in this order: shape of the command, existence."""
    match command:
        case CreateTenant():
            return _create(command, state)
        case DeleteTenant():
            return _delete(command, state)
        case _:
            assert_never(command)


def _create(command: CreateTenant, state: TenantState) -> Sequence[Event]:
    if not 1 <= len(command.name) <= MAX_NAME:
        raise InvalidTenant("name")
    if not _zone_is_known(command.zone):
        raise InvalidTenant("zone")
    match state:
        case NoTenant():
            return [TenantCreated(command.tenant_id, command.name, command.zone, command.at)]
        case Tenant():
            if (state.name, state.zone) != (command.name, command.zone):
                raise TenantExists()
            return ()
        case DeletedTenant():
            raise TenantIsDeleted()
        case _:
            assert_never(state)


def _delete(command: DeleteTenant, state: TenantState) -> Sequence[Event]:
    match state:
        case NoTenant():
            raise TenantNotFound()
        case Tenant():
            return [TenantDeleted(command.tenant_id, command.at)]
        case DeletedTenant():
            return ()
        case _:
            assert_never(state)


@lru_cache(maxsize=1024)
def _zone_is_known(zone: str) -> bool:
    try:
        ZoneInfo(zone)
    except (OSError, ValueError, KeyError):
        return False
    return True


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
    if not command.scopes or len(set(command.scopes)) != len(command.scopes) or not set(command.scopes) <= set(SCOPES):
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


def evolve_tenant(state: TenantState, event: TenantEvent) -> TenantState:
    """Never refuses. A deletion may be the first event there is: what came before it may have been pruned."""
    match event:
        case TenantCreated():
            return Tenant(event.tenant_id, event.name, event.zone)
        case TenantDeleted():
            return DeletedTenant(event.tenant_id)
        case _:
            assert_never(event)


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


def reply_tenant(command: TenantCommand, before: TenantState, after: TenantState, events: Sequence[Event]) -> Mapping[str, Any]:
    match command:
        case CreateTenant():
            return {"tenant_id": command.tenant_id.hex, "name": command.name, "zone": command.zone}
        case DeleteTenant():
            return {"tenant_id": command.tenant_id.hex, "status": "deleted"}
        case _:
            assert_never(command)


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


@dataclass(frozen=True, slots=True)
class FrozenTenant:
    """A tenant for a snapshot; one without an id was never created."""

    tenant_id: UUID | None = None
    name: str = ""
    zone: str = "UTC"
    deleted: bool = False


def freeze_tenant(state: TenantState) -> FrozenTenant:
    match state:
        case NoTenant():
            return FrozenTenant()
        case Tenant():
            return FrozenTenant(state.tenant_id, state.name, state.zone)
        case DeletedTenant():
            return FrozenTenant(state.tenant_id, deleted=True)
        case _:
            assert_never(state)


def thaw_tenant(frozen: FrozenTenant) -> TenantState:
    if frozen.tenant_id is None:
        return NoTenant()
    return DeletedTenant(frozen.tenant_id) if frozen.deleted else Tenant(frozen.tenant_id, frozen.name, frozen.zone)


def _same(state: ServiceAccount) -> ServiceAccount:
    return state


TENANT: Decider[TenantState] = Decider(
    category="tenant",
    commands=(CreateTenant, DeleteTenant),
    events=(TenantCreated, TenantDeleted),
    initial=NoTenant(),
    decide=decide_tenant,
    evolve=evolve_tenant,
    reply=reply_tenant,
    frozen_type=FrozenTenant,
    freeze=freeze_tenant,
    thaw=thaw_tenant,
    state_schema=2,
    refusals=(InvalidTenant, TenantExists, TenantNotFound, TenantIsDeleted),
)

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

"""Tenants: the organisations everything belongs to.

A tenant that was deleted stays deleted: nothing more is recorded for it, its id is never used again, and what the log
held of it is pruned to digests (``eventstore.pruning``). A suspended tenant keeps everything, and its people and keys are refused at
the door until it is resumed.

A tenant knows who its owners are, those who are active: they are added and removed in one atomic batch with the change of the user
(``domain.identity.users``), so that of two owners who take the role from each other at once one stays. A tenant that never had an owner
may go without: its keys work for it.

Names of tenants are labels for operators, kept for ever: they must not be those of natural persons.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from typing import Any, ClassVar, assert_never
from uuid import UUID
from zoneinfo import ZoneInfo

from domain.kernel.decider import Command, Decider, Event, Rejected, event

__all__ = [
    "PLATFORM", "TENANT", "AddOwner", "ChangeTenantSettings", "CreateTenant", "DeleteTenant", "DeletedTenant", "OwnerAdded", "OwnerRemoved",
    "RemoveOwner", "ResumeTenant", "SuspendTenant", "Tenant", "TenantDeleted", "TenantIsDeleted", "tenant_stream",
    "tenant_there", "tenant_told",
]  # fmt: skip

PLATFORM = UUID("00000000-0000-4000-8000-000000000001")
"""The tenant in which the operators of the platform live; made together with the first of them."""

MAX_NAME = 100
REGISTRATIONS = ("invited", "open")
_LOCALE = re.compile(r"[a-z]{2,3}(-[A-Z][a-z]{3})?(-([A-Z]{2}|[0-9]{3}))?")
_CURRENCY = re.compile(r"[A-Z]{3}")


def tenant_stream(tenant_id: UUID) -> str:
    """The stream of a tenant."""
    return f"tenant-{tenant_id.hex}"


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


@event("tenant.settings_changed")
@dataclass(frozen=True, slots=True)
class TenantSettingsChanged(Event):
    """The tenant's settings as they are from now on, also those that stayed."""

    name: str
    zone: str
    locale: str
    currency: str
    registration: str
    at: datetime


@event("tenant.suspended")
@dataclass(frozen=True, slots=True)
class TenantSuspended(Event):
    """The tenant's people and keys are refused from now on."""

    at: datetime


@event("tenant.resumed")
@dataclass(frozen=True, slots=True)
class TenantResumed(Event):
    """The tenant's people and keys are let in again."""

    at: datetime


@event("tenant.owner_added")
@dataclass(frozen=True, slots=True)
class OwnerAdded(Event):
    """A user is an active owner of the tenant."""

    user_id: UUID
    at: datetime


@event("tenant.owner_removed")
@dataclass(frozen=True, slots=True)
class OwnerRemoved(Event):
    """A user is no active owner of the tenant any more."""

    user_id: UUID
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
class ChangeTenantSettings(Command):
    """``locale`` is a BCP 47 tag of language, script and region, ``currency`` an ISO 4217 code; ``registration`` says who may join."""

    name: str
    zone: str
    locale: str
    currency: str
    registration: str


@dataclass(slots=True, kw_only=True)
class SuspendTenant(Command):
    pass


@dataclass(slots=True, kw_only=True)
class ResumeTenant(Command):
    pass


@dataclass(slots=True, kw_only=True)
class AddOwner(Command):
    """Changes nothing of one who is an owner already."""

    user_id: UUID


@dataclass(slots=True, kw_only=True)
class RemoveOwner(Command):
    """Changes nothing of one who is no owner, so that it may go with whatever takes a user away."""

    user_id: UUID


TenantCommand = CreateTenant | DeleteTenant | ChangeTenantSettings | SuspendTenant | ResumeTenant | AddOwner | RemoveOwner
TenantEvent = TenantCreated | TenantDeleted | TenantSettingsChanged | TenantSuspended | TenantResumed | OwnerAdded | OwnerRemoved


# State


@dataclass(frozen=True, slots=True)
class NoTenant:
    """Nobody made this tenant yet."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """``owners`` are those who are active. The settings of one created before there were any are these."""

    tenant_id: UUID
    name: str
    zone: str
    locale: str = "en"
    currency: str = "EUR"
    registration: str = "invited"
    suspended: bool = False
    owners: tuple[UUID, ...] = ()


@dataclass(frozen=True, slots=True)
class DeletedTenant:
    """Gone for ever; its name is not kept."""

    tenant_id: UUID


TenantState = NoTenant | Tenant | DeletedTenant


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


class LastOwner(Rejected):
    """A tenant keeps its last active owner; make somebody else an owner first."""

    code: ClassVar[str] = "tenant.last_owner"


def decide_tenant(command: TenantCommand, state: TenantState) -> Sequence[Event]:
    """The checks come in this order: shape of the command, existence."""
    match command:
        case CreateTenant():
            return _create(command, state)
        case DeleteTenant():
            return _delete(command, state)
        case ChangeTenantSettings():
            return _change(command, state)
        case SuspendTenant():
            return () if tenant_there(state).suspended else [TenantSuspended(command.at)]
        case ResumeTenant():
            return [TenantResumed(command.at)] if tenant_there(state).suspended else ()
        case AddOwner():
            return () if command.user_id in tenant_there(state).owners else [OwnerAdded(command.user_id, command.at)]
        case RemoveOwner():
            return _remove_owner(command, tenant_there(state))
        case _:
            assert_never(command)


def _create(command: CreateTenant, state: TenantState) -> Sequence[Event]:
    _check_label(command)
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


def _check_label(command: CreateTenant | ChangeTenantSettings) -> None:
    if not 1 <= len(command.name) <= MAX_NAME:
        raise InvalidTenant("name")
    if not _zone_is_known(command.zone):
        raise InvalidTenant("zone")


def tenant_there(state: TenantState) -> Tenant:
    """A tenant that is there; refuses one that is not, or that was deleted."""
    match state:
        case NoTenant():
            raise TenantNotFound()
        case Tenant():
            return state
        case DeletedTenant():
            raise TenantIsDeleted()
        case _:
            assert_never(state)


def _change(command: ChangeTenantSettings, state: TenantState) -> Sequence[Event]:
    _check_label(command)
    if not _LOCALE.fullmatch(command.locale):
        raise InvalidTenant("locale")
    if not _CURRENCY.fullmatch(command.currency):
        raise InvalidTenant("currency")
    if command.registration not in REGISTRATIONS:
        raise InvalidTenant("registration")
    tenant = tenant_there(state)
    wanted = command.name, command.zone, command.locale, command.currency, command.registration
    if wanted == (tenant.name, tenant.zone, tenant.locale, tenant.currency, tenant.registration):
        return ()
    return [TenantSettingsChanged(*wanted, command.at)]


def _remove_owner(command: RemoveOwner, state: Tenant) -> Sequence[Event]:
    if command.user_id not in state.owners:
        return ()
    if len(state.owners) == 1:
        raise LastOwner()
    return [OwnerRemoved(command.user_id, command.at)]


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


# Evolve


def evolve_tenant(state: TenantState, event: TenantEvent) -> TenantState:
    """Never refuses. A deletion may be the first event there is: what came before it may have been pruned."""
    match event:
        case TenantCreated():
            return Tenant(event.tenant_id, event.name, event.zone)
        case TenantDeleted():
            return DeletedTenant(event.tenant_id)
        case _:
            assert isinstance(state, Tenant)
            return _evolve_there(state, event)


def _evolve_there(state: Tenant, event: TenantSettingsChanged | TenantSuspended | TenantResumed | OwnerAdded | OwnerRemoved) -> Tenant:
    match event:
        case TenantSettingsChanged():
            return replace(
                state, name=event.name, zone=event.zone, locale=event.locale, currency=event.currency, registration=event.registration
            )
        case TenantSuspended():
            return replace(state, suspended=True)
        case TenantResumed():
            return replace(state, suspended=False)
        case OwnerAdded():
            return replace(state, owners=(*state.owners, event.user_id))
        case OwnerRemoved():
            return replace(state, owners=tuple(owner for owner in state.owners if owner != event.user_id))
        case _:
            assert_never(event)


# Reply


def reply_tenant(command: TenantCommand, before: TenantState, after: TenantState, events: Sequence[Event]) -> Mapping[str, Any]:
    match command:
        case CreateTenant():
            return {"tenant_id": command.tenant_id.hex, "name": command.name, "zone": command.zone}
        case DeleteTenant():
            return {"tenant_id": command.tenant_id.hex, "status": "deleted"}
        case ChangeTenantSettings() | SuspendTenant() | ResumeTenant():
            return tenant_told(tenant_there(after))
        case AddOwner() | RemoveOwner():
            return {"user_id": command.user_id.hex, "owner": isinstance(command, AddOwner)}
        case _:
            assert_never(command)


def tenant_told(tenant: Tenant) -> Mapping[str, Any]:
    """A tenant and its settings, as it is answered."""
    return {
        "tenant_id": tenant.tenant_id.hex,
        "name": tenant.name,
        "zone": tenant.zone,
        "locale": tenant.locale,
        "currency": tenant.currency,
        "registration": tenant.registration,
        "status": "suspended" if tenant.suspended else "active",
    }


# Freeze and thaw


@dataclass(frozen=True, slots=True)
class FrozenTenant:
    """A tenant for a snapshot; one without an id was never created."""

    tenant_id: UUID | None = None
    name: str = ""
    zone: str = "UTC"
    deleted: bool = False
    locale: str = "en"
    currency: str = "EUR"
    registration: str = "invited"
    suspended: bool = False
    owners: tuple[UUID, ...] = ()


def freeze_tenant(state: TenantState) -> FrozenTenant:
    match state:
        case NoTenant():
            return FrozenTenant()
        case Tenant():
            settings = state.locale, state.currency, state.registration
            return FrozenTenant(state.tenant_id, state.name, state.zone, False, *settings, state.suspended, state.owners)
        case DeletedTenant():
            return FrozenTenant(state.tenant_id, deleted=True)
        case _:
            assert_never(state)


def thaw_tenant(frozen: FrozenTenant) -> TenantState:
    if frozen.tenant_id is None:
        return NoTenant()
    if frozen.deleted:
        return DeletedTenant(frozen.tenant_id)
    settings = frozen.locale, frozen.currency, frozen.registration
    return Tenant(frozen.tenant_id, frozen.name, frozen.zone, *settings, frozen.suspended, frozen.owners)


TENANT: Decider[TenantState] = Decider(
    category="tenant",
    commands=(CreateTenant, DeleteTenant, ChangeTenantSettings, SuspendTenant, ResumeTenant, AddOwner, RemoveOwner),
    events=(TenantCreated, TenantDeleted, TenantSettingsChanged, TenantSuspended, TenantResumed, OwnerAdded, OwnerRemoved),
    initial=NoTenant(),
    decide=decide_tenant,
    evolve=evolve_tenant,
    reply=reply_tenant,
    frozen_type=FrozenTenant,
    freeze=freeze_tenant,
    thaw=thaw_tenant,
    state_schema=3,
    refusals=(InvalidTenant, TenantExists, TenantNotFound, TenantIsDeleted, LastOwner),
)

"""Tenants: the organisations everything belongs to.

A tenant that was deleted stays deleted: nothing more is recorded for it, its id is never used again, and what the log
held of it is pruned to digests (``eventstore.pruning``).

Names of tenants are labels for operators, kept for ever: they must not be those of natural persons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, ClassVar, assert_never
from uuid import UUID
from zoneinfo import ZoneInfo

from domain.kernel.decider import Command, Decider, Event, Rejected, event

__all__ = [
    "TENANT", "CreateTenant", "DeleteTenant", "DeletedTenant", "Tenant", "TenantDeleted", "TenantIsDeleted", "tenant_stream",
]  # fmt: skip

MAX_NAME = 100


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


TenantCommand = CreateTenant | DeleteTenant
TenantEvent = TenantCreated | TenantDeleted


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


# Reply


def reply_tenant(command: TenantCommand, before: TenantState, after: TenantState, events: Sequence[Event]) -> Mapping[str, Any]:
    match command:
        case CreateTenant():
            return {"tenant_id": command.tenant_id.hex, "name": command.name, "zone": command.zone}
        case DeleteTenant():
            return {"tenant_id": command.tenant_id.hex, "status": "deleted"}
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

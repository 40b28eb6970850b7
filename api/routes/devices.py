"""Devices that people are signed in from: seen, renamed and unbound by themselves, and by whoever looks after the tenant's people."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal
from uuid import UUID

import msgspec
from fastapi import APIRouter, Path, Request
from pydantic import Field, PrivateAttr
from starlette.responses import Response

from api.auth import Principal
from api.bodies import Body, CommandBody
from api.devices import DeviceName, devices_of, names_of, sealed_name
from api.edge import Asked, ask, run
from api.openapi import command, query
from api.people import known_user, require_grant
from api.problems import Problem
from domain.identity import devices as domain
from domain.identity.devices import DEVICES, Devices, devices_stream
from eventstore.requests import Item
from eventstore.sealing import Sealing

router = APIRouter(tags=["devices"])

_ID = r"^[0-9a-f]{32}$"
DevicePath = Annotated[str, Path(pattern=_ID)]
UserPath = Annotated[str, Path(pattern=_ID)]
_encode = msgspec.json.Encoder().encode


def own_id(principal: Principal) -> UUID:
    """The person who asks; a key is nobody and has nothing of its own here."""
    if principal.user_id is None:
        raise Problem("auth.permission_missing", permission="self:manage")
    return principal.user_id


class _OwnDevice(CommandBody):
    permission: ClassVar[str] = "self:manage"
    path_fields: ClassVar[tuple[str, ...]] = ("device_id",)

    device_id: Annotated[str, Field(pattern=_ID)]

    _user_id: UUID = PrivateAttr()

    def asked_by(self, principal: Principal) -> None:
        """It is their own."""
        self._user_id = own_id(principal)


class RenameDevice(_OwnDevice):
    """Call a device otherwise."""

    operation: ClassVar[str] = "rename_device"

    name: DeviceName

    _sealed: str = PrivateAttr()

    async def seal(self, sealing: Sealing, tenant_id: UUID, command_id: UUID) -> None:  # as in the base class, here and below
        self._sealed = await sealed_name(sealing, tenant_id, self._user_id, self.name)

    def person(self, tenant_id: UUID, command_id: UUID) -> UUID | None:
        return self._user_id

    def item(self, tenant_id: UUID, command_id: UUID, index: int) -> Item:
        wanted = domain.RenameDevice(device_id=UUID(self.device_id), name=self._sealed)
        return Item(DEVICES, devices_stream(self._user_id), wanted)


class UnbindDevice(_OwnDevice):
    """Free the place of a device. Its sessions are over."""

    operation: ClassVar[str] = "unbind_device"

    def item(self, tenant_id: UUID, command_id: UUID, index: int) -> Item:
        return Item(DEVICES, devices_stream(self._user_id), domain.UnbindDevice(device_id=UUID(self.device_id)))

    def default_key(self) -> str | None:
        return self.device_id


class UnbindUserDevice(CommandBody):
    """Free the place of somebody's device. Its sessions are over."""

    operation: ClassVar[str] = "unbind_user_device"
    permission: ClassVar[str] = "users:admin"
    path_fields: ClassVar[tuple[str, ...]] = ("user_id", "device_id")

    user_id: Annotated[str, Field(pattern=_ID)]
    device_id: Annotated[str, Field(pattern=_ID)]

    def item(self, tenant_id: UUID, command_id: UUID, index: int) -> Item:
        return Item(DEVICES, devices_stream(UUID(self.user_id)), domain.UnbindDevice(device_id=UUID(self.device_id)))

    def default_key(self) -> str | None:
        return self.device_id


class DeviceRenamed(Body):
    """It is called otherwise."""

    device_id: str
    status: Literal["bound"]


class DeviceUnbound(Body):
    """Its place is free."""

    device_id: str
    status: Literal["unbound"]


@dataclass(frozen=True, slots=True)
class DeviceShown:
    """A bound device; `current` is the one that asks."""

    device_id: str
    name: str
    bound_at: datetime
    current: bool


@dataclass(frozen=True, slots=True)
class DeviceList:
    """All bound devices, in the order they were bound, and how many may be."""

    limit: int
    devices: tuple[DeviceShown, ...]


_DEVICE = "7e2a91b064c34f0d8c550d5b2f7c11a3"
_KEY = {"correlation_id": "console-51"}
_LIST = msgspec.to_builtins(DeviceList(3, (DeviceShown(_DEVICE, "Laptop", datetime(2026, 11, 21, 5, 45, tzinfo=UTC), True),)))
_UNBOUND = {"device_id": _DEVICE, "status": "unbound"}
_NONE: tuple[str, ...] = ()


def _told(model: type[CommandBody], reply: type[Body], answer: Any, body: Any) -> dict[str, Any]:
    examples = {"device": body}
    return command(model, reply, model.operation, body=examples, answer=answer, refusals=_NONE, missing="device.not_found")


def limit_of(asked: Asked, devices: Devices) -> int:
    """How many devices may be bound."""
    return asked.edge.settings.default_device_limit if devices.limit is None else devices.limit


async def _list(asked: Asked, user_id: UUID) -> Response:
    """From the log itself: what was bound a moment ago is there."""
    tenant_id, principal = asked.principal.tenant_id, asked.principal
    found = await devices_of(asked.edge, tenant_id, user_id)
    names = await names_of(asked.edge, tenant_id, user_id, found.bound)
    mine = principal.device if principal.user_id == user_id else None
    shown = tuple(
        DeviceShown(device.device_id.hex, name, device.bound_at, device.fingerprint == mine)
        for device, name in zip(found.bound, names, strict=True)
    )
    return Response(_encode(DeviceList(limit_of(asked, found), shown)), media_type="application/json")


@router.get("/v1/devices", **query(DeviceList, "list_devices", permission="self:manage", answer=_LIST, found=False))
async def list_devices(request: Request) -> Response:
    """The devices one is bound to oneself."""
    asked = await ask(request, "self:manage")
    return await _list(asked, own_id(asked.principal))


@router.put(
    "/v1/devices/{device_id}",
    **_told(RenameDevice, DeviceRenamed, {"device_id": _DEVICE, "status": "bound"}, {"name": "Laptop at home", **_KEY}),
)
async def rename_device(request: Request, device_id: DevicePath) -> Response:
    """Call one of one's own devices otherwise."""
    return await run(request, RenameDevice, {"device_id": device_id})


@router.delete("/v1/devices/{device_id}", **_told(UnbindDevice, DeviceUnbound, _UNBOUND, _KEY))
async def unbind_device(request: Request, device_id: DevicePath) -> Response:
    """Free the place of one of one's own devices; its sessions are over within a second. Without a key, the device's id is the key."""
    return await run(request, UnbindDevice, {"device_id": device_id})


@router.get(
    "/v1/users/{user_id}/devices",
    **query(DeviceList, "list_user_devices", permission="users:read", answer=_LIST, missing="user.not_found"),
)
async def list_user_devices(request: Request, user_id: UserPath) -> Response:
    """The devices somebody is bound to."""
    asked = await ask(request, "users:read")
    await known_user(asked.edge.store, asked.principal.tenant_id, UUID(user_id))
    return await _list(asked, UUID(user_id))


@router.delete("/v1/users/{user_id}/devices/{device_id}", **_told(UnbindUserDevice, DeviceUnbound, _UNBOUND, _KEY))
async def unbind_user_device(request: Request, user_id: UserPath, device_id: DevicePath) -> Response:
    """Free the place of somebody's device; its sessions are over within a second. Without a key, the device's id is the key."""
    edge, _, principal = await ask(request, "users:admin")
    user = await known_user(edge.store, principal.tenant_id, UUID(user_id))
    require_grant(principal, user.role)
    return await run(request, UnbindUserDevice, {"user_id": user_id, "device_id": device_id})

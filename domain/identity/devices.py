"""Devices bound to a person: from how many of them, and from which, that person may be signed in.

A device is known by a keyed digest of its fingerprint; the fingerprint itself never reaches this module, and a name comes sealed. A device
that signs in again takes no further place. A new one needs a free place under the limit, which the person's license sets; until there is
one, the limit of the deployment holds that the edge sends along. A limit lowered below what is bound keeps what is bound and lets nothing
new in. Unbinding frees the place, and the sessions of that device are over.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, ClassVar, assert_never
from uuid import UUID

from domain.kernel.decider import Command, Decider, Event, Rejected, event

__all__ = [
    "DEVICES", "BindDevice", "Device", "DeviceLimitReached", "DeviceNotFound", "Devices", "RenameDevice", "SetDeviceLimit", "UnbindAll",
    "UnbindDevice", "devices_stream",
]  # fmt: skip

MAX_DEVICES = 100
MAX_SEALED_NAME = 2_000
UNBOUND_REMEMBERED = 100


def devices_stream(user_id: UUID) -> str:
    """The stream of a person's devices."""
    return f"devices-{user_id.hex}"


# Events. Stored for ever: never rename or remove a class or a field; a change of shape is a new version and an upcast.


@event("device.bound")
@dataclass(frozen=True, slots=True)
class DeviceBound(Event):
    """A device took a place; ``fingerprint`` is a keyed digest, ``name`` is sealed for the person."""

    device_id: UUID
    fingerprint: str
    name: str
    at: datetime


@event("device.renamed")
@dataclass(frozen=True, slots=True)
class DeviceRenamed(Event):
    """A device is called otherwise; ``name`` is sealed for the person."""

    device_id: UUID
    name: str
    at: datetime


@event("device.unbound")
@dataclass(frozen=True, slots=True)
class DeviceUnbound(Event):
    """A device left its place, and its sessions are over."""

    device_id: UUID
    at: datetime


@event("device.all_unbound")
@dataclass(frozen=True, slots=True)
class AllUnbound(Event):
    """Every device left its place at once."""

    at: datetime


@event("device.limit_set")
@dataclass(frozen=True, slots=True)
class DeviceLimitSet(Event):
    """How many devices may be bound from now on."""

    limit: int
    at: datetime


# Commands


@dataclass(slots=True, kw_only=True)
class BindDevice(Command):
    """``limit_if_unset`` holds while no license has set a limit."""

    device_id: UUID
    fingerprint: str
    name: str
    limit_if_unset: int = 1


@dataclass(slots=True, kw_only=True)
class RenameDevice(Command):
    device_id: UUID
    name: str


@dataclass(slots=True, kw_only=True)
class UnbindDevice(Command):
    device_id: UUID


@dataclass(slots=True, kw_only=True)
class UnbindAll(Command):
    """Leave no device bound, as when the person is erased."""


@dataclass(slots=True, kw_only=True)
class SetDeviceLimit(Command):
    limit: int


DeviceCommand = BindDevice | RenameDevice | UnbindDevice | UnbindAll | SetDeviceLimit
DeviceEvent = DeviceBound | DeviceRenamed | DeviceUnbound | AllUnbound | DeviceLimitSet


# State


@dataclass(frozen=True, slots=True)
class Device:
    device_id: UUID
    fingerprint: str
    name: str
    bound_at: datetime


@dataclass(frozen=True, slots=True)
class Devices:
    """``limit`` is None until a license set one; ``unbound`` are the ids of those unbound last."""

    limit: int | None = None
    bound: tuple[Device, ...] = ()
    unbound: tuple[UUID, ...] = ()

    def __contains__(self, fingerprint: str) -> bool:
        """Whether a device with this digest of its fingerprint is bound."""
        return self.known(fingerprint) is not None

    def known(self, fingerprint: str) -> Device | None:
        """The bound device with this digest of its fingerprint."""
        return next((device for device in self.bound if device.fingerprint == fingerprint), None)

    def find(self, device_id: UUID) -> Device | None:
        """The bound device with this id."""
        return next((device for device in self.bound if device.device_id == device_id), None)


# Decide


class InvalidDevice(Rejected):
    """A field of the device makes no sense."""

    code: ClassVar[str] = "device.invalid"
    frozen: ClassVar[bool] = False
    status: ClassVar[str] = "invalid"


class DeviceExists(Rejected):
    """Another device has this id, or had it."""

    code: ClassVar[str] = "device.exists"
    frozen: ClassVar[bool] = False


class DeviceLimitReached(Rejected):
    """As many devices are bound as may be; unbind one of them first.

    Not frozen: whoever frees a place signs in again with what they have, and it would be refused for ever.
    """

    code: ClassVar[str] = "device.limit_reached"
    frozen: ClassVar[bool] = False


class DeviceNotFound(Rejected):
    """No such device is bound."""

    code: ClassVar[str] = "device.not_found"
    frozen: ClassVar[bool] = False
    status: ClassVar[str] = "not_found"


def decide_devices(command: DeviceCommand, state: Devices) -> Sequence[Event]:
    """The checks come in this order: shape of the command, what is known of the device, the limit."""
    match command:
        case BindDevice():
            return _bind(command, state)
        case RenameDevice():
            return _rename(command, state)
        case UnbindDevice():
            return _unbind(command, state)
        case UnbindAll():
            return [AllUnbound(command.at)] if state.bound else ()
        case SetDeviceLimit():
            return _set_limit(command, state)
        case _:
            assert_never(command)


def _bind(command: BindDevice, state: Devices) -> Sequence[Event]:
    _check_limit(command.limit_if_unset, "limit_if_unset")
    _check_name(command.name)
    if not re.fullmatch(r"[0-9a-f]{32,64}", command.fingerprint):
        raise InvalidDevice("fingerprint")
    if command.fingerprint in state:
        return ()
    if state.find(command.device_id) is not None or command.device_id in state.unbound:
        raise DeviceExists(device_id=command.device_id.hex)
    limit = command.limit_if_unset if state.limit is None else state.limit
    if len(state.bound) >= limit:
        raise DeviceLimitReached(device_ids=[device.device_id.hex for device in state.bound], limit=limit)
    return [DeviceBound(command.device_id, command.fingerprint, command.name, command.at)]


def _rename(command: RenameDevice, state: Devices) -> Sequence[Event]:
    _check_name(command.name)
    device = state.find(command.device_id)
    if device is None:
        raise DeviceNotFound(device_id=command.device_id.hex)
    # Two seals of one name differ, so whether it is the same name cannot be seen here.
    return [DeviceRenamed(command.device_id, command.name, command.at)] if command.name != device.name else ()


def _unbind(command: UnbindDevice, state: Devices) -> Sequence[Event]:
    if command.device_id in state.unbound:
        return ()
    if state.find(command.device_id) is None:
        raise DeviceNotFound(device_id=command.device_id.hex)
    return [DeviceUnbound(command.device_id, command.at)]


def _set_limit(command: SetDeviceLimit, state: Devices) -> Sequence[Event]:
    _check_limit(command.limit, "limit")
    return [DeviceLimitSet(command.limit, command.at)] if command.limit != state.limit else ()


def _check_limit(limit: int, field_name: str) -> None:
    if not 0 <= limit <= MAX_DEVICES:
        raise InvalidDevice(field_name)


def _check_name(name: str) -> None:
    if not 1 <= len(name) <= MAX_SEALED_NAME:
        raise InvalidDevice("name")


# Evolve


def evolve_devices(state: Devices, event: DeviceEvent) -> Devices:
    """Never refuses."""
    match event:
        case DeviceBound():
            return replace(state, bound=(*state.bound, Device(event.device_id, event.fingerprint, event.name, event.at)))
        case DeviceRenamed():
            renamed = (replace(each, name=event.name) if each.device_id == event.device_id else each for each in state.bound)
            return replace(state, bound=tuple(renamed))
        case DeviceUnbound():
            kept = tuple(each for each in state.bound if each.device_id != event.device_id)
            return Devices(state.limit, kept, (*state.unbound, event.device_id)[-UNBOUND_REMEMBERED:])
        case AllUnbound():
            gone = (*state.unbound, *(each.device_id for each in state.bound))
            return Devices(state.limit, (), gone[-UNBOUND_REMEMBERED:])
        case DeviceLimitSet():
            return replace(state, limit=event.limit)
        case _:
            assert_never(event)


# Reply


def reply_devices(command: DeviceCommand, before: Devices, after: Devices, events: Sequence[Event]) -> Mapping[str, Any]:
    match command:
        case BindDevice():
            device = after.known(command.fingerprint)
            assert device is not None  # it was bound just now, or before
            return {"device_id": device.device_id.hex, "status": "bound", "new": bool(events)}
        case RenameDevice():
            return {"device_id": command.device_id.hex, "status": "bound"}
        case UnbindDevice():
            return {"device_id": command.device_id.hex, "status": "unbound"}
        case UnbindAll():
            return {"unbound": len(before.bound)}
        case SetDeviceLimit():
            return {"limit": command.limit, "bound": len(after.bound)}
        case _:
            assert_never(command)


# Freeze and thaw


def _same(state: Devices) -> Devices:
    return state


DEVICES: Decider[Devices] = Decider(
    category="devices",
    commands=(BindDevice, RenameDevice, UnbindDevice, UnbindAll, SetDeviceLimit),
    events=(DeviceBound, DeviceRenamed, DeviceUnbound, AllUnbound, DeviceLimitSet),
    initial=Devices(),
    decide=decide_devices,
    evolve=evolve_devices,
    reply=reply_devices,
    frozen_type=Devices,
    freeze=_same,
    thaw=_same,
    refusals=(InvalidDevice, DeviceExists, DeviceLimitReached, DeviceNotFound),
)

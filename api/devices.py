"""Devices at the edge: fingerprints become digests, names are sealed before the domain sees them and opened for whoever may see them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID, uuid4

from pydantic import Field

from api import problems
from api.problems import Problem
from domain.identity.devices import DEVICES, BindDevice, Device, DeviceLimitReached, Devices, devices_stream
from domain.kernel.decider import Rejected
from eventstore.deciding import refusal_reply
from eventstore.requests import Item
from eventstore.sealing import Sealing

if TYPE_CHECKING:
    from api.edge import Edge

NAME_PURPOSE = "device.name"
DEFAULT_NAME = "Device"

_PRINTABLE = r"^[^\x00-\x1f\x7f-\x9f]+$"
Fingerprint = Annotated[
    str,
    Field(
        min_length=8,
        max_length=512,
        pattern=_PRINTABLE,
        description="What a device is known by, the same whenever it signs in. Only a keyed digest of it is kept.",
    ),
]
DeviceName = Annotated[str, Field(min_length=1, max_length=100, pattern=_PRINTABLE, description="How its owner calls the device.")]


async def fingerprint_digest(sealing: Sealing, tenant_id: UUID, user_id: UUID, fingerprint: str) -> str:
    """What is kept of a fingerprint. The same device is another one for each person, so that nobody is found by it."""
    return await sealing.digest(tenant_id, "device", f"{user_id.hex}|{fingerprint}")


async def sealed_name(sealing: Sealing, tenant_id: UUID, user_id: UUID, name: str) -> str:
    """A device's name as the log may keep it. Raises `Erased`."""
    return await sealing.seal(tenant_id, user_id, NAME_PURPOSE, name)


async def bind_item(edge: Edge, tenant_id: UUID, user_id: UUID, fingerprint: str, name: str | None) -> tuple[Item, str]:
    """What binds a device, for the batch that starts a session; and the fingerprint's digest, which the session remembers.

    A device that is bound already takes no further place and keeps its name. Raises `Erased`.
    """
    sealing = edge.store.sealing
    digest = await fingerprint_digest(sealing, tenant_id, user_id, fingerprint)
    sealed = await sealed_name(sealing, tenant_id, user_id, name or DEFAULT_NAME)
    bind = BindDevice(device_id=uuid4(), fingerprint=digest, name=sealed, limit_if_unset=edge.settings.default_device_limit)
    return Item(DEVICES, devices_stream(user_id), bind), digest


async def limit_problem(edge: Edge, tenant_id: UUID, user_id: UUID, rejected: Rejected | Mapping[str, Any]) -> Problem:
    """The refusal of one device too many, with the names of those that are bound; any other refusal as it is.

    ``rejected`` is what was raised, or what the store told of it. To be answered to nobody but the person themselves: names are theirs.
    """
    told = refusal_reply(rejected) if isinstance(rejected, Rejected) else rejected
    if told["code"] != DeviceLimitReached.code:
        return problems.of_refusal(told)
    details = told.get("details", {})
    devices = await devices_of(edge, tenant_id, user_id)
    among = set(details.get("device_ids", ()))
    names = await names_of(edge, tenant_id, user_id, [device for device in devices.bound if device.device_id.hex in among])
    shown = {name: value for name, value in told.items() if name != "index"}
    return problems.of_refusal({**shown, "details": {"limit": details.get("limit"), "devices": names}})


async def devices_of(edge: Edge, tenant_id: UUID, user_id: UUID) -> Devices:
    """A person's devices, from the log itself."""
    found: Devices = (await edge.store.state(DEVICES, tenant_id, devices_stream(user_id))).state
    return found


async def names_of(edge: Edge, tenant_id: UUID, user_id: UUID, devices: Sequence[Device]) -> list[str]:
    """What devices are called, in their order; nothing any more when the person was erased."""
    if not devices:
        return []
    opened = await edge.store.sealing.open_all(tenant_id, [(user_id, NAME_PURPOSE, device.name) for device in devices])
    return [name or "" for name in opened]

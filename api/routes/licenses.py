"""The license: what a person may use at present, and setting it for them until plans do."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from typing import Annotated, Any, ClassVar, Literal
from uuid import UUID

import msgspec
from fastapi import APIRouter, Request
from pydantic import ConfigDict, Field, PrivateAttr
from starlette.responses import Response

from api.bodies import MAX_AMOUNT, Body, CommandBody, Meter, Moment, parse
from api.edge import Asked, ask, run
from api.lean import LeanRoute
from api.licensed import (
    DeviceBinding,
    License,
    LicensedDevice,
    LicensedLimit,
    LicensedMeter,
    LicensedWindow,
)
from api.openapi import command, query
from api.people import known_user
from api.problems import Problem
from api.routes.devices import UserPath, own_id
from api.routes.quotas import Limit, Overdraft, Zone
from domain import quota
from domain.identity import licenses as domain
from domain.identity.devices import DEVICES, MAX_DEVICES, SetDeviceLimit, devices_stream
from domain.identity.licenses import LICENSE, MAX_METERS, license_stream, meters_of
from domain.quota import QUOTA, quota_stream
from domain.quota.limits import MAX_LIMITS
from eventstore.requests import Item
from projections.consumer import ProjectionBehind

router = APIRouter(tags=["license"])
own_router = APIRouter(tags=["license"], route_class=LeanRoute)

_ID = r"^[0-9a-f]{32}$"


# Commands


class MeterLimits(Body):
    """Limits of one meter, as of a quota."""

    limits: Annotated[list[Limit], Field(max_length=MAX_LIMITS)]
    zone: Annotated[Zone, Field(description="Time zone in which calendar windows begin.")] = "UTC"
    overdraft: Overdraft = Overdraft()

    def on(self, tenant_id: UUID, subject: str, meter: str) -> Item:
        """What sets them for somebody."""
        wanted = quota.SetLimits(
            subject=subject,
            meter=meter,
            zone=self.zone,
            limits=tuple(limit.made() for limit in self.limits),
            overdraft=quota.Overdraft(self.overdraft.kind, self.overdraft.amount),
        )
        return Item(QUOTA, quota_stream(tenant_id, subject, meter), wanted)


_NOTHING = MeterLimits(limits=[Limit(limit_id="not-in-plan", amount=0)])
"""Of a meter that a license had and the one after it is without."""


class _OfLicense(CommandBody):
    permission: ClassVar[str] = "license:admin"
    path_fields: ClassVar[tuple[str, ...]] = ("user_id",)

    user_id: Annotated[str, Field(pattern=_ID)]

    def of_license(self, wanted: Any) -> Item:
        """A command on the person's license."""
        return Item(LICENSE, license_stream(UUID(self.user_id)), wanted)


class SetLicense(_OfLicense):
    """Give a person a plan: its name, its end, how many devices, and the limits of each meter, all at once."""

    operation: ClassVar[str] = "set_license"

    plan: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\- ]{0,63}$", examples=["pro"])]
    valid_until: Annotated[Moment | None, Field(description="From then on it is expired; without it, it does not end by itself.")] = None
    devices: Annotated[int, Field(ge=0, le=MAX_DEVICES, description="How many devices may be bound.")]
    limits: Annotated[dict[Meter, MeterLimits], Field(max_length=MAX_METERS, description="By meter.")] = Field(default_factory=dict)

    _before: tuple[str, ...] = PrivateAttr(())

    def instead_of(self, before: domain.LicenseState) -> None:
        """Meters of the license before that this one is without are closed in the same batch."""
        self._before = meters_of(before)

    def items(self, tenant_id: UUID, command_id: UUID, index: int = 0) -> tuple[Item, ...]:  # as in the base class, here and below
        user_id = UUID(self.user_id)
        given = [limits.on(tenant_id, self.user_id, meter) for meter, limits in self.limits.items()]
        closed = [_NOTHING.on(tenant_id, self.user_id, meter) for meter in self._before if meter not in self.limits]
        wanted = domain.SetLicense(
            user_id=user_id,
            plan=self.plan,
            valid_until=self.valid_until,
            devices=self.devices,
            meters=tuple(self.limits),
            replaces=self._before,
        )
        devices = Item(DEVICES, devices_stream(user_id), SetDeviceLimit(limit=self.devices))
        return (*given, *closed, devices, self.of_license(wanted))


class SuspendLicense(_OfLicense):
    """Let a license rest: nothing more is reserved under it."""

    operation: ClassVar[str] = "suspend_license"

    def item(self, tenant_id: UUID, command_id: UUID, index: int) -> Item:
        return self.of_license(domain.SuspendLicense())


class ResumeLicense(_OfLicense):
    """Go on with a suspended license."""

    operation: ClassVar[str] = "resume_license"

    def item(self, tenant_id: UUID, command_id: UUID, index: int) -> Item:
        return self.of_license(domain.ResumeLicense())


class RevokeLicense(_OfLicense):
    """Take a license away."""

    operation: ClassVar[str] = "revoke_license"

    def item(self, tenant_id: UUID, command_id: UUID, index: int) -> Item:
        return self.of_license(domain.RevokeLicense())


class LicenseChanged(Body):
    """The license now."""

    plan: str | None = None
    status: Literal["active", "expired", "suspended", "none"]
    valid_until: str | None = None
    devices: int | None = None
    meters: list[str] | None = None


_AT = datetime(2026, 11, 1, tzinfo=UTC)
_EXAMPLE = msgspec.to_builtins(
    License(
        "pro",
        "active",
        (LicensedMeter("tokens", (LicensedLimit("monthly", 1000, 40, 0, 960, LicensedWindow(_AT, _AT.replace(month=12))),)),),
        DeviceBinding(3, 1, (LicensedDevice("7e2a91b064c34f0d8c550d5b2f7c11a3", "Laptop"),), True),
    )
)
_WANTED = {
    "plan": "pro",
    "valid_until": "2027-01-01T00:00:00Z",
    "devices": 3,
    "limits": {"tokens": {"zone": "Europe/Moscow", "limits": [{"limit_id": "monthly", "amount": 1000, "window": {"kind": "month"}}]}},
    "correlation_id": "plan-change-3",
}
_REPLY = {"plan": "pro", "status": "active", "valid_until": "2027-01-01T00:00:00+00:00", "devices": 3, "meters": ["tokens"]}
_KEY = {"correlation_id": "console-61"}


def _told(model: type[CommandBody], answer: Any, *refusals: str, body: Any = _KEY, missing: str = "license.not_found") -> dict[str, Any]:
    examples = {"license": body}
    return command(model, LicenseChanged, model.operation, body=examples, answer=answer, refusals=refusals, missing=missing)


# How it is shown


async def _show(asked: Asked, user_id: UUID, min_position: int | None, device: str | None) -> Response:
    try:
        body = await asked.edge.licensed.body(asked.edge, asked.principal.tenant_id, user_id, min_position, device)
    except (ProjectionBehind, TimeoutError):
        raise Problem("projection.behind") from None
    return tagged(body, asked.headers)


def tagged(body: bytes, headers: Mapping[bytes, bytes]) -> Response:
    """The body under a strong ETag of itself, or 304 for whoever has it (RFC 9110, 13.1.2)."""
    tag = b'"%b"' % urlsafe_b64encode(sha256(body).digest()[:18])
    told = {"ETag": tag.decode(), "Cache-Control": "private, no-cache"}
    given = headers.get(b"if-none-match")
    if given is not None and (given.strip() == b"*" or tag in [part.strip().removeprefix(b"W/") for part in given.split(b",")]):
        return Response(status_code=304, headers=told)
    return Response(body, headers=told, media_type="application/json")


class _Query(Body):
    # Query values are text, so they cannot be strict.
    model_config = ConfigDict(extra="forbid", strict=False)

    min_position: Annotated[int | None, Field(ge=0, le=MAX_AMOUNT)] = None


def _min_position(request: Request) -> int | None:
    """Read by hand, because FastAPI's way costs as much as the answer."""
    if not request.scope["query_string"]:
        return None
    return parse(_Query, msgspec.json.encode(dict(request.query_params))).min_position


_PARAMETERS = [
    {
        "name": "min_position",
        "in": "query",
        "required": False,
        "description": "Wait until the read model has come so far.",
        "schema": {"type": "integer", "minimum": 0},
    },
    {
        "name": "If-None-Match",
        "in": "header",
        "required": False,
        "description": "The ETag of an answer one has; 304 when it still holds.",
        "schema": {"type": "string"},
    },
]


def _asking(operation_id: str, permission: str, *, found: bool) -> dict[str, Any]:
    told = query(License, operation_id, permission=permission, answer=_EXAMPLE, found=found, missing="user.not_found")
    told["responses"][200]["headers"] = {"ETag": {"description": "Of this answer.", "schema": {"type": "string"}}}
    told["responses"][304] = {"description": "It is as it was."}
    told["openapi_extra"] = {**told["openapi_extra"], "parameters": _PARAMETERS}
    return told


@own_router.get("/v1/license", **_asking("get_license", "self:manage", found=False))
async def get_license(request: Request) -> Response:
    """What one may use oneself at present: plan, limits and what is left of them, devices."""
    asked = await ask(request, "self:manage")
    return await _show(asked, own_id(asked.principal), _min_position(request), asked.principal.device)


@router.get("/v1/users/{user_id}/license", **_asking("get_user_license", "users:read", found=True))
async def get_user_license(request: Request, user_id: UserPath) -> Response:
    """What somebody may use at present. `this_device` is about whoever asks."""
    asked = await ask(request, "users:read")
    await known_user(asked.edge.store, asked.principal.tenant_id, UUID(user_id))
    mine = asked.principal.device if asked.principal.user_id == UUID(user_id) else None
    return await _show(asked, UUID(user_id), _min_position(request), mine)


async def _command(request: Request, model: type[CommandBody], user_id: str) -> Response:
    edge, _, principal = await ask(request, model.permission)
    await known_user(edge.store, principal.tenant_id, UUID(user_id))
    return await run(request, model, {"user_id": user_id})


@router.put("/v1/users/{user_id}/license", **_told(SetLicense, _REPLY, "license.changed", body=_WANTED, missing="user.not_found"))
async def set_license(request: Request, user_id: UserPath) -> Response:
    """Give a person a plan instead of what they had, in whatever situation that was. Meters left out are closed."""
    edge, _, principal = await ask(request, SetLicense.permission)
    await known_user(edge.store, principal.tenant_id, UUID(user_id))
    before = (await edge.store.state(LICENSE, principal.tenant_id, license_stream(UUID(user_id)))).state
    return await run(request, SetLicense, {"user_id": user_id}, lambda body: body.instead_of(before))


@router.post("/v1/users/{user_id}/license/suspend", **_told(SuspendLicense, {**_REPLY, "status": "suspended"}, "license.ended"))
async def suspend_license(request: Request, user_id: UserPath) -> Response:
    """Let a license rest. What was reserved stays; nothing more is reserved."""
    return await _command(request, SuspendLicense, user_id)


@router.post("/v1/users/{user_id}/license/resume", **_told(ResumeLicense, _REPLY, "license.ended"))
async def resume_license(request: Request, user_id: UserPath) -> Response:
    """Go on with a suspended license, as it was."""
    return await _command(request, ResumeLicense, user_id)


@router.delete("/v1/users/{user_id}/license", **_told(RevokeLicense, {"plan": None, "status": "none"}))
async def revoke_license(request: Request, user_id: UserPath) -> Response:
    """Take a license away. What was reserved stays; nothing more is reserved until there is another."""
    return await _command(request, RevokeLicense, user_id)

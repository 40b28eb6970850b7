"""What a person sees of their license: as of the moment it is asked for, in the order the answer has."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

import msgspec

from api.devices import names_of
from domain.identity import licenses as domain
from domain.quota import Quota
from domain.quota.view import LimitView, view
from projections.license_queries import LicenseRow

if TYPE_CHECKING:
    from api.edge import Edge

_encode = msgspec.json.Encoder().encode
_LONGEST = timedelta(seconds=1)
"""For so long an answer is kept at most: it has names in it, whose owner may be erased."""


@dataclass(frozen=True, slots=True)
class LicensedWindow:
    """The window of the moment; without `start` it is rolling and `end` is when the oldest use leaves it, without both it never ends."""

    start: datetime | None
    end: datetime | None


@dataclass(frozen=True, slots=True)
class LicensedLimit:
    """A limit of the moment."""

    limit_id: str
    amount: int
    used: int
    reserved: int
    remaining: int
    window: LicensedWindow


@dataclass(frozen=True, slots=True)
class LicensedMeter:
    """One meter's limits."""

    meter: str
    limits: tuple[LicensedLimit, ...]


@dataclass(frozen=True, slots=True)
class LicensedDevice:
    """A bound device."""

    device_id: str
    name: str


@dataclass(frozen=True, slots=True)
class DeviceBinding:
    """How many devices may be bound, those that are, and whether the one that asks is one of them."""

    limit: int
    bound: int
    devices: tuple[LicensedDevice, ...]
    this_device: bool


@dataclass(frozen=True, slots=True)
class License:
    """What somebody may use at present."""

    plan: str | None
    status: domain.Status
    quota: tuple[LicensedMeter, ...]
    device_binding: DeviceBinding


def shown(row: LicenseRow, names: Sequence[str], default_limit: int, device: str | None, at: datetime) -> License:
    """The license as of a moment. ``names`` are the devices', and ``device`` is the digest of the one that asks."""
    terms, bound = domain.terms_of(row.license), row.devices.bound
    devices = tuple(LicensedDevice(each.device_id.hex, name) for each, name in zip(bound, names, strict=True))
    limit = default_limit if row.devices.limit is None else row.devices.limit
    return License(
        None if terms is None else terms.plan,
        domain.status(row.license, at),
        tuple(LicensedMeter(each.terms.meter, tuple(map(_limit, view(each, at).limits))) for each in row.quotas),
        DeviceBinding(limit, len(bound), devices, device is not None and device in row.devices),
    )


def _limit(limit: LimitView) -> LicensedLimit:
    # The start of a rolling window moves with the clock, and with it no answer would ever be the same as the one before.
    start = None if limit.kind == "rolling" else limit.window_start
    window = LicensedWindow(start, limit.resets_at)
    return LicensedLimit(limit.limit_id, limit.amount, limit.used, limit.reserved, limit.remaining, window)


def unchanged_until(row: LicenseRow, license_: License, at: datetime) -> datetime:
    """Until when the license looks as it does at a moment if nothing is recorded. Never later than that, and perhaps earlier."""
    moments = [limit.window.end for meter in license_.quota for limit in meter.limits]
    terms = domain.terms_of(row.license)
    moments.append(terms.valid_until if terms is not None and license_.status != "expired" else None)
    moments += [_next_of(quota, at) for quota in row.quotas]
    return min((moment for moment in moments if moment is not None), default=at + _LONGEST)


def _next_of(quota: Quota, at: datetime) -> datetime | None:
    """The next moment that changes a quota apart from its windows. Credits have many; with any, there is no waiting."""
    if quota.grants:
        return at
    least = quota.expiries.least
    return None if least is None else least[0]


class _Kept(NamedTuple):
    row: LicenseRow
    device: str | None
    body: bytes
    made: datetime
    until: datetime


class Showing:
    """Makes the answers of a process. An answer is made anew when its rows changed, or the moment has come that changes it without
    an event; making it costs as much as reading what it is made of, and a client asks many times for the same."""

    def __init__(self, remembered: int = 1_000, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._kept: OrderedDict[tuple[UUID, UUID], _Kept] = OrderedDict()
        self._remembered, self._clock = remembered, clock

    async def body(self, edge: Edge, tenant_id: UUID, user_id: UUID, min_position: int | None, device: str | None) -> bytes:
        """The license as of now. Raises `ProjectionBehind`."""
        row = await edge.readers.licenses.get(tenant_id, user_id, min_position)
        place, at = (tenant_id, user_id), self._clock()
        kept = self._kept.get(place)
        if kept is not None and kept.row is row and kept.device == device and kept.made <= at < kept.until:
            return kept.body
        names = await names_of(edge, tenant_id, user_id, row.devices.bound)
        license_ = shown(row, names, edge.settings.default_device_limit, device, at)
        body = _encode(license_)
        self._kept[place] = _Kept(row, device, body, at, min(at + _LONGEST, unchanged_until(row, license_, at)))
        self._kept.move_to_end(place)
        while len(self._kept) > self._remembered:
            self._kept.popitem(last=False)
        return body

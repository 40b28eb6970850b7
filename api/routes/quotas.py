"""Quotas themselves: limits, grants of credits, and corrections."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal
from uuid import UUID, uuid5
from zoneinfo import ZoneInfo

from fastapi import APIRouter, Path, Request
from pydantic import AfterValidator, Field
from starlette.responses import Response

from api.bodies import MAX_AMOUNT, Amount, AmountOrZero, Body, CommandBody, Identity, Meter, Moment, Subject
from api.edge import run
from api.openapi import command
from api.outside import SLASH
from api.routes import usage
from domain import quota
from domain.quota import QUOTA, quota_stream
from domain.quota.limits import MAX_LIMITS
from eventstore.requests import Item

router = APIRouter(tags=["quotas"])


def _known_zone(zone: str) -> str:
    try:
        ZoneInfo(zone)
    except (OSError, ValueError, KeyError):
        raise ValueError("This is no IANA time zone.") from None
    return zone


Zone = Annotated[str, Field(max_length=64), AfterValidator(_known_zone)]


class _QuotaCommand(CommandBody):
    permission: ClassVar[str] = "quota:admin"
    path_fields: ClassVar[tuple[str, ...]] = ("meter", "subject")

    meter: Meter
    subject: Subject

    def stream(self, tenant_id: UUID) -> str:
        """Where the quota's events are."""
        return quota_stream(tenant_id, self.subject, self.meter)


class Window(Body):
    """When a limit starts anew. `seconds` belongs to rolling, `anchor_day` to week, month and year, `anchor_month` to year."""

    kind: Literal["lifetime", "hour", "day", "week", "month", "year", "rolling"]
    anchor_day: Annotated[int | None, Field(ge=1, le=31)] = None
    anchor_month: Annotated[int | None, Field(ge=1, le=12)] = None
    seconds: Annotated[int | None, Field(ge=1, le=86400)] = None


class Limit(Body):
    """At most `amount` units in each window; one that overflows lets credits pay for what does not fit."""

    limit_id: Identity
    amount: AmountOrZero
    window: Window = Window(kind="lifetime")
    overflow: bool = False
    thresholds: Annotated[list[Annotated[int, Field(ge=1, le=100)]], Field(max_length=10, description="Percents.")] = Field([80])

    def made(self) -> quota.Limit:
        """The domain's limit."""
        window = quota.Window(self.window.kind, self.window.anchor_day, self.window.anchor_month, self.window.seconds)
        return quota.Limit(self.limit_id, self.amount, window, self.overflow, tuple(self.thresholds))


class Overdraft(Body):
    """How far below zero a limit may go: not at all, by `amount` units, or without end."""

    kind: Literal["none", "bounded", "soft"] = "none"
    amount: AmountOrZero = 0


class SetLimitsCommand(_QuotaCommand):
    """Replace all limits. One that keeps its id and window keeps what was counted; no limits at all means metering only."""

    operation: ClassVar[str] = "set_limits"

    limits: Annotated[list[Limit], Field(max_length=MAX_LIMITS)]
    zone: Annotated[Zone, Field(description="Time zone in which calendar windows begin.")] = "UTC"
    overdraft: Overdraft = Overdraft()
    max_open: Annotated[int, Field(ge=1, le=100_000, description="Reservations that may be open at once.")] = quota.MAX_OPEN

    def item(self, tenant_id: UUID, command_id: UUID, index: int) -> Item:  # as in the base class, here and below
        wanted = quota.SetLimits(
            subject=self.subject,
            meter=self.meter,
            zone=self.zone,
            limits=tuple(limit.made() for limit in self.limits),
            overdraft=quota.Overdraft(self.overdraft.kind, self.overdraft.amount),
            max_open=self.max_open,
        )
        return Item(QUOTA, self.stream(tenant_id), wanted)


class GrantCommand(_QuotaCommand):
    """Give credits, which pay for what does not fit into limits that overflow."""

    operation: ClassVar[str] = "grant"

    amount: Amount
    grant_id: Annotated[Identity | None, Field(description="Made from the idempotency key when not given.")] = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31, description="The lowest is spent first.")] = 0
    effective_at: Moment | None = None
    expires_at: Moment | None = None
    rollover_amount: Annotated[AmountOrZero, Field(description="How much may be spent after the expiry.")] = 0
    rollover_until: Moment | None = None

    def item(self, tenant_id: UUID, command_id: UUID, index: int) -> Item:
        wanted = quota.Grant(
            subject=self.subject,
            meter=self.meter,
            grant_id=self.grant_id or uuid5(command_id, str(index)).hex,
            amount=self.amount,
            priority=self.priority,
            effective_at=self.effective_at,
            expires_at=self.expires_at,
            rollover_amount=self.rollover_amount,
            rollover_until=self.rollover_until,
        )
        return Item(QUOTA, self.stream(tenant_id), wanted)


class VoidGrantCommand(_QuotaCommand):
    """Take back what is left of a grant."""

    operation: ClassVar[str] = "void_grant"
    path_fields: ClassVar[tuple[str, ...]] = ("meter", "subject", "grant_id")

    grant_id: Identity

    def item(self, tenant_id: UUID, command_id: UUID, index: int) -> Item:
        return Item(QUOTA, self.stream(tenant_id), quota.VoidGrant(grant_id=self.grant_id))


class AdjustCommand(_QuotaCommand):
    """Correct what is used in the current window of every limit."""

    operation: ClassVar[str] = "adjust"

    amount: Annotated[int, Field(ge=-MAX_AMOUNT, le=MAX_AMOUNT, description="Added to what is used; may be negative, not 0.")]
    reason: Annotated[str, Field(pattern=r"^[a-z0-9_.:\-]{1,64}$", description="A short code, kept for ever: no personal data.")]

    def item(self, tenant_id: UUID, command_id: UUID, index: int) -> Item:
        wanted = quota.Adjust(subject=self.subject, meter=self.meter, amount=self.amount, reason=self.reason)
        return Item(QUOTA, self.stream(tenant_id), wanted)


class CancelCommand(usage.RollbackCommand):
    """Free what is left of a reservation."""

    operation: ClassVar[str] = "cancel"
    path_fields: ClassVar[tuple[str, ...]] = ("reservation_id",)


BATCH: tuple[type[CommandBody], ...] = (SetLimitsCommand, GrantCommand, VoidGrantCommand, AdjustCommand)


class LimitsSet(Body):
    """How many limits there are now, and what the tightest has left."""

    limits: int
    remaining: int | None


class Granted(Body):
    """The grant, and all credits left."""

    grant_id: str
    amount: int
    credits_remaining: int


class Voided(Body):
    """What the grant had left."""

    grant_id: str
    freed: int | None
    credits_remaining: int


class Adjusted(Body):
    """What is used now."""

    amount: int
    used: int
    remaining: int | None


_LIMITS = {
    "limits": [
        {"limit_id": "monthly", "amount": 1000, "window": {"kind": "month", "anchor_day": 1}, "overflow": True},
        {"limit_id": "burst", "amount": 5, "window": {"kind": "rolling", "seconds": 60}},
    ],
    "zone": "Europe/Moscow",
    "correlation_id": "plan-change-3",
}  # fmt: skip
_NO_REFUSALS: tuple[str, ...] = ()


def _of(meter: str, subject: str) -> dict[str, str]:
    return {"meter": meter, "subject": subject.replace(SLASH, "/")}


MeterPath = Annotated[str, Path(pattern=r"^[a-z][a-z0-9_.\-]{0,62}$")]
SubjectPath = Annotated[str, Path(min_length=1, max_length=128, description="Percent-encoded; a slash as %2F.")]


@router.put(
    "/v1/quotas/{meter}/{subject}/limits",
    **command(
        SetLimitsCommand, LimitsSet, "set_limits", body={"limits": _LIMITS}, answer={"limits": 2, "remaining": 5}, refusals=_NO_REFUSALS
    ),
)
async def set_limits(request: Request, meter: MeterPath, subject: SubjectPath) -> Response:
    """Replace all limits of a quota, and make the quota when there is none."""
    return await run(request, SetLimitsCommand, _of(meter, subject))


@router.post(
    "/v1/quotas/{meter}/{subject}/grants",
    **command(
        GrantCommand,
        Granted,
        "grant",
        body={"grant": {"grant_id": "invoice-81", "amount": 500, "expires_at": "2027-01-01T00:00:00Z", "correlation_id": "invoice-81"}},
        answer={"grant_id": "invoice-81", "amount": 500, "credits_remaining": 500},
        refusals=("quota.grant_exists", "quota.too_many_grants"),
    ),
)
async def grant(request: Request, meter: MeterPath, subject: SubjectPath) -> Response:
    """Give credits."""
    return await run(request, GrantCommand, _of(meter, subject))


@router.post(
    "/v1/quotas/{meter}/{subject}/grants/{grant_id}/void",
    **command(
        VoidGrantCommand,
        Voided,
        "void_grant",
        body={"void": {"correlation_id": "refund-81"}},
        answer={"grant_id": "invoice-81", "freed": 120, "credits_remaining": 0},
        refusals=_NO_REFUSALS,
    ),
)
async def void_grant(request: Request, meter: MeterPath, subject: SubjectPath, grant_id: str) -> Response:
    """Take back what is left of a grant."""
    return await run(request, VoidGrantCommand, {**_of(meter, subject), "grant_id": grant_id})


@router.post(
    "/v1/quotas/{meter}/{subject}/adjustments",
    **command(
        AdjustCommand,
        Adjusted,
        "adjust",
        body={"adjustment": {"amount": -10, "reason": "double_charge", "correlation_id": "ticket-400"}},
        answer={"amount": -10, "used": 27, "remaining": 73},
        refusals=_NO_REFUSALS,
    ),
)
async def adjust(request: Request, meter: MeterPath, subject: SubjectPath) -> Response:
    """Correct what is used."""
    return await run(request, AdjustCommand, _of(meter, subject))


@router.post(
    "/v1/reservations/{reservation_id}/cancel",
    **command(
        CancelCommand,
        usage.RolledBack,
        "cancel_reservation",
        body={},
        answer={"reservation_id": usage.ID, "status": "rolled_back", "freed": 40, "remaining": 100},
        refusals=("quota.reservation_closed",),
    ),
)
async def cancel(request: Request, reservation_id: str) -> Response:
    """Free what is left of a reservation. Without a key, the reservation's id is the key."""
    return await run(request, CancelCommand, {"reservation_id": reservation_id})

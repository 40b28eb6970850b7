"""Use of a quota: reserve before the work, commit or roll back after it, or consume at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal
from uuid import UUID

from fastapi import APIRouter, Request
from pydantic import Field, PrivateAttr, model_validator
from pydantic_core import PydanticCustomError
from starlette.responses import Response

from api.bodies import Amount, AmountOrZero, Body, CommandBody, Identity, Meter, ReservationId, Subject, TtlSeconds
from api.edge import run
from api.lean import LeanRoute
from api.openapi import command
from api.problems import invalid
from api.subjects import check_subject, only_subject
from domain.identity.licenses import LICENSE, CheckLicense, license_stream, licensed_person
from domain.quota import (
    QUOTA,
    Commit,
    Consume,
    Mode,
    Reserve,
    Rollback,
    quota_stream,
    reservation_id,
    stream_of_reservation,
)
from domain.sender_account import SENDER, CheckSender, sender_stream
from eventstore.requests import Item

if TYPE_CHECKING:
    from api.auth import Principal

router = APIRouter(tags=["usage"], route_class=LeanRoute)

DEFAULT_SUBJECT = "default"
DEFAULT_METER = "messages"

ModeName = Literal["normal", "best_effort", "check_only", "adjust"]
_MODES = {mode.value: mode for mode in Mode}


class _Wanted(CommandBody):
    permission: ClassVar[str] = "usage:write"

    amount: Annotated[Amount | None, Field(description="Units wanted.")] = None
    messages: Annotated[Amount | None, Field(description="Short for an amount of the meter `messages`.")] = None
    subject: Annotated[Subject, Field(description="Whose quota.")] = DEFAULT_SUBJECT
    meter: Annotated[Meter, Field(description="What is counted.")] = DEFAULT_METER
    mode: ModeName = "normal"
    sender_id: Annotated[
        Identity | None, Field(description="The sender account that is to send. Refused, and no unit taken, unless it may send now.")
    ] = None

    _senders_of: str | None = PrivateAttr(None)

    def asked_by(self, principal: Principal) -> None:
        """A person uses their own quota and names sender accounts of their own, unless their role may do it for all."""
        only = only_subject(principal)
        if only is not None:
            if "subject" in self.model_fields_set:
                check_subject(principal, self.subject)
            self.subject = only
        if principal.user_id is not None and "senders:others" not in principal.permissions:
            self._senders_of = principal.user_id.hex

    def items(self, tenant_id: UUID, command_id: UUID, index: int = 0) -> tuple[Item, ...]:
        """License and sender are asked first, and nothing can happen to them until the quota was asked too."""
        quota = super().items(tenant_id, command_id, index)
        checks: list[Item] = []
        if (person := licensed_person(self.subject)) is not None:
            checks.append(Item(LICENSE, license_stream(person), CheckLicense()))
        if self.sender_id is not None:
            check = CheckSender(sender_id=self.sender_id, only_of=self._senders_of)
            checks.append(Item(SENDER, sender_stream(tenant_id, self.sender_id), check))
        return (*checks, *quota)

    @model_validator(mode="after")
    def one_amount(self) -> _Wanted:
        """Either form, not both and not none."""
        if (self.amount is None) == (self.messages is None):
            wrong = "amount" if self.messages is None else "messages"
            raise PydanticCustomError("one_amount", "Give either amount or messages.", {"field": wrong})
        if self.messages is not None and self.meter != DEFAULT_METER:
            raise PydanticCustomError("one_amount", "Messages are counted by the meter messages.", {"field": "meter"})
        return self

    @property
    def units(self) -> int:
        """The amount in whichever form it came."""
        units = self.amount if self.messages is None else self.messages
        assert units is not None
        return units


class ReserveCommand(_Wanted):
    """Hold units of a quota until they are committed, rolled back, or expire."""

    operation: ClassVar[str] = "reserve"

    ttl_seconds: Annotated[TtlSeconds, Field(description="How long the reservation lasts.")] = 900

    def item(self, tenant_id: UUID, command_id: UUID, index: int) -> Item:  # as in the base class, here and below
        stream = quota_stream(tenant_id, self.subject, self.meter)
        identity = reservation_id(stream, command_id, index)
        wanted = Reserve(
            subject=self.subject,
            meter=self.meter,
            amount=self.units,
            reservation_id=identity,
            ttl_seconds=self.ttl_seconds,
            mode=_MODES[self.mode],
        )
        return Item(QUOTA, stream, wanted)


class ConsumeCommand(_Wanted):
    """Reserve and commit at once."""

    operation: ClassVar[str] = "consume"

    def item(self, tenant_id: UUID, command_id: UUID, index: int) -> Item:
        stream = quota_stream(tenant_id, self.subject, self.meter)
        identity = reservation_id(stream, command_id, index)
        return Item(
            QUOTA,
            stream,
            Consume(subject=self.subject, meter=self.meter, amount=self.units, reservation_id=identity, mode=_MODES[self.mode]),
        )


class _OfReservation(CommandBody):
    permission: ClassVar[str] = "usage:write"

    reservation_id: ReservationId

    _only_of: str | None = PrivateAttr(None)

    def asked_by(self, principal: Principal) -> None:
        """A person ends their own reservations, unless their role may end all."""
        self._only_of = only_subject(principal)


class CommitCommand(_OfReservation):
    """Say how much of a reservation was used; a final commit frees the rest."""

    operation: ClassVar[str] = "commit"

    used: Annotated[AmountOrZero, Field(description="Units used, on top of what was committed before.")]
    final: Annotated[bool, Field(description="False keeps the reservation open for more.")] = True
    ttl_seconds: Annotated[TtlSeconds | None, Field(description="Prolongs a reservation that stays open.")] = None

    def item(self, tenant_id: UUID, command_id: UUID, index: int) -> Item:
        done = Commit(
            reservation_id=self.reservation_id, used=self.used, final=self.final, ttl_seconds=self.ttl_seconds, only_of=self._only_of
        )
        return Item(QUOTA, stream_of_reservation(self.reservation_id), done)

    def default_key(self) -> str | None:
        if self.final:
            return self.reservation_id
        raise invalid([{"type": "key", "loc": ("correlation_id",), "msg": "A commit that is not final needs a key of its own"}])


class RollbackCommand(_OfReservation):
    """Free what is left of a reservation."""

    operation: ClassVar[str] = "rollback"

    def item(self, tenant_id: UUID, command_id: UUID, index: int) -> Item:
        done = Rollback(reservation_id=self.reservation_id, only_of=self._only_of)
        return Item(QUOTA, stream_of_reservation(self.reservation_id), done)

    def default_key(self) -> str | None:
        return self.reservation_id


BATCH: tuple[type[CommandBody], ...] = (ReserveCommand, ConsumeCommand, CommitCommand, RollbackCommand)


class Reserved(Body):
    """What was reserved. A check says ``checked`` and holds nothing."""

    reservation_id: str
    status: Literal["reserved", "checked"]
    granted: int
    overdrawn: int
    expires_at: str | None
    remaining: int | None


class Consumed(Body):
    """What was consumed."""

    reservation_id: str
    status: Literal["committed", "checked"]
    granted: int
    used: int
    freed: int
    overdrawn: int
    remaining: int | None


class Committed(Body):
    """What was booked in all, and what went back."""

    reservation_id: str
    status: Literal["committed", "open"]
    used: int
    freed: int
    remaining: int | None


class RolledBack(Body):
    """How a reservation ended."""

    reservation_id: str
    status: Literal["rolled_back", "expired"]
    freed: int
    remaining: int | None


ID = "q7Zq0hVfXl-0nJ1tq3pKzS4mBvCwYxUeRtGhJkLa"
_RESERVED = {
    "reservation_id": ID, "status": "reserved", "granted": 40, "overdrawn": 0,
    "expires_at": "2026-11-21T06:00:00Z", "remaining": 60,
}  # fmt: skip
_RESERVE: dict[str, Any] = command(
    ReserveCommand,
    Reserved,
    "reserve",
    body={
        "RFC": {"messages": 40, "correlation_id": "campaign-17"},
        "general": {"subject": "customer-1", "meter": "tokens", "amount": 40, "ttl_seconds": 900, "correlation_id": "letter-9"},
    },
    answer=_RESERVED,
    refusals=("quota.exceeded", "quota.too_many_open", "sender.cooling_down", "sender.excluded", "license.ended"),
)
_COMMIT: dict[str, Any] = command(
    CommitCommand,
    Committed,
    "commit",
    body={
        "RFC": {"reservation_id": ID, "used": 37},
        "in parts": {"reservation_id": ID, "used": 10, "final": False, "correlation_id": "letter-9/part-1"},
    },
    answer={"reservation_id": ID, "status": "committed", "used": 37, "freed": 3, "remaining": 63},
    refusals=("quota.reservation_expired", "quota.reservation_closed", "quota.commit_exceeds_reserved"),
)
_ROLLBACK: dict[str, Any] = command(
    RollbackCommand,
    RolledBack,
    "rollback",
    body={"RFC": {"reservation_id": ID}},
    answer={"reservation_id": ID, "status": "rolled_back", "freed": 40, "remaining": 100},
    refusals=("quota.reservation_closed",),
)
_CONSUME: dict[str, Any] = command(
    ConsumeCommand,
    Consumed,
    "consume",
    body={"general": {"subject": "customer-1", "meter": "tokens", "amount": 5, "correlation_id": "letter-10"}},
    answer={
        "reservation_id": ID, "status": "committed", "granted": 5, "used": 5, "freed": 0, "overdrawn": 0, "remaining": 58,
    },
    refusals=("quota.exceeded", "sender.cooling_down", "sender.excluded"),
)  # fmt: skip


@router.post("/usage/reserve", include_in_schema=False)
@router.post("/v1/usage/reserve", **_RESERVE)
async def reserve(request: Request) -> Response:
    """Hold units of a quota until they are committed, rolled back, or expire."""
    return await run(request, ReserveCommand)


@router.post("/usage/commit", include_in_schema=False)
@router.post("/v1/usage/commit", **_COMMIT)
async def commit(request: Request) -> Response:
    """Say how much of a reservation was used. Without a key, the reservation's id is the key of its final commit."""
    return await run(request, CommitCommand)


@router.post("/usage/rollback", include_in_schema=False)
@router.post("/v1/usage/rollback", **_ROLLBACK)
async def rollback(request: Request) -> Response:
    """Free what is left of a reservation. Without a key, the reservation's id is the key."""
    return await run(request, RollbackCommand)


@router.post("/usage/consume", include_in_schema=False)
@router.post("/v1/usage/consume", **_CONSUME)
async def consume(request: Request) -> Response:
    """Reserve and commit at once."""
    return await run(request, ConsumeCommand)

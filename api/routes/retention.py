"""For how many days a tenant keeps each kind of data that is no part of the log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar
from uuid import UUID

import msgspec
from fastapi import APIRouter, Path, Request
from pydantic import Field
from starlette.responses import Response

from api.bodies import Body, CommandBody
from api.edge import ask, run
from api.openapi import command, query
from domain.privacy import retention
from domain.privacy.retention import KINDS, RETENTION, Retention, retention_stream
from eventstore.requests import Item

router = APIRouter(tags=["policies"])

PERMISSION, READ = "tenant:admin", "tenant:read"
_PATTERN = f"^({'|'.join(KINDS)})$"
KindPath = Annotated[str, Path(pattern=_PATTERN, description="; ".join(f"{name}: {kind.meaning}" for name, kind in KINDS.items()))]


class _KindCommand(CommandBody):
    permission: ClassVar[str] = PERMISSION
    path_fields: ClassVar[tuple[str, ...]] = ("kind",)

    kind: Annotated[str, Field(pattern=_PATTERN)]


class SetRetentionCommand(_KindCommand):
    """Keep a kind of data for so many days. It takes effect when the worker looks next, within an hour."""

    operation: ClassVar[str] = "set_retention"

    days: Annotated[int | None, Field(ge=1, le=36_500, description="null: for ever, where the kind may be kept so.")]

    def item(self, tenant_id: UUID, command_id: UUID, index: int) -> Item:  # as in the base class, here and below
        return Item(RETENTION, retention_stream(tenant_id), retention.SetRetention(kind=self.kind, days=self.days))


class ResetRetentionCommand(_KindCommand):
    """Keep a kind of data as long as the default says."""

    operation: ClassVar[str] = "reset_retention"

    def item(self, tenant_id: UUID, command_id: UUID, index: int) -> Item:
        return Item(RETENTION, retention_stream(tenant_id), retention.ResetRetention(kind=self.kind))


class RetentionAnswer(Body):
    """For how many days the kind is kept from now on; null is for ever."""

    kind: str
    days: int | None


@dataclass(frozen=True, slots=True)
class RetentionShown:
    """A kind of data. `days` null: for ever. `chosen`: the tenant's own choice, not the default."""

    kind: str
    meaning: str
    chosen: bool
    least: int
    most: int | None = None
    days: int | None = None


@dataclass(frozen=True, slots=True)
class RetentionList:
    """All kinds there are."""

    retention: tuple[RetentionShown, ...]


def shown(state: Retention) -> RetentionList:
    """Every kind, with what holds for it."""
    return RetentionList(
        tuple(
            RetentionShown(name, kind.meaning, state.find(name) is not None, kind.least, kind.most, state.days(name))
            for name, kind in KINDS.items()
        )
    )


_KEY = {"correlation_id": "console-7"}


def _told(model: type[CommandBody], answer: Any, body: Any) -> dict[str, Any]:
    return command(model, RetentionAnswer, model.operation, body={"policy": body}, answer=answer, refusals=(), missing="route.not_found")


@router.get(
    "/v1/policies/retention",
    **query(RetentionList, "list_retention", permission=READ, answer=msgspec.to_builtins(shown(Retention())), found=False),
)
async def list_retention(request: Request) -> Response:
    """For how long each kind of data is kept."""
    edge, _, principal = await ask(request, READ)
    state = (await edge.store.state(RETENTION, principal.tenant_id, retention_stream(principal.tenant_id))).state
    return Response(msgspec.json.encode(shown(state)), media_type="application/json")


@router.put("/v1/policies/retention/{kind}", **_told(SetRetentionCommand, {"kind": "telemetry", "days": 14}, {"days": 14, **_KEY}))
async def set_retention(request: Request, kind: KindPath) -> Response:
    """Keep a kind of data for so many days."""
    return await run(request, SetRetentionCommand, {"kind": kind})


@router.delete("/v1/policies/retention/{kind}", **_told(ResetRetentionCommand, {"kind": "telemetry", "days": 30}, _KEY))
async def reset_retention(request: Request, kind: KindPath) -> Response:
    """Keep a kind of data as long as the default says."""
    return await run(request, ResetRetentionCommand, {"kind": kind})

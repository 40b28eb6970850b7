"""A tenant's policies: its rates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal
from uuid import UUID

import msgspec
from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from api.bodies import Body, CommandBody
from api.edge import ask, run
from api.openapi import command, query
from api.routes.rates import RateName, RatePath
from domain.identity import policies
from domain.identity.permissions import ROLES
from domain.identity.policies import POLICIES, Policies, RateNotFound, RatePolicy, policies_stream
from eventstore.requests import Item

router = APIRouter(tags=["policies"])

PERMISSION, READ = "tenant:admin", "tenant:read"
Role = Literal.__getitem__(tuple(ROLES))
_encode = msgspec.json.encode


class _RateCommand(CommandBody):
    permission: ClassVar[str] = PERMISSION
    path_fields: ClassVar[tuple[str, ...]] = ("name",)

    name: RateName


class SetRate(_RateCommand):
    """Allow a subject so many takes in any so many seconds; people with an exempt role take without being counted."""

    operation: ClassVar[str] = "set_rate"

    amount: Annotated[int, Field(ge=1, le=policies.MAX_AMOUNT, description="Takes in a window.")]
    seconds: Annotated[int, Field(ge=1, le=policies.MAX_SECONDS, description="The window's length.")]
    exempt_roles: Annotated[list[Role], Field(max_length=len(ROLES), description="Whose takes are not counted.")] = Field([])  # type: ignore[valid-type]  # made of a value

    def item(self, tenant_id: UUID, command_id: UUID, index: int) -> Item:  # as in the base class, here and below
        wanted = policies.SetRatePolicy(name=self.name, amount=self.amount, seconds=self.seconds, exempt_roles=tuple(self.exempt_roles))
        return Item(POLICIES, policies_stream(tenant_id), wanted)


class RemoveRate(_RateCommand):
    """Have no such rate any more."""

    operation: ClassVar[str] = "remove_rate"

    def item(self, tenant_id: UUID, command_id: UUID, index: int) -> Item:
        return Item(POLICIES, policies_stream(tenant_id), policies.RemoveRatePolicy(name=self.name))


class RateShown(Body):
    """A rate: at most ``amount`` takes in any ``seconds``."""

    name: str
    amount: int
    seconds: int
    exempt_roles: list[str]


class RateRemoved(Body):
    """Which rate is gone."""

    name: str
    status: Literal["removed"]


@dataclass(frozen=True, slots=True)
class RateList:
    """All rates of the tenant, by name."""

    rates: tuple[RatePolicy, ...]


_RATE: dict[str, Any] = {"name": "bot.commands", "amount": 5, "seconds": 60, "exempt_roles": ["admin", "owner"]}


@router.get("/v1/policies/rates", **query(RateList, "list_rate_policies", permission=READ, answer={"rates": [_RATE]}, found=False))
async def list_rates(request: Request) -> Response:
    """The tenant's rates."""
    return Response(_encode({"rates": (await _policies(request)).rates}), media_type="application/json")


@router.get(
    "/v1/policies/rates/{name}",
    **query(RateShown, "get_rate_policy", permission=READ, answer=_RATE, missing="policy.rate_not_found"),
)
async def get_rate(request: Request, name: RatePath) -> Response:
    """One rate."""
    rate = (await _policies(request)).rate(name)
    if rate is None:
        raise RateNotFound(name=name)
    return Response(_encode(rate), media_type="application/json")


@router.put(
    "/v1/policies/rates/{name}",
    **command(
        SetRate,
        RateShown,
        "set_rate_policy",
        body={
            "commands of a bot": {"amount": 5, "seconds": 60, "exempt_roles": ["owner", "admin"], "correlation_id": "policy-7"},
            "requests to a model": {"amount": 3, "seconds": 300, "correlation_id": "policy-8"},
        },
        answer=_RATE,
        refusals=("policy.too_many_rates",),
        missing="policy.rate_not_found",
    ),
)
async def set_rate(request: Request, name: RatePath) -> Response:
    """Make a rate or change it. What was counted stays, unless the seconds change."""
    return await run(request, SetRate, {"name": name})


@router.delete(
    "/v1/policies/rates/{name}",
    **command(
        RemoveRate,
        RateRemoved,
        "remove_rate_policy",
        body={},
        answer={"name": "bot.commands", "status": "removed"},
        refusals=("idempotency.key_reused",),
        missing="policy.rate_not_found",
    ),
)
async def remove_rate(request: Request, name: RatePath) -> Response:
    """Have no such rate any more: whoever takes of it is told that there is none."""
    return await run(request, RemoveRate, {"name": name})


async def _policies(request: Request) -> Policies:
    edge, _, principal = await ask(request, READ)
    found: Policies = (await edge.store.state(POLICIES, principal.tenant_id, policies_stream(principal.tenant_id))).state
    return found

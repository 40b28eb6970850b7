"""The tenant itself: its settings, as its own people see and change them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal
from uuid import UUID

import msgspec
from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from api.bodies import Body, CommandBody
from api.edge import ask, run
from api.openapi import command, query
from domain.identity.tenants import MAX_NAME, TENANT, ChangeTenantSettings, Tenant, tenant_stream, tenant_there, tenant_told
from eventstore.requests import Item
from eventstore.store import Store

router = APIRouter(tags=["tenant"])

Label = Annotated[str, Field(min_length=1, max_length=MAX_NAME, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]


class TenantSettings(CommandBody):
    """All settings, also those that stay."""

    operation: ClassVar[str] = "change_tenant"
    permission: ClassVar[str] = "tenant:admin"

    name: Annotated[Label, Field(description="A label, kept for ever: not a person's name.")]
    zone: Annotated[str, Field(max_length=64, description="The IANA time zone of the tenant's calendar.", examples=["Europe/Moscow"])]
    locale: Annotated[str, Field(max_length=16, description="A BCP 47 tag: language, script, region.", examples=["pt-BR"])]
    currency: Annotated[str, Field(max_length=3, description="An ISO 4217 code.", examples=["EUR"])]
    registration: Annotated[
        Literal["invited", "open"], Field(description="Whether people join by invitation alone, or may register themselves.")
    ]

    def item(self, tenant_id: UUID, command_id: UUID, index: int) -> Item:
        return Item(TENANT, tenant_stream(tenant_id), self.change())

    def change(self) -> ChangeTenantSettings:
        """The command."""
        return ChangeTenantSettings(
            name=self.name, zone=self.zone, locale=self.locale, currency=self.currency, registration=self.registration
        )


class TenantView(Body):
    """A tenant and its settings. Of a suspended one people and keys are refused."""

    tenant_id: str
    name: str
    zone: str
    locale: str
    currency: str
    registration: Literal["invited", "open"]
    status: Literal["active", "suspended"]


SETTINGS: dict[str, Any] = {
    "name": "Acme",
    "zone": "Europe/Moscow",
    "locale": "ru-RU",
    "currency": "RUB",
    "registration": "invited",
}
EXAMPLE: dict[str, Any] = {"tenant_id": "6f1c8f0e2b7a4c5d9e3f1a2b3c4d5e6f", **SETTINGS, "status": "active"}


async def the_tenant(store: Store, tenant_id: UUID) -> Tenant:
    """The tenant from the log itself; refuses, as the domain does, one that is not there or was deleted."""
    return tenant_there((await store.state(TENANT, tenant_id, tenant_stream(tenant_id))).state)


def shown(tenant: Tenant) -> Response:
    """A tenant as an answer."""
    return Response(msgspec.json.encode(tenant_told(tenant)), media_type="application/json")


@router.get("/v1/tenant", **query(TenantView, "get_tenant", permission="tenant:read", answer=EXAMPLE, missing="tenant.not_found"))
async def get_tenant(request: Request) -> Response:
    """The tenant's settings."""
    edge, _, principal = await ask(request, "tenant:read")
    return shown(await the_tenant(edge.store, principal.tenant_id))


@router.put(
    "/v1/tenant",
    **command(
        TenantSettings,
        TenantView,
        "change_tenant",
        body={"settings": {**SETTINGS, "correlation_id": "settings-3"}},
        answer=EXAMPLE,
        refusals=("tenant.deleted",),
        missing="tenant.not_found",
    ),
)
async def change_tenant(request: Request) -> Response:
    """Replace the tenant's settings. Another time zone holds for the days from now on."""
    return await run(request, TenantSettings)

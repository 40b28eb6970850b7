"""The operators of the platform, above tenants: the tenants there are, and what may be seen of each.

Whatever an operator is shown of a tenant is recorded in that tenant's log before the answer, and whatever an operator changes is recorded
there under the operator's name: the tenant sees both in its own audit log. These are the only addresses that name a tenant, and nobody
but a person with the role ``operator`` in the platform's tenant may ask there.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal
from uuid import UUID, uuid4, uuid5

from fastapi import APIRouter, Path, Query, Request
from pydantic import ConfigDict, Field
from starlette.responses import Response

from api import bodies, idempotency, paging
from api.auth import Principal
from api.bodies import Body, CommandBody
from api.edge import Asked, ask, edge_of, fingerprint, respond, submit, take
from api.openapi import command, query
from api.problems import Problem
from api.routes import audit, users
from api.routes.audit import AuditPage, AuditQuery
from api.routes.tenant import EXAMPLE, SETTINGS, TenantSettings, TenantView, shown, the_tenant
from api.routes.users import Invitation, Invite, PeopleQuery, PersonList
from domain.identity.operators import OPERATOR, Look, operator_stream
from domain.identity.tenants import PLATFORM, TENANT, CreateTenant, ResumeTenant, SuspendTenant, tenant_stream
from eventstore.errors import StoreError
from eventstore.requests import Item
from eventstore.requests import Request as StoreRequest
from eventstore.store import Store, client_command_id
from projections.tenants import list_tenants

router = APIRouter(tags=["operator"])

READ, CHANGE = "operator:read", "operator:tenants"
TenantPath = Annotated[UUID, Path(description="A tenant.")]


# Commands


class OpenTenant(TenantSettings):
    """Create a tenant."""

    operation: ClassVar[str] = "create_tenant"
    permission: ClassVar[str] = CHANGE

    zone: Annotated[str, Field(max_length=64, description="The IANA time zone of the tenant's calendar.")] = "UTC"
    locale: Annotated[str, Field(max_length=16, description="A BCP 47 tag: language, script, region.")] = "en"
    currency: Annotated[str, Field(max_length=3, description="An ISO 4217 code.")] = "EUR"
    registration: Annotated[Literal["invited", "open"], Field(description="How people join.")] = "invited"

    def items(self, tenant_id: UUID, command_id: UUID, index: int = 0) -> tuple[Item, ...]:
        create = CreateTenant(tenant_id=tenant_id, name=self.name, zone=self.zone)
        return Item(TENANT, tenant_stream(tenant_id), create), self.item(tenant_id, command_id, index)


class SetTenant(TenantSettings):
    """All settings of a tenant, also those that stay."""

    operation: ClassVar[str] = "set_tenant"
    permission: ClassVar[str] = CHANGE


class SuspendWhole(CommandBody):
    """Refuse a tenant's people and keys, within a second, until it is resumed."""

    operation: ClassVar[str] = "suspend_tenant"
    permission: ClassVar[str] = CHANGE

    def item(self, tenant_id: UUID, command_id: UUID, index: int) -> Item:
        return Item(TENANT, tenant_stream(tenant_id), SuspendTenant())


class ResumeWhole(CommandBody):
    """Let a suspended tenant's people and keys in again."""

    operation: ClassVar[str] = "resume_tenant"
    permission: ClassVar[str] = CHANGE

    def item(self, tenant_id: UUID, command_id: UUID, index: int) -> Item:
        return Item(TENANT, tenant_stream(tenant_id), ResumeTenant())


class InviteOwner(Invite):
    """Invite an owner of a tenant, the first one for instance."""

    operation: ClassVar[str] = "invite_owner"
    permission: ClassVar[str] = CHANGE

    role: Literal["owner"] = "owner"

    async def look(self, store: Store, principal: Principal) -> None:
        if principal.tenant_id == PLATFORM:
            raise Problem("users.role_not_yours", details={"role": "owner", "may_give": ["operator"]})
        await self.find(store, principal.tenant_id)


# Answers


class TenantInList(TenantView):
    """A tenant, and since when there is one."""

    created_at: datetime


class TenantList(Body):
    """One page."""

    tenants: list[TenantInList]


class TenantsQuery(Body):
    """Which tenants are wanted."""

    # Query values are text, so they cannot be strict.
    model_config = ConfigDict(extra="forbid", strict=False)

    status: Literal["active", "suspended"] | None = None
    cursor: paging.Cursor = None
    limit: Annotated[int, Field(ge=1, le=200)] = 50


# Who asks


async def ask_operator(request: Request, permission: str, tenant_id: UUID | None = None) -> Asked:
    """Check that an operator asks; with a tenant, the request is taken for that one from here on."""
    asked = await ask(request, permission)
    principal = asked.principal
    if principal.role != "operator" or principal.tenant_id != PLATFORM or principal.user_id is None:
        raise Problem("auth.permission_missing", permission=permission)
    return asked if tenant_id is None else asked._replace(principal=replace(principal, tenant_id=tenant_id))


async def look(request: Request, tenant_id: UUID, what: str) -> Asked:
    """Check that an operator asks, and record in the tenant's log what that one is about to be shown."""
    asked = await ask_operator(request, READ, tenant_id)
    principal = asked.principal
    assert principal.user_id is not None, "ask_operator lets nobody else in"
    await the_tenant(asked.edge.store, tenant_id)  # or a log would begin for a tenant that is not there
    seen = Item(OPERATOR, operator_stream(tenant_id, principal.user_id), Look(what=what))
    await asked.edge.store.submit(StoreRequest(tenant_id, uuid4(), (seen,), b"", actor=principal.actor))
    return asked


async def _change(request: Request, model: type[CommandBody], tenant_id: UUID) -> Response:
    asked = await ask_operator(request, CHANGE, tenant_id)
    await the_tenant(asked.edge.store, tenant_id)
    return await take(asked, request, model, {})  # with a path, if an empty one, so that there need not be a body


def _told(model: type[CommandBody], reply: type[Body], answer: Any, *refusals: str, **body: Any) -> dict[str, Any]:
    examples = {"tenant": {**body, "correlation_id": "console-41"}}
    return command(model, reply, model.operation, body=examples, answer=answer, refusals=refusals, missing="tenant.not_found")


# Routes


@router.get(
    "/v1/operator/tenants",
    **query(
        TenantList,
        "list_tenants",
        permission=READ,
        answer={"tenants": [{**EXAMPLE, "created_at": "2026-11-21T05:45:00Z"}]},
        found=False,
    ),
)
async def list_all(request: Request, asked_for: Annotated[TenantsQuery, Query()]) -> Response:
    """All tenants, the oldest first. The Link header leads to the next page."""
    edge, _, _ = await ask_operator(request, READ)
    dsn = None if edge.store.pool is None else edge.store.pool.conninfo
    if not isinstance(dsn, str):
        raise Problem("store.unavailable")  # a store in memory has no read models
    place = users.place_in_time(asked_for.cursor)
    try:
        rows = await list_tenants(dsn, status=asked_for.status, after=place, limit=asked_for.limit)
    except StoreError:  # it was never built
        raise Problem("projection.behind") from None
    last = (rows[-1].created_at.isoformat(), rows[-1].tenant_id.hex) if len(rows) == asked_for.limit else None
    shown_rows = [{**row._asdict(), "tenant_id": row.tenant_id.hex, "created_at": row.created_at.astimezone(UTC)} for row in rows]
    return paging.page(request, {"tenants": shown_rows}, last)


@router.post("/v1/operator/tenants", **_told(OpenTenant, TenantView, EXAMPLE, "tenant.exists", **SETTINGS))
async def create_tenant(request: Request) -> Response:
    """Create a tenant. Its id is made from the key: the same key makes one tenant."""
    edge, headers, principal = asked = await ask_operator(request, CHANGE)
    raw = await bodies.read(request, headers, edge.settings.body_limit_bytes)
    body = bodies.parse(OpenTenant, raw)
    key = idempotency.key_of(headers, body.correlation_id, body.default_key)
    tenant_id = uuid5(client_command_id(PLATFORM, principal.account, body.operation, key), "tenant")
    asked = asked._replace(principal=replace(principal, tenant_id=tenant_id))
    command_id = client_command_id(tenant_id, principal.account, body.operation, key)
    items = body.items(tenant_id, command_id)
    outcome = await submit(asked, command_id, items, await fingerprint(asked, raw), len(raw))
    return respond(edge, outcome, of_many=len(items) > 1)


@router.get(
    "/v1/operator/tenants/{tenant_id}",
    **query(TenantView, "show_tenant", permission=READ, answer=EXAMPLE, missing="tenant.not_found"),
)
async def show_tenant(request: Request, tenant_id: TenantPath) -> Response:
    """A tenant's settings and status. The tenant sees that it was looked at."""
    edge, _, _ = await look(request, tenant_id, "tenant")
    return shown(await the_tenant(edge.store, tenant_id))


@router.put("/v1/operator/tenants/{tenant_id}", **_told(SetTenant, TenantView, EXAMPLE, "tenant.deleted", **SETTINGS))
async def set_tenant(request: Request, tenant_id: TenantPath) -> Response:
    """Replace a tenant's settings. The tenant sees who did it."""
    return await _change(request, SetTenant, tenant_id)


@router.post(
    "/v1/operator/tenants/{tenant_id}/suspend",
    **_told(SuspendWhole, TenantView, {**EXAMPLE, "status": "suspended"}, "tenant.deleted"),
)
async def suspend_tenant(request: Request, tenant_id: TenantPath) -> Response:
    """Refuse a tenant's people and keys, within a second, until it is resumed. Nothing of it is lost."""
    if tenant_id == PLATFORM:
        raise Problem("users.role_not_yours", details={"role": "operator"})
    return await _change(request, SuspendWhole, tenant_id)


@router.post("/v1/operator/tenants/{tenant_id}/resume", **_told(ResumeWhole, TenantView, EXAMPLE, "tenant.deleted"))
async def resume_tenant(request: Request, tenant_id: TenantPath) -> Response:
    """Let a suspended tenant's people and keys in again."""
    return await _change(request, ResumeWhole, tenant_id)


@router.post(
    "/v1/operator/tenants/{tenant_id}/owners",
    **_told(InviteOwner, Invitation, users.OWNER_EXAMPLE, "login.taken", "user.exists", email="anna@example.com", name="Anna"),
)
async def invite_owner(request: Request, tenant_id: TenantPath) -> Response:
    """Invite an owner of a tenant, the first one for instance. The token is shown to the operator, who hands it on."""
    answer = await _change(request, InviteOwner, tenant_id)
    return await users.with_invitation(answer, edge_of(request).store.sealing, tenant_id)


@router.get(
    "/v1/operator/tenants/{tenant_id}/users",
    **query(PersonList, "list_tenant_users", permission=READ, answer={"users": [users.LISTED_EXAMPLE]}, missing="tenant.not_found"),
)
async def list_tenant_users(request: Request, tenant_id: TenantPath, asked_for: Annotated[PeopleQuery, Query()]) -> Response:
    """A tenant's people, as the tenant sees them itself. The tenant sees that they were looked at."""
    edge, _, _ = await look(request, tenant_id, "users")
    return await users.page_of(request, edge, tenant_id, asked_for)


@router.get(
    "/v1/operator/tenants/{tenant_id}/audit",
    **query(AuditPage, "tenant_audit", permission=READ, answer={"entries": []}, missing="tenant.not_found"),
)
async def tenant_audit(request: Request, tenant_id: TenantPath, asked_for: Annotated[AuditQuery, Query()]) -> Response:
    """What was recorded of a tenant, as the tenant sees it itself. The tenant sees that it was looked at."""
    edge, _, _ = await look(request, tenant_id, "audit")
    return await audit.answer(request, edge, tenant_id, asked_for)

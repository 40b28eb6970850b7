"""Webhooks: who is told what happens, which secrets sign, and what became of each message."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, ClassVar, Literal
from uuid import UUID, uuid5

import msgspec
from fastapi import APIRouter, Path, Query, Request
from pydantic import AfterValidator, ConfigDict, Field
from starlette.responses import Response

from adapters.cloudevents import event_id
from adapters.webhooks import signing
from adapters.webhooks.addresses import Addresses, AddressRefused
from api import paging
from api.bodies import Body, CommandBody
from api.edge import Asked, ask, edge_of, run
from api.openapi import command, query
from api.problems import invalid
from domain import webhooks
from domain.webhooks import WEBHOOKS, Endpoint, EndpointNotFound, Endpoints, webhooks_stream
from eventstore.requests import Item

router = APIRouter(tags=["webhooks"])

PERMISSION = "webhooks:admin"
_ID = r"^[0-9a-f]{32}$"
_MESSAGE_ID = r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}:[0-9]{1,9}$"
_encode = msgspec.json.Encoder().encode


def _sound(url: str) -> str:
    if not webhooks.url_is_sound(url):
        raise ValueError("This is no plain https address: ASCII, with a host, without a user's name and fragment.")
    return url


def _different(types: list[str]) -> list[str]:
    if len(set(types)) != len(types):
        raise ValueError("A type is named twice.")
    return types


Url = Annotated[str, Field(max_length=webhooks.MAX_URL, examples=["https://hooks.example.com/in"]), AfterValidator(_sound)]
TypeName = Annotated[str, Field(max_length=100, pattern=r"^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*\.?$")]
WebhookPath = Annotated[str, Path(pattern=_ID)]
MessagePath = Annotated[str, Path(pattern=_MESSAGE_ID, description="The webhook-id header's value, which is the event's id.")]


class _Command(CommandBody):
    permission: ClassVar[str] = PERMISSION
    path_fields: ClassVar[tuple[str, ...]] = ("webhook_id",)

    webhook_id: Annotated[str, Field(pattern=_ID)]

    @property
    def endpoint_id(self) -> UUID:
        """The id as the domain has it."""
        return UUID(self.webhook_id)


class _Wanted(CommandBody):
    url: Annotated[Url, Field(description="Where messages are posted. Kept for ever: it must hold no secret and no personal data.")]
    types: Annotated[
        list[TypeName],
        Field(max_length=webhooks.MAX_TYPES, description="Names of events, or prefixes that end in a dot; none are all."),
        AfterValidator(_different),
    ] = Field([])
    description: Annotated[str, Field(max_length=webhooks.MAX_DESCRIPTION, description="Kept for ever: no personal data.")] = ""


class RegisterWebhook(_Wanted):
    """Be told by messages over HTTP of what is recorded from now on."""

    operation: ClassVar[str] = "register_webhook"
    permission: ClassVar[str] = PERMISSION

    def item(self, tenant_id: UUID, command_id: UUID, index: int) -> Item:  # as in the base class, here and below
        wanted = webhooks.RegisterEndpoint(
            endpoint_id=uuid5(command_id, f"webhook|{index}"), url=self.url, types=tuple(self.types), description=self.description
        )
        return Item(WEBHOOKS, webhooks_stream(tenant_id), wanted)


class ChangeWebhook(_Wanted, _Command):
    """Replace address, types and description."""

    operation: ClassVar[str] = "change_webhook"

    def item(self, tenant_id: UUID, command_id: UUID, index: int) -> Item:
        wanted = webhooks.ChangeEndpoint(endpoint_id=self.endpoint_id, url=self.url, types=tuple(self.types), description=self.description)
        return Item(WEBHOOKS, webhooks_stream(tenant_id), wanted)


class RotateWebhookSecret(_Command):
    """Sign with a new secret; the older ones sign along for a while."""

    operation: ClassVar[str] = "rotate_webhook_secret"

    overlap_seconds: Annotated[
        int, Field(ge=0, le=webhooks.MAX_OVERLAP_SECONDS, description="How long the older ones sign along; 0 ends them at once.")
    ] = webhooks.OVERLAP_SECONDS

    def item(self, tenant_id: UUID, command_id: UUID, index: int) -> Item:
        wanted = webhooks.RotateSecret(endpoint_id=self.endpoint_id, overlap_seconds=self.overlap_seconds)
        return Item(WEBHOOKS, webhooks_stream(tenant_id), wanted)


class DisableWebhook(_Command):
    """Send nothing more until it is enabled."""

    operation: ClassVar[str] = "disable_webhook"

    def item(self, tenant_id: UUID, command_id: UUID, index: int) -> Item:
        return Item(WEBHOOKS, webhooks_stream(tenant_id), webhooks.DisableEndpoint(endpoint_id=self.endpoint_id))


class EnableWebhook(_Command):
    """Go on with what was waiting, and with what is recorded from now on."""

    operation: ClassVar[str] = "enable_webhook"

    def item(self, tenant_id: UUID, command_id: UUID, index: int) -> Item:
        return Item(WEBHOOKS, webhooks_stream(tenant_id), webhooks.EnableEndpoint(endpoint_id=self.endpoint_id))


class DeleteWebhook(_Command):
    """End it, with what was waiting for it."""

    operation: ClassVar[str] = "delete_webhook"

    def item(self, tenant_id: UUID, command_id: UUID, index: int) -> Item:
        return Item(WEBHOOKS, webhooks_stream(tenant_id), webhooks.DeleteEndpoint(endpoint_id=self.endpoint_id))

    def default_key(self) -> str | None:
        return self.webhook_id


class TestWebhook(_Command):
    """Send a message of the type `webhook.test_requested`, in line with the others."""

    operation: ClassVar[str] = "test_webhook"

    def item(self, tenant_id: UUID, command_id: UUID, index: int) -> Item:
        wanted = webhooks.SendTest(endpoint_id=self.endpoint_id, message_id=event_id(command_id, 0))
        return Item(WEBHOOKS, webhooks_stream(tenant_id), wanted)


class ReplayDelivery(_Command):
    """Send a message once more, under the same id, behind what is waiting."""

    operation: ClassVar[str] = "replay_delivery"
    path_fields: ClassVar[tuple[str, ...]] = ("webhook_id", "message_id", "message_type", "position")

    message_id: Annotated[str, Field(pattern=_MESSAGE_ID)]
    message_type: str
    position: int

    def item(self, tenant_id: UUID, command_id: UUID, index: int) -> Item:
        wanted = webhooks.ReplayMessage(
            endpoint_id=self.endpoint_id, message_id=self.message_id, message_type=self.message_type, position=self.position
        )
        return Item(WEBHOOKS, webhooks_stream(tenant_id), wanted)


# Answers


class Webhook(Body):
    """An endpoint. `reason` is why it is disabled: somebody `asked`, it was `failing` for days, or it said that it is `gone`."""

    webhook_id: str
    url: str
    types: list[str]
    description: str
    state: Literal["enabled", "disabled"]
    reason: Literal["asked", "failing", "gone"] | None = None
    secret_number: int
    registered_at: str


class WebhookDeleted(Body):
    """It is gone."""

    webhook_id: str
    status: Literal["deleted"]


class MessageQueued(Body):
    """It will be sent."""

    webhook_id: str
    message_id: str
    status: Literal["queued"]


@dataclass(frozen=True, slots=True)
class WebhookList:
    """All of the tenant's."""

    webhooks: tuple[Webhook, ...]


@dataclass(frozen=True, slots=True)
class WebhookSecret:
    """A secret that signs; without `signs_until` until it is rotated."""

    number: int
    secret: str
    signs_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class WebhookSecrets:
    """Those that sign at present, the newest first."""

    secrets: tuple[WebhookSecret, ...]


@dataclass(frozen=True, slots=True)
class WebhookDelivery:
    """What became of a message. `last_error` names the kind of trouble; nothing that the receiver answered is kept."""

    message_id: str
    number: int
    position: int
    type: str
    state: Literal["waiting", "delivered", "failed", "dropped"]
    attempts: int
    created_at: datetime
    last_status: int | None = None
    last_error: Literal["status", "redirect", "timeout", "connection", "tls", "dns", "address", "protocol"] | None = None
    last_at: datetime | None = None
    next_at: datetime | None = None
    done_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class DeliveryList:
    """One page."""

    deliveries: tuple[WebhookDelivery, ...]


_AT = datetime(2026, 11, 21, 5, 45, tzinfo=UTC)
_WEBHOOK = UUID(int=0x7E2A_91B0_64C3_4F0D_8C55_0D5B_2F7C_11A3)
_MESSAGE = "5b8f1d1e-7d0c-5a59-9d0e-3a5f1a6f0c2b:0"
_EXAMPLE = msgspec.to_builtins(
    webhooks.shown(Endpoint(_WEBHOOK, "https://hooks.example.com/in", ("quota.", "webhook.disabled"), "billing", _AT))
)
_WANTED = {"url": "https://hooks.example.com/in", "types": ["quota.", "webhook.disabled"], "description": "billing"}
_QUEUED = {"webhook_id": _WEBHOOK.hex, "message_id": _MESSAGE, "status": "queued"}
_SECRETS = msgspec.to_builtins(WebhookSecrets((WebhookSecret(1, signing.secret(bytes(32), _WEBHOOK, 1)),)))
_DELIVERIES = msgspec.to_builtins(
    DeliveryList(
        (
            WebhookDelivery(
                _MESSAGE, 17, 17, "quota.committed", "waiting", 2, _AT, 503, "status",
                _AT + timedelta(seconds=6), _AT + timedelta(seconds=37),
            ),
        )
    )
)  # fmt: skip
_KEY = {"correlation_id": "console-41"}


def _told(model: type[CommandBody], reply: type[Body], answer: Any, *refusals: str, body: Any = None) -> dict[str, Any]:
    examples = {} if body is None else {"webhook": body}
    return command(model, reply, model.operation, body=examples, answer=answer, refusals=refusals, missing="webhook.not_found")


class _DeliveriesQuery(Body):
    # Query values are text, so they cannot be strict.
    model_config = ConfigDict(extra="forbid", strict=False)

    cursor: paging.Cursor = None
    limit: Annotated[int, Field(ge=1, le=200)] = 50


def _allowed(request: Request) -> Callable[[Any], None]:
    """Whether this deployment sends to such an address. Names are resolved, and checked again, whenever something is sent."""
    settings = edge_of(request).settings
    addresses = Addresses(allow_private=settings.webhook_allow_private, allow_http=settings.webhook_allow_http)

    def check(body: _Wanted) -> None:
        try:
            addresses.check(body.url)
        except AddressRefused as refused:
            raise invalid([{"type": "address", "loc": ("url",), "msg": str(refused)}]) from None

    return check


async def _endpoints(asked: Asked) -> Endpoints:
    """From the log itself: what was registered a moment ago is there."""
    tenant_id = asked.principal.tenant_id
    found: Endpoints = (await asked.edge.store.state(WEBHOOKS, tenant_id, webhooks_stream(tenant_id))).state
    return found


async def _endpoint(asked: Asked, webhook_id: str) -> Endpoint:
    found = (await _endpoints(asked)).find(UUID(webhook_id))
    if found is None:
        raise EndpointNotFound(webhook_id=webhook_id)
    return found


@router.post("/v1/webhooks", **_told(RegisterWebhook, Webhook, _EXAMPLE, "webhook.too_many", body={**_WANTED, **_KEY}))
async def register_webhook(request: Request) -> Response:
    """Register a webhook. Its secret is shown at its own address."""
    return await run(request, RegisterWebhook, check=_allowed(request))


@router.get("/v1/webhooks", **query(WebhookList, "list_webhooks", permission=PERMISSION, answer={"webhooks": [_EXAMPLE]}, found=False))
async def list_webhooks(request: Request) -> Response:
    """All of the tenant's webhooks, in the order they were registered."""
    found = await _endpoints(await ask(request, PERMISSION))
    return _json({"webhooks": [webhooks.shown(endpoint) for endpoint in found.endpoints]})


@router.get(
    "/v1/webhooks/{webhook_id}", **query(Webhook, "get_webhook", permission=PERMISSION, answer=_EXAMPLE, missing="webhook.not_found")
)
async def get_webhook(request: Request, webhook_id: WebhookPath) -> Response:
    """One webhook."""
    return _json(webhooks.shown(await _endpoint(await ask(request, PERMISSION), webhook_id)))


@router.put("/v1/webhooks/{webhook_id}", **_told(ChangeWebhook, Webhook, _EXAMPLE, body={**_WANTED, **_KEY}))
async def change_webhook(request: Request, webhook_id: WebhookPath) -> Response:
    """Replace address, types and description. What is waiting goes to the new address."""
    return await run(request, ChangeWebhook, {"webhook_id": webhook_id}, _allowed(request))


@router.delete("/v1/webhooks/{webhook_id}", **_told(DeleteWebhook, WebhookDeleted, {"webhook_id": _WEBHOOK.hex, "status": "deleted"}))
async def delete_webhook(request: Request, webhook_id: WebhookPath) -> Response:
    """End a webhook, with what was waiting for it. Without a key, its id is the key."""
    return await run(request, DeleteWebhook, {"webhook_id": webhook_id})


@router.post(
    "/v1/webhooks/{webhook_id}/rotate",
    **_told(
        RotateWebhookSecret,
        Webhook,
        {**_EXAMPLE, "secret_number": 2},
        "webhook.too_many_secrets",
        body={"overlap_seconds": 86_400, **_KEY},
    ),
)
async def rotate_webhook_secret(request: Request, webhook_id: WebhookPath) -> Response:
    """Sign with a new secret; the older ones sign along for a while."""
    return await run(request, RotateWebhookSecret, {"webhook_id": webhook_id})


@router.post("/v1/webhooks/{webhook_id}/disable", **_told(DisableWebhook, Webhook, _EXAMPLE, body=_KEY))
async def disable_webhook(request: Request, webhook_id: WebhookPath) -> Response:
    """Send nothing more. What is waiting stays; what is recorded from now on is not queued."""
    return await run(request, DisableWebhook, {"webhook_id": webhook_id})


@router.post("/v1/webhooks/{webhook_id}/enable", **_told(EnableWebhook, Webhook, _EXAMPLE, body=_KEY))
async def enable_webhook(request: Request, webhook_id: WebhookPath) -> Response:
    """Go on with what was waiting, and with what is recorded from now on."""
    return await run(request, EnableWebhook, {"webhook_id": webhook_id})


@router.post("/v1/webhooks/{webhook_id}/test", **_told(TestWebhook, MessageQueued, _QUEUED, "webhook.is_disabled", body=_KEY))
async def test_webhook(request: Request, webhook_id: WebhookPath) -> Response:
    """Send a message of the type `webhook.test_requested`, by the same way and in line with the others."""
    return await run(request, TestWebhook, {"webhook_id": webhook_id})


@router.get(
    "/v1/webhooks/{webhook_id}/secret",
    **query(WebhookSecrets, "show_webhook_secrets", permission=PERMISSION, answer=_SECRETS, missing="webhook.not_found"),
)
async def show_webhook_secrets(request: Request, webhook_id: WebhookPath) -> Response:
    """The secrets that sign at present, the newest first."""
    asked = await ask(request, PERMISSION)
    endpoint, now = await _endpoint(asked, webhook_id), datetime.now(UTC)
    key = await asked.edge.store.tenant_key(asked.principal.tenant_id)
    secrets = tuple(
        WebhookSecret(secret.number, signing.secret(key, endpoint.endpoint_id, secret.number), secret.until)
        for secret in endpoint.secrets
        if secret.signs(now)
    )
    answer = _json(WebhookSecrets(secrets))
    answer.headers["Cache-Control"] = "no-store"
    return answer


@router.get(
    "/v1/webhooks/{webhook_id}/deliveries",
    **query(DeliveryList, "list_webhook_deliveries", permission=PERMISSION, answer=_DELIVERIES, missing="webhook.not_found"),
)
async def list_webhook_deliveries(request: Request, webhook_id: WebhookPath, asked_for: Annotated[_DeliveriesQuery, Query()]) -> Response:
    """What became of each message, the newest first. The Link header leads to the next page."""
    asked = await ask(request, PERMISSION)
    before = _before(asked_for.cursor)
    endpoint = await _endpoint(asked, webhook_id)
    found = await asked.edge.readers.webhooks.list(asked.principal.tenant_id, endpoint.endpoint_id, before, asked_for.limit)
    last = (str(found[-1].number),) if len(found) == asked_for.limit else None
    return paging.page(request, {"deliveries": [each._asdict() for each in found]}, last)


@router.post(
    "/v1/webhooks/{webhook_id}/deliveries/{message_id}/replay",
    **_told(ReplayDelivery, MessageQueued, _QUEUED, "webhook.is_disabled", body=_KEY),
)
async def replay_delivery(request: Request, webhook_id: WebhookPath, message_id: MessagePath) -> Response:
    """Send a message once more, under the same id, behind what is waiting."""
    asked = await ask(request, PERMISSION)
    found = await asked.edge.readers.webhooks.find(asked.principal.tenant_id, UUID(webhook_id), message_id)
    if found is None:
        raise EndpointNotFound(webhook_id=webhook_id, message_id=message_id)
    named: Any = {"webhook_id": webhook_id, "message_id": message_id, "message_type": found.type, "position": found.position}
    return await run(request, ReplayDelivery, named)


def _before(cursor: str | None) -> int | None:
    place = paging.place(cursor, 1)
    if place is None:
        return None
    if not (place[0].isascii() and place[0].isdigit() and len(place[0]) <= 18):
        raise paging.not_a_cursor()
    return int(place[0])


def _json(content: Any) -> Response:
    return Response(_encode(content), media_type="application/json")

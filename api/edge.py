"""From a request to the store and back: who asks, what for, under which key; then one command, or several at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from uuid import UUID

import msgspec
from fastapi import Request
from starlette.responses import Response

from api import bodies, idempotency, problems, tracing
from api.auth import Authenticator, Principal
from api.bodies import CommandBody
from api.metrics import Metrics
from api.settings import Settings
from eventstore.requests import Item, Outcome
from eventstore.requests import Request as StoreRequest
from eventstore.store import Store, client_command_id

if TYPE_CHECKING:
    from domain.quota.view import QuotaView
    from projections.audit_queries import AuditReader
    from projections.follower import Figures, Health
    from projections.usage_queries import UsageReader

_decode = msgspec.json.decode


class _Results(msgspec.Struct):
    results: list[msgspec.Raw]


_results = msgspec.json.Decoder(_Results).decode


class Open(Protocol):
    """An open reservation in the read model."""

    @property
    def reservation_id(self) -> str: ...


class Quotas(Protocol):
    """What is asked of the quotas; see ``projections.quota_queries``."""

    async def get(self, tenant_id: UUID, subject: str, meter: str, at: datetime, min_position: int | None = None) -> QuotaView | None:
        """A quota as of ``at``, read once the projection has reached ``min_position``."""
        ...

    async def list(
        self, tenant_id: UUID, at: datetime, meter: str | None = None, after: tuple[str, str] | None = None, limit: int = 50
    ) -> Sequence[QuotaView]:
        """A tenant's quotas by meter and subject, behind a place in that order."""
        ...

    async def reservations(self, tenant_id: UUID, subject: str, meter: str, after: str | None = None, limit: int = 50) -> Sequence[Open]:
        """Open reservations of a quota by id, behind one."""
        ...


class DeliveryLike(Protocol):
    """A message to a webhook, as the read model has it."""

    @property
    def number(self) -> int: ...
    @property
    def position(self) -> int: ...
    @property
    def type(self) -> str: ...
    def _asdict(self) -> dict[str, Any]: ...


class Deliveries(Protocol):
    """What is asked of webhooks' deliveries; see ``projections.webhook_deliveries``."""

    async def list(self, tenant_id: UUID, endpoint_id: UUID, before: int | None = None, limit: int = 50) -> Sequence[DeliveryLike]:
        """An endpoint's deliveries, the newest first, behind a number in that order."""
        ...

    async def find(self, tenant_id: UUID, endpoint_id: UUID, message_id: str) -> DeliveryLike | None:
        """The last delivery of a message."""
        ...


class Readers(Protocol):
    """The read models this edge asks; see ``projections.readers``."""

    @property
    def quotas(self) -> Quotas: ...
    @property
    def usage(self) -> UsageReader: ...
    @property
    def audit(self) -> AuditReader: ...
    @property
    def webhooks(self) -> Deliveries: ...


class Follower(Protocol):
    """What feeds the read models in this process."""

    def lag(self) -> Any:
        """How far the read models are behind the log."""
        ...

    def health(self) -> Health:
        """What does not follow, and why."""
        ...

    def figures(self) -> dict[str, Figures]:
        """How each consumer stands, by its name."""
        ...


class Edge:
    """Everything a route needs."""

    def __init__(
        self, store: Store, readers: Readers, settings: Settings, follower: Follower | None = None, metrics: Metrics | None = None
    ) -> None:
        self.store, self.readers, self.settings, self.follower = store, readers, settings, follower
        self.authenticator = Authenticator(store)
        self.metrics = metrics or Metrics(store)
        if follower is not None:
            self.metrics.follow(follower)
        self.draining = False
        # A long past is a long read: two at a time leave the writers their connections.
        self.folding = asyncio.Semaphore(2)
        self.exporting = False


def edge_of(request: Request) -> Edge:
    """The edge of the application that serves the request."""
    edge: Edge = request.scope["app"].state.edge
    return edge


class Asked(NamedTuple):
    """A request whose sender is known."""

    edge: Edge
    headers: dict[bytes, bytes]
    principal: Principal


async def ask(request: Request, *permissions: str) -> Asked:
    """Check who sends and whether that one may, before anything of the body is read."""
    edge = edge_of(request)
    headers: dict[bytes, bytes] = dict(request.scope["headers"])
    principal = await edge.authenticator.principal(headers)
    for permission in permissions:
        principal.require(permission)
    return Asked(edge, headers, principal)


async def run(
    request: Request, model: type[CommandBody], path: dict[str, str] | None = None, check: Callable[[Any], None] | None = None
) -> Response:
    """Take one command through the store and answer with its outcome. ``check`` may refuse the body as this deployment does."""
    edge, headers, principal = asked = await ask(request, model.permission)
    raw = await bodies.read(request, headers, edge.settings.body_limit_bytes)
    if path is not None:
        raw = bodies.with_path(raw, path)
    body = bodies.parse(model, raw)
    if check is not None:
        check(body)
    key = idempotency.key_of(headers, body.correlation_id, body.default_key)
    tenant_id = principal.tenant_id
    command_id = client_command_id(tenant_id, principal.account, model.operation, key)
    await body.seal(edge.store.sealing, tenant_id, command_id)
    items = body.items(tenant_id, command_id)
    print_ = await fingerprint(asked, raw, body.secret_fields, body.person(tenant_id, command_id))
    return respond(edge, await submit(asked, command_id, items, print_, len(raw)), of_many=len(items) > 1)


async def fingerprint(asked: Asked, raw: bytes, secret_fields: frozenset[str] = frozenset(), person: UUID | None = None) -> bytes:
    """What tells this body from another one under the same key."""
    store, tenant_id, body = asked.edge.store, asked.principal.tenant_id, _decode(raw)
    if secret_fields:
        body = {name: value for name, value in body.items() if name not in secret_fields}
    if person is None:
        return idempotency.fingerprint(await store.tenant_key(tenant_id), body)
    return idempotency.fingerprint(await store.sealing.person_secret(tenant_id, person, "fingerprint"), body)


def submit(asked: Asked, command_id: UUID, items: tuple[Item, ...], print_: bytes, size: int) -> Awaitable[Outcome]:
    """Hand one request to the store."""
    principal = asked.principal
    return asked.edge.store.submit(
        StoreRequest(
            principal.tenant_id,
            command_id,
            items,
            print_,
            actor=principal.actor,
            trace=tracing.valid(asked.headers.get(b"traceparent")),
            size=size,
        )
    )


def respond(edge: Edge, outcome: Outcome, *, of_many: bool = False) -> Response:
    """An outcome as an answer. A refusal's document is made of what was kept, so a replay has the same bytes.

    ``of_many``: it is of one command that took several items, and the last one's reply is its own.
    """
    headers = {"Holdbook-Position": str(outcome.position), "Holdbook-Epoch": str(outcome.epoch)}
    if outcome.replayed:
        headers["Idempotent-Replayed"] = "true"
    if not outcome.refused:
        reply = _results(outcome.reply).results[-1] if of_many else outcome.reply
        return Response(bytes(reply), 200, headers, "application/json")
    told = _decode(outcome.reply)
    if of_many:
        told.pop("index", None)
    problem = problems.of_refusal(told)
    edge.metrics.refused(problem.code)
    problem.headers.update(headers)
    return problem.response()


async def gather(waiting: Sequence[Awaitable[Outcome]]) -> list[Outcome | Exception]:
    """All outcomes, each for itself: one that fails takes no other with it."""
    results = await asyncio.gather(*waiting, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, Exception):
            raise result
    return results  # type: ignore[return-value]  # the others were raised

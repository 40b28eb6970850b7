"""From a request to the store and back: who asks, what for, under which key; then one command, or several at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from uuid import UUID

import msgspec
from fastapi import Request
from starlette.responses import Response

from api import bodies, idempotency, problems, tracing
from api.auth import Authenticator, Principal
from api.bodies import CommandBody
from api.guesses import Guesses
from api.key_use import KeyUse
from api.licensed import Showing
from api.limits import Headers, Shield
from api.metrics import Metrics
from api.origin import Scope, client_address
from api.outside import SENT_ALONG
from api.protocol import Bounds
from api.rates import Rates
from api.refreshing import Rotations
from api.refusals import Refusals
from api.settings import Settings
from api.token_keys import source_of
from api.tokens import Tokens
from domain.kernel.decider import Rejected
from eventstore.origins import with_origin
from eventstore.requests import Item, Outcome
from eventstore.requests import Request as StoreRequest
from eventstore.store import Store, client_command_id

if TYPE_CHECKING:
    from domain.quota.view import QuotaView
    from projections.audit_queries import AuditReader
    from projections.follower import Figures, Health
    from projections.footprints import FootprintReader
    from projections.keys import KeyReader
    from projections.license_queries import LicenseReader
    from projections.people import PeopleReader
    from projections.sender_queries import SenderReader
    from projections.sessions import SessionReader
    from projections.telemetry import TelemetryReader
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
        self,
        tenant_id: UUID,
        at: datetime,
        meter: str | None = None,
        after: tuple[str, str] | None = None,
        limit: int = 50,
        *,
        subject: str | None = None,
    ) -> Sequence[QuotaView]:
        """A tenant's quotas by meter and subject, or one subject's, behind a place in that order."""
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
    @property
    def licenses(self) -> LicenseReader: ...
    @property
    def people(self) -> PeopleReader: ...
    @property
    def senders(self) -> SenderReader: ...
    @property
    def keys(self) -> KeyReader: ...
    @property
    def telemetry(self) -> TelemetryReader: ...
    @property
    def sessions(self) -> SessionReader: ...
    @property
    def footprints(self) -> FootprintReader: ...


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
        self.tokens = Tokens(
            source_of(store, settings), issuer=settings.token_issuer, audience=settings.token_audience, seconds=settings.token_seconds
        )
        self.authenticator = Authenticator(store, self.tokens, insecure_cookies=settings.insecure_cookies)
        self.metrics = metrics or Metrics(store)
        self.shield, self.refusals = Shield(settings), Refusals(store)
        self.guesses = Guesses()
        self.rotations = Rotations()
        self.licensed = Showing()
        self.bounds, self.rates = Bounds.of(settings), Rates(store)
        for counting in (self.refusals, self.bounds):
            self.metrics.register(counting)
        if follower is not None:
            self.metrics.follow(follower)
        self.key_use = KeyUse(store)
        self.draining = False
        # A long past is a long read: two at a time leave the writers their connections.
        self.folding = asyncio.Semaphore(2)
        self.exporting = False

    def knock(self, scope: Scope) -> Headers:
        """Count a request of whoever has no credential yet; the headers that say what is left. Raises the problem of one too many."""
        address = client_address(scope, self.settings)
        try:
            return self.shield.address(address)
        except problems.Problem:
            self.refusals.note("rate", None, address=address)
            raise

    async def located(self, scope: Scope, headers: dict[bytes, bytes], principal: Principal) -> Principal:
        """The sender with the place that the request came from: what is recorded says both."""
        origin_id = await self.origin(scope, headers, principal.tenant_id, UUID(principal.account))
        return replace(principal, actor=with_origin(principal.actor, origin_id))

    async def origin(self, scope: Scope, headers: Mapping[bytes, bytes], tenant_id: UUID, person_id: UUID) -> str | None:
        """The id of where the request comes from, see :mod:`eventstore.origins`."""
        agent = headers.get(b"user-agent")
        address = client_address(scope, self.settings)
        return await self.store.origins.of(tenant_id, person_id, address, None if agent is None else agent.decode("latin-1"))


_SAFE = frozenset({"GET", "HEAD"})


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
    try:
        principal = await edge.authenticator.principal(headers, request.scope["method"])
    except problems.Problem as refused:
        _note_stranger(edge, request.scope, refused)
        raise
    if principal.user_id is None:
        edge.key_use.note(principal)
    if principal.user_id is not None or edge.shield.counts_keys:
        request.scope[SENT_ALONG] = _shielded(edge, request.scope, principal)
    for permission in permissions:
        if permission not in principal.permissions:
            edge.refusals.note("permission", principal.tenant_id, principal.credential, client_address(request.scope, edge.settings))
        principal.require(permission)
    if request.scope["method"] not in _SAFE:
        principal = await edge.located(request.scope, headers, principal)
    return Asked(edge, headers, principal)


def _note_stranger(edge: Edge, scope: Scope, refused: problems.Problem) -> None:
    """A credential that is none counts as nobody's: a tenant that it names may be made up."""
    if refused.status in (401, 403) and refused.code != "auth.required":
        edge.refusals.note("csrf" if refused.code == "auth.csrf" else "token", None, address=client_address(scope, edge.settings))


def _shielded(edge: Edge, scope: Scope, principal: Principal) -> Headers:
    try:
        return edge.shield.key(principal) if principal.user_id is None else edge.shield.person(principal)
    except problems.Problem:
        edge.refusals.note("rate", principal.tenant_id, principal.credential, client_address(scope, edge.settings))
        raise


async def run(
    request: Request, model: type[CommandBody], path: dict[str, str] | None = None, check: Callable[[Any], None] | None = None
) -> Response:
    """Take one command through the store and answer with its outcome. ``check`` may refuse the body as this deployment does."""
    return await take(await ask(request, model.permission), request, model, path, check)


async def take(
    asked: Asked,
    request: Request,
    model: type[CommandBody],
    path: dict[str, str] | None = None,
    check: Callable[[Any], None] | None = None,
) -> Response:
    """As :func:`run`, for one who was asked already: an operator's command is taken for the tenant that it is about."""
    edge, headers, principal = asked
    raw = await bodies.read(request, headers, edge.settings.body_limit_bytes)
    if path is not None:
        raw = bodies.with_path(raw, path)
    body = bodies.parse(model, raw)
    body.asked_by(principal)
    if check is not None:
        check(body)
    await body.look(edge.store, principal)
    key = idempotency.key_of(headers, body.correlation_id, body.default_key)
    tenant_id = principal.tenant_id
    command_id = client_command_id(tenant_id, principal.account, model.operation, key)
    await body.seal(edge.store.sealing, tenant_id, command_id)
    items = body.items(tenant_id, command_id)
    print_ = await fingerprint(asked, raw, body.secret_fields, body.person(tenant_id, command_id))
    try:
        outcome = await submit(asked, command_id, items, print_, len(raw))
    except Rejected as refused:
        refused.index = None  # it was one command to whoever sent it
        raise
    return respond(edge, outcome, of_many=len(items) > 1)


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

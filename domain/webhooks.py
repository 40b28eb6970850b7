"""Where a tenant wants to be told what happened: endpoints, the events each takes, and the secrets that sign.

All endpoints of a tenant are one aggregate, so that their number is bounded by one decision. An endpoint is told of the
events recorded while it is enabled. Its secrets have numbers; what a number stands for is derived from the tenant's key
elsewhere and never reaches this module. After a rotation the older secrets sign along until their time is over.

A test and a replay are events too: who asked for them stands in the log, and one request sends one message.

Address and description are the tenant's own words, kept for ever: neither may be about a natural person, and an address
must hold nothing that a reader of the log may not know.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from ipaddress import IPv6Address
from typing import Any, ClassVar, Literal, assert_never
from urllib.parse import urlsplit
from uuid import UUID

from domain.kernel.decider import Command, Decider, Event, Rejected, event

__all__ = [
    "MAX_ENDPOINTS", "OVERLAP_SECONDS", "WEBHOOKS", "ChangeEndpoint", "DeleteEndpoint", "DisableEndpoint", "EnableEndpoint", "Endpoint",
    "Endpoints", "RegisterEndpoint", "ReplayMessage", "RotateSecret", "Secret", "SendTest", "matches", "webhooks_stream",
]  # fmt: skip

MAX_ENDPOINTS = 50
MAX_TYPES = 100
MAX_URL = 2_000
MAX_DESCRIPTION = 200
MAX_SECRETS = 4
OVERLAP_SECONDS = 24 * 3600
MAX_OVERLAP_SECONDS = 7 * 24 * 3600

UNTOLD = (
    "service.", "consumer.", "task.", "log.", "user.", "login.", "signin.", "session.", "device.", "telegram_bot.",
    "webhook.registered", "webhook.changed", "webhook.secret_rotated", "webhook.test_requested", "webhook.replay_requested",
)  # fmt: skip
"""Types no endpoint is told of: keys, people's passwords and sessions and the machinery are nobody's news, and an endpoint's address is not
another's. What is sealed in them would say nothing outside, and need not go there."""

_TYPE = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*\.?")
_VERSION = re.compile(r"\.v[0-9]+$")
Reason = Literal["asked", "failing", "gone"]


def webhooks_stream(tenant_id: UUID) -> str:
    """The stream of a tenant's endpoints."""
    return f"webhooks-{tenant_id.hex}"


def matches(types: Sequence[str], stored_type: str) -> bool:
    """Whether an endpoint that takes ``types`` is told of an event of this type: by its name without schema version, or a prefix."""
    name = _VERSION.sub("", stored_type)
    if name.startswith(UNTOLD):
        return False
    return not types or any(name == wanted or (wanted.endswith(".") and name.startswith(wanted)) for wanted in types)


# Events. Stored for ever: never rename or remove a class or a field; a change of shape is a new version and an upcast.


@event("webhook.registered")
@dataclass(frozen=True, slots=True)
class Registered(Event):
    """An endpoint began, enabled, with its secret number 1. No ``types`` are all types."""

    endpoint_id: UUID
    url: str
    types: tuple[str, ...]
    description: str
    at: datetime


@event("webhook.changed")
@dataclass(frozen=True, slots=True)
class Changed(Event):
    """An endpoint has another address, other types or another description."""

    endpoint_id: UUID
    url: str
    types: tuple[str, ...]
    description: str
    at: datetime


@event("webhook.secret_rotated")
@dataclass(frozen=True, slots=True)
class SecretRotated(Event):
    """The secret ``number`` signs from now on; no older one signs at or after ``old_until``."""

    endpoint_id: UUID
    number: int
    old_until: datetime
    at: datetime


@event("webhook.disabled")
@dataclass(frozen=True, slots=True)
class Disabled(Event):
    """An endpoint is told nothing any more: somebody asked for it, or it failed for days, or it said that it is gone."""

    endpoint_id: UUID
    reason: Reason
    at: datetime


@event("webhook.enabled")
@dataclass(frozen=True, slots=True)
class Enabled(Event):
    """An endpoint is told again what happens from here on, after what was waiting."""

    endpoint_id: UUID
    at: datetime


@event("webhook.deleted")
@dataclass(frozen=True, slots=True)
class Deleted(Event):
    """An endpoint ended, and what was waiting for it is not sent."""

    endpoint_id: UUID
    at: datetime


@event("webhook.test_requested")
@dataclass(frozen=True, slots=True)
class RequestedTest(Event):
    """This very event is sent to the endpoint, whatever types it takes."""

    endpoint_id: UUID
    at: datetime


@event("webhook.replay_requested")
@dataclass(frozen=True, slots=True)
class ReplayRequested(Event):
    """The event at ``position``, whose id is ``message_id``, is sent to the endpoint once more."""

    endpoint_id: UUID
    message_id: str
    message_type: str
    position: int
    at: datetime


# Commands


@dataclass(slots=True, kw_only=True)
class RegisterEndpoint(Command):
    """``types`` are names of events, or prefixes that end in a dot; none are all."""

    endpoint_id: UUID
    url: str
    types: tuple[str, ...] = ()
    description: str = ""


@dataclass(slots=True, kw_only=True)
class ChangeEndpoint(Command):
    endpoint_id: UUID
    url: str
    types: tuple[str, ...] = ()
    description: str = ""


@dataclass(slots=True, kw_only=True)
class RotateSecret(Command):
    """The older secrets sign along for ``overlap_seconds``; 0 ends them at once."""

    endpoint_id: UUID
    overlap_seconds: int = OVERLAP_SECONDS


@dataclass(slots=True, kw_only=True)
class DisableEndpoint(Command):
    """``revision`` is that of the endpoint which was found wanting; one that was mended meanwhile stays enabled."""

    endpoint_id: UUID
    reason: Reason = "asked"
    revision: int | None = None


@dataclass(slots=True, kw_only=True)
class EnableEndpoint(Command):
    endpoint_id: UUID


@dataclass(slots=True, kw_only=True)
class DeleteEndpoint(Command):
    endpoint_id: UUID


@dataclass(slots=True, kw_only=True)
class SendTest(Command):
    """``message_id`` is the id of the event this makes, for the reply."""

    endpoint_id: UUID
    message_id: str


@dataclass(slots=True, kw_only=True)
class ReplayMessage(Command):
    endpoint_id: UUID
    message_id: str
    message_type: str
    position: int


WebhookCommand = (
    RegisterEndpoint
    | ChangeEndpoint
    | RotateSecret
    | DisableEndpoint
    | EnableEndpoint
    | DeleteEndpoint
    | SendTest
    | ReplayMessage
)  # fmt: skip
WebhookEvent = Registered | Changed | SecretRotated | Disabled | Enabled | Deleted | RequestedTest | ReplayRequested


# State


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret by its number; it signs until ``until``, and without one until it is rotated."""

    number: int
    until: datetime | None = None

    def signs(self, at: datetime) -> bool:
        """Whether messages sent at that moment carry its signature."""
        return self.until is None or at < self.until


@dataclass(frozen=True, slots=True)
class Endpoint:
    """``secrets`` begins with the newest. ``revision`` grows whenever an endpoint that failed may have been mended."""

    endpoint_id: UUID
    url: str
    types: tuple[str, ...]
    description: str
    registered_at: datetime
    secrets: tuple[Secret, ...] = (Secret(1),)
    disabled: Reason | None = None
    revision: int = 1

    def signing(self, at: datetime) -> tuple[int, ...]:
        """Numbers of the secrets that sign at that moment, the newest first."""
        return tuple(secret.number for secret in self.secrets if secret.signs(at))


@dataclass(frozen=True, slots=True)
class Endpoints:
    """All of a tenant's, in the order they were registered."""

    endpoints: tuple[Endpoint, ...] = ()

    def find(self, endpoint_id: UUID) -> Endpoint | None:
        """The endpoint with this id."""
        return next((endpoint for endpoint in self.endpoints if endpoint.endpoint_id == endpoint_id), None)


# Decide


class InvalidEndpoint(Rejected):
    """A field of the webhook makes no sense."""

    code: ClassVar[str] = "webhook.invalid"
    frozen: ClassVar[bool] = False
    status: ClassVar[str] = "invalid"


class EndpointNotFound(Rejected):
    """There is no such webhook."""

    code: ClassVar[str] = "webhook.not_found"
    frozen: ClassVar[bool] = False
    status: ClassVar[str] = "not_found"


class EndpointExists(Rejected):
    """Another webhook has this id."""

    code: ClassVar[str] = "webhook.exists"


class TooManyEndpoints(Rejected):
    """The tenant has as many webhooks as it may have; delete one first."""

    code: ClassVar[str] = "webhook.too_many"


class TooManySecrets(Rejected):
    """Too many older secrets still sign; wait until one ends, or rotate with an overlap of 0."""

    code: ClassVar[str] = "webhook.too_many_secrets"


class EndpointDisabled(Rejected):
    """The webhook is disabled; enable it first."""

    code: ClassVar[str] = "webhook.is_disabled"


def decide(command: WebhookCommand, state: Endpoints) -> Sequence[Event]:
    """The checks come in this order: shape of the command, existence, numbers, whether it is enabled. No change, no event."""
    match command:
        case RegisterEndpoint():
            return _register(command, state)
        case ChangeEndpoint():
            return _change(command, state)
        case RotateSecret():
            return _rotate(command, state)
        case DisableEndpoint():
            return _disable(command, _existing(command.endpoint_id, state))
        case EnableEndpoint():
            found = _existing(command.endpoint_id, state)
            return () if found.disabled is None else [Enabled(command.endpoint_id, command.at)]
        case DeleteEndpoint():
            _existing(command.endpoint_id, state)
            return [Deleted(command.endpoint_id, command.at)]
        case SendTest():
            _enabled(command.endpoint_id, state)
            return [RequestedTest(command.endpoint_id, command.at)]
        case ReplayMessage():
            _enabled(command.endpoint_id, state)
            return [ReplayRequested(command.endpoint_id, command.message_id, command.message_type, command.position, command.at)]
        case _:
            assert_never(command)


def _existing(endpoint_id: UUID, state: Endpoints) -> Endpoint:
    found = state.find(endpoint_id)
    if found is None:
        raise EndpointNotFound(webhook_id=endpoint_id.hex)
    return found


def _enabled(endpoint_id: UUID, state: Endpoints) -> None:
    if _existing(endpoint_id, state).disabled is not None:
        raise EndpointDisabled(webhook_id=endpoint_id.hex)


def _register(command: RegisterEndpoint, state: Endpoints) -> Sequence[Event]:
    _check(command)
    known = state.find(command.endpoint_id)
    if known is not None:
        if (known.url, known.types, known.description) != (command.url, command.types, command.description):
            raise EndpointExists(webhook_id=command.endpoint_id.hex)
        return ()
    if len(state.endpoints) >= MAX_ENDPOINTS:
        raise TooManyEndpoints(max_webhooks=MAX_ENDPOINTS)
    return [Registered(command.endpoint_id, command.url, command.types, command.description, command.at)]


def _change(command: ChangeEndpoint, state: Endpoints) -> Sequence[Event]:
    _check(command)
    found = _existing(command.endpoint_id, state)
    if (found.url, found.types, found.description) == (command.url, command.types, command.description):
        return ()
    return [Changed(command.endpoint_id, command.url, command.types, command.description, command.at)]


def _check(command: RegisterEndpoint | ChangeEndpoint) -> None:
    if not url_is_sound(command.url):
        raise InvalidEndpoint("url")
    types = command.types
    if len(types) > MAX_TYPES or len(set(types)) != len(types) or not all(len(name) <= 100 and _TYPE.fullmatch(name) for name in types):
        raise InvalidEndpoint("types")
    if len(command.description) > MAX_DESCRIPTION:
        raise InvalidEndpoint("description")


def url_is_sound(url: str) -> bool:
    """Whether this is an http or https address with a host and no user's name: printable ASCII, without fragment or backslash.

    Parsers differ on the rest, and an address that two of them read in two ways must not pass one and be used by the other.
    """
    if not re.fullmatch(r"https?://[\x21-\x7e]+", url) or len(url) > MAX_URL or set(url) & set('\\#<>"^`{|}'):
        return False
    try:
        parts = urlsplit(url)
        if parts.netloc.startswith("["):
            IPv6Address(parts.hostname or "")
            sound = re.fullmatch(r"\[[0-9A-Fa-f:.]+\](:\d+)?", parts.netloc)
        else:
            sound = re.fullmatch(r"(?!\.)(?!.*\.\.)[A-Za-z0-9_\-.]{1,253}(:\d+)?", parts.netloc)
        return sound is not None and parts.port != 0
    except ValueError:
        return False


def _rotate(command: RotateSecret, state: Endpoints) -> Sequence[Event]:
    if not 0 <= command.overlap_seconds <= MAX_OVERLAP_SECONDS:
        raise InvalidEndpoint("overlap_seconds")
    found = _existing(command.endpoint_id, state)
    if command.overlap_seconds and len(found.signing(command.at)) >= MAX_SECRETS:
        raise TooManySecrets(max_secrets=MAX_SECRETS)
    old_until = command.at + timedelta(seconds=command.overlap_seconds)
    return [SecretRotated(command.endpoint_id, found.secrets[0].number + 1, old_until, command.at)]


def _disable(command: DisableEndpoint, found: Endpoint) -> Sequence[Event]:
    if found.disabled is not None or command.revision not in (None, found.revision):
        return ()
    return [Disabled(command.endpoint_id, command.reason, command.at)]


# Evolve


def evolve(state: Endpoints, event: WebhookEvent) -> Endpoints:
    """Never refuses."""
    match event:
        case Registered():
            return Endpoints((*state.endpoints, Endpoint(event.endpoint_id, event.url, event.types, event.description, event.at)))
        case Deleted():
            return Endpoints(tuple(endpoint for endpoint in state.endpoints if endpoint.endpoint_id != event.endpoint_id))
        case RequestedTest() | ReplayRequested():
            return state
        case _:
            changed = (_evolved(endpoint, event) if endpoint.endpoint_id == event.endpoint_id else endpoint for endpoint in state.endpoints)
            return Endpoints(tuple(changed))


def _evolved(endpoint: Endpoint, event: Changed | SecretRotated | Disabled | Enabled) -> Endpoint:
    match event:
        case Changed():
            revision = endpoint.revision + 1
            return replace(endpoint, url=event.url, types=event.types, description=event.description, revision=revision)
        case SecretRotated():
            old = (Secret(secret.number, min(secret.until or event.old_until, event.old_until)) for secret in endpoint.secrets)
            secrets = (Secret(event.number), *(secret for secret in old if secret.signs(event.at)))
            return replace(endpoint, secrets=secrets, revision=endpoint.revision + 1)
        case Disabled():
            return replace(endpoint, disabled=event.reason)
        case Enabled():
            return replace(endpoint, disabled=None, revision=endpoint.revision + 1)
        case _:
            assert_never(event)


# Reply


def shown(endpoint: Endpoint) -> Mapping[str, Any]:
    """What people see of an endpoint; no secret is in it."""
    return {
        "webhook_id": endpoint.endpoint_id.hex,
        "url": endpoint.url,
        "types": endpoint.types,
        "description": endpoint.description,
        "state": "enabled" if endpoint.disabled is None else "disabled",
        "reason": endpoint.disabled,
        "secret_number": endpoint.secrets[0].number,
        "registered_at": endpoint.registered_at.isoformat(),
    }


def reply(command: WebhookCommand, before: Endpoints, after: Endpoints, events: Sequence[Event]) -> Mapping[str, Any]:
    match command:
        case DeleteEndpoint():
            return {"webhook_id": command.endpoint_id.hex, "status": "deleted"}
        case SendTest() | ReplayMessage():
            return {"webhook_id": command.endpoint_id.hex, "message_id": command.message_id, "status": "queued"}
        case _:
            return shown(_existing(command.endpoint_id, after))


# Freeze and thaw


def _same(state: Endpoints) -> Endpoints:
    return state


WEBHOOKS: Decider[Endpoints] = Decider(
    category="webhooks",
    commands=(
        RegisterEndpoint, ChangeEndpoint, RotateSecret, DisableEndpoint, EnableEndpoint, DeleteEndpoint, SendTest, ReplayMessage,
    ),
    events=(Registered, Changed, SecretRotated, Disabled, Enabled, Deleted, RequestedTest, ReplayRequested),
    initial=Endpoints(),
    decide=decide,
    evolve=evolve,
    reply=reply,
    frozen_type=Endpoints,
    freeze=_same,
    thaw=_same,
    refusals=(InvalidEndpoint, EndpointNotFound, EndpointExists, TooManyEndpoints, TooManySecrets, EndpointDisabled),
)  # fmt: skip

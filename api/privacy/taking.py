"""Commands about a person: as :func:`api.edge.run` takes them, for oneself or for anybody with the permission to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar
from uuid import UUID

from fastapi import Request

from api import bodies, idempotency
from api.bodies import CommandBody
from api.edge import Asked, fingerprint, submit
from api.problems import Problem
from eventstore.requests import Item, Outcome
from eventstore.sealing import Erased
from eventstore.store import client_command_id

Body = TypeVar("Body", bound=CommandBody)


class Taken(NamedTuple):
    """What became of a command, and whether it took several items."""

    outcome: Outcome
    of_many: bool


async def take(
    request: Request,
    asked: Asked,
    model: type[Body],
    path: dict[str, str],
    items: Callable[[Body, UUID], Awaitable[tuple[Item, ...]]] | None = None,
) -> Taken:
    """Take one command through the store. ``items`` are asked for when what the command means must be looked up first."""
    edge, headers, principal = asked
    tenant_id = principal.tenant_id
    raw = bodies.with_path(await bodies.read(request, headers, edge.settings.body_limit_bytes), path)
    body = bodies.parse(model, raw)
    key = idempotency.key_of(headers, body.correlation_id, body.default_key)
    command_id = client_command_id(tenant_id, principal.account, model.operation, key)
    try:
        print_ = await fingerprint(asked, raw, body.secret_fields, body.person(tenant_id, command_id))
        await body.seal(edge.store.sealing, tenant_id, command_id)
    except Erased:
        raise Problem("privacy.erased") from None
    wanted = body.items(tenant_id, command_id) if items is None else await items(body, command_id)
    return Taken(await submit(asked, command_id, wanted, print_, len(raw)), len(wanted) > 1)

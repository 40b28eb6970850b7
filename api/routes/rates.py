"""Rates: take one, and be told whether there was room."""

from __future__ import annotations

from datetime import datetime
from math import ceil
from typing import Annotated, ClassVar, Literal
from uuid import uuid4

import msgspec
from fastapi import APIRouter, Path, Request
from pydantic import Field
from starlette.responses import Response

from api import bodies, idempotency, rates
from api.auth import Principal
from api.bodies import Body, CommandBody, Subject
from api.edge import Asked, Edge, ask, fingerprint, respond, submit
from api.limits import limited
from api.openapi import command
from api.origin import client_address
from api.problems import Problem, invalid
from api.rates import Place
from api.subjects import check_subject
from domain.identity.policies import RatePolicy
from eventstore.requests import Outcome
from eventstore.store import client_command_id

router = APIRouter(tags=["rates"])

_NAME = r"^[a-z][a-z0-9_.\-]{0,40}$"
RateName = Annotated[str, Field(pattern=_NAME)]
RatePath = Annotated[str, Path(pattern=_NAME)]
_encode = msgspec.json.encode


class TakeRate(CommandBody):
    """Take one of a rate, if there is room now."""

    operation: ClassVar[str] = "take_rate"
    permission: ClassVar[str] = "usage:write"
    path_fields: ClassVar[tuple[str, ...]] = ("name",)

    name: RateName
    subject: Annotated[Subject | None, Field(description="Whose. A person's own when it is not given.")] = None
    exempt: Annotated[bool, Field(description="By an API key: the subject is known to be exempt; nothing is counted.")] = False

    def asked_by(self, principal: Principal) -> None:
        """A person takes their own and cannot exempt anybody."""
        if principal.user_id is not None and self.exempt:
            raise Problem("auth.not_yours", errors=[{"field": "exempt", "message": "Only an API key can say so."}])
        if self.subject is None:
            self.subject = principal.user_id.hex if principal.user_id is not None else None
        if self.subject is None:
            raise invalid([{"type": "missing", "loc": ("subject",), "msg": "Field required"}])
        check_subject(principal, self.subject)


class Taken(Body):
    """There was room. ``remaining`` takes are left at this moment; nobody counts those of one who is exempt."""

    allowed: Literal[True]
    remaining: int | None
    exempt: bool


@router.post(
    "/v1/rates/{name}/take",
    **command(
        TakeRate,
        Taken,
        "take_rate",
        body={"a message to a bot": {"subject": "telegram-81", "correlation_id": "update-90017"}},
        answer={"allowed": True, "remaining": 4, "exempt": False},
        refusals=("idempotency.key_reused",),
        missing="policy.rate_not_found",
    ),
)
async def take(request: Request, name: RatePath) -> Response:
    """Take one of a rate. 429 says when to come again; a take that was refused stays so under its key."""
    asked = await ask(request, TakeRate.permission)
    edge, headers, principal = asked
    raw = bodies.with_path(await bodies.read(request, headers, edge.settings.body_limit_bytes), {"name": name})
    body = bodies.parse(TakeRate, raw)
    body.asked_by(principal)
    assert body.subject is not None
    policy = await edge.rates.policy(principal.tenant_id, name)
    if body.exempt or await edge.rates.is_exempt(policy, principal, body.subject):
        return Response(_encode({"allowed": True, "remaining": None, "exempt": True}), media_type="application/json")
    once = uuid4().hex  # without a key each request is a take of its own
    key = idempotency.key_of(headers, body.correlation_id, lambda: once)
    command_id = client_command_id(principal.tenant_id, principal.account, TakeRate.operation, key)
    place = Place(principal.tenant_id, name, body.subject)
    async with edge.rates.turn(place):
        waiting = edge.rates.wait(place, policy)
        # A take that was allowed under this key is told again, whatever became of the rate since.
        if waiting and (key is once or not await edge.store.writer(principal.tenant_id).log.known([command_id])):
            raise _refused(edge, request, principal, policy, waiting)
        outcome = await submit(asked, command_id, rates.items(place, policy, command_id), await fingerprint(asked, raw), len(raw))
        return _told(asked, request, place, policy, outcome)


def _told(asked: Asked, request: Request, place: Place, policy: RatePolicy, outcome: Outcome) -> Response:
    if not outcome.refused:
        answer = respond(asked.edge, outcome, of_many=True)
        remaining = msgspec.json.decode(answer.body)["remaining"]
        kept = {name: value for name, value in answer.headers.items() if name not in ("content-length", "content-type")}
        told = {"allowed": True, "remaining": remaining, "exempt": False}
        return Response(_encode(told), headers={**kept, **_headers(policy, remaining, policy.seconds)}, media_type="application/json")
    told = msgspec.json.decode(outcome.reply)
    retry_at = (told.get("details") or {}).get("retry_at")
    if told["code"] != "quota.exceeded" or retry_at is None:
        return respond(asked.edge, outcome, of_many=True)
    asked.edge.metrics.refused("rate.limited")
    moment = datetime.fromisoformat(retry_at)
    # What was recorded long ago says nothing of now.
    left = 0.0 if outcome.replayed else asked.edge.rates.refused(place, policy, moment)
    raise _refused(asked.edge, request, asked.principal, policy, left)


def _refused(edge: Edge, request: Request, principal: Principal, policy: RatePolicy, left: float) -> Problem:
    edge.refusals.note("rate", principal.tenant_id, principal.credential, client_address(request.scope, edge.settings))
    wait = max(1, ceil(left))
    return limited(policy.name, wait, _headers(policy, 0, wait))


def _headers(policy: RatePolicy, remaining: int, seconds: int) -> dict[str, str]:
    return {
        "RateLimit-Policy": f'"{policy.name}";q={policy.amount};w={policy.seconds}',
        "RateLimit": f'"{policy.name}";r={remaining};t={seconds}',
    }

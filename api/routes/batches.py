"""Many commands in one request: all or nothing, or each for itself."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, Union
from uuid import UUID

import msgspec
from fastapi import APIRouter, Request
from pydantic import Field, create_model
from starlette.responses import Response

from api import bodies, idempotency, openapi, problems
from api.bodies import Body, CommandBody
from api.edge import Asked, ask, fingerprint, respond, submit
from api.idempotency import KEY_PATTERN
from api.lean import LeanRoute
from api.problems import of_error
from api.routes import quotas, usage
from domain.kernel.decider import Rejected
from eventstore.errors import KeyReused
from eventstore.requests import Item, Outcome
from eventstore.store import client_command_id

router = APIRouter(tags=["batches"], route_class=LeanRoute)

MOST = 1_000
COMMANDS: tuple[type[CommandBody], ...] = (*usage.BATCH, *quotas.BATCH)


def _tagged(model: type[CommandBody]) -> type[CommandBody]:
    tag = Literal.__getitem__(model.operation)
    return create_model(f"{model.__name__}Item", __base__=model, __doc__=model.__doc__, op=(tag, ...))


_ITEMS = tuple(_tagged(model) for model in COMMANDS)
_TAGS = frozenset(model.operation for model in COMMANDS)
AnyCommand: Any = Annotated[Union[_ITEMS], Field(discriminator="op")]  # noqa: UP007  # a union made of a value


class Batch(Body):
    """Commands that share one idempotency key. Items must not bring a correlation_id of their own."""

    atomic: Annotated[bool, Field(description="All or nothing. Otherwise each command succeeds or fails alone.")] = False
    correlation_id: Annotated[str | None, Field(pattern=KEY_PATTERN, description="The idempotency key, when no header brings one.")] = None
    commands: Annotated[list[AnyCommand], Field(min_length=1, max_length=MOST)]


class ItemResult(Body):
    """What became of one command of a batch that is not atomic."""

    status: Annotated[int, Field(description="The status it would have had alone.")]
    body: Annotated[dict[str, Any] | None, Field(description="The answer, when it was taken.")] = None
    problem: Annotated[dict[str, Any] | None, Field(description="The problem, when it was not.")] = None


class Results(Body):
    """In the order of the commands; of an atomic batch the answers themselves."""

    results: list[ItemResult | dict[str, Any]]


_EXAMPLE_COMMANDS = [
    {"op": "reserve", "subject": "customer-1", "meter": "tokens", "amount": 40},
    {"op": "consume", "subject": "customer-1", "meter": "letters", "amount": 1},
]
_BATCH = openapi.command(
    Batch,
    Results,
    "batch",
    body={
        "atomic": {"atomic": True, "correlation_id": "order-5", "commands": _EXAMPLE_COMMANDS},
        "each for itself": {"atomic": False, "correlation_id": "order-6", "commands": _EXAMPLE_COMMANDS},
    },
    answer={
        "results": [
            {"status": 200, "body": {"reservation_id": usage.ID, "status": "reserved", "granted": 40, "overdrawn": 0,
                                     "expires_at": "2026-11-21T06:00:00Z", "remaining": 60}},
            {"status": 409, "problem": problems.Problem("quota.exceeded", status=409, title="There is not enough room left.").body()},
        ]
    },
)  # fmt: skip


@router.post("/v1/batches", **_BATCH)
async def batch(request: Request) -> Response:
    """Take up to 1,000 commands. The key covers the whole batch, and so does the body that must stay the same."""
    asked = await ask(request)
    edge, headers, principal = asked
    raw = await bodies.read(request, headers, edge.settings.body_limit_bytes)
    body = bodies.parse(Batch, raw, _TAGS)
    for permission in sorted({command.permission for command in body.commands}):
        principal.require(permission)
    if any(command.correlation_id is not None for command in body.commands):
        field = next(f"commands.{i}.correlation_id" for i, command in enumerate(body.commands) if command.correlation_id is not None)
        raise problems.invalid([{"type": "key", "loc": (field,), "msg": "The key of a batch covers its items"}])
    key = idempotency.key_of(headers, body.correlation_id, lambda: None)
    for command in body.commands:
        command.asked_by(principal)
    print_ = await fingerprint(asked, raw)
    take = _atomic if body.atomic else _each
    return await take(asked, body.commands, key, print_, len(raw))


async def _atomic(asked: Asked, commands: Sequence[CommandBody], key: str, print_: bytes, size: int) -> Response:
    tenant_id = asked.principal.tenant_id
    command_id = client_command_id(tenant_id, asked.principal.account, "batch", key)
    items: list[Item] = []
    whose: list[int] = []
    for index, command in enumerate(commands):
        try:
            items += command.items(tenant_id, command_id, index)
        except Rejected as refused:
            refused.index = index
            raise
        whose += [index] * (len(items) - len(whose))
    try:
        outcome = await submit(asked, command_id, tuple(items), print_, size)
    except Rejected as refused:
        refused.index = whose[refused.index or 0]
        raise
    if len(items) == 1:
        outcome = _alone(outcome)
    elif len(items) > len(commands):
        outcome = _by_command(outcome, whose)
    return respond(asked.edge, outcome)


def _by_command(outcome: Outcome, whose: list[int]) -> Outcome:
    """The store tells of items; a client counts its commands, of which each has the reply of its last item."""
    told = msgspec.json.decode(outcome.reply)
    if outcome.refused:
        told["index"] = whose[told["index"]]
    else:
        told["results"] = list(dict(zip(whose, told["results"], strict=True)).values())
    return replace(outcome, reply=msgspec.json.encode(told))


def _alone(outcome: Outcome) -> Outcome:
    """The store answers a batch of one as a single command."""
    if outcome.refused:
        reply = msgspec.json.encode({**msgspec.json.decode(outcome.reply), "index": 0})
    else:
        reply = b'{"results":[%b]}' % outcome.reply
    return replace(outcome, reply=reply)


async def _each(asked: Asked, commands: Sequence[CommandBody], key: str, print_: bytes, size: int) -> Response:
    principal = asked.principal
    tenant_id = principal.tenant_id
    ids = [client_command_id(tenant_id, principal.account, "batch.item", f"{index}|{key}") for index in range(len(commands))]
    await _refuse_other_body(asked, ids, print_)
    size = size // len(commands) + 1
    made = [_made(command, tenant_id, command_id) for command, command_id in zip(commands, ids, strict=True)]
    waiting = [
        submit(asked, command_id, items, print_, size)
        for items, command_id in zip(made, ids, strict=True)
        if not isinstance(items, Exception)
    ]
    outcomes = iter(await asyncio.gather(*waiting, return_exceptions=True))
    results = [items if isinstance(items, Exception) else _of_one(next(outcomes), items) for items in made]
    taken = [result for result in results if isinstance(result, Outcome)]
    body = b'{"results":[%b]}' % b",".join([_told(asked, result) for result in results])
    headers = {}
    if taken:
        last = max(taken, key=lambda outcome: (outcome.epoch, outcome.position))
        headers = {"Holdbook-Position": str(last.position), "Holdbook-Epoch": str(last.epoch)}
    if len(taken) == len(results) and all(outcome.replayed for outcome in taken):
        headers["Idempotent-Replayed"] = "true"
    return Response(body, 200, headers, "application/json")


async def _refuse_other_body(asked: Asked, ids: list[UUID], print_: bytes) -> None:
    """One key, another body: nothing of it is taken. (Two at once with different bodies are told apart item by item.)"""
    known = await asked.edge.store.writer(asked.principal.tenant_id).log.known(ids)
    if any(before.fingerprint != print_ for before in known):
        raise KeyReused


def _made(command: CommandBody, tenant_id: UUID, command_id: UUID) -> tuple[Item, ...] | Exception:
    try:
        return command.items(tenant_id, command_id)
    except Rejected as refused:
        return refused


def _of_one(result: Outcome | BaseException, items: tuple[Item, ...]) -> Outcome | BaseException:
    """What became of one command that took these items."""
    if len(items) > 1 and isinstance(result, Outcome):
        result = _by_command(result, [0] * len(items))
        return result if result.refused else replace(result, reply=msgspec.json.encode(msgspec.json.decode(result.reply)["results"][0]))
    if isinstance(result, Rejected):
        result.index = None
    return result


def _told(asked: Asked, result: Outcome | BaseException) -> bytes:
    if isinstance(result, Outcome) and not result.refused:
        return b'{"status":200,"body":%b}' % result.reply
    if isinstance(result, Outcome):
        told = msgspec.json.decode(result.reply)
        told.pop("index", None)  # it stands at its place in the answer
        problem = problems.of_refusal(told)
        asked.edge.metrics.refused(problem.code)
    elif isinstance(result, Exception):
        problem = of_error(result)
    else:
        raise result
    return b'{"status":%d,"problem":%b}' % (problem.status, msgspec.json.encode(problem.body()))

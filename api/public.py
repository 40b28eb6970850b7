"""What routes have in common that anybody may call without a credential."""

from __future__ import annotations

from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel

from api import bodies
from api.bodies import Body
from api.edge import edge_of
from api.openapi import PUBLIC, command, problem

_TENANT_HEADER: dict[str, Any] = {
    "name": "Holdbook-Tenant",
    "in": "header",
    "required": False,
    "description": "The tenant's id. Not needed where the host name or the server's settings say whose people sign in.",
    "schema": {"type": "string", "format": "uuid"},
}

SIGNED_IN: dict[str, Any] = {
    "token": "eyJhbGciOiJSUzI1NiIsImtpZCI6Ii4uLiJ9...",
    "user": {"user_id": "0f0e0d0c0b0a49088706050403020100", "email": "ada@example.com", "name": "Ada", "role": "member"},
    "exp": 1795242000,
}
PASSWORD = "correct horse battery"  # noqa: S105  # an example
DEVICE = {"device_fingerprint": "4f6a1c0d-desk-01", "device_name": "Desk"}
"""Examples for the OpenAPI document."""

Model = TypeVar("Model", bound=Body)


async def body_of(request: Request, model: type[Model]) -> Model:
    """The body, read and checked."""
    headers = dict(request.scope["headers"])
    return bodies.parse(model, await bodies.read(request, headers, edge_of(request).settings.body_limit_bytes))


def public(model: type[BaseModel], reply: type[BaseModel], operation_id: str, example: Any, answer: Any, *codes: str) -> dict[str, Any]:
    """Arguments of a route for people without a credential."""
    told = command(model, reply, operation_id, body={"body": example}, answer=answer, refusals=("device.limit_reached",))
    responses = told["responses"]
    for status in (403, 404):
        del responses[status]
    del responses[200]["headers"]
    responses[401] = problem(401, *codes)
    responses[429] = problem(429, "auth.slow_down")
    told["openapi_extra"] = {**told["openapi_extra"], **PUBLIC, "parameters": [_TENANT_HEADER]}
    return told

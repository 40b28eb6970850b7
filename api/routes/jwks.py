"""The public halves of the keys that access tokens are signed with."""

from __future__ import annotations

from hashlib import sha256
from typing import Any, Literal

import msgspec
from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from api.edge import edge_of
from api.openapi import PUBLIC, problems

MAX_AGE_SECONDS = 300
"""Less than the shortest time for which a key should be published before it signs."""

router = APIRouter(tags=["auth"])


class PublicKey(BaseModel):
    """A JSON Web Key (RFC 7517)."""

    kty: Literal["RSA"]
    use: Literal["sig"]
    alg: Literal["RS256"]
    kid: str = Field(description="The key's SHA-256 thumbprint (RFC 7638), so that a client may pin it.")
    n: str
    e: str


class PublicKeys(BaseModel):
    """A JSON Web Key Set."""

    keys: list[PublicKey]


_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"model": PublicKeys},
    304: {"description": "It is what If-None-Match names."},
    **problems(503),
}


@router.get("/.well-known/jwks.json", operation_id="jwks", responses=_ANSWERS, openapi_extra=dict(PUBLIC))
async def jwks(request: Request) -> Response:
    """The public keys of access tokens: the one that signs, one that will soon, and those that still verify."""
    body = msgspec.json.encode({"keys": await edge_of(request).tokens.published()})
    tag = f'"{sha256(body).hexdigest()[:32]}"'
    headers = {"Cache-Control": f"public, max-age={MAX_AGE_SECONDS}", "ETag": tag}
    if tag in (given.strip() for given in request.headers.get("if-none-match", "").split(",")):
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type="application/json")

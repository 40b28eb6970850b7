"""``holdbook serve`` with three addresses more, by which a test has a process use its keys: for tokens, and for what is personal."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from fastapi import FastAPI, Request
from starlette.responses import PlainTextResponse, Response

from api import server
from api.app import create_app
from api.edge import edge_of

PURPOSE = "test"


async def mint(request: Request) -> Response:
    """A token of this process."""
    return PlainTextResponse(await edge_of(request).tokens.mint({"sub": "someone"}))


async def verify(request: Request) -> Response:
    """What a token says, if this process accepts it."""
    claims = await edge_of(request).tokens.verify((await request.body()).decode())
    return PlainTextResponse(str(claims["sub"]))


async def through(request: Request) -> Response:
    """What another process sealed, opened, and sealed anew."""
    sealing, told = edge_of(request).store.sealing, await request.json()
    tenant_id, person_id = UUID(told["tenant_id"]), UUID(told["person_id"])
    clear = await sealing.open(tenant_id, person_id, PURPOSE, told["sealed"])
    assert clear is not None
    return PlainTextResponse(await sealing.seal(tenant_id, person_id, PURPOSE, clear))


def _with_keys(*arguments: Any, **named: Any) -> FastAPI:
    app = create_app(*arguments, **named)
    for path, endpoint in (("/test/mint", mint), ("/test/verify", verify), ("/test/through", through)):
        app.add_api_route(path, endpoint, methods=["POST"])
    return app


if __name__ == "__main__":
    from api.cli import running as commands

    setattr(server, "create_app", _with_keys)  # noqa: B010  # it imports the name, which a type checker does not let us replace
    commands.serve(host=None, port=0)

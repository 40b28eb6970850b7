"""A tenant's export of its own log, signed, as a stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import ConfigDict, Field
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from api import openapi
from api.bodies import Body, Moment
from api.edge import Edge, ask
from api.problems import Problem
from api.signing_key import signing_key
from eventstore.exporting import Exporter, Wanted
from eventstore.signing import SigningKey

router = APIRouter(tags=["audit"])

MEDIA_TYPE = "application/x-ndjson"


class _ExportQuery(Body):
    # Query values are text, so they cannot be strict.
    model_config = ConfigDict(extra="forbid", strict=False)

    as_of: Annotated[Moment | None, Field(description="What was recorded up to this moment.")] = None


_LINES = {
    "description": "JSON Lines as docs/audit-format.md describes them. One that ends without a head was interrupted: ask again.",
    "content": {MEDIA_TYPE: {"schema": {"type": "string"}}},
}


@router.get(
    "/v1/audit/export",
    operation_id="export_audit",
    response_class=StreamingResponse,
    responses={200: _LINES, **openapi.problems(401, 403, 422, 501, 503)},
    openapi_extra=openapi.needs("audit:read"),
)
async def export(request: Request, asked_for: Annotated[_ExportQuery, Query()]) -> Response:
    """Everything the log holds of the tenant, and of others the hashes alone: anyone can verify it with the public key.

    One export at a time; a second one is answered with 503.
    """
    edge, _, principal = await ask(request, "audit:read")
    key = await asyncio.to_thread(signing_key, edge.settings)
    if key is None:
        raise Problem("audit.no_key")
    if edge.exporting:
        raise Problem("store.overloaded")
    under_way = _UnderWay(edge)
    try:
        assert edge.store.pool is not None
        dsn = edge.store.pool.conninfo
        assert isinstance(dsn, str)
        first = await under_way.begin(dsn, key, Wanted(principal.tenant_id, moment=asked_for.as_of))
    except BaseException:
        under_way.end()
        raise
    return _Streamed(under_way, first)


class _UnderWay:
    """An export in a thread of its own: all of its calls come one after the other, also the one that ends it."""

    def __init__(self, edge: Edge) -> None:
        self._edge, self._thread = edge, ThreadPoolExecutor(1, "export")
        self._stack = ExitStack()
        self._blocks: Iterator[bytes] = iter(())
        edge.exporting = True

    async def begin(self, dsn: str, key: SigningKey, wanted: Wanted) -> bytes:
        """The first block."""

        def opened() -> bytes:
            conn = self._stack.enter_context(closing(Exporter.connect(dsn)))
            self._blocks = Exporter(conn, key, wanted, datetime.now(UTC)).blocks()
            return next(self._blocks)

        return await asyncio.get_running_loop().run_in_executor(self._thread, opened)

    async def rest(self, first: bytes) -> AsyncIterator[bytes]:
        """The first block, and those behind it."""
        block = first
        while block:
            yield block
            block = await asyncio.get_running_loop().run_in_executor(self._thread, next, self._blocks, b"")

    def end(self) -> None:
        """Close the connection, once a call that is under way has returned, and let others begin."""
        self._edge.exporting = False
        self._thread.submit(self._stack.close)
        self._thread.shutdown(wait=False)


class _Streamed(StreamingResponse):
    """Ends the export also when the client goes away in the middle."""

    def __init__(self, under_way: _UnderWay, first: bytes) -> None:
        super().__init__(under_way.rest(first), media_type=MEDIA_TYPE, headers={"Cache-Control": "no-store"})
        self._under_way = under_way

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._under_way.end()

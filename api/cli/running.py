"""``holdbook up``, ``serve`` and ``worker``: processes that run until they are told to stop."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from api import server
from api.cli.common import Database, database, out, prepare, settings, told
from api.settings import Settings
from eventstore.schema import check

HostOption = Annotated[str | None, typer.Option(help="Default: HOLDBOOK_HOST, 127.0.0.1.")]
PortOption = Annotated[int | None, typer.Option(min=0, max=65535, help="0 takes any free one. Default: HOLDBOOK_PORT, 8080.")]


def up(host: HostOption = None, port: PortOption = None) -> None:
    """Everything in one process: database unless HOLDBOOK_DATABASE_URL names one, HTTP, read models, deadlines."""
    chosen = settings(host=host, port=port)
    with told(), database(chosen) as found:
        prepare(found.dsn, chosen)
        server.run(lambda: _until_stopped(found, chosen, follow=True, serve=True))


def serve(host: HostOption = None, port: PortOption = None) -> None:
    """HTTP only; a worker elsewhere feeds the read models."""
    chosen = settings(host=host, port=port)
    with told(), database(chosen) as found:
        check(found.dsn)
        server.run(lambda: _until_stopped(found, chosen, follow=False, serve=True))


def worker() -> None:
    """Read models and deadlines, without HTTP."""
    chosen = settings()
    with told(), database(chosen) as found:
        check(found.dsn)
        server.run(lambda: _until_stopped(found, chosen, follow=True, serve=False))


async def _until_stopped(found: Database, chosen: Settings, *, follow: bool, serve: bool) -> None:
    stop = server.asked_to_stop()
    watching = asyncio.create_task(found.server.watch()) if found.server is not None else None
    try:
        async with server.process(found.dsn, chosen, follow=follow, serve=serve) as url:
            out.print(f"Holdbook serves {url}" if url else "Holdbook works", highlight=False)
            await stop.wait()
    finally:
        if watching is not None:
            watching.cancel()

"""``holdbook up``, ``serve`` and ``worker``: processes that run until they are told to stop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from api import server
from api.cli.common import Database, database, fail, out, prepare, settings, told
from api.settings import Settings
from eventstore.embedded import data_directory
from eventstore.schema import check

if TYPE_CHECKING:
    from adapters.nats.server import EmbeddedNats

HostOption = Annotated[str | None, typer.Option(help="Default: HOLDBOOK_HOST, 127.0.0.1.")]
NatsOption = Annotated[bool, typer.Option("--nats", help="Run a nats-server below the data directory too, and publish the log to it.")]
PortOption = Annotated[int | None, typer.Option(min=0, max=65535, help="0 takes any free one. Default: HOLDBOOK_PORT, 8080.")]


def up(host: HostOption = None, port: PortOption = None, nats: NatsOption = False) -> None:
    """Everything in one process: database unless HOLDBOOK_DATABASE_URL names one, HTTP, read models, deadlines."""
    chosen = settings(host=host, port=port)
    if nats and chosen.nats_url is not None:
        fail("HOLDBOOK_NATS_URL names a NATS server already; leave it out, or --nats.")
    with told(), database(chosen) as found, _embedded_nats(chosen, wanted=nats) as bus:
        prepare(found.dsn, chosen)
        if bus is not None:
            chosen = chosen.model_copy(update={"nats_url": bus.url})
        server.run(lambda: _until_stopped(found, chosen, follow=True, serve=True, bus=bus))


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


@contextmanager
def _embedded_nats(chosen: Settings, *, wanted: bool) -> Iterator[EmbeddedNats | None]:
    """A nats-server below the data directory for so long, when it is wanted; another process's when one runs it already."""
    if not wanted:
        yield None
        return
    from adapters.nats.server import EmbeddedNats, NatsServerError

    nats_server = EmbeddedNats(data_directory(chosen.data) / "nats", chosen.nats_port)
    try:
        nats_server.start()
    except NatsServerError as error:
        fail(str(error))
    try:
        yield nats_server
    finally:
        nats_server.stop()


async def _until_stopped(found: Database, chosen: Settings, *, follow: bool, serve: bool, bus: EmbeddedNats | None = None) -> None:
    stop = server.asked_to_stop()
    watching = [asyncio.create_task(each.watch()) for each in (found.server, bus) if each is not None]
    try:
        async with server.process(found.dsn, chosen, follow=follow, serve=serve) as url:
            out.print(f"Holdbook serves {url}" if url else "Holdbook works", highlight=False)
            if bus is not None:
                out.print(f"NATS at {bus.shown_url}, with its password in {bus.address_file}", highlight=False, soft_wrap=True)
            await stop.wait()
    finally:
        for each in watching:
            each.cancel()

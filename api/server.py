"""Processes: what one opens, serves and follows, and how it leaves."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import structlog
import uvicorn
from fastapi import FastAPI

from api.app import create_app, create_health_app
from api.bus import publishers
from api.delivering import open_outgoing
from api.master_key import required
from api.metrics import Metrics
from api.privacy import erasing
from api.privacy.retaining import Retaining
from api.protocol import bounded
from api.services import Service, running
from api.settings import Settings
from domain.catalog import DECIDERS, PROCESSES
from eventstore.store import Store
from eventstore.wakeups import Listener

log = structlog.get_logger(__name__)


class _Server(uvicorn.Server):
    """A server that leaves signals to us: uvicorn would raise them again after draining, and end us before the store is drained."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """See uvicorn."""
        yield


def listen(settings: Settings, port: int | None = None) -> socket.socket:
    """The socket the server will accept on; its name tells the port when any free one was asked for."""
    port = settings.port if port is None else port
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.create_server((settings.host, port), family=family, backlog=2048)
    listener.setblocking(False)
    return listener


def url_of(listener: socket.socket) -> str:
    """Where the socket can be reached from this machine."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104  # compared, not bound
    return f"http://{host}:{port}"


@asynccontextmanager
async def serving(app: FastAPI, settings: Settings, listener: socket.socket) -> AsyncIterator[_Server]:
    """A server that accepts; on leaving, requests under way are finished and answered."""
    edge = app.state.edge
    config = uvicorn.Config(
        app,
        http=bounded(edge.bounds),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=settings.idle_seconds,  # type: ignore[arg-type]  # it goes to call_later, which takes fractions
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
    )
    server = _Server(config)
    keeping = asyncio.create_task(edge.refusals.run(), name="refusals")
    using = asyncio.create_task(edge.key_use.run(), name="key_use")
    task = asyncio.create_task(server.serve(sockets=[listener]), name="http")
    try:
        while not server.started:
            if task.done():
                await task
                raise RuntimeError("the HTTP server did not start")
            await asyncio.sleep(0.005)
        yield server
    finally:
        app.state.edge.draining = True
        if not server.force_exit:
            await asyncio.sleep(settings.drain_delay_seconds)
        server.should_exit = True
        await task
        edge.refusals.stop()
        await keeping
        edge.key_use.stop()
        await using


def asked_to_stop() -> asyncio.Event:
    """Set by SIGTERM and SIGINT; a second one ends the process at once."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def heard(number: int) -> None:
        if stop.is_set():
            loop.remove_signal_handler(number)
            signal.raise_signal(number)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, heard, number)
    return stop


@asynccontextmanager
async def following(dsn: str, store: Store, metrics: Metrics | None = None, settings: Settings | None = None) -> AsyncIterator[Any]:
    """A follower that feeds the read models, and what acts on the log and on time."""
    from projections import schema
    from projections.consumer import Consumer
    from projections.deadlines import DeadlineReader
    from projections.follower import Follower
    from projections.generations import Roster
    from projections.quota_queries import DueReader
    from projections.reactions import Reactors
    from projections.renewing import Renewal
    from projections.scheduler import Reservations, Scheduler
    from projections.tasks import Tasks
    from projections.webhooks import Webhooks

    async with contextlib.AsyncExitStack() as stack:
        outgoing = await open_outgoing(dsn, store, settings or Settings())
        stack.push_async_callback(outgoing.close)
        reactors = Reactors([*PROCESSES, erasing.completing(store)], store, dsn)
        stack.push_async_callback(reactors.close)
        tasks = Tasks(dsn, range(store.partitions), [outgoing.handler, *reactors.handlers], at_once=64)
        await asyncio.to_thread(schema.create, dsn)
        consumers: list[Consumer] = [Webhooks(store.codec, tasks.wake), *reactors.consumers(tasks.wake)]
        follower = Follower(dsn, range(store.partitions), Roster(store.codec, others=consumers), store.waker)
        finder = await DueReader.open(dsn)
        stack.push_async_callback(finder.close)
        deadlines = await DeadlineReader.open(dsn, store.codec)
        stack.push_async_callback(deadlines.close)
        scheduler = Scheduler(store, [Reservations(finder.due), deadlines], deadlines.now)
        services: list[Service] = [Listener(dsn, store.wakers), follower, scheduler, tasks, outgoing, Renewal(dsn, store.codec)]
        services += publishers(dsn, store, settings or Settings())
        services.append(Retaining(dsn, store))
        if metrics is not None:
            metrics.register_all([*services, reactors])
        await stack.enter_async_context(running(services))
        yield follower


@asynccontextmanager
async def process(dsn: str, settings: Settings, *, follow: bool, serve: bool) -> AsyncIterator[str | None]:
    """A running process on a migrated store; yields its URL when it serves. Leaving drains it."""
    from projections.readers import Readers

    async with contextlib.AsyncExitStack() as stack:
        master = required(settings)
        store = await Store.open(dsn, DECIDERS, settings.writer_options(), connections=settings.connections, master=master)
        stack.push_async_callback(store.drain)
        metrics = Metrics(store)
        follower = await stack.enter_async_context(following(dsn, store, metrics, settings)) if follow else None
        if not serve:
            if settings.worker_port is not None:
                health = create_health_app(store, settings, follower, metrics)
                await stack.enter_async_context(serving(health, settings, listen(settings, settings.worker_port)))
            yield None
            return
        readers = await Readers.open(dsn)
        stack.push_async_callback(readers.close)
        listener = listen(settings)
        url = url_of(listener)
        await stack.enter_async_context(serving(create_app(store, readers, settings, follower, metrics), settings, listener))
        log.info("serving", url=url)
        yield url
        log.info("draining")


def collect_less_often() -> None:
    """Have the garbage collector leave alone what lives long.

    Tens of thousands of cached states are no garbage, and looking through all of them again and again costs a third of the
    processor and pauses of a tenth of a second [measured]. What a request leaves behind is freed by counting references.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 100, 100)


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Run to the end on uvloop where there is one."""
    try:
        import uvloop
    except ImportError:  # there is none for Windows
        factory = None
    else:
        factory = uvloop.new_event_loop
    collect_less_often()
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_awaited(main))


async def _awaited(main: Callable[[], Awaitable[None]]) -> None:
    await main()

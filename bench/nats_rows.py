"""Publishing the log to JetStream, beside what nats-py reaches with nothing to read and nothing to put in order."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import nats
import psycopg
from nats.aio.client import Client

from adapters.cloudevents import cloud_event
from adapters.nats.names import STREAM, event_subject
from adapters.nats.publishing import Options, Publisher
from adapters.nats.server import EmbeddedNats
from bench.rows import Measured, Row, rows
from bench.stage import Stage
from bench.store_rows import opened, ratio
from bench.traffic import Traffic, uniform

AT_ONCE = 200
"""Publishes awaited together on nats-py's side."""
PARTITIONS = 64
EVENTS_A_SECOND = 20_000
"""How many events one turn of ours publishes, by the seconds it is meant to last."""


@rows(Row("events/s from the log to JetStream, in order", f"nats-py's acknowledged publishes of the same messages, {AT_ONCE} at once", 0.5))
async def publishing(stage: Stage) -> Sequence[Measured]:
    count = max(1_000, round(EVENTS_A_SECOND * stage.scale.seconds))
    with stage.database() as dsn, _server() as url:
        stage.say(f"writing {count:,} events")
        await _fill(dsn, count, stage.scale.callers)
        messages = await asyncio.to_thread(_messages, dsn)

        async def ours(_: float) -> float:
            await _empty(url)
            return len(messages) / await _publish(dsn, url)

        async def theirs(seconds: float) -> float:
            return await _acknowledged(url, messages, seconds)

        return [ratio(*await stage.in_turns(ours, theirs))]


@contextmanager
def _server() -> Iterator[str]:
    home = "/var/tmp" if Path("/var/tmp").is_dir() else None  # noqa: S108  # the directory is ours alone, by mkdtemp
    directory = Path(tempfile.mkdtemp(prefix="holdbook-bench-nats-", dir=home))
    server = EmbeddedNats(directory / "nats")
    try:
        yield server.start()
    finally:
        server.stop()
        shutil.rmtree(directory, ignore_errors=True)


async def _fill(dsn: str, count: int, callers: int) -> None:
    """A log such as clients write it, all in one partition: others could be published beside it, this is the slowest case."""
    async with opened(dsn) as store:
        traffic = Traffic(store, uuid4(), callers)
        await traffic.configure()
        while store.stats().events < count:
            await traffic.drive(uniform, callers=callers, seconds=0.2)


def _messages(dsn: str) -> list[tuple[str, str, bytes]]:
    """Subject, id and body of every event."""
    query = (
        "select partition, tenant_id, position, command_id, ordinal, type, stream, recorded_at, payload::text, trace "
        "from event order by partition, position"
    )
    with psycopg.connect(dsn) as connection:
        return [
            (event_subject(p, t, type_), f"{c}:{o}", cloud_event("holdbook", t, p, 0, n, c, o, type_, s, at, payload, trace))
            for p, t, n, c, o, type_, s, at, payload, trace in connection.execute(query, binary=True)
        ]


async def _empty(url: str) -> None:
    client = await nats.connect(url)
    try:
        await client.request(f"$JS.API.STREAM.DELETE.{STREAM}", b"", timeout=10)
    finally:
        await client.close()


async def _publish(dsn: str, url: str) -> float:
    """Seconds from a publisher's start until it knows that nothing is left."""
    publisher = Publisher(dsn, range(PARTITIONS), Options(url=url))
    began = time.perf_counter()
    task = asyncio.create_task(publisher.run())
    try:
        while len(lag := publisher.lag()) < PARTITIONS or any(lag.values()):  # noqa: ASYNC110  # it tells nobody, and need not for us
            await asyncio.sleep(0.001)
        return time.perf_counter() - began
    finally:
        publisher.stop()
        await task


async def _acknowledged(url: str, messages: Sequence[tuple[str, str, bytes]], seconds: float) -> float:
    """As its documentation shows, into the same stream. The ids are new ones: JetStream stores no message twice."""
    client: Client = await nats.connect(url)
    js, prefix, sent = client.jetstream(), uuid4().hex, 0
    endless = itertools.cycle(messages)
    began = time.perf_counter()
    try:
        while not sent or time.perf_counter() - began < seconds:
            some = [next(endless) for _ in range(AT_ONCE)]
            numbers = itertools.count(sent)
            await asyncio.gather(
                *(js.publish(subject, body, headers={"Nats-Msg-Id": f"{prefix}:{next(numbers)}:{id_}"}) for subject, id_, body in some)
            )
            sent += AT_ONCE
        return sent / (time.perf_counter() - began)
    finally:
        await client.close()

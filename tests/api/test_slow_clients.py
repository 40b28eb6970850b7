"""Clients that are slow, endless or many, over raw sockets: each is ended with an answer, and the others are served."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from api import server
from api.app import create_app
from api.settings import Settings
from domain.catalog import DECIDERS
from eventstore.store import Store

SMALL = {
    "url_limit_bytes": 200,
    "header_limit_bytes": 1000,
    "header_limit_count": 10,
    "header_seconds": 0.4,
    "body_seconds": 0.4,
    "idle_seconds": 0.8,
}
PATIENCE = 60
HEAD = b"POST /v1/usage/reserve HTTP/1.1\r\nhost: x\r\n"
GET = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"


@asynccontextmanager
async def listening(**more: Any) -> AsyncIterator[tuple[str, int, Any]]:
    """A server with small bounds, on a store that forgets: nothing here gets as far as that."""
    settings = Settings(port=0, log_level="warning", **{**SMALL, **more})
    nobody: Any = None
    async with AsyncExitStack() as stack:
        store = Store.in_memory(DECIDERS)
        stack.push_async_callback(store.drain)
        app = create_app(store, nobody, settings)
        listener = server.listen(settings)
        host, port = listener.getsockname()[:2]
        await stack.enter_async_context(server.serving(app, settings, listener))
        yield host, port, app


class Client:
    """A socket that sends what it is told to, and reads what comes until the end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def rest(self) -> bytes:
        """Everything until the server ends the connection."""
        return await asyncio.wait_for(self.reader.read(), PATIENCE)

    async def answer(self) -> bytes:
        """One answer with its body."""
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), PATIENCE)
        size = next(int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
        return head + await asyncio.wait_for(self.reader.readexactly(size), PATIENCE)


@asynccontextmanager
async def connected(place: tuple[str, int, Any]) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection(*place[:2])
    try:
        yield Client(reader, writer)
    finally:
        writer.close()


def told(answer: bytes, status: int, code: str) -> bool:
    return answer.startswith(b"HTTP/1.1 %d " % status) and b'"code":"connection.%s"' % code.encode() in answer


async def test_half_a_head_and_silence() -> None:
    async with listening() as place, connected(place) as client:
        client.send(HEAD)

        answer = await client.rest()

    assert told(answer, 408, "too_slow")
    assert b"connection: close" in answer
    assert b"x-content-type-options: nosniff" in answer


async def test_a_byte_now_and_then_does_not_prolong_the_head() -> None:
    async with listening() as place, connected(place) as client:
        began = time.monotonic()
        dripping = asyncio.create_task(drip(client, HEAD + b"a: " + b"b" * 300, 0.05))
        answer = await client.rest()
        took = time.monotonic() - began
        dripping.cancel()

    assert told(answer, 408, "too_slow")
    assert took < 10


async def test_empty_lines_before_a_request_are_part_of_its_head() -> None:
    async with listening() as place, connected(place) as client:
        dripping = asyncio.create_task(drip(client, b"\r\n" * 200, 0.05))
        answer = await client.rest()
        dripping.cancel()

    assert told(answer, 408, "too_slow")


async def drip(client: Client, data: bytes, seconds: float) -> None:
    for byte in data:
        client.send(bytes((byte,)))
        await asyncio.sleep(seconds)


@pytest.mark.parametrize(
    ("head", "status", "code"),
    [
        (HEAD + b"".join(b"x-%d: y\r\n" % i for i in range(50)) + b"\r\n", 431, "headers_too_large"),
        (HEAD + b"x: " + b"y" * 990 + b"\r\n\r\n", 431, "headers_too_large"),
        (HEAD + b"x: " + b"y" * 5000, 431, "headers_too_large"),
        (HEAD + b"x" * 5000, 431, "headers_too_large"),
        (b"GET /" + b"a" * 300 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 414, "url_too_long"),
        (b"GET /livez?" + b"a" * 5000, 414, "url_too_long"),
        (b"NONSENSE\x00\x01\r\n\r\n", 400, "malformed"),
    ],
    ids=["many lines", "long line", "line without end", "name without end", "long address", "address without end", "no http"],
)
async def test_a_head_that_is_too_large_is_refused_before_it_ends(head: bytes, status: int, code: str) -> None:
    async with listening() as place, connected(place) as client:
        client.send(head)

        answer = await client.rest()

    assert told(answer, status, code)


async def test_a_head_just_inside_the_bounds_is_served() -> None:
    lines = b"".join(b"x-%d: y\r\n" % i for i in range(9))
    async with listening() as place, connected(place) as client:
        client.send(b"GET /livez?" + b"a" * 180 + b" HTTP/1.1\r\nhost: x\r\n" + lines + b"\r\n")

        assert (await client.answer()).startswith(b"HTTP/1.1 200 ")


async def reading(scope: Any, receive: Any, send: Any) -> None:
    """An application that wants the whole body before it answers."""
    while (message := await receive()).get("more_body"):
        pass
    if message["type"] == "http.request":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


@asynccontextmanager
async def reading_server(**more: Any) -> AsyncIterator[tuple[str, int, Any]]:
    """As :func:`listening`, with an application behind it that waits for bodies."""
    async with listening(**more) as (host, port, app):
        app.middleware_stack = reading
        yield host, port, app


async def test_a_body_that_stalls() -> None:
    async with reading_server() as place, connected(place) as client:
        client.send(HEAD + b"content-length: 100\r\n\r\n{")

        assert told(await client.rest(), 408, "too_slow")


async def test_a_body_that_drips_is_ended_though_it_never_stalls() -> None:
    async with reading_server() as place, connected(place) as client:
        client.send(HEAD + b"content-length: 10000\r\n\r\n")
        dripping = asyncio.create_task(drip(client, b" " * 1000, 0.1))
        answer = await client.rest()
        dripping.cancel()

    assert told(answer, 408, "too_slow")


async def test_a_body_in_parts_is_taken() -> None:
    # In all it takes longer than a silence may, and between two parts there is time for a machine that stands still for seconds.
    async with reading_server(body_seconds=4.0) as place, connected(place) as client:
        client.send(HEAD + b"content-length: 4000\r\n\r\n")
        for _ in range(8):
            client.send(b"x" * 500)
            await asyncio.sleep(0.6)

        assert (await client.answer()).endswith(b"ok")


@pytest.mark.parametrize(
    "frame",
    [b"1;" + b"e" * 3000 + b"\r\nx\r\n", b"1\r\nx\r\n0\r\ntrailer: " + b"t" * 3000],
    ids=["chunk extension", "trailer without end"],
)
async def test_what_frames_a_body_has_bounds_too(frame: bytes) -> None:
    begun = asyncio.Event()

    async def telling(scope: Any, receive: Any, send: Any) -> None:
        begun.set()
        await reading(scope, receive, send)

    async with listening(body_seconds=60) as (host, port, app), connected((host, port, app)) as client:
        app.middleware_stack = telling
        client.send(HEAD + b"transfer-encoding: chunked\r\n\r\n")
        await asyncio.wait_for(begun.wait(), PATIENCE)  # what came together with the head would be counted with it
        for start in range(0, len(frame), 500):
            client.send(frame[start : start + 500])
            await asyncio.sleep(0.01)

        assert told(await client.rest(), 431, "headers_too_large")


async def test_a_trailer_does_not_become_a_header() -> None:
    seen: list[bytes] = []

    async def telling(scope: Any, receive: Any, send: Any) -> None:
        await reading(scope, receive, send)
        seen.extend(name for name, _ in scope["headers"])

    async with listening() as (host, port, app):
        app.middleware_stack = telling
        async with connected((host, port, app)) as client:
            client.send(HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nx-forwarded-for: 6.6.6.6\r\n\r\n")

            assert (await client.answer()).endswith(b"ok")

    assert seen == [b"host", b"transfer-encoding"]


async def test_a_body_nobody_reads_any_more_does_not_keep_the_connection() -> None:
    async with listening() as place, connected(place) as client:
        client.send(HEAD + b"content-length: 100000\r\n\r\n")  # without a key: answered before the body
        dripping = asyncio.create_task(drip(client, b" " * 1000, 0.05))
        answer = await client.answer()
        with contextlib.suppress(ConnectionError):  # a byte that came just then, and that nobody reads, makes it a reset
            assert await client.rest() == b""
        dripping.cancel()

    assert answer.startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("before", [b"", GET], ids=["fresh", "kept alive"])
async def test_an_idle_connection_is_closed(before: bytes) -> None:
    async with listening() as place, connected(place) as client:
        client.send(before)
        if before:
            await client.answer()

        assert await client.rest() == b""


async def test_pipelined_requests_are_all_answered_in_order() -> None:
    paths = [b"/livez", b"/nothing", b"/livez", b"/v1/usage"]
    async with listening() as place, connected(place) as client:
        client.send(b"".join(b"GET %b HTTP/1.1\r\nhost: x\r\n\r\n" % path for path in paths))

        statuses = [(await client.answer())[9:12] for _ in paths]

    assert statuses == [b"200", b"404", b"200", b"401"]


async def test_a_slow_second_head_does_not_break_into_the_answer_before_it() -> None:
    holding = asyncio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await holding.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async with listening() as (host, port, app):
        app.middleware_stack = slow
        async with connected((host, port, app)) as client:
            client.send(GET + b"GET /livez HT")
            await asyncio.sleep(1.0)  # longer than a head may take
            holding.set()

            first = await client.answer()
            second = await client.rest()

    assert first.endswith(b"ok")
    assert told(second, 408, "too_slow")


async def test_one_connection_too_many_is_told_so_and_the_others_go_on() -> None:
    async with listening(connections_at_once=2, idle_seconds=30) as place, connected(place) as first, connected(place) as second:
        for client in (first, second):
            client.send(GET)
            assert (await client.answer()).startswith(b"HTTP/1.1 200 ")
        async with connected(place) as third:
            assert told(await third.rest(), 503, "too_many")
        first.send(GET)
        assert (await first.answer()).startswith(b"HTTP/1.1 200 ")


async def test_slow_clients_are_counted_and_hold_nobody_up() -> None:
    async with listening(idle_seconds=30) as place, AsyncExitStack() as stack:  # none is idle for long before it has sent its half
        slow = [await stack.enter_async_context(connected(place)) for _ in range(50)]
        for client in slow:
            client.send(HEAD)
        async with connected(place) as quick:
            quick.send(GET)
            assert (await quick.answer()).startswith(b"HTTP/1.1 200 ")
        answers = await asyncio.gather(*(client.rest() for client in slow))
        counted = place[2].state.edge.metrics.text()

    assert all(told(answer, 408, "too_slow") for answer in answers)
    assert b'holdbook_connections_ended_total{reason="too_slow"} 50.0' in counted

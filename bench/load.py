"""Load over HTTP, from a process of its own, and light: it shares two cores with the server it measures.

A keep-alive HTTP/1.1 client that understands what our server sends: a head with ``content-length``, then the body.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from secrets import token_hex
from statistics import quantiles
from typing import cast

import uvloop

_PATIENCE_SECONDS = 30
_KEY = b"{key}"
_PREFIX_BYTES = 8
_KEY_LENGTH = 2 * _PREFIX_BYTES + 8  # every key is equally long, so that the length of a body is known before its key


@dataclass(frozen=True, slots=True)
class Asked:
    """A kind of request. Headers and body may name ``{key}``, new in each request, and the body ``{connection}``.

    ``bearers`` are the credentials of the connections, each of which has the next.
    """

    path: str
    headers: tuple[tuple[str, str], ...]
    body: str
    commands: int = 1
    method: str = "POST"
    bearers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Loaded:
    """What came back. ``bad`` counts answers whose status was not 2xx; ``complaint`` is the first of them."""

    commands: int
    seconds: float
    p50_ms: float
    p99_ms: float
    bad: int
    complaint: str
    p95_ms: float = 0.0

    @property
    def rate(self) -> float:
        """Commands a second that were taken."""
        return self.commands / self.seconds


class _Connection(asyncio.Protocol):
    """One request after another, each when the one before was answered, and not before it is due."""

    def __init__(self, request: Callable[[], bytes], latencies: list[float]) -> None:
        self._request, self._latencies = request, latencies
        self._due: Callable[[], float] = float
        self._ends = 0.0
        self._loop = asyncio.get_running_loop()
        self._buffer = b""
        self._sent = 0.0
        self._transport: asyncio.Transport
        self.done: asyncio.Future[None] = self._loop.create_future()
        self.bad: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one without being of the class

    def start(self, due: Callable[[], float], ends: float) -> None:
        """Ask until the end, each time not before ``due`` says; once in any case if that is before the end."""
        self._due, self._ends = due, ends
        self._next()

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer = self._buffer + data if self._buffer else data
        head = buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        at = buffer.index(b"content-length: ", 0, head) + 16
        if len(buffer) < head + 4 + int(buffer[at : buffer.index(b"\r\n", at)]):
            return
        self._latencies.append(time.perf_counter() - self._sent)
        if not buffer.startswith(b"HTTP/1.1 2"):
            self.bad.append(buffer)
        self._buffer = b""
        self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(exc or ConnectionError("the server closed the connection"))

    def _next(self) -> None:
        now, due = time.perf_counter(), self._due()
        if due >= self._ends or (self._sent and now >= self._ends):
            self.done.set_result(None)
            self._transport.close()
        elif due > now:
            self._loop.call_later(due - now, self._send)
        else:
            self._send()

    def _send(self) -> None:
        self._sent = time.perf_counter()
        self._transport.write(self._request())


def load(port: int, asked: Asked, connections: int, seconds: float, per_second: float | None = None) -> Loaded:
    """Ask over so many connections at once for so long: as fast as answers come, or so many requests a second in all."""

    async def main() -> Loaded:
        loop = asyncio.get_running_loop()
        latencies: list[float] = []
        numbers, prefix = count(), token_hex(_PREFIX_BYTES)

        def requests(connection: int) -> Callable[[], bytes]:
            frame = _frame(port, asked, connection)
            return lambda: frame.replace(_KEY, b"%s%08d" % (prefix.encode(), next(numbers)))

        def dues(connection: int) -> Callable[[], float]:
            if per_second is None:
                return float
            turns = count(connection, connections)
            return lambda: began + next(turns) / per_second

        def client(connection: int) -> Callable[[], _Connection]:
            return lambda: _Connection(requests(connection), latencies)

        opened = [await loop.create_connection(client(number), "127.0.0.1", port) for number in range(connections)]
        clients = [client for _, client in opened]
        began = time.perf_counter()
        for number, connected in enumerate(clients):
            connected.start(dues(number), began + seconds)
        async with asyncio.timeout(seconds + _PATIENCE_SECONDS):
            await asyncio.gather(*(client.done for client in clients))
        took = time.perf_counter() - began
        bad = [answer.decode(errors="replace") for client in clients for answer in client.bad]
        cuts = quantiles(latencies, n=100, method="inclusive") if len(latencies) > 1 else [0.0] * 99
        commands = (len(latencies) - len(bad)) * asked.commands
        return Loaded(commands, took, cuts[49] * 1e3, cuts[98] * 1e3, len(bad), bad[0] if bad else "", cuts[94] * 1e3)

    return uvloop.run(main())


def _frame(port: int, asked: Asked, connection: int) -> bytes:
    """A whole request with only the key left open."""
    body = asked.body.replace("{connection}", str(connection)).encode()
    length = len(body) + body.count(_KEY) * (_KEY_LENGTH - len(_KEY))
    lines = [f"{asked.method} {asked.path} HTTP/1.1", f"host: 127.0.0.1:{port}"]
    lines += ["content-type: application/json", f"content-length: {length}"]
    lines += [f"{name}: {value}" for name, value in asked.headers]
    if asked.bearers:
        lines.append(f"authorization: Bearer {asked.bearers[connection % len(asked.bearers)]}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body

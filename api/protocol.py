"""HTTP connections with bounds: how large a head may be, how slowly a request may come, how many connections there may be.

uvicorn's own protocol has none of them: a client that sends half a header and falls silent keeps its connection for ever, and a header
without end fills the memory. Each connection looks at itself a few times in the shortest of its limits; what a request pays for that
are a few assignments.

What cannot be answered by the application, because there is no request yet, is answered here with a problem document and the end of the
connection. The socket is closed for writing first and what still comes is thrown away for a second: closed at once, with bytes unread,
the system would reset the connection and the client would never see why.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, NoReturn

from prometheus_client.core import CounterMetricFamily, Metric
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from api.hardening import ALWAYS, UNLESS_GIVEN
from api.problems import MEDIA_TYPE, Problem
from api.settings import Settings

LINGER_SECONDS = 1.0
LEAST_BYTES_A_SECOND = 512
"""So fast a body has to come on average, once it has had the time of one silence."""

_FRESH, _HEAD, _BODY, _SERVED = range(4)
"""Nothing came yet; a head has begun; a body is coming; the last request is whole and is served, or was."""


@dataclass(slots=True)
class Bounds:
    """The limits of all connections of a server, and how often each ended one. Sizes in bytes, times in seconds."""

    url: int
    headers: int
    lines: int
    head_seconds: float
    body_seconds: float
    idle_seconds: float
    at_once: int
    look_seconds: float = field(init=False)
    ended: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.look_seconds = min(self.head_seconds, self.body_seconds, self.idle_seconds) / 4

    def collect(self) -> Iterator[Metric]:
        """See :class:`api.metrics.Collects`."""
        family = CounterMetricFamily(
            "holdbook_connections_ended", "Client connections that were ended before their time.", labels=("reason",)
        )
        for reason, count in self.ended.items():
            family.add_metric((reason,), count)
        yield family

    @staticmethod
    def of(settings: Settings) -> Bounds:
        """As the settings say."""
        return Bounds(
            settings.url_limit_bytes,
            settings.header_limit_bytes,
            settings.header_limit_count,
            settings.header_seconds,
            settings.body_seconds,
            settings.idle_seconds,
            settings.connections_at_once,
        )


class _TooMuch(Exception):
    """Raised inside the parser, which stops; what is answered stands in the protocol."""


class Bounded(HttpToolsProtocol):
    """One connection. Use a subclass made by :func:`bounded`."""

    bounds: ClassVar[Bounds]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._phase, self._since = _FRESH, 0.0
        self.url = b""
        self._fed = self._head_bytes = self._body_bytes = self._frame_bytes = 0
        self._body_began = 0.0
        self._unsent, self._unsent_since = 0, 0.0
        self._code: str | None = None
        self._ended = False
        self._look: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """See asyncio."""
        super().connection_made(transport)
        self._since = self.loop.time()
        if len(self.connections) > self.bounds.at_once:
            self._end("connection.too_many", linger=False)
        else:
            self._look = self.loop.call_later(self.bounds.look_seconds, self._look_at_it)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        if self._look is not None:
            self._look.cancel()
            self._look = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        if self._ended:
            return
        before = self._phase
        if before is _FRESH or before is _SERVED:
            self._begin_head()
        self._fed = len(data)
        super().data_received(data)
        if self._phase is _HEAD:
            self._head_bytes += len(data)
            self._check_open_head()
        elif self._phase is _BODY:
            self._since = self.loop.time()
            if before is _BODY:
                self._frame_bytes += len(data)
                self._check_frame()

    def _begin_head(self) -> None:
        self._phase, self._since = _HEAD, self.loop.time()
        self._head_bytes = self._body_bytes = self._frame_bytes = 0

    def _check_open_head(self) -> None:
        """The parser keeps a line until it is whole, so one without end would never be heard of."""
        if self._ended or self._head_bytes <= min(self.bounds.url, self.bounds.headers):
            return
        if len(self.url) > self.bounds.url:
            self._end("connection.url_too_long")
        elif self._head_bytes > self.bounds.url + self.bounds.headers:
            self._end("connection.headers_too_large")

    def _check_head(self) -> None:
        """Of a head that is whole. What came of it in all says in most cases that no line of it can be too long."""
        bounds, headers = self.bounds, self.headers
        if len(self.url) > bounds.url:
            self._refuse("connection.url_too_long")
        if len(headers) > bounds.lines:
            self._refuse("connection.headers_too_large")
        if self._head_bytes + self._fed > bounds.headers and sum(len(name) + len(value) + 4 for name, value in headers) > bounds.headers:
            self._refuse("connection.headers_too_large")

    def _refuse(self, code: str) -> NoReturn:
        self._code = code
        raise _TooMuch

    def _check_frame(self) -> None:
        """Sizes of chunks, their extensions and trailers are no part of the body that the application counts."""
        if self._frame_bytes > self.bounds.headers + 8 * self._body_bytes and not self._ended:
            self._end("connection.headers_too_large")

    # What the parser tells

    def on_message_begin(self) -> None:
        """A request line begins; of the second in one piece of data as well."""
        if self._phase is not _HEAD:
            self._begin_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._check_head()
        super().on_headers_complete()
        # Trailers are no headers: a proxy in front checks and replaces those alone, and nobody asked for any.
        self.headers = []
        self._phase = _BODY
        self._since = self._body_began = self.loop.time()

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._phase = _SERVED
        super().on_message_complete()

    # What takes too long

    def _look_at_it(self) -> None:
        self._look = self.loop.call_later(self.bounds.look_seconds, self._look_at_it)
        now, bounds = self.loop.time(), self.bounds
        if self._is_unread(now):
            self._count("unread")
            self.transport.abort()
        elif self._ended or self.transport.is_closing():
            return
        elif self.flow.read_paused or self.pipeline or (self._phase is _HEAD and self._is_answering):
            self._since = self._body_began = now  # it is we who do not read, or who owe an answer first
        elif self._phase is _FRESH and now - self._since > bounds.idle_seconds:
            self._count("idle")
            self.transport.close()
        elif self._is_slow(now):
            self._end("connection.too_slow")

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _is_slow(self, now: float) -> bool:
        if self._phase is _HEAD:
            return now - self._since > self.bounds.head_seconds
        if self._phase is not _BODY:
            return False
        allowed = self.bounds.body_seconds
        return now - self._since > allowed or now - self._body_began > allowed + self._body_bytes / LEAST_BYTES_A_SECOND

    def _is_unread(self, now: float) -> bool:
        """Whether the client takes nothing of what was sent to it, for as long as it might be idle."""
        unsent = self.transport.get_write_buffer_size()
        if not unsent or unsent != self._unsent:
            self._unsent, self._unsent_since = unsent, now
            return False
        return now - self._unsent_since > self.bounds.idle_seconds

    # The end

    def send_400_response(self, msg: str) -> None:
        """What the parser refused, or what we had it refuse."""
        self._end(self._code or "connection.malformed")

    def _end(self, code: str, *, linger: bool = True) -> None:
        self._ended = True
        self._count(code.partition(".")[2])
        self._unset_keepalive_if_required()
        if self.pipeline or (self._is_answering and self._phase is not _BODY):
            self.transport.close()  # an answer to an earlier request is under way: nothing may be written into it
            return
        if self._phase is _BODY and self.cycle is not None:
            if self.cycle.response_started:
                self.transport.close()
                return
            self.cycle.disconnected = True  # the application is told so, and what it answers goes nowhere
            self.cycle.message_event.set()
        self.flow.resume_reading()
        self.transport.write(_answer(code, self.server_state.default_headers))
        if not linger or not self.transport.can_write_eof():
            self.transport.close()
            return
        self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    def _count(self, reason: str) -> None:
        self.bounds.ended[reason] = self.bounds.ended.get(reason, 0) + 1


def bounded(bounds: Bounds) -> type[Bounded]:
    """The protocol of a server with these limits."""
    return type("BoundedConnection", (Bounded,), {"bounds": bounds})


def _answer(code: str, headers: list[tuple[bytes, bytes]]) -> bytes:
    problem = Problem(code)
    body = problem.response().body
    lines = [
        *headers,
        *ALWAYS,
        *UNLESS_GIVEN,
        *((name.encode(), value.encode()) for name, value in problem.headers.items()),
        (b"content-type", MEDIA_TYPE.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    return b"".join((STATUS_LINE[problem.status], *(b"%b: %b\r\n" % line for line in lines), b"\r\n", bytes(body)))

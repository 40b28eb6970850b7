"""A receiver of webhooks on a real port, in threads of its own, that does what a test tells it to."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
from standardwebhooks import Webhook, WebhookVerificationError


@dataclass(frozen=True)
class Received:
    """One request, as it came. Header names are in lower case."""

    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def message_id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def event(self) -> dict[str, Any]:
        found: dict[str, Any] = msgspec.json.decode(self.body)
        return found

    def signed_by(self, secret: str) -> bool:
        """Whether the library, as a receiver would use it, finds the secret's signature among those of the header."""
        try:
            Webhook(secret).verify(self.body, dict(self.headers))
        except WebhookVerificationError as error:
            if "signature" in str(error):
                return False
            raise
        return True


@dataclass(frozen=True)
class Reply:
    """What to answer, after what: ``hold`` waits until the test lets go, ``drop`` closes the connection without a word."""

    status: int = 204
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    hold: threading.Event | None = None
    drop: bool = False
    endless: bool = False


def accept(_: Received) -> Reply:
    """204 for everything."""
    return Reply()


class Receiver:
    """What came, and what is answered. ``answer`` may be replaced while it runs."""

    def __init__(self, host: str, tls: ssl.SSLContext | None) -> None:
        self.received: list[Received] = []
        self.answer: Callable[[Received], Reply] = accept
        self.connections = 0
        self._changed = threading.Condition()
        self._server = ThreadingHTTPServer((host, 0), self._handler())
        self._server.daemon_threads = True
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.scheme, self.host, self.port = ("https" if tls else "http"), host, self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}/in"

    def close(self) -> None:
        """Take no more connections."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def ids(self, path: str = "/in") -> list[str]:
        """Ids of the messages that came to a path, in order, repetitions included."""
        return [each.message_id for each in self.received if each.path == path]

    def wait(self, count: int, seconds: float = 120) -> list[Received]:
        """Wait until so many requests have come. From a thread: it blocks."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while len(self.received) < count:
                left = deadline - time.monotonic()
                assert left > 0, f"{len(self.received)} of {count} came"
                self._changed.wait(left)
        return list(self.received)

    def _note(self, received: Received) -> None:
        with self._changed:
            self.received.append(received)
            self._changed.notify_all()

    def _handler(receiver) -> type[BaseHTTPRequestHandler]:  # noqa: N805  # the handler below has a self of its own
        class Handler(BaseHTTPRequestHandler):
            def setup(self) -> None:
                with receiver._changed:  # each connection has a thread of its own
                    receiver.connections += 1
                super().setup()

            def handle(self) -> None:
                try:
                    super().handle()
                except OSError:  # the sender left first, or its handshake did not please
                    return

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                received = Received(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
                reply = receiver.answer(received)
                receiver._note(received)
                if reply.hold is not None:
                    assert reply.hold.wait(240)
                if reply.drop:
                    self.close_connection = True
                    return
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                if reply.endless:
                    self.end_headers()
                    while True:
                        self.wfile.write(b"x" * 65_536)
                self.send_header("Content-Length", str(len(reply.body)))
                self.end_headers()
                self.wfile.write(reply.body)

            def do_GET(self) -> None:
                self.do_POST()

            def log_message(self, *_: Any) -> None:
                """Silence."""

        return Handler


@contextmanager
def receiving(host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """A receiver that listens."""
    receiver = Receiver(host, tls)
    try:
        yield receiver
    finally:
        receiver.close()

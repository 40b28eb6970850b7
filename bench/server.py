"""A server process, run by the product's own ``serve`` or ``up``, with one route more.

The route without an effect has the same body, the same check of the key and the same answer's size as a reservation, so that what a
reservation costs on top of HTTP can be told. It is there twice: as an ordinary route of the framework, and called as lean as our own hot
ones.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI, Request
from starlette.responses import Response

from api import bodies, server
from api.app import create_app
from api.edge import ask
from api.lean import LeanRoute
from api.routes.usage import ReserveCommand
from eventstore.master import new_master_key

NOTHING, LEAN_NOTHING = "/bench/nothing", "/bench/lean-nothing"
MASTER_KEY = os.environ.get("HOLDBOOK_MASTER_KEY") or new_master_key()
"""What the stores of this run are sealed with: the stores of this very process take it from the environment, too."""
PROJECT = str(Path(__file__).parents[1])


async def nothing(request: Request) -> Response:
    """Check the key and the body as a reservation does, and answer."""
    asked = await ask(request, ReserveCommand.permission)
    raw = await bodies.read(request, asked.headers, asked.edge.settings.body_limit_bytes)
    bodies.parse(ReserveCommand, raw)
    return Response(_ANSWER, 200, {"Holdbook-Position": "1", "Holdbook-Epoch": "0"}, "application/json")


_ANSWER = (
    b'{"reservation_id":"%b","status":"reserved","granted":1,"overdrawn":0,"expires_at":"2026-01-01T00:00:00.000000Z","remaining":%d}'
    % (b"A" * 40, 10**15)
)


def _with_nothing(*arguments: Any, **named: Any) -> FastAPI:
    app = create_app(*arguments, **named)
    app.add_api_route(NOTHING, nothing, methods=["POST"])
    app.router.routes.append(LeanRoute(LEAN_NOTHING, nothing, methods=["POST"]))
    return app


def surroundings(dsn: str) -> dict[str, str]:
    """The environment of a process of ours on that database; nothing of this machine's settings reaches it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HOLDBOOK_")}
    ours = {"HOLDBOOK_DATABASE_URL": dsn, "HOLDBOOK_PORT": "0", "HOLDBOOK_LOG_LEVEL": "warning", "HOLDBOOK_MASTER_KEY": MASTER_KEY}
    # One person asks here as often as hundreds do elsewhere.
    unlimited = {"HOLDBOOK_RATE_TOKEN_PER_SECOND": "0", "HOLDBOOK_RATE_USER_PER_MINUTE": "0"}
    return environment | ours | unlimited | {"PYTHONPATH": PROJECT}


@contextmanager
def running(dsn: str, how: Literal["serve", "up"]) -> Iterator[int]:
    """A server on a prepared store; yields the port it listens on. It drains in the end, as on SIGTERM."""
    arguments = [sys.executable, "-m", "bench.server", how]
    with subprocess.Popen(arguments, env=surroundings(dsn), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if found := re.search(r"http://[^ ]*:(\d+)", line):
                    yield int(found[1])
                    return
            raise RuntimeError(f"the server did not start: it ended with {process.wait()}")
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


if __name__ == "__main__":
    from api.cli import running as commands

    setattr(server, "create_app", _with_nothing)  # noqa: B010  # it imports the name, which a type checker does not let us replace
    {"serve": commands.serve, "up": commands.up}[sys.argv[1]](host=None, port=None)

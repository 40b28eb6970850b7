"""A process of its own that builds the quota view anew, for tests that kill it.

``python -m tests.support.builder_process JSON`` builds, compares and switches, or proves, and kills itself by SIGKILL when it
comes to ``point`` for the ``turn``-th time:
``begun`` when tables and checkpoints are made, ``applied`` when a range is written and not committed, ``committed`` when it is,
``comparing`` before the first rows are compared, ``indexed`` when the indexes are made, ``switching`` when the generation that
answers is held, ``registered`` when the registry says otherwise and has not committed, ``switched`` when it has, ``dropping`` before a
proof is dropped.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from psycopg import AsyncConnection

from domain.catalog import DECIDERS
from eventstore.codec import Codec
from projections import generations, rebuilding, switching
from projections.building import Effort
from projections.consumer import Connection
from projections.generations import Generation, current_generations, standing
from projections.quotas import PROJECTION, Batch

ROOT = Path(__file__).parents[2]
POINTS = ("begun", "applied", "committed", "comparing", "indexed", "switching", "registered", "switched", "dropping")


def dies(turn: int) -> Callable[[], None]:
    """A function that ends the process when it is called for the ``turn``-th time."""
    turns = iter(range(1, 1_000_000))

    def die() -> None:
        if next(turns) == turn:
            os.kill(os.getpid(), signal.SIGKILL)

    return die


def die_in(point: str, die: Callable[[], None]) -> None:
    """Have the process come by ``die`` at that point."""
    if point in ("applied", "committed"):
        write = Batch.write

        async def applied(self: Batch, conn: Connection) -> Callable[[], None]:
            after = await write(self, conn)
            if point == "applied":
                await (await conn.execute("select")).fetchall()  # so that the server has done all that was sent before
                die()
                return after

            def committed() -> None:
                after()
                die()

            return committed

        Batch.write = applied  # type: ignore[method-assign]  # as it is from here on
        return
    places: dict[str, tuple[Any, str, bool]] = {
        "begun": (generations, "begin", False),
        "comparing": (rebuilding, "differences", True),
        "indexed": (rebuilding, "_finish", False),
        "switching": (switching, "_register", True),
        "registered": (switching, "_register", False),
        "switched": (rebuilding, "switch", False),
        "dropping": (generations, "drop", True),
    }
    module, name, before = places[point]
    setattr(module, name, dying(getattr(module, name), die, before=before))


def dying(function: Callable[..., Any], die: Callable[[], None], *, before: bool) -> Callable[..., Any]:
    """The function with ``die`` before or behind it."""
    if asyncio.iscoroutinefunction(function):

        @wraps(function)
        async def wrapped(*args: Any, **kwargs: Any) -> Any:
            if before:
                die()
            result = await function(*args, **kwargs)
            if not before:
                die()
            return result

        return wrapped

    @wraps(function)
    def plain(*args: Any, **kwargs: Any) -> Any:
        if before:
            die()
        result = function(*args, **kwargs)
        if not before:
            die()
        return result

    return plain


async def main(plan: dict[str, Any]) -> None:
    if plan.get("point"):
        die_in(plan["point"], dies(plan.get("turn", 1)))
    events = plan.get("range_events", 50)
    effort = Effort(range_events=events, gathered_events=events, chunk=20)
    work: Callable[..., Any] = rebuilding.prove if plan.get("prove") else rebuilding.rebuild
    more = {} if plan.get("prove") else {"linger_seconds": 0}
    outcome = await work(plan["dsn"], PROJECTION, Codec(DECIDERS), by="test", effort=effort, **more)
    # Who goes on with the same generation may be the first to switch to it; then nobody feeds the one to compare with any more.
    overtaken = not plan.get("prove") and not outcome.different and not outcome.lost and await answers(plan["dsn"], outcome.generation)
    assert outcome.equal or overtaken, outcome


async def answers(dsn: str, generation: Generation) -> bool:
    async with await AsyncConnection.connect(dsn) as conn:
        found = standing(await current_generations(conn), PROJECTION).answers
        return found is not None and found.generation == generation.generation


class BuilderProcess:
    """The other end."""

    def __init__(self, dsn: str, **plan: Any) -> None:
        command = [sys.executable, "-m", "tests.support.builder_process", json.dumps({"dsn": dsn, **plan})]
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)

    def ended(self, seconds: float = 240) -> int:
        """Wait for its end: its exit code, or the number of its signal below zero. Anything but that and success is told."""
        _, told = self.process.communicate(timeout=seconds)
        assert self.process.returncode in (0, -signal.SIGKILL), told
        return self.process.returncode

    def kill(self) -> None:
        """End it at once, wherever it is."""
        self.process.kill()
        self.process.communicate()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))

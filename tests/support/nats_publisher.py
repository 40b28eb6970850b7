"""A publisher in a process of its own, for tests that kill and stop it at named points.

``python -m tests.support.nats_publisher JSON`` publishes until it is ended. In its ``turn``-th batch it meets its ``point`` and there gets
``signal`` from itself: ``before`` anything was sent, ``halfway`` through the batch, with everything sent ``but_commit``, with
the commit ``sent`` and its answer not awaited, or with the batch ``stored`` and nobody told.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adapters.nats import batches, publishing
from adapters.nats.batches import Message
from adapters.nats.bus import Bus

ROOT = Path(__file__).parents[2]
POINTS = ("before", "halfway", "but_commit", "sent", "stored")


def meet(point: str, turn: int, number: int, met: Path) -> None:
    """Send ourselves the signal when that point is reached."""
    append, turns = batches.append, iter(range(1, 1_000_000))

    def now() -> None:
        met.touch()
        os.kill(os.getpid(), number)

    async def met_append(bus: Bus, partition: int, behind: int, messages: Sequence[Message]) -> int:
        if next(turns) != turn:
            return await append(bus, partition, behind, messages)
        assert len(messages) > 2, "a batch with a middle"
        if point == "before":
            now()
        elif point == "stored":
            sequence = await append(bus, partition, behind, messages)
            now()
            return sequence
        else:
            watch(bus, {"halfway": len(messages) // 2, "but_commit": len(messages) - 1, "sent": len(messages)}[point])
        try:
            sequence = await append(bus, partition, behind, messages)
        except Exception as error:
            met.with_suffix(".after").write_text(type(error).__name__)
            raise
        met.with_suffix(".after").write_text("stored")
        return sequence

    def watch(bus: Bus, count: int) -> None:
        publish, sent = bus.client.publish, iter(range(1, 1_000_000))

        async def watched(*arguments: Any, **named: Any) -> None:
            await publish(*arguments, **named)
            if next(sent) == count:
                await bus.client.flush()  # the server has them all
                now()

        bus.client.publish = watched  # type: ignore[method-assign]  # of this one connection

    publishing.append = met_append  # type: ignore[attr-defined]  # the name it was imported under


async def main(plan: dict[str, Any]) -> None:
    if plan.get("point"):
        batches._SECONDS = 600.0  # who is stopped for longer than one waits for an answer would not come to hear it
        meet(plan["point"], plan["turn"], plan["signal"], Path(plan["met"]))
    options = publishing.Options(**plan["options"])
    await publishing.Publisher(plan["dsn"], range(64), options).run()


class PublisherProcess:
    """The other end."""

    def __init__(self, directory: Path, name: str, dsn: str, options: dict[str, Any], **plan: Any) -> None:
        self.met = directory / f"{name}.met"
        whole = {"dsn": dsn, "options": options, "met": str(self.met), **plan}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.nats_publisher", json.dumps(whole)], cwd=ROOT, stderr=subprocess.PIPE
        )

    def wait_until_met(self, seconds: float = 60) -> None:
        """Wait until it got its signal, and felt it."""
        deadline = time.monotonic() + seconds
        while not self.met.exists() or (self.process.poll() is None and self._state() != "T"):
            assert time.monotonic() < deadline, "it never got there"
            # In this order: it may meet its point, and end there, between the two.
            assert self.process.poll() is None or self.met.exists(), self.process.communicate()[1]
            time.sleep(0.01)

    def after(self) -> str | None:
        """What became of the batch in which it was stopped, once it went on: ``stored``, or the error's name."""
        file = self.met.with_suffix(".after")
        return file.read_text() or None if file.exists() else None

    def _state(self) -> str:
        return Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]

    def end(self) -> None:
        """Whatever happened: it is gone afterwards."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))

"""A worker of its own, for tests that kill one: ``python -m tests.support.follower_process JSON`` follows the quotas.

It prints ``ready`` when it has applied everything that was there, and leaves when it is told to by SIGTERM.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from domain.catalog import DECIDERS
from eventstore.codec import Codec
from projections.follower import Follower, Pace
from projections.quotas import Quotas

ROOT = Path(__file__).parents[2]


async def main(plan: dict[str, Any]) -> None:
    """Follow until SIGTERM."""
    follower = Follower(plan["dsn"], range(plan["partitions"]), [Quotas(Codec(DECIDERS))], None, Pace(**plan["pace"]))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, follower.stop)
    task = asyncio.create_task(follower.run())
    while follower.health().trouble is not None or any(follower.lag().values()):  # noqa: ASYNC110  # the follower has no event for it
        await asyncio.sleep(0.01)
    print("ready", flush=True)
    await task


class FollowerProcess:
    """The other end."""

    def __init__(self, dsn: str, partitions: int, pace: Pace) -> None:
        fields = {name: getattr(pace, name) for name in Pace.__slots__}
        plan = json.dumps({"dsn": dsn, "partitions": partitions, "pace": fields})
        command = [sys.executable, "-m", "tests.support.follower_process", plan]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def ready(self) -> None:
        """Wait until it follows."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line == "ready\n", self.process.communicate()[1]

    def end(self) -> None:
        """Whatever happened: it is gone afterwards."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))

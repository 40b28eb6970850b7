"""A process of its own at work on processes, effects and deadlines, for tests that kill it.

``python -m tests.support.reaction_process JSON`` works until SIGTERM. It kills itself, by SIGKILL, when it comes to its point:
``put`` when tasks were put and not committed, ``claimed`` when a lane was claimed and nothing done, ``performed`` when an effect has
asked the world and nothing was submitted, ``committed`` when a process's command was recorded and its task not removed, ``finished``
when a task was done and it is about to be removed with its lane, ``due`` when a deadline's command was recorded, ``drain`` when it was told
to stop with a task under way. ``chance`` kills it at any of these with a small probability, ``never`` never.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from domain.kernel.process import Effect, Happened, Named, Process, Tools
from eventstore.requests import Outcome, Request
from eventstore.store import Store
from projections import reactions, schema, task_table
from projections.deadlines import DeadlineReader, Deadlines
from projections.follower import Follower, Pace
from projections.reactions import Reactors
from projections.scheduler import Scheduler
from projections.tasks import Tasks
from tests.support.till import TILL, Open, Take
from tests.support.trial import TRIAL, Begun, Ended

ROOT = Path(__file__).parents[2]
DECIDERS = (TRIAL, TILL)


def stocking(one: Happened) -> Sequence[Named]:
    """A till for each trial, and two takes from it."""
    till = one.stream.replace("trial", "till")
    takes = Take(take_id="first"), Take(take_id="second", twice=True)
    return [Named("open", TILL, till, Open(room=100)), Named("first", TILL, till, takes[0]), Named("second", TILL, till, takes[1])]


STOCK = Process("stock", (Begun,), stocking, from_start=True)


class Death:
    """Where the process dies."""

    def __init__(self, point: str, seed: int) -> None:
        self._point, self._random = point, random.Random(seed)

    def at(self, point: str) -> None:
        """Die here, if this is where."""
        if point == self._point or (self._point == "chance" and self._random.random() < 0.08):
            os.kill(os.getpid(), signal.SIGKILL)

    def after(self, point: str, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        """The same call, and death behind it."""

        async def called(*arguments: Any, **more: Any) -> Any:
            result = await call(*arguments, **more)
            self.at(point)
            return result

        return called

    def before(self, point: str, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        """The same call, and death in front of it."""

        async def called(*arguments: Any, **more: Any) -> Any:
            self.at(point)
            return await call(*arguments, **more)

        return called


class Mortal:
    """A store whose user dies when a command of a process or a deadline was recorded."""

    def __init__(self, store: Store, death: Death) -> None:
        self.store, self.codec, self._death = store, store.codec, death

    async def submit(self, request: Request) -> Outcome:
        """See the store."""
        outcome = await self.store.submit(request)
        self._death.at("due" if request.actor == "process:deadline" else "committed")
        return outcome


async def main(plan: dict[str, Any]) -> None:
    """Work until SIGTERM."""
    death, dsn, calls = Death(plan["point"], plan["seed"]), plan["dsn"], os.open(plan["calls"], os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    waits = asyncio.Event()

    async def billing(one: Happened, tools: Tools) -> Sequence[Named]:
        os.write(calls, tools.idempotency_key.encode() + b"\n")
        death.at("performed")
        if plan["point"] == "drain":
            print("under way", flush=True)
            await waits.wait()
        return [Named("paid", TILL, one.stream.replace("trial", "till-bill"), Open(room=1))]

    schema.create(dsn)
    store = await Store.open(dsn, DECIDERS)
    mortal: Any = Mortal(store, death)
    reactors = Reactors([STOCK, Effect("bill", (Ended,), billing, from_start=True)], mortal, dsn)
    tasks = Tasks(dsn, range(store.partitions), reactors.handlers, lease_seconds=0.5)
    tasks.poll_seconds = 0.05
    patched: Any = tasks
    patched._turn_of, patched._leave = death.before("claimed", tasks._turn_of), death.before("finished", tasks._leave)
    queue: Any = reactions
    queue.put = death.after("put", task_table.put)
    reader = await DeadlineReader.open(dsn, store.codec)
    scheduler = Scheduler(mortal, [reader], reader.now, seconds=0.05)
    consumers = [Deadlines(store.codec), *reactors.consumers(tasks.wake)]
    follower = Follower(dsn, range(store.partitions), consumers, store.waker, Pace(poll=0.05, poll_idle=0.05, lease=0))
    services: list[Any] = [follower, tasks, scheduler]
    running = [asyncio.create_task(service.run()) for service in services]

    def stop() -> None:
        for service in services:
            service.stop()
        death.at("drain")

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)
    print("ready", flush=True)
    await asyncio.gather(*running)
    await reader.close()
    await reactors.close()
    await store.drain()


class ReactionProcess:
    """The other end."""

    def __init__(self, dsn: str, calls: Path, point: str, seed: int = 0) -> None:
        plan = json.dumps({"dsn": dsn, "calls": str(calls), "point": point, "seed": seed})
        command = [sys.executable, "-m", "tests.support.reaction_process", plan]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def says(self, line: str) -> None:
        """Wait for what it prints."""
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        assert said == line + "\n", self.process.communicate()[1]

    @property
    def killed(self) -> bool:
        """Whether it came to its end by its own hand."""
        return self.process.poll() == -signal.SIGKILL

    def end(self) -> None:
        """Have it leave; whatever happened, it is gone afterwards."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(90)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.communicate()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))

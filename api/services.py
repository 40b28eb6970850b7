"""What works in the background of a process, from its start until it drains."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

import structlog


class Service(Protocol):
    """Something that runs until it is told to stop, and then finishes what it has begun."""

    async def run(self) -> None:
        """Work until :meth:`stop`; outlives lost connections."""
        ...

    def stop(self) -> None:
        """Have :meth:`run` finish what is under way and return."""
        ...


async def _run(service: Service) -> None:
    structlog.contextvars.bind_contextvars(service=type(service).__name__)  # of this task alone: each of its log lines says whose it is
    await service.run()


@asynccontextmanager
async def running(services: Sequence[Service]) -> AsyncIterator[None]:
    """Run all of them; leaving stops them one by one, the last first, because a later one may use an earlier one."""
    tasks = [asyncio.create_task(_run(service), name=type(service).__name__) for service in services]
    try:
        yield
    finally:
        for service, task in reversed(list(zip(services, tasks, strict=True))):
            service.stop()
            await asyncio.wait([task])
        await asyncio.gather(*tasks, return_exceptions=True)

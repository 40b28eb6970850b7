"""Has a program that comes with a newer fold build it beside the old one, while it does its other work."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping

import psycopg
import structlog
from psycopg import AsyncConnection

from eventstore.codec import Codec
from eventstore.errors import StoreError
from projections.building import GENTLE, CannotBuild, Effort
from projections.catalog import PROJECTIONS
from projections.consumer import Projection
from projections.generations import current_generations, standing
from projections.rebuilding import Outdated, rebuild, turn

log = structlog.get_logger(__name__)


class Renewal:
    """A service that looks now and then whether a read model has to be built, and builds and switches it."""

    def __init__(
        self,
        dsn: str,
        codec: Codec,
        projections: Mapping[str, Projection] = PROJECTIONS,
        every_seconds: float = 5.0,
        effort: Effort = GENTLE,
    ) -> None:
        self._dsn, self._codec, self._projections = dsn, codec, projections
        self._every, self._effort = every_seconds, effort
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Work until :meth:`stop`. What is under way then is left as it is, and gone on with another time."""
        working = asyncio.create_task(self._work(), name="renewal")
        await self._stopping.wait()
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await working

    def stop(self) -> None:
        """Have :meth:`run` return."""
        self._stopping.set()

    async def _work(self) -> None:
        while True:
            for projection in self._projections.values():
                try:
                    await self._renew(projection)
                except Exception as error:  # nobody awaits this task, so whatever it is has to be told here
                    known = isinstance(error, CannotBuild | Outdated | StoreError | psycopg.Error | OSError)
                    log.warning(
                        "projection.build_failed", projection=projection.name, exc_info=None if known else error, error=_told(error)
                    )
            await asyncio.sleep(self._every)

    async def _renew(self, projection: Projection) -> None:
        async with await AsyncConnection.connect(self._dsn, autocommit=True) as conn:
            needed = standing(await current_generations(conn), projection).needs(projection)
        if not needed:
            return
        async with turn(self._dsn, projection.name) as ours:
            log.info("projection.builds", projection=projection.name, version=projection.version, alone=ours)
            # What another fold made is no measure for this one.
            outcome = await rebuild(self._dsn, projection, self._codec, by="worker", compare=False, effort=self._effort)
            log.info("projection.switched", projection=projection.name, generation=outcome.generation.generation)


def _told(error: Exception) -> str:
    """Without what an event may hold."""
    return str(error) if isinstance(error, Outdated) else type(error).__name__

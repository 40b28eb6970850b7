"""Telling other processes that something was appended, so that they need not wait for their next look.

A hint and no more: whoever follows the log looks at it now and then in any case. So it is never part of a writing transaction,
nobody waits for it, and where it cannot work (behind a pooler that hands on no notifications) nothing is missing but haste.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Sequence

import psycopg
import structlog
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

log = structlog.get_logger(__name__)

CHANNEL = "holdbook_appended"
_PROCESS = secrets.token_hex(8)
_OPTIONS = "-c synchronous_commit=off -c statement_timeout=5s -c lock_timeout=5s -c tcp_user_timeout=10000"
"""A notification is a commit of its own; nobody needs the disk to have seen it."""
_LEAST_SECONDS = 0.05
_LONGEST_SECONDS = 5.0
_LOST = (psycopg.Error, OSError, TimeoutError)


class _Session:
    """Keeps one connection, and goes on with another one when it is lost, until told to stop."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._stopping = asyncio.Event()
        self._backoff = _LEAST_SECONDS

    async def run(self) -> None:
        """Work until :meth:`stop`."""
        while not self._stopping.is_set():
            try:
                if not await self._wanted():
                    return
                async with await self._connect() as conn:
                    await self._use(conn)
            except _LOST as error:
                if self._backoff == _LEAST_SECONDS:  # told once for each time that it is lost
                    log.warning("wakeups.lost", task=type(self).__name__, error=type(error).__name__)
                await self._pause(self._backoff)
                self._backoff = min(self._backoff * 2, _LONGEST_SECONDS)

    def stop(self) -> None:
        """Have :meth:`run` return."""
        self._stopping.set()

    async def _wanted(self) -> bool:
        """Wait until a connection is of use; False when it will not be any more."""
        return True

    async def _use(self, conn: AsyncConnection[TupleRow]) -> None:
        raise NotImplementedError

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    async def _connect(self) -> AsyncConnection[TupleRow]:
        return await AsyncConnection.connect(
            self._dsn,
            autocommit=True,
            options=_OPTIONS,
            connect_timeout=5,
            keepalives_idle=5,
            keepalives_interval=2,
            keepalives_count=3,
            application_name="holdbook wake-ups",
        )


class Notifier(_Session):
    """Notifies other processes whenever ``appended`` is set, at most twenty times a second, on a connection of its own.

    The connection is made when there is something to tell for the first time.
    """

    def __init__(self, dsn: str) -> None:
        super().__init__(dsn)
        self.appended = asyncio.Event()

    def stop(self) -> None:
        """Have :meth:`run` tell what it has not told yet, if it is connected, and return."""
        super().stop()
        self.appended.set()

    async def _wanted(self) -> bool:
        await self.appended.wait()
        return not self._stopping.is_set()

    async def _use(self, conn: AsyncConnection[TupleRow]) -> None:
        while True:
            await self.appended.wait()
            self.appended.clear()
            try:
                await conn.execute("select pg_notify(%s, %s)", (CHANNEL, _PROCESS))
            except _LOST:
                self.appended.set()
                raise
            self._backoff = _LEAST_SECONDS
            if self._stopping.is_set():
                return
            await self._pause(_LEAST_SECONDS)


class Listener(_Session):
    """Sets all of ``wakers`` when another process tells that it has appended something. A background service."""

    def __init__(self, dsn: str, wakers: Sequence[asyncio.Event]) -> None:
        super().__init__(dsn)
        self._wakers = wakers
        self.listening = False

    async def _use(self, conn: AsyncConnection[TupleRow]) -> None:
        await conn.execute(f"listen {CHANNEL}")
        self.listening, self._backoff = True, _LEAST_SECONDS
        self._wake()  # whatever was told before is not told again
        stopping = asyncio.create_task(self._stopping.wait())
        hearing = asyncio.create_task(self._hear(conn))
        try:
            await asyncio.wait({stopping, hearing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.listening = False
            stopping.cancel()
            hearing.cancel()
            await asyncio.wait({hearing})
        if not hearing.cancelled() and (error := hearing.exception()) is not None:
            raise error

    async def _hear(self, conn: AsyncConnection[TupleRow]) -> None:
        async for notify in conn.notifies():
            if notify.payload != _PROCESS:  # in this process whoever appends wakes them himself
                self._wake()

    def _wake(self) -> None:
        for waker in self._wakers:
            waker.set()

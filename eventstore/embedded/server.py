"""The embedded server as others see it: start or join it, keep it running, stop it."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from eventstore.embedded.account import Account
from eventstore.embedded.binaries import bin_directory, reachable_binaries
from eventstore.embedded.cluster import make_cluster
from eventstore.embedded.directory import DataDirectory
from eventstore.embedded.errors import EmbeddedError
from eventstore.embedded.ownership import AlreadyOwned, ownership, running_address
from eventstore.embedded.postmaster import Postmaster
from eventstore.embedded.process import POLL_SECONDS, Programs
from eventstore.embedded.settings import SETTINGS
from eventstore.embedded.sockets import socket_directory

log = structlog.get_logger(__name__)


def connect_or_start(
    data: Path, *, binaries: Path | None = None, settings: Mapping[str, str] | None = None, timeout_seconds: float = 60.0
) -> EmbeddedPostgres:
    """The server of this data directory: another process's when one owns it (``owned`` is false), else started here."""
    server = EmbeddedPostgres(data, binaries=binaries, settings=settings, timeout_seconds=timeout_seconds)
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            server.start()
        except AlreadyOwned:
            # The owner may still be starting, or just ending: then the directory becomes ours in the next round.
            if server.attach():
                return server
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_SECONDS)
        else:
            return server


class EmbeddedPostgres:
    """One server on one data directory. ``start`` and ``stop`` block; any thread may call them.

    ``settings`` replaces single entries of :data:`SETTINGS`; ``timeout_seconds`` bounds each wait for readiness, not
    counting the time PostgreSQL says it is recovering.
    """

    def __init__(
        self,
        data: Path,
        *,
        binaries: Path | None = None,
        settings: Mapping[str, str] | None = None,
        timeout_seconds: float = 60.0,
    ) -> None:
        self._directory = DataDirectory(data.expanduser().resolve())
        self._binaries = binaries
        self._settings = {**SETTINGS, **(settings or {})}
        self._timeout_seconds = timeout_seconds
        self._dsn: str | None = None
        self._postmaster: Postmaster | None = None
        self._cleanup = contextlib.ExitStack()
        self._mutex = threading.RLock()
        self._stopping = threading.Event()

    @property
    def data(self) -> Path:
        return self._directory.path

    @property
    def cluster(self) -> Path:
        """PostgreSQL's own files."""
        return self._directory.cluster

    @property
    def dsn(self) -> str:
        """The address with its password. For connecting, never for a log: see :func:`redact`."""
        if self._dsn is None:
            raise EmbeddedError("the embedded PostgreSQL has not been started")
        return self._dsn

    @property
    def owned(self) -> bool:
        """Whether this object, and not another process, keeps the server running."""
        return self._postmaster is not None

    @property
    def pid(self) -> int | None:
        """The postmaster's process id, where it is our child."""
        return self._postmaster.pid if self._postmaster else None

    def __enter__(self) -> Self:
        if self._dsn is None:
            self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def start(self) -> str:
        """Own the data directory, make the cluster if there is none, start the server, and return its address.

        Raises :class:`AlreadyOwned` when another process has the directory, :class:`EmbeddedError` when the server
        does not become ready.
        """
        with self._mutex:
            if self.owned:
                return self.dsn
            self._stopping.clear()
            account = Account.for_cluster(self.cluster)
            self._directory.make(account)
            with contextlib.ExitStack() as cleanup:
                cleanup.enter_context(ownership(self._directory, account))
                self._dsn = None  # of an earlier owner's server, if of any
                programs = Programs(reachable_binaries(bin_directory(self._binaries), account), account, self._directory)
                cleanup.callback(programs.close)
                sockets = cleanup.enter_context(socket_directory(self.data, account))
                if not (self.cluster / "PG_VERSION").exists():
                    make_cluster(self._directory, programs, self._timeout_seconds)
                postmaster = Postmaster(self._directory, programs, sockets, self._settings, self._timeout_seconds)
                cleanup.callback(postmaster.end)
                self._dsn = postmaster.run(self._stopping)
                self._postmaster = postmaster
                self._cleanup = cleanup.pop_all()
            atexit.register(self.stop)
            return self.dsn

    def attach(self) -> bool:
        """Use the server that another process owns. False when it does not answer (yet)."""
        if dsn := running_address(self._directory):
            self._dsn = dsn
        return dsn is not None

    def alive(self) -> bool:
        """Whether the server's process runs; for a server we do not own, whether it answers."""
        if postmaster := self._postmaster:
            return postmaster.alive()
        return self._dsn is not None and self.attach()

    def restart_if_dead(self) -> bool:
        """Start the server again if its process has died under us. Says whether it had."""
        with self._mutex:
            if self._postmaster is None or self._postmaster.alive():
                return False
            self._dsn = self._postmaster.run(self._stopping)
            return True

    async def watch(
        self, told: Callable[[str], None] | None = None, *, poll_seconds: float = 0.1, longest_backoff_seconds: float = 30.0
    ) -> None:
        """Restart the server whenever it dies, until cancelled. ``told`` hears what happened, in words."""
        tell = told or log.warning
        backoff_seconds, died_at = poll_seconds, -longest_backoff_seconds
        while True:
            await asyncio.sleep(poll_seconds)
            if not self.owned or self.alive():
                continue
            # One that dies again and again is not restarted at full speed.
            if time.monotonic() - died_at > 2 * longest_backoff_seconds:
                backoff_seconds = poll_seconds
            died_at = time.monotonic()
            tell("the embedded PostgreSQL died")
            await asyncio.sleep(backoff_seconds)
            backoff_seconds = min(2 * backoff_seconds, longest_backoff_seconds)
            try:
                if await asyncio.to_thread(self.restart_if_dead):
                    tell("the embedded PostgreSQL is back")
            except (EmbeddedError, OSError) as error:
                tell(f"the embedded PostgreSQL did not come back: {error}")

    def stop(self) -> None:
        """Shut the server down (fast: open transactions roll back) and give the data directory up."""
        self._stopping.set()
        with self._mutex:
            atexit.unregister(self.stop)
            self._dsn = self._postmaster = None
            self._cleanup.close()

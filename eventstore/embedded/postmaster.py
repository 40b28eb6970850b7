"""The server's process, as our child."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import psycopg

from eventstore.embedded.address import DATABASE, address
from eventstore.embedded.directory import DataDirectory
from eventstore.embedded.errors import EmbeddedError
from eventstore.embedded.process import POLL_SECONDS, Programs, end
from eventstore.embedded.remains import clear_remains
from eventstore.embedded.serverlog import log_tail
from eventstore.embedded.settings import as_arguments, on_socket_only


class Postmaster:
    """Runs the cluster of a data directory that is ours. ``timeout_seconds`` is as in ``EmbeddedPostgres``."""

    def __init__(
        self, directory: DataDirectory, programs: Programs, sockets: Path, settings: Mapping[str, str], timeout_seconds: float
    ) -> None:
        self._directory = directory
        self._programs = programs
        self._sockets = sockets
        self._settings = {**settings, **on_socket_only(sockets)}
        self._timeout_seconds = timeout_seconds
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def run(self, stopping: threading.Event) -> str:
        """Start the server, again if it died, and return its address when it is ready.

        Raises :class:`EmbeddedError`, with nothing left running, when it does not become so, or ``stopping`` is set meanwhile.
        """
        clear_remains(self._directory.cluster, self._sockets)
        if "wal_compression" not in self._settings:
            self._settings["wal_compression"] = self._best_wal_compression()
        self._process = self._start(*as_arguments(self._settings))
        try:
            return self._wait_until_ready(stopping)
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        if self._process is not None:
            end(self._process)
            self._process = None

    def _best_wal_compression(self) -> str:
        """lz4 is several times faster than pglz ("on"), where it was compiled in."""
        can_lz4 = self._start("-c", "wal_compression=lz4", "-C", "wal_compression", quiet=True)
        return "lz4" if can_lz4.wait(self._timeout_seconds) == 0 else "on"

    def _start(self, *arguments: str, quiet: bool = False) -> subprocess.Popen[bytes]:
        return self._programs.start("postgres", "-D", str(self._directory.cluster), *arguments, quiet=quiet)

    def _wait_until_ready(self, stopping: threading.Event) -> str:
        try:
            password = self._directory.password.read_text()
        except OSError as error:
            raise EmbeddedError(f"the password of this cluster cannot be read: {error}") from error
        deadline = time.monotonic() + self._timeout_seconds
        while True:
            try:
                _ensure_database(address(password, str(self._sockets), "postgres"))
                return address(password, str(self._sockets))
            except psycopg.OperationalError as error:
                if stopping.is_set():
                    raise EmbeddedError("the embedded PostgreSQL was stopped while starting") from None
                if not self.alive():
                    raise EmbeddedError(f"the embedded PostgreSQL ended while starting:\n{log_tail(self._directory)}") from None
                if "the database system is" in str(error):  # starting up, or recovering: as long as it takes
                    deadline = time.monotonic() + self._timeout_seconds
                elif time.monotonic() > deadline:
                    raise EmbeddedError(
                        f"the embedded PostgreSQL is not ready after {self._timeout_seconds:g} seconds: {error}\n"
                        f"{log_tail(self._directory)}"
                    ) from None
            time.sleep(POLL_SECONDS)


def _ensure_database(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True, connect_timeout=5) as connection:
        if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone():
            connection.execute(f'CREATE DATABASE "{DATABASE}"')

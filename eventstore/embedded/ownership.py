"""Who keeps the server of a data directory running, and how everybody else finds that server."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import psycopg

from eventstore.embedded.account import Account
from eventstore.embedded.address import address
from eventstore.embedded.directory import DataDirectory, private
from eventstore.embedded.errors import EmbeddedError


class AlreadyOwned(EmbeddedError):
    """Another live process owns the data directory."""


@contextlib.contextmanager
def ownership(directory: DataDirectory, account: Account) -> Iterator[None]:
    """Hold the directory's lock. Raises :class:`AlreadyOwned`."""
    # The server does not inherit it (close-on-exec), or an orphan of a killed owner would keep it.
    with _open_lock(directory.lock) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read(20).decode(errors="replace").strip()
            raise AlreadyOwned(f"the data directory {directory.path} is in use by process {owner or 'unknown'}") from None
        # Not before: the present owner may be an ordinary user, who has to be able to open the file again.
        account.give(lock.fileno())
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n".encode())
        yield


def running_address(directory: DataDirectory) -> str | None:
    """The address of the server that runs on the directory, whoever owns it, or None when none answers (yet)."""
    try:
        # The owner's temporary directory may be another than ours; the postmaster wrote down where its socket is.
        sockets = (directory.cluster / "postmaster.pid").read_text().splitlines()[4]
        dsn = address(directory.password.read_text(), sockets)
        psycopg.connect(dsn, connect_timeout=5).close()
    except (FileNotFoundError, IndexError, psycopg.OperationalError):
        return None
    return dsn


def _open_lock(path: Path) -> FileIO:
    try:
        return open(path, "a+b", buffering=0, opener=private)
    except OSError as error:
        raise EmbeddedError(f"cannot open {path}: {error}") from error

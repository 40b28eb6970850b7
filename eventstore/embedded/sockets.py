"""The directory of the server's Unix socket."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from eventstore.embedded.account import Account
from eventstore.embedded.address import PORT
from eventstore.embedded.errors import EmbeddedError

SOCKET: Final = f".s.PGSQL.{PORT}"
LONGEST_SOCKET_PATH: Final = 107 if sys.platform == "linux" else 103  # sun_path without its final zero byte


@contextlib.contextmanager
def socket_directory(data: Path, account: Account) -> Iterator[Path]:
    """A short path, always the same for one data directory, that nobody but the server's user may enter."""
    directory = _choose(data, account)
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    # Whoever may write to the parent could have made this name first, to listen in our place.
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (os.geteuid(), account.uid) or found.st_mode & 0o077:
        raise EmbeddedError(f"{directory} is there already and is not a private directory of {account.name}: remove it")
    account.give_directory(directory)
    try:
        yield directory
    finally:
        with contextlib.suppress(OSError):  # not empty: the server did not end
            directory.rmdir()


def _choose(data: Path, account: Account) -> Path:
    name = "holdbook-" + hashlib.sha256(os.fsencode(data)).hexdigest()[:16]
    for parent in dict.fromkeys((Path(tempfile.gettempdir()).resolve(), Path("/tmp").resolve())):  # noqa: S108  # checked by the caller
        directory = parent / name
        if len(os.fsencode(directory / SOCKET)) <= LONGEST_SOCKET_PATH and not account.first_unreachable(parent):
            return directory
    raise EmbeddedError(f"no temporary directory is short enough and open to {account.name}: set TMPDIR to one")

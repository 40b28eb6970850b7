"""The data directory: where it is, what lies in it, and who can get to it."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from eventstore.embedded.account import Account
from eventstore.embedded.errors import EmbeddedError


def data_directory(setting: Path | None = None) -> Path:
    """Where the data is kept: the setting, ``/var/lib/holdbook`` for root, else the user's own data directory."""
    if setting is not None:
        return setting.expanduser().resolve()
    return Path("/var/lib/holdbook") if os.geteuid() == 0 else Path(platformdirs.user_data_dir("holdbook"))


class DataDirectory:
    """The paths in one data directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = path / "lock"  # held by the owner
        self.password = path / "password"  # of the superuser, readable by the server's user only
        self.cluster = path / "postgres"  # PostgreSQL's own files
        self.cluster_draft = path / "postgres.new"  # the same while initdb works
        self.log = path / "postgres.log"  # what the server says
        self.earlier_log = path / "postgres.log.1"

    def make(self, account: Account) -> None:
        """Make what is missing on the way. Raises :class:`EmbeddedError` when the account cannot enter."""
        missing = [path for path in (self.path, *self.path.parents) if not path.exists()]
        try:
            for path in reversed(missing):
                path.mkdir(mode=0o700, exist_ok=True)
                if account.other:
                    path.chmod(0o711)  # ours, made now, and the server's user has to pass through
        except OSError as error:
            raise EmbeddedError(f"cannot make the data directory {self.path}: {error}") from error
        if not self.path.is_dir():
            raise EmbeddedError(f"the data directory {self.path} is not a directory")
        if blocked := account.first_unreachable(self.path):
            raise EmbeddedError(
                f"PostgreSQL cannot run as root, and the user it runs as ({account.name}) cannot enter {blocked}: "
                f"choose a data directory elsewhere with HOLDBOOK_DATA, or let that user pass (chmod o+x {blocked})"
            )


def private(path: str, flags: int) -> int:
    """An opener for :func:`open`: new files are for their owner only, and a symbolic link is not followed."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)

"""Which user of the operating system the server runs as, and where that user may go."""

from __future__ import annotations

import contextlib
import os
import pwd
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eventstore.embedded.errors import EmbeddedError


@dataclass(frozen=True, slots=True)
class Account:
    """The operating system user the server runs as; ``other`` when that is not who we are."""

    uid: int
    gid: int
    other: bool

    @classmethod
    def for_cluster(cls, cluster: Path) -> Account:
        if os.geteuid() != 0:
            return cls(os.geteuid(), os.getegid(), False)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            found = cluster.stat()
            if found.st_uid != 0:
                return cls(found.st_uid, found.st_gid, True)
        for name in ("postgres", "nobody"):
            with contextlib.suppress(KeyError):
                entry = pwd.getpwnam(name)
                return cls(entry.pw_uid, entry.pw_gid, True)
        raise EmbeddedError("PostgreSQL cannot run as root, and there is neither a user postgres nor nobody to run it as")

    @property
    def name(self) -> str:
        with contextlib.suppress(KeyError):
            return pwd.getpwuid(self.uid).pw_name
        return str(self.uid)

    @property
    def arguments(self) -> dict[str, Any]:
        """For ``Popen``."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []} if self.other else {}

    def give(self, handle: int) -> None:
        """Make the open file or directory the server's user's own."""
        if self.other:
            os.fchown(handle, self.uid, self.gid)

    def give_directory(self, path: Path) -> None:
        """Likewise, unless something that is no directory has taken its place by now."""
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            self.give(handle)
        finally:
            os.close(handle)

    def first_unreachable(self, directory: Path) -> Path | None:
        """The outermost directory on the way that the account may not enter. Asked by trying: modes do not tell of ACLs."""
        if self.other and not self._can_enter(directory):
            return next(path for path in (*reversed(directory.parents), directory) if not self._can_enter(path))
        return None

    def _can_enter(self, path: Path) -> bool:
        return subprocess.run(["test", "-x", path], check=False, cwd="/", **self.arguments).returncode == 0

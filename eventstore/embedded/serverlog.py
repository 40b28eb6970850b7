"""What PostgreSQL's programs say, kept in the data directory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from io import BufferedWriter
from typing import Final

from eventstore.embedded.account import Account
from eventstore.embedded.directory import DataDirectory, private

LARGEST_LOG_BYTES: Final = 10_000_000


@contextlib.contextmanager
def open_log(directory: DataDirectory, account: Account) -> Iterator[BufferedWriter]:
    """For appending; a large one is put aside first, in place of the one put aside before."""
    with contextlib.suppress(FileNotFoundError):
        if directory.log.stat().st_size > LARGEST_LOG_BYTES:
            directory.log.replace(directory.earlier_log)
    with open(directory.log, "ab", opener=private) as log:
        account.give(log.fileno())
        yield log


def log_tail(directory: DataDirectory) -> str:
    """The end of it, for messages about what went wrong."""
    with contextlib.suppress(OSError):
        return directory.log.read_text(errors="replace")[-1500:].strip()
    return "(no log)"

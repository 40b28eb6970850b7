"""Starting PostgreSQL's programs so that they do not outlive us, and ending them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import IO, Final

from eventstore.embedded.account import Account
from eventstore.embedded.directory import DataDirectory
from eventstore.embedded.serverlog import open_log

POLL_SECONDS: Final = 0.02
STOP_SECONDS: Final = 60.0

_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None)


class Programs:
    """PostgreSQL's programs, run under one account and told by the kernel to shut down when we die."""

    def __init__(self, binaries: Path, account: Account, directory: DataDirectory) -> None:
        self.account = account
        self._binaries = binaries
        self._directory = directory
        # PR_SET_PDEATHSIG fires when the *thread* that started the child ends, so all children are started
        # by one thread that lives as long as we own the server.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="postgres-supervisor")

    def start(self, program: str, *arguments: str, quiet: bool = False) -> subprocess.Popen[bytes]:
        """Start a program. It talks to the server's log, or to nobody when ``quiet``."""
        command = [str(self._binaries / program), *arguments]
        if quiet:
            return self._starter.submit(self._popen, command, subprocess.DEVNULL).result()
        with open_log(self._directory, self.account) as log:
            return self._starter.submit(self._popen, command, log).result()

    def close(self) -> None:
        self._starter.shutdown()

    def _popen(self, command: list[str], output: IO[bytes] | int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*_death_signal(), *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            # Our own environment may hold secrets, and PG* variables that would redirect the server.
            env={"PATH": os.defpath, "LC_ALL": "C"},
            # Ctrl-C goes to a whole process group: the server must outlive our own orderly end.
            start_new_session=True,
            preexec_fn=None if _death_signal() else _die_with_parent,  # noqa: PLW1509  # one prctl: takes no lock, allocates nothing
            **self.account.arguments,
        )


def end(process: subprocess.Popen[bytes]) -> None:
    """Fast shutdown, then the rough ways."""
    for gentle, patience_seconds in ((signal.SIGINT, STOP_SECONDS), (signal.SIGQUIT, 5.0), (signal.SIGKILL, None)):
        if process.poll() is not None:
            return
        process.send_signal(gentle)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience_seconds)


@cache
def _death_signal() -> tuple[str, ...]:
    """util-linux's ``setpriv`` asks the kernel for the signal after the change of user, which would cancel it."""
    setpriv = shutil.which("setpriv") if sys.platform == "linux" else None
    if setpriv and b"--pdeathsig" in subprocess.run([setpriv, "--help"], check=False, capture_output=True).stdout:
        return (setpriv, "--pdeathsig", "INT", "--")
    return ()


def _die_with_parent() -> None:
    """The same where ``setpriv`` is missing or is busybox's. Elsewhere than on Linux only ``atexit`` stops the server."""
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGINT))

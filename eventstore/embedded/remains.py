"""What an earlier owner that was killed may have left: running processes, and lock files of what does not run."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import structlog

from eventstore.embedded.errors import EmbeddedError
from eventstore.embedded.process import POLL_SECONDS, STOP_SECONDS
from eventstore.embedded.sockets import SOCKET

log = structlog.get_logger(__name__)


def clear_remains(cluster: Path, sockets: Path) -> None:
    """End what runs on the cluster and remove its lock files. Only for the owner of the data directory."""
    postmaster = _written_postmaster(cluster)
    if postmaster is not None and postmaster in server_processes(cluster):
        log.warning("an earlier PostgreSQL of this data directory still runs; stopping it", pid=postmaster)
        _signal(postmaster, signal.SIGINT)
        patience_seconds = STOP_SECONDS
    else:
        patience_seconds = 5.0  # without a postmaster its children leave by themselves in moments
    if not _all_gone(cluster, patience_seconds):
        for pid in server_processes(cluster):
            _signal(pid, signal.SIGKILL)
        if not _all_gone(cluster, 10.0):
            raise EmbeddedError(f"processes of an earlier PostgreSQL do not end: {sorted(server_processes(cluster))}")
    # PostgreSQL trusts the process ids in these files, and after a reboot (or in a new container, where ids are few)
    # such an id belongs to somebody else. We hold the lock and looked: nobody uses the cluster.
    for leftover in (cluster / "postmaster.pid", sockets / f"{SOCKET}.lock", sockets / SOCKET):
        leftover.unlink(missing_ok=True)


def server_processes(cluster: Path) -> set[int]:
    """PostgreSQL's processes on this cluster: it makes the cluster the working directory of each."""
    if sys.platform == "linux":
        return {pid for pid, name, directory in _linux_processes() if name == "postgres" and directory == str(cluster)}
    pid = _written_postmaster(cluster)
    return {pid} if pid is not None and _program_name(pid).endswith("postgres") else set()


def _written_postmaster(cluster: Path) -> int | None:
    """The process id in the cluster's lock file, whoever has that id by now."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        return int((cluster / "postmaster.pid").read_text().split("\n", 1)[0])
    return None


def _linux_processes() -> Iterator[tuple[int, str, str]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):  # it ended, or it is somebody else's
                yield int(entry.name), (entry / "comm").read_text().rstrip(), str((entry / "cwd").readlink())


def _program_name(pid: int) -> str:
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(["ps", "-o", "comm=", "-p", str(pid)], check=True, capture_output=True, text=True).stdout.strip()
    return ""


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _all_gone(cluster: Path, timeout_seconds: float) -> bool:
    deadline = time.monotonic() + timeout_seconds
    while server_processes(cluster):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True

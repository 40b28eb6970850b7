"""Our own command line as processes that tests start, kill, stop and start again."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from secrets import randbelow

from tests.conftest import MASTER_KEY

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    """A port that nobody listens on now; see :func:`free_ports`."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on, different ones.

    From below those that the system gives to whoever connects or asks for any: a server that begins later, or anew, still finds its own.
    """
    with contextlib.ExitStack() as stack:
        listeners: list[socket.socket] = []
        while len(listeners) < count:
            with contextlib.suppress(OSError):
                place = ("127.0.0.1", 20_000 + randbelow(12_000))
                listeners.append(stack.enter_context(socket.create_server(place)))
        return [int(each.getsockname()[1]) for each in listeners]


def surroundings(dsn: str, **settings: str) -> dict[str, str]:
    """The environment of a Holdbook process on that database: nothing of the machine's own settings reaches it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HOLDBOOK_")}
    given = {"HOLDBOOK_DATABASE_URL": dsn, "HOLDBOOK_MASTER_KEY": MASTER_KEY, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    return {**kept, **given, **settings}


def holdbook(*arguments: str, environment: Mapping[str, str], seconds: float = 240) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    command = [sys.executable, "-m", "api.cli", *arguments]
    return subprocess.run(command, env=dict(environment), cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)


class Managed:
    """A command that should run, and does again after :meth:`ensure`."""

    def __init__(self, log: Path, environment: Mapping[str, str], *arguments: str) -> None:
        self.arguments, self._environment, self._log = arguments, dict(environment), log
        self._process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def ensure(self) -> None:
        """Start it if it does not run."""
        if not self.running:
            with self._log.open("ab") as log:
                command = [sys.executable, "-m", "api.cli", *self.arguments]
                self._process = subprocess.Popen(command, env=self._environment, cwd=ROOT, stdout=log, stderr=log)
            self.starts += 1

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """End it at once."""
        self.signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait(60)

    def end(self, seconds: float = 60) -> int:
        """Have it drain; returns its exit code. One that does not leave in time is killed."""
        assert self._process is not None
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return -1

    def said(self) -> str:
        """What it printed so far."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def await_said(self, words: str, seconds: float = 60) -> None:
        """Wait until it printed these words."""
        deadline = time.monotonic() + seconds
        while True:
            running = self.running  # asked first: it may say them and end
            if words in self.said():
                return
            assert running, self.said()[-2_000:]
            assert time.monotonic() < deadline, self.said()[-2_000:]
            time.sleep(0.02)

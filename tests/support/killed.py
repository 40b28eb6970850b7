"""Runs commands of the command line and kills them at their n-th step, for tests that ask what is left then.

:class:`Killer` keeps one process that has loaded everything and forks for each command, because loading takes longer than most
commands do. SIGKILL comes before the n-th call of one of the functions that are counted: ``files`` are all by which a file or a
directory changes, ``statements`` all by which a database does.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

ROOT = Path(__file__).parents[2]
FILES = (os, ("replace", "unlink", "fsync", "mkdir", "write"))
STATEMENTS = (psycopg.Connection, ("execute", "commit")), (psycopg.Copy, ("write",))


def killing(function: Callable[..., Any], countdown: list[int]) -> Callable[..., Any]:
    def counted(*arguments: Any, **named: Any) -> Any:
        countdown[0] -= 1
        if countdown[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)

    return counted


def run(number: int, counted: str, arguments: list[str], environment: dict[str, str]) -> None:
    from api.cli import app

    os.environ.update(environment)
    countdown = [number]
    for owner, names in (FILES,) if counted == "files" else STATEMENTS:
        for name in names:
            setattr(owner, name, killing(getattr(owner, name), countdown))
    app(arguments)


def serve() -> None:
    import api.cli.backups  # noqa: F401  # what takes long

    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                run(**json.loads(line))
                code = 0
            except SystemExit as ended:
                code = int(ended.code or 0)
            finally:
                sys.stdout.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        print(f"ended {os.waitstatus_to_exitcode(status)}", flush=True)


class Killer:
    """The process that forks; ended by :meth:`end`."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.support.killed"]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def kills(self, number: int, counted: str, *arguments: str, **environment: str) -> bool:
        """Whether the command was killed at this step; otherwise it must have come to a good end before."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        plan = {"number": number, "counted": counted, "arguments": arguments, "environment": environment}
        print(json.dumps(plan), file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            if line.startswith("ended "):
                code = int(line.split()[1])
                assert code in (0, -signal.SIGKILL), "its complaint is in the captured output"
                return code != 0
        raise AssertionError("it is gone")

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


if __name__ == "__main__":
    serve()

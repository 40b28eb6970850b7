"""A process of its own that writes to a store and notes every answer it got, for tests that stop, kill and race writers.

``python -m tests.support.writer_process JSON`` prints ``ready``, begins at the first line on standard input and appends one
line of JSON per answer to its file. Each line is written by one system call: what was noted stays noted when the process is
killed. (Only the machine's death could undo it, and nobody kills that here.)

``hold`` stops the process by SIGSTOP inside its n-th append, with the lock held:
``locked`` before the INSERT, ``inserted`` between the INSERT and its COMMIT, ``pipelined`` the same while the server still
waits for the end of the pipeline, ``committed`` after the COMMIT and before anybody was answered.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

from domain.kernel.decider import Command
from eventstore import postgres
from eventstore.errors import StoreError
from eventstore.postgres import PostgresBatch
from eventstore.rows import Row
from eventstore.store import Store
from eventstore.writer import Options
from tests.support.till import TILL, Take
from tests.support.worlds import TENANT, ask

ROOT = Path(__file__).parents[2]


def key_of(name: str) -> UUID:
    """The command id of a take, the same in every process."""
    return uuid5(NAMESPACE_URL, name)


def hold_in_append(how: str, turn: int, signal_file: Path) -> None:
    """Stop this process inside its ``turn``-th append."""
    append, turns = PostgresBatch.append, iter(range(1, 1_000_000))

    def stop() -> None:
        signal_file.touch()
        os.kill(os.getpid(), signal.SIGSTOP)

    async def held(batch: PostgresBatch, rows: Sequence[Row]) -> None:
        if next(turns) != turn:
            await append(batch, rows)
        elif how == "locked":
            stop()
            await append(batch, rows)
        elif how == "committed":
            await append(batch, rows)
            stop()
        else:
            await halfway(batch, rows)

    async def halfway(batch: PostgresBatch, rows: Sequence[Row]) -> None:
        conn, parameters = batch._conn, (batch._partition, *([*column] for column in zip(*rows, strict=True)))
        if how == "inserted":
            await conn.execute(postgres.INSERT, parameters)
            stop()
            await conn.execute("commit")
        else:
            async with conn.pipeline():
                await conn.execute(postgres.INSERT, parameters)
                conn.pgconn.send_flush_request()
                assert conn.pgconn.flush() == 0, "it fits into the socket's buffer"
                stop()
                await conn.execute("commit")
        batch.ended = True

    PostgresBatch.append = held  # type: ignore[method-assign, assignment]  # a function put in place of a method


async def main(plan: dict[str, Any]) -> None:
    notes = os.open(plan["notes"], os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    def note(**told: Any) -> None:
        os.write(notes, json.dumps(told).encode() + b"\n")

    if plan.get("hold"):
        hold_in_append(plan["hold"], plan.get("turn", 1), Path(plan["signal"]))
    store = await Store.open(plan["dsn"], [TILL], Options(**plan.get("options", {})))
    await store.state(TILL, TENANT, plan["stream"])
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)

    async def take(name: str) -> None:
        command: Command = Take(take_id=name, amount=plan.get("amount", 1))
        while True:
            began = time.monotonic()
            try:
                done = await store.submit(ask((plan["stream"], command), key=key_of(name)))
            except StoreError as error:
                note(name=name, error=type(error).__name__, retryable=error.retryable)
                if not error.retryable:
                    return
                await asyncio.sleep(0.05)
            except Exception as error:
                note(name=name, error=repr(error), retryable=False)
                return
            else:
                seconds = time.monotonic() - began
                note(
                    name=name,
                    refused=done.refused,
                    reply=done.reply.decode(),
                    position=done.position,
                    seconds=seconds,
                    replayed=done.replayed,
                )
                return

    async def caller(number: int) -> None:
        for n in range(number, plan["commands"], plan["callers"]):
            await take(f"{plan['prefix']}-{n}")

    await asyncio.gather(*(caller(number) for number in range(plan["callers"])))
    await store.drain()


class WriterProcess:
    """The other end: started, told to begin, stopped, killed and waited for by a test."""

    def __init__(self, directory: Path, name: str, dsn: str, **plan: Any) -> None:
        self.notes_file, self.signal_file, self.name = directory / f"{name}.jsonl", directory / f"{name}.signal", name
        whole = {"dsn": dsn, "notes": str(self.notes_file), "signal": str(self.signal_file), "prefix": name, "callers": 20, **plan}
        command = [sys.executable, "-m", "tests.support.writer_process", json.dumps(whole)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def ready(self) -> None:
        """Wait until it is connected."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line == "ready\n", self.process.communicate()[1]

    def begin(self) -> None:
        """Let it write."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def notes(self) -> list[dict[str, Any]]:
        """What it noted so far."""
        text = self.notes_file.read_text() if self.notes_file.exists() else ""
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")]

    def outcomes(self) -> list[dict[str, Any]]:
        """The answers among its notes."""
        return [note for note in self.notes() if "reply" in note]

    def errors(self) -> list[dict[str, Any]]:
        """The errors among its notes."""
        return [note for note in self.notes() if "error" in note]

    def wait_until_stopped(self, seconds: float = 60) -> None:
        """Wait for the SIGSTOP it was asked for."""
        deadline = time.monotonic() + seconds
        while not self.signal_file.exists() or Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "T":
            assert time.monotonic() < deadline, "it never stopped itself"
            assert self.process.poll() is None, self.process.communicate()[1]
            time.sleep(0.01)

    def resume(self) -> None:
        """SIGCONT."""
        self.process.send_signal(signal.SIGCONT)

    def wait(self, seconds: float = 120) -> None:
        """Wait for its end; it must be a good one."""
        _, complaints = self.process.communicate(timeout=seconds)
        assert self.process.returncode == 0, complaints

    def end(self) -> None:
        """Whatever happened: it is gone afterwards."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))

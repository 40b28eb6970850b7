"""Real nats-server processes that tests start, kill and start again: one node, or a cluster of three."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nats
from nats.aio.client import Client

from adapters.nats.bus import BusRefused, BusUnavailable, connected
from adapters.nats.server import _die_with_parent
from tests.support.processes import free_ports

BINARY = Path(sys.executable).parent / "nats-server"
PATIENCE = 60.0


class Node:
    """One nats-server on a port and a directory that stay the same when it is started again."""

    def __init__(self, directory: Path, name: str, port: int, cluster: str = "", max_payload: str = "8MB") -> None:
        self.name, self.port, self.directory = name, port, directory / name
        self.directory.mkdir(parents=True)
        self.config = self.directory / "nats.conf"
        self._cluster = cluster
        self.configure(max_payload)
        self.process: subprocess.Popen[bytes] | None = None

    def configure(self, max_payload: str) -> None:
        """As from the next start."""
        self.config.write_text(
            f'server_name: {self.name}\nlisten: "127.0.0.1:{self.port}"\nmax_payload: {max_payload}\n'
            f'jetstream {{ store_dir: "{self.directory}/store", max_file: 4GB, max_mem: 64MB }}\n{self._cluster}'
        )

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        with open(self.directory / "log", "ab") as log:
            self.process = subprocess.Popen(
                [BINARY, "-c", str(self.config)],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                preexec_fn=_die_with_parent,  # noqa: PLW1509  # one prctl: takes no lock, allocates nothing
            )

    def ready(self) -> None:
        """Wait until it accepts connections."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                assert time.monotonic() < deadline, (self.directory / "log").read_text()[-2000:]
                time.sleep(0.01)
            else:
                return

    def kill(self) -> None:
        """SIGKILL."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def pause(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)


class Servers:
    """One node, or three that form a cluster."""

    def __init__(self, directory: Path, count: int = 1) -> None:
        ports = free_ports(2 * count)
        clients, routes = ports[:count], ports[count:]
        known = ", ".join(f'"nats://127.0.0.1:{port}"' for port in routes)
        self.nodes = [
            Node(
                directory,
                f"n{number}",
                clients[number],
                f'cluster {{ name: test, listen: "127.0.0.1:{routes[number]}", routes: [{known}] }}\n' if count > 1 else "",
            )
            for number in range(count)
        ]
        self.replicas = count

    @property
    def url(self) -> str:
        return ",".join(node.url for node in self.nodes)

    def start(self) -> None:
        for node in self.nodes:
            node.start()
        for node in self.nodes:
            node.ready()

    def end(self) -> None:
        for node in self.nodes:
            node.kill()

    def named(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)


async def ask(url: str, subject: str, body: dict[str, Any]) -> dict[str, Any]:
    """One JetStream request over a connection of its own, repeated until some server answers without an error."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            async with connected(url, "", "test") as bus:  # which leaves nothing open when a server is lost while it greets
                return await bus.api(subject, body)
        except (BusUnavailable, BusRefused):
            assert time.monotonic() < deadline, f"{subject} was never answered"
        await asyncio.sleep(0.05)


async def _quiet(_: Exception) -> None:
    pass


async def leader(url: str, stream: str = "HOLDBOOK") -> str:
    """The name of the server that leads the stream."""
    deadline = time.monotonic() + PATIENCE
    while not (found := ((await ask(url, f"STREAM.INFO.{stream}", {})).get("cluster") or {}).get("leader")):
        assert time.monotonic() < deadline, "no leader"
        await asyncio.sleep(0.05)
    return str(found)


class Kept:
    """A message of the stream, as anybody would read it."""

    def __init__(self, subject: str, headers: dict[str, str], body: bytes) -> None:
        _, _, partition, *rest = subject.split(".")
        self.subject, self.partition, self.rest, self.headers = subject, int(partition), rest, headers
        self.body: dict[str, Any] = json.loads(body)
        self.raw = body
        self.epoch, self.position = int(headers["Holdbook-Epoch"]), int(headers["Holdbook-Position"])
        self.hash = bytes.fromhex(headers["Holdbook-Hash"])

    @property
    def is_event(self) -> bool:
        return len(self.rest) > 1


async def everything(url: str, stream: str = "HOLDBOOK") -> list[Kept]:
    """The whole stream, in its order, read by nats-py's own means; once more when a cluster was not ready to be read."""
    last = (await ask(url, f"STREAM.INFO.{stream}", {}))["state"]["last_seq"]
    deadline = time.monotonic() + 2 * PATIENCE
    while True:
        client = await nats.connect(url.split(","), error_cb=_quiet)
        try:
            return await _read(client, stream, last)
        except (nats.errors.Error, TimeoutError):
            assert time.monotonic() < deadline, "the stream cannot be read"
        finally:
            await client.close()


async def _read(client: Client, stream: str, last: int) -> list[Kept]:
    sub = await client.jetstream().subscribe("holdbook.events.>", stream=stream, ordered_consumer=True)
    found: list[Kept] = []
    while last:
        message = await sub.next_msg(timeout=10)
        found.append(Kept(message.subject, dict(message.headers or {}), message.data))
        if message.metadata.sequence.stream >= last:
            break
    return found


def of_partition(kept: Sequence[Kept], partition: int) -> list[Kept]:
    """The events of a partition."""
    return [each for each in kept if each.partition == partition and each.is_event]


def ended(pid: int) -> bool:
    """Whether a process is gone."""
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):  # either of them, for it may go in between
        return True
    return stat.rsplit(")", 1)[1].split()[0] == "Z"

"""The nats-server that runs with us: reachable with its password alone, restarted when it dies, and gone when we are."""

import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nats
import pytest

from adapters.nats import server as running
from adapters.nats.bus import BusUnavailable, connected
from adapters.nats.server import EmbeddedNats, NatsServerError
from tests.support.nats import ask, ended
from tests.support.nats_worlds import until
from tests.support.processes import free_ports

ROOT = Path(__file__).parents[2]


@pytest.fixture
def server(home: Path) -> Iterator[EmbeddedNats]:
    made = EmbeddedNats(home / "nats")
    made.start()
    yield made
    made.stop()


def started(command: list[str], directory: Path, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(command, cwd=directory, env=environment, stdout=subprocess.PIPE, text=True)


async def publish_one(url: str) -> int:
    """Store a message; its number."""
    client = await nats.connect(url)
    try:
        js = client.jetstream()
        await js.add_stream(name="T", subjects=["t"])
        return (await js.publish("t", b"x")).seq
    finally:
        await client.close()


async def test_only_the_password_opens_it_and_only_we_can_read_that(server: EmbeddedNats) -> None:
    assert await publish_one(server.url) == 1
    with pytest.raises(BusUnavailable, match=r"Authorization|reset by peer"):  # it says so and closes, whichever comes first
        async with connected(server.shown_url, "T", "test"):
            pass
    assert "@" not in server.shown_url
    for file in (server.address_file, server.directory / "nats.conf"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(server.directory.stat().st_mode) == 0o700


async def test_a_killed_server_comes_back_where_it_was_with_what_it_had(server: EmbeddedNats) -> None:
    url, first = server.url, server.pid
    assert first is not None
    assert await publish_one(url) == 1
    watching = asyncio.create_task(server.watch(poll_seconds=0.02))
    try:
        os.kill(first, signal.SIGKILL)
        await until(lambda: server.pid not in (None, first))
        await until(lambda: (server.directory / "url").read_text().strip() == url)
        await ask(url, "STREAM.INFO.T", {})  # asked for until it is there
        assert await publish_one(url) == 2
    finally:
        watching.cancel()


def test_an_address_outlives_the_server(home: Path) -> None:
    addresses = []
    for _ in range(2):
        server = EmbeddedNats(home / "nats")
        addresses.append(server.start())
        server.stop()
    assert addresses[0] == addresses[1]


def test_a_port_can_be_chosen_and_a_taken_one_is_told(home: Path, server: EmbeddedNats) -> None:
    [port] = free_ports(1)
    other = EmbeddedNats(home / "other", port)
    assert other.start().endswith(f"@127.0.0.1:{port}")
    third = EmbeddedNats(home / "third", port)
    with pytest.raises(NatsServerError):
        third.start()
    other.stop()


def test_a_free_port_that_somebody_takes_just_before_is_left_to_them(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free_port = running._free_port
    with socket.create_server(("127.0.0.1", 0)) as theirs:
        looked = iter([theirs.getsockname()[1]])
        monkeypatch.setattr(running, "_free_port", lambda wanted: next(looked, None) or free_port(wanted))
        server = EmbeddedNats(home / "nats")
        assert not server.start().endswith(f":{theirs.getsockname()[1]}")
        server.stop()


def test_a_second_process_uses_the_first_ones(home: Path, server: EmbeddedNats) -> None:
    second = EmbeddedNats(home / "nats")
    assert second.start() == server.url
    assert not second.owned
    second.stop()
    assert server.pid is not None
    assert not ended(server.pid)


async def test_the_server_ends_with_a_killed_owner_and_the_next_one_waits_for_that(home: Path) -> None:
    program = "import sys, time; from pathlib import Path; from adapters.nats.server import EmbeddedNats\n"
    program += "server = EmbeddedNats(Path(sys.argv[1])); server.start(); print(server.pid, server.url, flush=True); time.sleep(600)"
    owner = started([sys.executable, "-c", program, str(home / "nats")], ROOT)
    assert owner.stdout is not None
    pid, url = owner.stdout.readline().split()
    assert await publish_one(url) == 1
    os.kill(int(pid), signal.SIGSTOP)  # it cannot end before it is let go on
    owner.kill()
    owner.wait()
    owner.stdout.close()
    next_one = EmbeddedNats(home / "nats")
    starting = asyncio.create_task(asyncio.to_thread(next_one.start))
    await asyncio.sleep(0.3)
    assert not starting.done()
    os.kill(int(pid), signal.SIGCONT)
    assert await starting == url
    assert next_one.owned
    assert ended(int(pid))
    assert await publish_one(url) == 2
    next_one.stop()


async def test_up_with_nats_publishes_and_says_where(home: Path) -> None:
    environment = {**os.environ, "HOLDBOOK_DATA": str(home / "data"), "HOLDBOOK_PORT": "0", "HOLDBOOK_LOG_LEVEL": "error"}
    command = [str(Path(sys.executable).parent / "holdbook"), "up", "--nats"]
    process = started(command, home, environment)
    assert process.stdout is not None
    try:
        told = ""
        while "NATS at" not in told:
            line = process.stdout.readline()
            assert line, told
            told += line
        file = home / "data" / "nats" / "url"
        url = file.read_text().strip()
        assert str(file) in told
        assert url not in told
        assert url.rsplit("@", 1)[1] in told
        assert "config" in await ask(url, "STREAM.INFO.HOLDBOOK", {})
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
        process.stdout.close()


def test_up_with_nats_and_with_an_address_is_refused(home: Path) -> None:
    environment = {**os.environ, "HOLDBOOK_DATA": str(home / "data"), "HOLDBOOK_NATS_URL": "nats://127.0.0.1:1"}
    command = [str(Path(sys.executable).parent / "holdbook"), "up", "--nats"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False, cwd=home)
    assert done.returncode == 1
    assert "HOLDBOOK_NATS_URL" in done.stderr

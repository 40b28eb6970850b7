"""A nats-server of our own, for development and single machines: our child, below the data directory, and gone when we are gone.

What it holds can always be published again from the log, so it is not asked to bring every message to the disk at once.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import ctypes
import fcntl
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import IO, Final
from urllib.parse import urlsplit

import structlog

log = structlog.get_logger(__name__)

_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None)
_USER = "holdbook"
_POLL_SECONDS = 0.02
_TRIES = 3
_CONFIG = """\
server_name: "{name}"
listen: "127.0.0.1:{port}"
max_payload: 8MB
authorization {{ user: "{user}", password: "{password}" }}
jetstream {{ store_dir: "{store}", max_mem: 64MB }}
log_file: "{log}"
logfile_size_limit: 10MB
logfile_max_num: 2
"""


class NatsServerError(Exception):
    """The embedded nats-server cannot do what was asked; the message says why and what helps."""


class EmbeddedNats:
    """One nats-server on one directory. A second process on the same directory uses the first one's server.

    ``port`` 0 takes the port it had before, or any that is free. ``start`` and ``stop`` block.
    """

    def __init__(self, directory: Path, port: int = 0, *, timeout_seconds: float = 30.0) -> None:
        self.directory, self._wanted_port, self._timeout_seconds = directory, port, timeout_seconds
        self.address_file = directory / "url"
        self._url: str | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._cleanup = contextlib.ExitStack()
        # PR_SET_PDEATHSIG fires when the *thread* that started the child ends: one thread starts all, and lives as long as we do.
        self._starter: ThreadPoolExecutor | None = None

    @property
    def url(self) -> str:
        """The address with its password. For connecting, never for a log."""
        if self._url is None:
            raise NatsServerError("the embedded nats-server has not been started")
        return self._url

    @property
    def shown_url(self) -> str:
        """The address without its password."""
        parts = urlsplit(self.url)
        return f"nats://{parts.hostname}:{parts.port}"

    @property
    def owned(self) -> bool:
        """Whether this object, and not another process, keeps the server running."""
        return self._process is not None

    @property
    def pid(self) -> int | None:
        """The server's process id, where it is our child."""
        return self._process.pid if self._process else None

    def start(self) -> str:
        """Start the server, or find the one that another process runs, and return its address."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        deadline = time.monotonic() + self._timeout_seconds
        while not self._own():
            if self._attach():
                return self.url
            if time.monotonic() > deadline:
                raise NatsServerError(f"another process has {self.directory}, and its nats-server does not answer")
            time.sleep(_POLL_SECONDS)
        try:
            self._starter = ThreadPoolExecutor(1, thread_name_prefix="nats-starter")
            self._cleanup.callback(self._starter.shutdown)
            self._run()
        except BaseException:
            self.stop()
            raise
        atexit.register(self.stop)
        return self.url

    def stop(self) -> None:
        """End the server, if it is ours."""
        atexit.unregister(self.stop)
        process, self._process, self._url = self._process, None, None
        if process is not None:
            _end(process)
        self._cleanup.close()

    def restart_if_dead(self) -> bool:
        """Start the server again if its process has died under us. Says whether it had."""
        if self._process is None or self._process.poll() is None:
            return False
        self._run()
        return True

    async def watch(self, *, poll_seconds: float = 0.1, longest_backoff_seconds: float = 10.0) -> None:
        """Restart the server whenever it dies, until cancelled."""
        backoff, died_at = poll_seconds, -longest_backoff_seconds
        while True:
            await asyncio.sleep(poll_seconds)
            if self._process is None or self._process.poll() is None:
                continue
            if time.monotonic() - died_at > 2 * longest_backoff_seconds:
                backoff = poll_seconds
            died_at = time.monotonic()
            log.warning("nats.died")
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, longest_backoff_seconds)
            try:
                if await asyncio.to_thread(self.restart_if_dead):
                    log.info("nats.back")
            except (NatsServerError, OSError) as error:
                log.warning("nats.did_not_come_back", reason=str(error))

    # Owning

    def _own(self) -> bool:
        """Take the directory, unless another process has it."""
        owner = _open_lock(self.directory / "lock")
        try:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner.close()
            return False
        self._cleanup.callback(owner.close)
        return True

    def _attach(self) -> bool:
        url = self._known_url()
        if url is None or not _answers(url):
            return False
        self._url = url
        return True

    def _known_url(self) -> str | None:
        with contextlib.suppress(OSError):
            return self.address_file.read_text().strip() or None
        return None

    # Running

    def _run(self) -> None:
        deadline = time.monotonic() + self._timeout_seconds
        running = _open_lock(self.directory / "running")
        try:
            # The server holds this lock as long as it lives, whoever started it.
            while not _locked(running):
                if time.monotonic() > deadline:
                    raise NatsServerError(f"an earlier nats-server still runs in {self.directory}")
                time.sleep(_POLL_SECONDS)
            for tries_left in reversed(range(_TRIES)):  # somebody else may take a free port before the server does
                url, config = self._configure()
                self._process = self._launch(config, running)
                if _comes_up(self._process, url, deadline):
                    self._url = url
                    return
                _end(self._process)
                if not tries_left or time.monotonic() > deadline:
                    raise NatsServerError(f"nats-server did not start:\n{self._log_tail()}")
        finally:
            running.close()

    def _launch(self, config: Path, running: IO[bytes]) -> subprocess.Popen[bytes]:
        assert self._starter is not None
        return self._starter.submit(_popen, [_binary(), "-c", str(config)], running, self.directory).result()

    def _configure(self) -> tuple[str, Path]:
        known = urlsplit(self._known_url() or "")
        password = known.password or secrets.token_urlsafe(24)
        port = self._wanted_port or _free_port(known.port or 0)
        config = self.directory / "nats.conf"
        url = f"nats://{_USER}:{password}@127.0.0.1:{port}"
        text = _CONFIG.format(
            name=_name(url), port=port, user=_USER, password=password, store=self.directory / "store", log=self.directory / "nats.log"
        )
        _write(config, text)
        _write(self.address_file, url + "\n")
        return url, config

    def _log_tail(self) -> str:
        with contextlib.suppress(OSError):
            return (self.directory / "nats.log").read_text(errors="replace")[-1500:].strip()
        return "(no log)"


def _binary() -> str:
    beside = Path(sysconfig.get_path("scripts")) / "nats-server"
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("nats-server")
    if found is None:
        raise NatsServerError("no nats-server found: install holdbook[embedded] or nats-server")
    return found


def _popen(command: list[str], running: IO[bytes], directory: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=directory,
        env={"PATH": os.defpath},  # our own environment may hold secrets
        pass_fds=(running.fileno(),),
        start_new_session=True,  # Ctrl-C goes to a whole process group: the server must outlive our own orderly end
        preexec_fn=_die_with_parent,  # noqa: PLW1509  # one prctl: takes no lock, allocates nothing
    )


def _die_with_parent() -> None:
    """Elsewhere than on Linux only ``atexit`` stops the server."""
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))


def _comes_up(process: subprocess.Popen[bytes], url: str, deadline: float) -> bool:
    while not _answers(url):
        if process.poll() is not None or time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _name(url: str) -> str:
    """A server's name, by which it is told from whoever else may listen on its port; it gives nothing of the password away."""
    return f"holdbook-{sha256(url.encode()).hexdigest()[:16]}"


def _answers(url: str) -> bool:
    """Whether this very server greets; it does so only when JetStream has read its store."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", urlsplit(url).port or 0), 1) as connection:
        return _name(url).encode() in connection.recv(4096)
    return False


def _free_port(wanted: int) -> int:
    for port in (wanted, 0):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)) as listener:
            return int(listener.getsockname()[1])
    raise NatsServerError("no free port")


def _open_lock(path: Path) -> IO[bytes]:
    return open(path, "ab", opener=_private)


def _locked(file: IO[bytes]) -> bool:
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _private(path: str, flags: int) -> int:
    """For their owner only, and a symbolic link is not followed."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _write(path: Path, text: str) -> None:
    """Beside its place first, then renamed: nobody reads half a file."""
    draft = path.with_name(path.name + ".new")
    with open(draft, "w", opener=_private) as file:
        file.write(text)
    draft.replace(path)

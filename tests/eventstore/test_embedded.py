"""The embedded PostgreSQL starts, survives, and leaves nothing behind, as root and as anybody else."""

import asyncio
import json
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest

from eventstore.embedded import AlreadyOwned, EmbeddedError, EmbeddedPostgres, bin_directory, connect_or_start, data_directory, redact
from eventstore.embedded.account import Account
from eventstore.embedded.remains import server_processes

ROOT = Path(__file__).parents[2]
SMALL = {"shared_buffers": "16MB", "max_wal_size": "128MB", "wal_buffers": "1MB"}

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root starts the server as somebody else")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells children of their parent's death on Linux only")


def server(data: Path, **settings: str) -> EmbeddedPostgres:
    return EmbeddedPostgres(data, settings=SMALL | settings, timeout_seconds=120)


def socket_directory(running: EmbeddedPostgres) -> Path:
    return Path((running.cluster / "postmaster.pid").read_text().splitlines()[4])


def ask(dsn: str, question: str) -> Any:
    with psycopg.connect(dsn) as connection:
        row = connection.execute(question).fetchone()
    assert row is not None
    return row[0]


def do(dsn: str, statement: str) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute(statement)


def eventually(condition: Callable[[], bool], seconds: float = 120) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


OWNER = """
import json, sys, time
from pathlib import Path
import psycopg
from eventstore.embedded import connect_or_start, process
if sys.argv[2] in ("without setpriv", "orphan"):
    process._death_signal = tuple
if sys.argv[2] == "orphan":  # as if the kernel could not tell the server of our death
    process._die_with_parent = None
server = connect_or_start(Path(sys.argv[1]), settings=json.loads(sys.argv[3]), timeout_seconds=120)
if server.owned or sys.argv[2] == "guest":
    with psycopg.connect(server.dsn) as connection:
        connection.execute("create table if not exists kept as select generate_series(1, 1000) as i")
print(json.dumps({"owned": server.owned, "dsn": server.dsn, "pid": server.pid}), flush=True)
sys.stdin.read()
server.stop()
"""


class Owner:
    """Another process that uses the data directory until its standard input ends."""

    def __init__(self, data: Path, kind: str = "ordinary", python: str = sys.executable, **options: Any) -> None:
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join([str(ROOT), sysconfig.get_paths()["platlib"]])}
        self.process = subprocess.Popen(
            [python, "-c", OWNER, str(data), kind, json.dumps(SMALL)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd="/", text=True, **options,
        )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the owner ended before it was ready"
        self.said = json.loads(line)

    def kill(self) -> None:
        self.process.kill()
        self.end()

    def end(self) -> int:
        self.process.communicate()
        return self.process.returncode


@pytest.fixture
def running(home: Path) -> Iterator[EmbeddedPostgres]:
    with server(home / "data") as started:
        yield started


def test_it_is_durable_private_and_speaks_utf8(running: EmbeddedPostgres) -> None:
    expected = {
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "data_checksums": "on",
        "listen_addresses": "",
        "server_encoding": "UTF8",
        "jit": "off",
        "checkpoint_timeout": "15min",
    }

    assert {name: ask(running.dsn, f"select current_setting('{name}')") for name in expected} == expected
    assert ask(running.dsn, "select current_setting('wal_compression')") in {"lz4", "pglz"}
    assert ask(running.dsn, "select current_database()") == "holdbook"
    assert ask(running.dsn, "select array_agg(w order by w)::text from (values ('b'), ('B'), ('a')) v (w)") == "{B,a,b}"


def test_nobody_gets_in_without_the_password(running: EmbeddedPostgres) -> None:
    password = (running.data / "password").read_text()

    for wrong in ("", "wrong"):
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(running.dsn.replace(password, wrong))


def test_only_its_user_may_read_the_password_the_log_and_enter_the_socket_directory(running: EmbeddedPostgres) -> None:
    sockets = socket_directory(running)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (running.data / "password", running.data / "postgres.log", sockets)}

    assert modes == {"password": 0o600, "postgres.log": 0o600, sockets.name: 0o700}
    assert {path.stat().st_uid for path in (running.data / "password", sockets)} == {running.cluster.stat().st_uid}
    password = (running.data / "password").read_text()
    assert password not in (running.data / "postgres.log").read_text()
    assert password not in redact(running.dsn)
    if sys.platform == "linux":
        assert password.encode() not in Path(f"/proc/{running.pid}/cmdline").read_bytes()


def test_it_takes_nothing_from_our_environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGDATA", "/nowhere")
    monkeypatch.setenv("SECRET_OF_OURS", "hush")

    with server(home / "data") as started:
        if sys.platform == "linux":
            assert b"hush" not in Path(f"/proc/{started.pid}/environ").read_bytes()
        assert os.getsid(started.pid or 0) != os.getsid(0), "Ctrl-C in our terminal must not reach it"


@pytest.mark.parametrize("name", ["with spaces, comma and 'quotes\"", "x" * 200 + "/" + "y" * 100, "данные"])
def test_any_path_will_do(home: Path, name: str) -> None:
    with server(home / name) as started:
        assert ask(started.dsn, "select 1") == 1


def test_a_long_temporary_directory_is_passed_over(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = home / ("t" * 100)
    long.mkdir(mode=0o711)
    monkeypatch.setattr("tempfile.tempdir", str(long))

    with server(home / "data") as started:
        assert ask(started.dsn, "select 1") == 1


def test_two_data_directories_at_once(home: Path) -> None:
    with server(home / "one") as one, server(home / "two") as two:
        do(one.dsn, "create table only_here ()")
        assert ask(two.dsn, "select to_regclass('only_here') is null")


def test_stopping_frees_everything_and_starting_again_finds_the_rows(home: Path) -> None:
    started = server(home / "data")
    do(started.start(), "create table t as select 42 as answer")
    sockets = socket_directory(started)
    pid = started.pid
    started.stop()

    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not sockets.exists()
    with pytest.raises(EmbeddedError):
        _ = started.dsn
    started.stop()

    assert ask(started.start(), "select answer from t") == 42
    started.stop()


def test_a_second_owner_is_refused_and_another_process_gets_the_same_server(running: EmbeddedPostgres) -> None:
    with pytest.raises(AlreadyOwned, match=f"in use by process {os.getpid()}$"):
        server(running.data).start()

    other = Owner(running.data, "guest")
    assert other.said == {"owned": False, "dsn": running.dsn, "pid": None}
    assert other.end() == 0

    assert running.alive()
    assert ask(running.dsn, "select count(*) from kept") == 1000
    guest = connect_or_start(running.data)
    assert (guest.owned, guest.alive(), guest.dsn) == (False, True, running.dsn)
    guest.stop()
    assert running.alive()


def test_processes_that_start_together_end_up_with_one_server(home: Path) -> None:
    with ThreadPoolExecutor() as pool:
        owners = list(pool.map(Owner, [home / "data"] * 3))

    said = [owner.said for owner in owners]
    assert sorted(saying["owned"] for saying in said) == [False, False, True]
    assert len({saying["dsn"] for saying in said}) == 1
    for owner in sorted(owners, key=lambda owner: bool(owner.said["owned"])):
        assert owner.end() == 0


@on_linux
@pytest.mark.parametrize("kind", ["ordinary", "without setpriv"])
def test_sigkill_of_the_owner_leaves_no_orphan_and_loses_nothing(home: Path, kind: str) -> None:
    owner = Owner(home / "data", kind)
    assert owner.said["pid"] in server_processes(home / "data" / "postgres")
    owner.kill()

    assert eventually(lambda: not server_processes(home / "data" / "postgres"))
    with server(home / "data") as started:
        assert ask(started.dsn, "select count(*) from kept") == 1000


@on_linux
def test_an_orphan_of_a_killed_owner_is_ended_by_the_next_start(home: Path) -> None:
    owner = Owner(home / "data", "orphan")
    owner.kill()
    time.sleep(0.2)
    assert owner.said["pid"] in server_processes(home / "data" / "postgres")

    with server(home / "data") as started:
        assert owner.said["pid"] not in server_processes(home / "data" / "postgres")
        assert ask(started.dsn, "select count(*) from kept") == 1000


@on_linux
def test_a_killed_owner_and_a_killed_postmaster_at_once(home: Path) -> None:
    owner = Owner(home / "data", "orphan")

    def be_busy() -> None:
        with psycopg.connect(owner.said["dsn"]) as connection, pytest.raises(psycopg.OperationalError):
            connection.execute("select pg_sleep(600)")

    thread = threading.Thread(target=be_busy)
    thread.start()
    query = "select exists (select from pg_stat_activity where query = 'select pg_sleep(600)' and state = 'active')"
    assert eventually(lambda: bool(ask(owner.said["dsn"], query)))
    os.kill(owner.said["pid"], signal.SIGKILL)
    owner.kill()

    with server(home / "data") as started:
        assert ask(started.dsn, "select count(*) from kept") == 1000
    thread.join()


async def test_sigkill_of_the_postmaster_is_noticed_and_mended(running: EmbeddedPostgres) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()
    watch = asyncio.create_task(running.watch(heard.put_nowait, poll_seconds=0.02))
    do(running.dsn, "create table t as select generate_series(1, 1000) as i")
    dsn = running.dsn

    for _ in range(2):
        assert running.pid is not None
        os.kill(running.pid, signal.SIGKILL)
        assert await heard.get() == "the embedded PostgreSQL died"
        assert await heard.get() == "the embedded PostgreSQL is back"

    watch.cancel()
    assert running.dsn == dsn
    assert ask(dsn, "select count(*) from t") == 1000
    assert not running.restart_if_dead()


async def test_the_watch_keeps_trying_while_the_server_cannot_come_back(running: EmbeddedPostgres) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()
    watch = asyncio.create_task(running.watch(heard.put_nowait, poll_seconds=0.02, longest_backoff_seconds=0.1))
    control = running.cluster / "global" / "pg_control"
    control.rename(control.with_name("away"))
    assert running.pid is not None
    os.kill(running.pid, signal.SIGKILL)
    for _ in range(2):
        assert await heard.get() == "the embedded PostgreSQL died"
        assert "did not come back: the embedded PostgreSQL ended while starting" in await heard.get()
    assert not running.alive()

    control.with_name("away").rename(control)
    while (saying := await heard.get()) != "the embedded PostgreSQL is back":
        assert "died" in saying or "did not come back" in saying

    watch.cancel()
    assert running.alive()


def test_the_server_outlives_the_thread_that_started_it(home: Path) -> None:
    started = server(home / "data")
    thread = threading.Thread(target=started.start)
    thread.start()
    thread.join()

    time.sleep(0.2)
    assert started.alive()
    assert ask(started.dsn, "select 1") == 1
    started.stop()


def test_a_stale_pid_file_that_names_somebody_elses_process_is_no_obstacle(home: Path) -> None:
    started = server(home / "data")
    do(started.start(), "create table t as select 42 as answer")
    pid_file = (started.cluster / "postmaster.pid").read_text().splitlines()
    started.stop()
    stranger = subprocess.Popen(["sleep", "600"], cwd="/", **Account.for_cluster(started.cluster).arguments)
    (started.cluster / "postmaster.pid").write_text("\n".join([str(stranger.pid), *pid_file[1:], ""]))

    assert ask(started.start(), "select answer from t") == 42

    started.stop()
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_an_interrupted_initdb_is_begun_anew(home: Path) -> None:
    draft = home / "data" / "postgres.new"
    draft.mkdir(parents=True)
    (home / "data").chmod(0o711)
    (draft / "PG_VERSION").write_text("18\n")

    with server(home / "data") as started:
        assert ask(started.dsn, "select 1") == 1
    assert not draft.exists()


def test_a_socket_directory_open_to_others_is_refused(home: Path) -> None:
    started = server(home / "data")
    started.start()
    sockets = socket_directory(started)
    started.stop()
    sockets.mkdir()
    sockets.chmod(0o755)

    with pytest.raises(EmbeddedError, match=f"{sockets} is there already"):
        started.start()

    assert not started.owned
    sockets.rmdir()


def test_a_server_that_cannot_start_says_why_and_gives_the_directory_back(home: Path) -> None:
    with pytest.raises(EmbeddedError, match="shared_buffers"):
        server(home / "data", shared_buffers="plenty").start()

    with server(home / "data") as started:
        assert ask(started.dsn, "select 1") == 1


def test_a_data_directory_that_is_a_file_is_refused(home: Path) -> None:
    (home / "data").touch()

    with pytest.raises(EmbeddedError, match="is not a directory"):
        server(home / "data").start()


@as_root
def test_a_data_directory_below_a_private_one_is_refused_by_name(home: Path) -> None:
    private = home / "private"
    private.mkdir(mode=0o700)

    with pytest.raises(EmbeddedError, match=f"cannot enter {private}:"):
        server(private / "below" / "data").start()

    assert stat.S_IMODE(private.stat().st_mode) == 0o700


@as_root
def test_binaries_below_a_private_directory_are_copied_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = bin_directory().parent.parent
    hidden = home / "private" / package.name
    shutil.copytree(package, hidden)
    if package.with_name(package.name + ".libs").exists():
        shutil.copytree(package.with_name(package.name + ".libs"), hidden.with_name(package.name + ".libs"))
    (home / "private").chmod(0o700)
    monkeypatch.setattr("eventstore.embedded.binaries.CACHE_DIRECTORY", home / "cache")

    for _ in range(2):
        with EmbeddedPostgres(home / "data", binaries=hidden / "pginstall" / "bin", settings=SMALL) as started:
            assert ask(started.dsn, "select 1") == 1
            assert len(list((home / "cache").iterdir())) == 1
    assert stat.S_IMODE((home / "private").stat().st_mode) == 0o700


@as_root
def test_an_ordinary_user_needs_no_root(home: Path) -> None:
    python = next((name for name in (sys.executable, "/usr/bin/python3") if runs_for_nobody(name)), None)
    if python is None:
        pytest.skip("no Python of this version that an ordinary user can run, or this checkout is out of their reach")
    nobody = pwd.getpwnam("nobody")
    ours = home / "nobody"
    ours.mkdir()
    os.chown(ours, nobody.pw_uid, nobody.pw_gid)

    owner = Owner(ours / "data", python=python, user=nobody.pw_uid, group=nobody.pw_gid, extra_groups=[])
    assert owner.said["owned"]
    assert Path(f"/proc/{owner.said['pid']}").stat().st_uid == nobody.pw_uid
    # Root's own commands find the same server, whoever runs it.
    assert connect_or_start(ours / "data").dsn == owner.said["dsn"]
    assert owner.end() == 0

    # And root may take the directory over; the files stay the user's.
    with server(ours / "data") as started:
        assert ask(started.dsn, "select count(*) from kept") == 1000
    assert {path.stat().st_uid for path in (ours / "data").rglob("*")} == {nobody.pw_uid}


def runs_for_nobody(python: str) -> bool:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join([str(ROOT), sysconfig.get_paths()["platlib"]])}
    script = (
        f"import sys; assert sys.version_info[:2] == {sys.version_info[:2]}; import psycopg, eventstore.embedded as e; e.bin_directory()"
    )
    try:
        command = [python, "-c", script]
        done = subprocess.run(command, check=False, capture_output=True, env=environment, cwd="/", user="nobody", group="nogroup")
    except PermissionError:
        return False
    return done.returncode == 0


def test_binaries_come_from_the_setting_first(home: Path) -> None:
    assert bin_directory(bin_directory()) == bin_directory()
    with pytest.raises(EmbeddedError, match="no postgres and initdb in"):
        bin_directory(home)


def test_without_any_postgres_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "/nowhere")

    with pytest.raises(EmbeddedError, match=r"install holdbook\[embedded\]"):
        bin_directory()


def test_the_systems_own_postgres_will_do(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    try:
        system = bin_directory()
    except EmbeddedError:
        pytest.skip("no PostgreSQL of the system")

    with EmbeddedPostgres(home / "data", binaries=system, settings=SMALL) as started:
        assert ask(started.dsn, "select current_setting('wal_compression')") in {"lz4", "pglz"}


def test_where_the_data_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert data_directory(Path("~/x")) == Path.home().resolve() / "x"
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert data_directory() == Path("/var/lib/holdbook")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_DATA_HOME", "/somewhere")
    if sys.platform == "linux":
        assert data_directory() == Path("/somewhere/holdbook")


@pytest.mark.parametrize(
    ("dsn", "shown"),
    [
        ("postgresql://holdbook:se-cr_et@/holdbook?host=%2Ftmp", "postgresql://holdbook:***@/holdbook?host=%2Ftmp"),
        ("postgresql+psycopg://u:p%40@h:5432/d", "postgresql+psycopg://u:***@h:5432/d"),
        ("postgresql://h/d?user=u&password=p&port=1", "postgresql://h/d?user=u&password=***&port=1"),
        ("host=h password=p dbname=d", "host=h password=*** dbname=d"),
        (r"host=h password = 'a \' b' dbname=d", "host=h password = *** dbname=d"),
        ("postgresql://u@h/d", "postgresql://u@h/d"),
    ],
)
def test_an_address_for_the_log_hides_the_password(dsn: str, shown: str) -> None:
    assert redact(dsn) == shown

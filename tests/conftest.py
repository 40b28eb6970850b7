"""One PostgreSQL for a whole run, and a fresh database for every test that asks for one."""

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from hypothesis import HealthCheck, settings

from eventstore.embedded import EmbeddedPostgres

MASTER_KEY = "test:" + "c2VhbGVkIHdpdGggYSBrZXkgdGhhdCBhbGwga25vdyE="
"""For every store of the tests, here and in the processes they start."""
os.environ["HOLDBOOK_MASTER_KEY"] = MASTER_KEY
os.environ.pop("HOLDBOOK_MASTER_KEY_FILE", None)

# No example is too slow: what is tried has no business with how busy the machine is.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(autouse=True)
def no_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command line run in this very process leaves the log alone.

    It would go to a standard error that is closed by then, and loggers stay as they were configured when they were first used.
    """
    monkeypatch.setattr("api.logs.configure", lambda _: None)


@contextmanager
def reachable_directory() -> Iterator[Path]:
    """A temporary directory that the server's user may pass through, also when root runs the tests."""
    directory = Path(tempfile.mkdtemp(prefix="hb-", dir="/var/tmp"))
    if os.geteuid() == 0:
        directory.chmod(0o711)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def with_database(dsn: str, name: str) -> str:
    """The same server, another database."""
    return urlsplit(dsn)._replace(path=f"/{name}").geturl()


def administer(dsn: str, statement: str) -> None:
    """Run one statement that cannot be part of a transaction."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(statement)


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory for data directories."""
    with reachable_directory() as directory:
        yield directory


@pytest.fixture(scope="session")
def postgres_dsn() -> Iterator[str]:
    """A server for the whole run: ``HOLDBOOK_TEST_DATABASE_URL``, else an embedded one, durable like the real thing."""
    if url := os.environ.get("HOLDBOOK_TEST_DATABASE_URL"):
        yield url
        return
    small = {"shared_buffers": "64MB", "max_wal_size": "512MB", "wal_buffers": "4MB"}
    with reachable_directory() as directory, EmbeddedPostgres(directory, settings=small, timeout_seconds=240) as server:
        yield server.dsn


@pytest.fixture(scope="session")
def template_database(postgres_dsn: str) -> Iterator[str]:
    """The name of a migrated database that nobody is connected to. Unique: other runs may share the server."""
    from eventstore.schema import migrate

    name = f"holdbook_template_{secrets.token_hex(4)}"
    administer(postgres_dsn, f"CREATE DATABASE {name}")
    migrate(with_database(postgres_dsn, name))
    yield name
    administer(postgres_dsn, f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def copied(postgres_dsn: str, template_database: str) -> Iterator[str]:
    """A fresh, migrated database that is dropped in the end."""
    name = f"holdbook_test_{secrets.token_hex(8)}"
    administer(postgres_dsn, f"CREATE DATABASE {name} TEMPLATE {template_database}")
    yield with_database(postgres_dsn, name)
    administer(postgres_dsn, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def database_dsn(postgres_dsn: str, template_database: str) -> Iterator[str]:
    """A database of the test's own."""
    with copied(postgres_dsn, template_database) as dsn:
        yield dsn


@pytest.fixture(scope="module")
def module_database(postgres_dsn: str, template_database: str) -> Iterator[str]:
    """One database for a file of tests: each test has a tenant of its own, or changes nothing."""
    with copied(postgres_dsn, template_database) as dsn:
        yield dsn


_LONGEST_FIRST = ("ops", "cli", "trust", "journeys", "bench", "api/test_schemathesis.py", "projections", "eventstore", "adapters")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files whose tests take longest come first, or the run would end with one process at work and the others idle."""
    ranks = [str(Path(__file__).parent / each) for each in _LONGEST_FIRST]
    items.sort(key=lambda item: next((rank for rank, place in enumerate(ranks) if str(item.path).startswith(place)), len(ranks)))

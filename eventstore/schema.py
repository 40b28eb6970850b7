"""Making and upgrading the log's schema, and reading what a store was initialised with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, make_url, text

from eventstore.errors import WrongSchema

DEFAULT_PARTITIONS = 64
_MIGRATING = 0x686F6C64  # an advisory lock's number: two processes that start at once migrate one after the other


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    return config


def latest_revision() -> str:
    """The schema revision this program needs."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    assert head is not None
    return head


def is_known(revision: str) -> bool:
    """Whether this program can make tables of this revision."""
    return revision in {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}


def upgrade(dsn: str, revision: str) -> None:
    """Bring the tables up to a revision and put nothing into them; :func:`migrate` is what makes a store."""
    with _migrating(dsn) as connection:
        _upgrade(connection, revision)


def migrate(dsn: str, *, partitions: int = DEFAULT_PARTITIONS) -> int:
    """Bring the schema up to date, initialise an empty store, and return its number of partitions.

    Safe on a live store and when several processes do it at once. The number of partitions of a store that exists stays as
    it is: tenants are placed by it.
    """
    with _migrating(dsn) as connection:
        if connection.execute(text("select to_regclass('holdbook_restore')")).scalar_one() is not None:
            raise WrongSchema("A restore has begun in this database and has not ended: run it again, or drop the database.")
        _upgrade(connection, "head")
        connection.execute(
            text("insert into store (partitions, created_at) select :n, now() where not exists (select from store)"), {"n": partitions}
        )
        connection.execute(
            text("insert into log_partition select g, 0 from store, generate_series(0, partitions - 1) g on conflict do nothing")
        )
        connection.commit()
        return int(connection.execute(text("select partitions from store")).scalar_one())


@contextmanager
def _migrating(dsn: str) -> Iterator[Connection]:
    """A connection, while nobody else migrates."""
    engine = create_engine(make_url(_sqlalchemy(dsn)))
    try:
        with engine.connect() as connection:
            connection.execute(text("select pg_advisory_lock(:n)"), {"n": _MIGRATING})
            connection.commit()
            yield connection
            connection.rollback()
            connection.execute(text("select pg_advisory_unlock(:n)"), {"n": _MIGRATING})
            connection.commit()
    finally:
        engine.dispose()


def _upgrade(connection: Connection, revision: str) -> None:
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def check(dsn: str, *, newer: bool = True) -> int:
    """The store's number of partitions; refuses a schema that is older than this program needs, and a newer one if told so."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        if conn.execute("select to_regclass('holdbook_schema')").fetchone() == (None,):
            raise WrongSchema("The database holds no Holdbook store.")
        found = conn.execute("select version_num from holdbook_schema").fetchone()
        if found is None or found[0] < latest_revision():
            raise WrongSchema(f"Found {found and found[0]}, need {latest_revision()}.")
        if not newer and found[0] > latest_revision():
            raise WrongSchema(f"Found {found[0]}, know {latest_revision()}.")
        row = conn.execute("select partitions from store").fetchone()
        if row is None:
            raise WrongSchema("The store was never initialised.")
        return int(row[0])


def _sqlalchemy(dsn: str) -> str:
    if dsn.startswith(("postgresql://", "postgres://")):
        return "postgresql+psycopg://" + dsn.split("://", 1)[1]
    parts = psycopg.conninfo.conninfo_to_dict(dsn)
    query = "&".join(f"{key}={value}" for key, value in parts.items())
    return f"postgresql+psycopg://?{query}"

"""Making and upgrading the log's schema, and reading what a store was initialised with."""

from __future__ import annotations

from pathlib import Path

import psycopg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, make_url, text

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


def migrate(dsn: str, *, partitions: int = DEFAULT_PARTITIONS) -> int:
    """Bring the schema up to date, initialise an empty store, and return its number of partitions.

    Safe on a live store and when several processes do it at once. The number of partitions of a store that exists stays as
    it is: tenants are placed by it.
    """
    engine = create_engine(make_url(_sqlalchemy(dsn)))
    try:
        with engine.connect() as connection:
            connection.execute(text("select pg_advisory_lock(:n)"), {"n": _MIGRATING})
            connection.commit()
            config = _config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            connection.execute(
                text("insert into store (partitions, created_at) select :n, now() where not exists (select from store)"), {"n": partitions}
            )
            connection.execute(
                text("insert into log_partition select g, 0 from store, generate_series(0, partitions - 1) g on conflict do nothing")
            )
            connection.commit()
            count = connection.execute(text("select partitions from store")).scalar_one()
            connection.execute(text("select pg_advisory_unlock(:n)"), {"n": _MIGRATING})
            connection.commit()
            return int(count)
    finally:
        engine.dispose()


def check(dsn: str) -> int:
    """The store's number of partitions; refuses a schema that is older than this program needs."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        if conn.execute("select to_regclass('holdbook_schema')").fetchone() == (None,):
            raise WrongSchema("The database holds no Holdbook store.")
        found = conn.execute("select version_num from holdbook_schema").fetchone()
        if found is None or found[0] < latest_revision():
            raise WrongSchema(f"Found {found and found[0]}, need {latest_revision()}.")
        row = conn.execute("select partitions from store").fetchone()
        assert row is not None
        return int(row[0])


def _sqlalchemy(dsn: str) -> str:
    if dsn.startswith(("postgresql://", "postgres://")):
        return "postgresql+psycopg://" + dsn.split("://", 1)[1]
    parts = psycopg.conninfo.conninfo_to_dict(dsn)
    query = "&".join(f"{key}={value}" for key, value in parts.items())
    return f"postgresql+psycopg://?{query}"

"""The tables of the read models, by generation, and the registry that says which generation answers queries.

A table that exists is never changed: another shape is another generation. Every table of tenants' data has its partition
first in its primary key, and row-level security that its owner is under as well: a reader sees the tenant named in
``app.tenant_id``, and nobody when there is none (a pooled connection has it as an empty text).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from psycopg import Connection, connect
from sqlalchemy import MetaData, Table
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable

from eventstore.errors import WrongSchema
from projections.catalog import PROJECTIONS

_CREATING = 0x686F6C65  # an advisory lock's number: processes that start at once come one after the other
_DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy leaves it so


def tables(generation: int) -> MetaData:
    """All tables of one generation."""
    metadata = MetaData()
    for projection in PROJECTIONS.values():
        projection.define(metadata, generation)
    return metadata


def create(dsn: str) -> dict[str, int]:
    """Make what is missing and return the generation in use of each projection.

    May be called by several processes at once and on a live store: nothing that exists is touched. Raises `WrongSchema`
    when a projection was built by another version of its fold: it has to be rebuilt.
    """
    generations: dict[str, int] = {}
    with connect(dsn) as conn:
        conn.execute("select pg_advisory_xact_lock(%s)", (_CREATING,))
        if conn.execute("select to_regclass('projection')").fetchone() == (None,):
            conn.execute("create table projection (name text primary key, generation int not null, version int not null)")
            conn.execute("grant select on projection to holdbook_reader, holdbook_follower")
        for name, projection in PROJECTIONS.items():
            conn.execute("insert into projection values (%s, 1, %s) on conflict do nothing", (name, projection.version))
            found = conn.execute("select generation, version from projection where name = %s", (name,)).fetchone()
            assert found is not None
            generations[name], version = found
            if version != projection.version:
                raise WrongSchema(f"Projection {name} has version {version}, this program folds version {projection.version}: rebuild it.")
            create_generation(conn, name, generations[name])
    return generations


def create_generation(conn: Connection[Any], name: str, generation: int) -> None:
    """Make the tables of one generation of one projection, in the connection's transaction."""
    metadata = MetaData()
    PROJECTIONS[name].define(metadata, generation)
    for table in metadata.sorted_tables:
        if conn.execute("select to_regclass(%s)", (table.name,)).fetchone() == (None,):
            for statement in _statements(table):
                conn.execute(statement)


def _statements(table: Table) -> Iterator[str]:
    name = table.name
    assert next(iter(table.primary_key)).name == "partition"
    yield str(CreateTable(table).compile(dialect=_DIALECT))
    for index in sorted(table.indexes, key=lambda index: str(index.name)):
        yield str(CreateIndex(index).compile(dialect=_DIALECT))
    yield f"alter table {name} enable row level security"
    yield f"alter table {name} force row level security"
    yield f"create policy follower on {name} to holdbook_follower using (true) with check (true)"
    yield f"grant select, insert, update, delete on {name} to holdbook_follower"
    if table.info["readers"]:
        yield (
            f"create policy reader on {name} for select to holdbook_reader "
            "using (tenant_id = nullif(current_setting('app.tenant_id', true), '')::uuid)"
        )
        yield f"grant select on {name} to holdbook_reader"

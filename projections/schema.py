"""The tables of the read models, by generation, and the registry that says which generation answers queries.

A table that exists is never changed: another shape, or another fold, is another generation. Every table of tenants' data has its
partition first in its primary key, and row-level security that its owner is under as well: a reader sees the tenant named
in ``app.tenant_id``, and nobody when there is none (a pooled connection has it as an empty text).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from psycopg import Connection, connect
from sqlalchemy import MetaData, Table
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable

from projections.catalog import PROJECTIONS
from projections.consumer import Projection

_CREATING = 0x686F6C65  # an advisory lock's number: processes that start at once come one after the other
_DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy leaves it so

_REGISTRY = """
create table projection (name text not null, shape int not null default 1, generation int not null, version int not null,
                         primary key (name, shape))"""
_SHAPES = """
alter table projection add column shape int not null default 1;
alter table projection drop constraint projection_pkey, add primary key (name, shape)"""
_GENERATIONS = """
create table projection_generation (
  name text not null, generation int not null, version int not null, shape int not null,
  state text not null check (state in ('building', 'proof', 'current', 'old', 'dropped')),
  tables text[] not null, created_at timestamptz not null default now(), created_by text not null, primary key (name, generation))"""
_KNOWN = """
insert into projection_generation (name, generation, version, shape, state, tables, created_by)
select name, generation, version, shape, 'current', %s, 'init' from projection where name = %s"""


def tables(generation: int) -> MetaData:
    """All tables of one generation."""
    metadata = MetaData()
    for projection in PROJECTIONS.values():
        projection.define(metadata, generation)
    return metadata


def create(dsn: str, projections: Mapping[str, Projection] = PROJECTIONS) -> dict[str, int]:
    """Make what is missing and return the generation that answers this program's queries, of each projection that has one.

    May be called by several processes at once and on a live store: nothing that exists is touched, and no table that was lost is
    made again, because it would be empty. On an empty log a read model is complete as soon as its tables are there. One that comes
    to a log that is not empty, or whose fold or shape is newer than what the store has, is left to be built beside what there is:
    see :mod:`projections.generations`.
    """
    generations: dict[str, int] = {}
    with connect(dsn) as conn:
        alone(conn)
        _registry(conn, projections)
        for name, projection in projections.items():
            found = conn.execute("select generation from projection where name = %s and shape = %s", (name, projection.shape)).fetchone()
            if found is None and _begins(conn, projection):
                found = (1,)
            if found is not None:
                generations[name] = found[0]
    return generations


def alone(conn: Connection[Any]) -> None:
    """Wait until nobody else makes or drops tables of read models; held to the end of the transaction."""
    conn.execute("select pg_advisory_xact_lock(%s)", (_CREATING,))


def _registry(conn: Connection[Any], projections: Mapping[str, Projection]) -> None:
    """The registry itself, brought up from what earlier releases had: one row for each name."""
    if not _is_there(conn, "projection"):
        conn.execute(_REGISTRY)
        conn.execute("grant select on projection to holdbook_reader, holdbook_follower")
    elif not conn.execute(
        "select from pg_attribute where attrelid = 'projection'::regclass and attname = 'shape' and not attisdropped"
    ).fetchall():
        conn.execute(_SHAPES)
    if not _is_there(conn, "projection_generation"):
        conn.execute(_GENERATIONS)
        conn.execute("grant select on projection_generation to holdbook_reader, holdbook_follower")
        for name, number in conn.execute("select name, generation from projection").fetchall():
            names = table_names(projections[name], number) if name in projections else []
            conn.execute(_KNOWN, (names, name))


def _begins(conn: Connection[Any], projection: Projection) -> bool:
    """Make and register the first generation of a projection when the log is empty; whether it is."""
    if conn.execute("select from projection_generation where name = %s limit 1", (projection.name,)).fetchall():
        return False
    if conn.execute("select from event limit 1").fetchall():
        return False
    place = projection.name, projection.shape, projection.version
    conn.execute("insert into projection (name, shape, generation, version) values (%s, %s, 1, %s)", place)
    conn.execute(
        "insert into projection_generation (name, generation, shape, version, state, tables, created_by) "
        "values (%s, 1, %s, %s, 'current', %s, 'init')",
        (*place, table_names(projection, 1)),
    )
    create_tables(conn, projection, 1)
    return True


def _is_there(conn: Connection[Any], table: str) -> bool:
    return conn.execute("select to_regclass(%s)", (table,)).fetchone() != (None,)


def create_generation(conn: Connection[Any], name: str, generation: int) -> None:
    """Make the tables of one generation of one projection, in the connection's transaction."""
    create_tables(conn, PROJECTIONS[name], generation)


def create_tables(conn: Connection[Any], projection: Projection, generation: int, *, indexes: bool = True) -> None:
    """Make the tables of one generation of one projection, in the connection's transaction.

    Without ``indexes`` only what is needed to write to them is made: a table that is being filled is quicker without, and
    :func:`create_indexes` makes the others when it is full.
    """
    for table in _tables_of(projection, generation):
        if not _is_there(conn, table.name):
            for statement in _statements(table):
                conn.execute(statement)
            for index in _indexes(table) if indexes else ():
                conn.execute(index)


def create_indexes(conn: Connection[Any], projection: Projection, generation: int) -> None:
    """Make the indexes that are missing. Nobody can write to the tables meanwhile."""
    for table in _tables_of(projection, generation):
        for index in _indexes(table):
            conn.execute(index)


def table_names(projection: Projection, generation: int) -> list[str]:
    """The names of a generation's tables, to drop them by when no program knows their shape any more."""
    return [table.name for table in _tables_of(projection, generation)]


def _tables_of(projection: Projection, generation: int) -> list[Table]:
    metadata = MetaData()
    projection.define(metadata, generation)
    return metadata.sorted_tables


def _indexes(table: Table) -> Iterator[str]:
    for index in sorted(table.indexes, key=lambda index: str(index.name)):
        yield str(CreateIndex(index, if_not_exists=True).compile(dialect=_DIALECT))


def _statements(table: Table) -> Iterator[str]:
    name = table.name
    assert next(iter(table.primary_key)).name == "partition"
    yield str(CreateTable(table).compile(dialect=_DIALECT))
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

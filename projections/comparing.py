"""Whether two generations hold the same rows, byte for byte, at the same position of the log.

The server digests rows in the order of their keys, some thousand at a time, and only where digests differ are the rows looked at
one by one. All of one partition is read as of one moment, so writing and following go on meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import MetaData, Table

from projections.consumer import Connection, Projection

CHUNK_ROWS = 5_000
TOLD = 5
"""Differing keys that are named, at most, of one table and partition."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Rows of one table and partition that are not the same in both generations; ``keys`` are the first of them, without the partition."""

    partition: int
    table: str
    keys: tuple[tuple[Any, ...], ...]

    def __str__(self) -> str:
        told = ", ".join("/".join(map(str, key)) for key in self.keys)
        return f"partition {self.partition}, {self.table}: {told}"


class _Pair(NamedTuple):
    """One table in both generations, and its primary key behind the partition."""

    table: str
    other: str
    key: tuple[str, ...]


async def differences(conn: Connection, projection: Projection, partition: int, live: int, other: int) -> list[Difference]:
    """What differs in a partition between two generations of one shape.

    The connection is in a transaction that sees one moment; whether both stand at one position then is the caller's business.
    """
    found = []
    for pair in _pairs(projection, live, other):
        keys = await _differing(conn, pair, partition)
        if keys:
            found.append(Difference(partition, pair.table, tuple(keys)))
    return found


def _pairs(projection: Projection, live: int, other: int) -> list[_Pair]:
    def tables(generation: int) -> Sequence[Table]:
        metadata = MetaData()
        projection.define(metadata, generation)
        return metadata.sorted_tables

    # By their order of definition, which does not depend on the generation; sorted by name 9 comes behind 10.
    def keys(table: Table) -> tuple[str, ...]:
        return tuple(column.name for column in table.primary_key if column.name != "partition")

    names = {_stem(table.name, other): table.name for table in tables(other)}
    return [_Pair(table.name, names[_stem(table.name, live)], keys(table)) for table in tables(live)]


def _stem(table: str, generation: int) -> str:
    return table.removesuffix(f"_{generation}")


async def _differing(conn: Connection, pair: _Pair, partition: int) -> list[tuple[Any, ...]]:
    after: tuple[Any, ...] | None = None
    while True:
        last = await _end_of_chunk(conn, pair, partition, after)
        where, parameters = _between(pair, partition, after, last)
        digests = [await _digest(conn, table, pair, where, parameters) for table in (pair.table, pair.other)]
        if digests[0] != digests[1]:
            return await _keys(conn, pair, where, parameters)
        if last is None:
            return []
        after = last


def _between(pair: _Pair, partition: int, after: tuple[Any, ...] | None, last: tuple[Any, ...] | None) -> tuple[str, tuple[Any, ...]]:
    """The condition for keys behind one and up to another, and its parameters."""
    key, marks = ", ".join(pair.key), ", ".join(["%s"] * len(pair.key))
    where, parameters = "partition = %s", [partition]
    for operator, bound in ((">", after), ("<=", last)):
        if bound is not None:
            where += f" and ({key}) {operator} ({marks})"
            parameters += bound
    return where, tuple(parameters)


async def _end_of_chunk(conn: Connection, pair: _Pair, partition: int, after: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
    """The key that ends a chunk; None when the rest is shorter than one."""
    key = ", ".join(pair.key)
    where, parameters = _between(pair, partition, after, None)
    query = f"select {key} from {pair.table} where {where} order by {key} offset {CHUNK_ROWS - 1} limit 1"
    return await (await conn.execute(query, parameters)).fetchone()


async def _digest(conn: Connection, table: str, pair: _Pair, where: str, parameters: tuple[Any, ...]) -> tuple[Any, ...] | None:
    rows = f"string_agg(t::text, e'\\n' order by {', '.join(pair.key)})"
    query = f"select count(*), sha256(convert_to({rows}, 'UTF8')) from {table} t where {where}"
    return await (await conn.execute(query, parameters)).fetchone()


async def _keys(conn: Connection, pair: _Pair, where: str, parameters: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """The first keys whose rows differ, or that only one of the two has."""
    key = ", ".join(pair.key)
    rows = "select " + key + ", t::text from {} t where " + where
    query = f"""
        select {key} from (({rows.format(pair.table)}) union all ({rows.format(pair.other)})) both_of_them
        group by {key}, t having count(*) = 1 order by {key} limit {2 * TOLD}"""
    found = await (await conn.execute(query, parameters + parameters)).fetchall()
    return list(dict.fromkeys(found))[:TOLD]

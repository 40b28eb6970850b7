"""Whether what the registry says of a read model can be true."""

from __future__ import annotations

from projections.consumer import Connection, Projection
from projections.generations import Generation

_ALL = (
    "select name, generation, version, shape, state from projection_generation where name = %s and state <> 'dropped' order by generation"
)
_REGISTERED = "select shape, generation, version from projection where name = %s order by shape"
_MISSING = """
select t.name from unnest((select tables from projection_generation where name = %s and generation = %s)) as t(name)
where to_regclass(t.name) is null"""
_AHEAD = """
select o.partition, o.position, coalesce(c.position, 0) from checkpoint o
left join checkpoint c on c.partition = o.partition and c.consumer = o.consumer and c.generation = %s
join log_partition p on p.partition = o.partition and p.epoch = o.epoch
where o.consumer = %s and o.generation = %s and o.position > coalesce(c.position, 0) order by o.partition limit 1"""


async def has_registry(conn: Connection) -> bool:
    """Whether the store has a registry of generations."""
    return await (await conn.execute("select to_regclass('projection_generation') is not null")).fetchone() == (True,)


async def registry(conn: Connection, projection: Projection) -> list[str]:
    """What cannot be: a generation that answers and is not there, or has applied less than the one that answered before it."""
    name = projection.name
    rows = await (await conn.execute(_ALL, (name,))).fetchall()
    generations = {row[1]: Generation._make(row) for row in rows}
    wrong = []
    for shape, number, version in await (await conn.execute(_REGISTERED, (name,))).fetchall():
        answers = generations.get(number)
        if answers is None or (answers.shape, answers.version, answers.state) != (shape, version, "current"):
            wrong.append(f"{name}: generation {number} answers queries of shape {shape}, and is {answers or 'not there'}")
            continue
        missing = await (await conn.execute(_MISSING, (name, number))).fetchall()
        wrong += [f"{name}: table {table} of generation {number}, which answers, is not there" for (table,) in missing]
        for other in generations.values():
            if other.state == "old" and other.shape == shape:
                wrong += await _behind(conn, answers, other)
    return wrong


async def _behind(conn: Connection, answers: Generation, old: Generation) -> list[str]:
    found = await (await conn.execute(_AHEAD, (answers.generation, answers.name, old.generation))).fetchall()
    return [
        f"{answers.name}, partition {partition}: generation {answers.generation} answers at position {position}, and generation "
        f"{old.generation} answered at {before} before: readers went back in time"
        for partition, before, position in found
    ]

"""Making a generation the one that answers, so that no reader ever sees less than before."""

from __future__ import annotations

from collections.abc import Mapping

from psycopg import AsyncConnection

from projections.building import Builder, CannotBuild
from projections.consumer import Connection, Projection
from projections.generations import Generation, Standing, current_generations, standing

HELD_EVENTS = 2_000
"""Most events that are applied while the generation that answers is kept from moving: some hundredths of a second."""
_TRIES = 100
_HOLD = """
select c.position, c.position = 0 or c.hash is null or exists (
  select from event e where e.partition = c.partition and e.position = c.position and e.hash = c.hash)
from checkpoint c where c.partition = %s and c.consumer = %s and c.generation = %s for update of c"""
_BEGIN = """
insert into checkpoint (partition, consumer, generation, position, epoch)
select partition, %s, %s::int, 0, epoch from log_partition where partition = %s
on conflict do nothing"""
_POSITIONS = "select partition, position from checkpoint where consumer = %s and generation = %s and partition = any(%b::int[])"


class Behind(AssertionError):
    """A generation was about to answer that had applied less than the one before."""


async def hold(conn: Connection, live: Generation, partition: int) -> tuple[int, bool]:
    """Keep a generation's partition where it is until the connection's transaction ends.

    Its position, and whether the event that it applied last is still the one that the log has there.
    """
    place = partition, live.name, live.generation
    row = await (await conn.execute(_HOLD, place, binary=True)).fetchone()
    if row is None:  # never fed yet, and nobody may begin now
        await conn.execute(_BEGIN, (live.name, live.generation, partition))
        row = await (await conn.execute(_HOLD, place, binary=True)).fetchone()
    assert row is not None
    return row[0], row[1]


async def positions_of(conn: Connection, generation: Generation, partitions: Mapping[int, int]) -> dict[int, int]:
    """Where a generation stands on these partitions."""
    cursor = await conn.execute(_POSITIONS, (generation.name, generation.generation, list(partitions)), binary=True)
    return dict(await cursor.fetchall())


async def switch(dsn: str, builder: Builder, projection: Projection) -> None:
    """Have queries of the generation's shape read it from now on. ``dsn`` is of a login that owns the registry.

    While the registry changes, the generation that answered cannot move, and the new one has applied at least as much of each
    partition. Raises `CannotBuild` when somebody else was first with something else, or the log goes on too fast.
    """
    options = "-c lock_timeout=5s -c idle_in_transaction_session_timeout=30s -c synchronous_commit=on"
    async with await AsyncConnection.connect(dsn, autocommit=True, options=options) as conn:
        for _ in range(_TRIES):
            await builder.advance(await builder.heads())
            async with conn.transaction():
                if await _switched(conn, builder, projection):
                    return
    raise CannotBuild("The log goes on faster than this generation can be brought up to it.")


async def _switched(conn: Connection, builder: Builder, projection: Projection) -> bool:
    """One attempt; False when there is too much to catch up with."""
    made = builder.generation
    await conn.execute("select from projection where name = %s order by shape for update", (made.name,))
    stands = standing(await current_generations(conn), projection)
    if stands.answers is not None and stands.answers.generation == made.generation:
        return True
    if stands.outdated:
        raise CannotBuild(f"A newer program has built {made.name} meanwhile.")
    live = stands.answers or stands.latest
    if live is not None and not await _brought_up(conn, builder, live):
        return False
    await _register(conn, made, stands)
    return True


async def _brought_up(conn: Connection, builder: Builder, live: Generation) -> bool:
    """Hold the live generation and bring the other at least to where it stands."""
    held = {partition: (await hold(conn, live, partition))[0] for partition in sorted(builder.positions)}
    heads = await builder.heads()
    # A log that lost its tail ends before what was applied of it: then all there is must do.
    wanted = {partition: min(position, heads[partition]) for partition, position in held.items()}
    missing = {partition: position for partition, position in wanted.items() if builder.positions[partition] < position}
    if sum(position - builder.positions[partition] for partition, position in missing.items()) > HELD_EVENTS:
        return False
    await builder.advance(missing)
    stands = await positions_of(conn, builder.generation, wanted)
    if any(stands.get(partition, 0) < position for partition, position in wanted.items()):
        raise Behind(f"{stands} < {wanted}")
    return True


async def _register(conn: Connection, made: Generation, stands: Standing) -> None:
    live = stands.answers
    await conn.execute(
        "insert into projection (name, shape, generation, version) values (%s, %s, %s, %s) "
        "on conflict (name, shape) do update set generation = excluded.generation, version = excluded.version",
        (made.name, made.shape, made.generation, made.version),
    )
    states = [(made, "current")] if live is None else [(live, "old"), (made, "current")]
    for generation, state in states:
        await conn.execute(
            "update projection_generation set state = %s where name = %s and generation = %s and state <> 'dropped'",
            (state, generation.name, generation.generation),
        )

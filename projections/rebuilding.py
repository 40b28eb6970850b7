"""Building a read model anew beside the one that answers, proving both equal, and switching. All of it on a live store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from zlib import crc32

import psycopg
from psycopg import AsyncConnection

from eventstore.codec import Codec
from projections import generations, schema
from projections.building import OPTIONS, Builder, CannotBuild, Effort
from projections.comparing import Difference, differences
from projections.consumer import Connection, Projection
from projections.generations import Generation, State, current_generations, standing
from projections.switching import HELD_EVENTS, hold, positions_of, switch

LINGER_SECONDS = 4.0
"""How long a generation that has begun to answer is still fed by its builder: until followers have asked whom to feed."""
_PATIENCE_SECONDS = 30.0
_TURN = 0x686F6C66  # the first number of an advisory lock; the second is made of the projection's name


@dataclass(frozen=True, slots=True)
class Report:
    """Whom to tell how it goes: what is being done, how many events it will take, how many were done."""

    say: Callable[[str], None] = lambda what: None
    expect: Callable[[int], None] = lambda events: None
    advance: Callable[[int], None] = lambda events: None


@dataclass(slots=True)
class Outcome:
    """What came of it."""

    generation: Generation
    live: Generation | None
    """The one that answered before."""
    compared: int = 0
    """Partitions that were compared."""
    different: list[Difference] = field(default_factory=list)
    apart: dict[int, str] = field(default_factory=dict)
    """Partitions that could not be compared, and why."""
    lost: dict[int, str] = field(default_factory=dict)
    """Partitions that the live generation built on a log that is no more."""
    switched: bool = False

    @property
    def equal(self) -> bool:
        """Whether every partition was compared and none differs."""
        return not self.different and not self.apart and not self.lost


class Outdated(Exception):
    """A newer program has built this read model; this one must not replace it."""


async def rebuild(
    dsn: str,
    projection: Projection,
    codec: Codec,
    *,
    by: str,
    force: bool = False,
    compare: bool = True,
    effort: Effort | None = None,
    report: Report | None = None,
    linger_seconds: float = LINGER_SECONDS,
) -> Outcome:
    """Build a generation, or go on with one that was interrupted, compare it with the one that answers, and switch to it.

    A generation of the same fold must equal the one that answers: when it does not, or cannot be compared, nothing is switched
    unless ``force``, but for partitions whose log lost its end: what answers there is wrong. One of another fold may differ, and
    is compared for information only. ``dsn`` is of a login that owns the tables. Raises `CannotBuild` and `Outdated`.
    """
    report = report or Report()
    outcome, made = await _begun(dsn, projection, "building", by)
    async with Builder.open(dsn, projection, made, codec, effort, report.advance) as builder:
        live = outcome.live
        if compare and live is not None and live.shape == made.shape:
            await _compare(dsn, projection, builder, live, outcome, report)
            if live.version == made.version and (outcome.different or outcome.apart) and not force:
                return outcome
        report.say("building")
        await _expected(builder, await builder.heads(), report)
        await builder.advance(await builder.heads())
        await _finish(dsn, projection, made, report)
        report.say("switching")
        await switch(dsn, builder, projection)
        outcome.switched = True
        report.say("until followers take over")
        await _linger(builder, linger_seconds)
    return outcome


async def prove(
    dsn: str, projection: Projection, codec: Codec, *, by: str, effort: Effort | None = None, report: Report | None = None
) -> Outcome:
    """Whether the generation that answers is the fold of the log: build another, compare both, and drop it again.

    Raises `CannotBuild`, also when nothing answers that this program's fold has built.
    """
    report = report or Report()
    outcome, made = await _begun(dsn, projection, "proof", by)
    if outcome.live is None or not outcome.live.fits(projection):
        raise CannotBuild(f"No generation of {projection.name} that answers was built by this program's fold.")
    async with Builder.open(dsn, projection, made, codec, effort, report.advance) as builder:
        await _compare(dsn, projection, builder, outcome.live, outcome, report)
    await asyncio.to_thread(generations.drop, dsn, made.name, made.generation)
    return outcome


async def _begun(dsn: str, projection: Projection, state: State, by: str) -> tuple[Outcome, Generation]:
    async with await AsyncConnection.connect(dsn, autocommit=True) as conn:
        stands = standing(await current_generations(conn), projection)
    if stands.outdated:
        raise Outdated(f"A newer program has built {projection.name}; this one folds version {projection.version}.")
    made = await asyncio.to_thread(generations.begin, dsn, projection, state, by)
    return Outcome(made, stands.answers), made


async def _finish(dsn: str, projection: Projection, made: Generation, report: Report) -> None:
    """What is quicker made of full tables than kept up while they fill."""

    def make() -> None:
        with psycopg.connect(dsn) as conn:
            schema.alone(conn)
            schema.create_indexes(conn, projection, made.generation)

    report.say("indexing")
    await asyncio.to_thread(make)


async def _expected(builder: Builder, targets: dict[int, int], report: Report) -> None:
    report.expect(sum(max(0, target - builder.positions[partition]) for partition, target in targets.items()))


async def _linger(builder: Builder, seconds: float) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        await asyncio.sleep(0.05)
        await builder.advance(await builder.heads())


# Comparing


async def _compare(dsn: str, projection: Projection, builder: Builder, live: Generation, outcome: Outcome, report: Report) -> None:
    """Bring the generation to where the live one stands, partition by partition, and compare them there."""
    async with (
        await AsyncConnection.connect(dsn, autocommit=True, options=OPTIONS) as holding,
        await AsyncConnection.connect(dsn, autocommit=True, options=OPTIONS) as looking,
    ):
        heads = await builder.heads()
        stands = await positions_of(holding, live, heads)
        await _expected(builder, {partition: min(stands.get(partition, 0), head) for partition, head in heads.items()}, report)
        fed = live.version == builder.generation.version  # by this program's followers, so that it is worth waiting for
        patience = time.monotonic() + (_PATIENCE_SECONDS if fed else 0)
        for partition, head in heads.items():
            report.say(f"partition {partition}: building")
            await builder.advance({partition: min(stands.get(partition, 0), head)})
            if not await _meet(builder, live, partition, holding, looking, patience, outcome):
                continue
            report.say(f"partition {partition}: comparing")
            number = builder.generation.generation
            outcome.different += await differences(looking, projection, partition, live.generation, number)
            await looking.execute("rollback")
            outcome.compared += 1


async def _meet(
    builder: Builder, live: Generation, partition: int, holding: Connection, looking: Connection, patience: float, outcome: Outcome
) -> bool:
    """Begin a transaction on ``looking`` that sees both generations at one position; the outcome says why it cannot be, if it cannot.

    The live one is held only until that moment is fixed, and goes on while they are compared.
    """
    name = f"generation {live.generation}"
    while True:
        await holding.execute("begin")
        try:
            position, kept = await hold(holding, live, partition)
            head = (await builder.heads())[partition]
            ours = builder.positions[partition]
            if not kept or position > head:
                outcome.lost[partition] = f"what {name} applied last is not in the log: it has lost its end since"
                return False
            if ours <= position <= ours + HELD_EVENTS:
                await builder.advance({partition: position})
                await looking.execute("begin isolation level repeatable read, read only")
                both = [await positions_of(looking, each, {partition: 0}) for each in (live, builder.generation)]
                if both[0].get(partition, 0) == both[1].get(partition, 0):
                    return True
                await looking.execute("rollback")
        finally:
            await holding.execute("rollback")
        ours = builder.positions[partition]
        if time.monotonic() > patience and position < ours:
            outcome.apart[partition] = f"{name} stands at {position} and does not come up to {ours}: is it fed?"
            return False
        if position > ours:
            await builder.advance({partition: position})
        else:
            await asyncio.sleep(0.02)


# Taking turns


@asynccontextmanager
async def turn(dsn: str, name: str, patience_seconds: float = _PATIENCE_SECONDS) -> AsyncIterator[bool]:
    """Wait while another process builds this read model and gets on with it; whether the turn is ours.

    Only so that no work is done twice: whoever builds out of turn changes nothing.
    """
    query = """
        select coalesce(sum(c.position), 0) from projection_generation g join checkpoint c
        on c.consumer = g.name and c.generation = g.generation where g.name = %s and g.state in ('building', 'proof')"""
    async with await AsyncConnection.connect(dsn, autocommit=True) as conn:
        seen, since = None, time.monotonic()
        while True:
            got = await (await conn.execute("select pg_try_advisory_lock(%s, %s)", (_TURN, crc32(name.encode()) >> 1))).fetchone()
            if got == (True,):
                yield True
                return
            now = await (await conn.execute(query, (name,))).fetchone()
            if now != seen:
                seen, since = now, time.monotonic()
            if time.monotonic() - since >= patience_seconds:
                yield False
                return
            await asyncio.sleep(0.2)

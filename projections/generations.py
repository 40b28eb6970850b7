"""Which generations of each read model there are, which of them answers queries, and which this program may feed.

A program has one fold (*version*) and one layout of tables (*shape*) of each read model. The registry names, for each name and
shape, the one generation that queries of that shape read, in the transaction of the query; so a program of the old shape and
one of the new one work side by side. A generation is fed only by programs of exactly its version and shape, and a program
never replaces what a newer one built.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import psycopg
import structlog
from psycopg.sql import SQL, Identifier

from eventstore.codec import Codec
from projections import schema
from projections.catalog import PROJECTIONS
from projections.consumer import Connection, Consumer, Projection

log = structlog.get_logger(__name__)

State = Literal["building", "proof", "current", "old", "dropped"]
"""A *proof* is built to be compared and never answers; of a *dropped* one only the number is left, so that it is never used again."""

_FIELDS = "name, generation, version, shape, state"
_ALL = f"select {_FIELDS} from projection_generation where state <> 'dropped' order by name, generation"
_OF = f"select {_FIELDS} from projection_generation where name = %s and state <> 'dropped' order by generation"
_CURRENT = """
select g.name, g.generation, g.version, g.shape, 'current' from projection p
join projection_generation g on g.name = p.name and g.generation = p.generation"""
_OTHER_EPOCH = """
select exists (select from checkpoint c join log_partition p on p.partition = c.partition
               where c.partition = any(%s::int[]) and c.consumer = %s and c.generation = %s and c.epoch <> p.epoch)"""
_BEGIN = """
insert into checkpoint (partition, consumer, generation, position, epoch)
select partition, %s, %s::int, 0, epoch from log_partition"""


class Generation(NamedTuple):
    """One generation of a read model. ``current`` means that queries of its shape read it."""

    name: str
    generation: int
    version: int
    shape: int
    state: State

    def fits(self, projection: Projection) -> bool:
        """Whether this program's fold may write to it."""
        return (self.version, self.shape) == (projection.version, projection.shape)


class Standing(NamedTuple):
    """What a store has of a read model, as a program sees it."""

    answers: Generation | None
    """The one that this program's queries read."""
    latest: Generation | None
    """The current one of the newest shape."""
    outdated: bool
    """A newer program was here: this one reads what fits its queries, and feeds and builds nothing."""

    def needs(self, projection: Projection) -> bool:
        """Whether a generation of this program's fold has to be built and switched to."""
        return not self.outdated and (self.answers is None or not self.answers.fits(projection))


class CannotDrop(Exception):
    """The generation answers queries, or there is none of that number."""


def all_generations(conn: psycopg.Connection[Any]) -> list[Generation]:
    """All that are there, by name and number."""
    return [Generation._make(row) for row in conn.execute(_ALL).fetchall()]


def standing(found: Sequence[Generation], projection: Projection) -> Standing:
    """How the current generations of a name look to a program with this projection."""
    current = sorted((each for each in found if each.name == projection.name and each.state == "current"), key=lambda each: each.shape)
    answers = next((each for each in current if each.shape == projection.shape), None)
    outdated = any(
        each.shape > projection.shape or (each.shape == projection.shape and each.version > projection.version) for each in current
    )
    return Standing(answers, current[-1] if current else None, outdated)


async def current_generations(conn: Connection) -> list[Generation]:
    """Those that answer queries."""
    return [Generation._make(row) for row in await (await conn.execute(_CURRENT)).fetchall()]


class Roster:
    """Asked by a follower whom to feed: of each read model the generation that answers, if it is of this program's fold.

    What is being built is not among them: its builder feeds it, so that the rest does not wait for that. ``others`` are consumers
    that are no read models and always fed.
    """

    def __init__(self, codec: Codec, projections: Mapping[str, Projection] = PROJECTIONS, others: Sequence[Consumer] = ()) -> None:
        self._codec, self._projections, self._others = codec, projections, others
        self._told: dict[str, str] = {}

    async def __call__(self, conn: Connection) -> Sequence[Consumer]:
        """The consumers to feed at present."""
        found = await current_generations(conn)
        consumers = list(self._others)
        for name, projection in self._projections.items():
            stands = standing(found, projection)
            self._tell(name, stands, projection)
            if stands.answers is not None and stands.answers.fits(projection):
                consumers.append(projection.consumer(self._codec, stands.answers.generation))
        return consumers

    def _tell(self, name: str, stands: Standing, projection: Projection) -> None:
        """Say once when something is not fed, and why."""
        if stands.outdated:
            said = "a newer program has built this read model: this one reads it and does not feed it"
        elif stands.needs(projection):
            said = "no generation of this program's fold answers yet"
        else:
            said = ""
        if said and self._told.get(name) != said:
            log.warning("projection.not_fed", projection=name, version=projection.version, reason=said)
        self._told[name] = said


def begin(dsn: str, projection: Projection, state: State, by: str) -> Generation:
    """The generation of this state that an interrupted build left behind, or a new one with empty tables and checkpoints at 0.

    One that was begun on another epoch of the log can never be finished and is dropped. ``dsn`` is of a login that owns the tables.
    """
    with psycopg.connect(dsn) as conn:
        schema.alone(conn)
        partitions = [row[0] for row in conn.execute("select partition from log_partition").fetchall()]
        for row in conn.execute(_OF, (projection.name,)).fetchall():
            left = Generation._make(row)
            if left.state == state and left.fits(projection):
                stale = conn.execute(_OTHER_EPOCH, (partitions, left.name, left.generation)).fetchone()
                if stale == (False,):
                    return left
                _drop(conn, left)
        highest = conn.execute("select coalesce(max(generation), 0) from projection_generation where name = %s", (projection.name,))
        number = 1 + sum(row[0] for row in highest.fetchall())
        made = Generation(projection.name, number, projection.version, projection.shape, state)
        conn.execute(
            f"insert into projection_generation ({_FIELDS}, tables, created_by) values (%s, %s, %s, %s, %s, %s, %s)",
            (*made, schema.table_names(projection, number), by),
        )
        schema.create_tables(conn, projection, number, indexes=False)
        conn.execute(_BEGIN, (projection.name, number))
        return made


def drop(dsn: str, name: str, number: int) -> None:
    """Drop a generation that does not answer this or a newer program's queries. Raises `CannotDrop`.

    Done again after it was interrupted it changes nothing. A query that has read the registry before and is still under way is
    waited for; one that has not come to the tables yet finds them gone and asks again.
    """
    for patience in range(_TRIES, -1, -1):
        try:
            with psycopg.connect(dsn, options="-c lock_timeout=200ms") as conn:  # sooner than a deadlock is looked for
                schema.alone(conn)
                found = [Generation._make(row) for row in conn.execute(_OF, (name,)).fetchall()]
                chosen = next((each for each in found if each.generation == number), None)
                if chosen is None:
                    raise CannotDrop(f"There is no generation {number} of {name}.")
                newest = max((each.shape for each in found if each.state == "current"), default=-1)
                if chosen.state == "current" and chosen.shape == newest:
                    raise CannotDrop(f"Generation {number} of {name} answers queries.")
                _drop(conn, chosen)
                return
        except psycopg.errors.LockNotAvailable:
            if not patience:
                raise


_TRIES = 50


def _drop(conn: psycopg.Connection[Any], chosen: Generation) -> None:
    place = chosen.name, chosen.generation
    for (tables,) in conn.execute("select tables from projection_generation where name = %s and generation = %s", place).fetchall():
        for table in tables:
            conn.execute(SQL("drop table if exists {}").format(Identifier(table)))
    conn.execute("delete from projection where name = %s and generation = %s", place)
    conn.execute("delete from checkpoint where consumer = %s and generation = %s", place)
    conn.execute("update projection_generation set state = 'dropped' where name = %s and generation = %s", place)

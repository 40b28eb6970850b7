"""``holdbook rebuild``: a read model built anew on a live store, and the proof that it is the fold of the log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import psycopg
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from api.cli.common import database, err, fail, out, prepare, settings, told
from domain.catalog import DECIDERS
from eventstore.codec import Codec
from eventstore.schema import check
from projections import schema
from projections.building import CannotBuild
from projections.catalog import PROJECTIONS
from projections.consumer import Projection
from projections.rebuilding import Outcome, Outdated, Report, prove, turn
from projections.rebuilding import rebuild as rebuild_one

NameArgument = Annotated[str, typer.Argument(help=f"One of {', '.join(sorted(PROJECTIONS))}.")]


def rebuild(
    name: NameArgument,
    verify: Annotated[
        bool, typer.Option("--verify", help="Build a generation, compare it with the one that answers, and drop it: nothing is switched.")
    ] = False,
    drop_old: Annotated[bool, typer.Option("--drop-old", help="Drop the generation that answered before, once the new one does.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Switch although a generation of the same fold differs, or cannot be compared.")
    ] = False,
) -> None:
    """Build a read model anew beside the one that answers, compare both, and switch.

    Reading and writing go on. What was interrupted goes on where it was when the command is given again. A generation of the same fold
    must be equal, byte for byte: where it is not, nothing is switched, and the first differing keys are told. Ends with 1 then.
    """
    projection = PROJECTIONS.get(name)
    if projection is None:
        fail(f"There is no read model {name}: one of {', '.join(sorted(PROJECTIONS))}.")
    if verify:
        with shown(name) as report:
            outcome = _run(
                lambda dsn: _in_turn(dsn, projection, lambda: prove(dsn, projection, Codec(DECIDERS), by="verify", report=report))
            )
        _complain(outcome)
        out.print(f"{name} is the fold of the log in {outcome.compared} partitions.", highlight=False)
        return
    codec = Codec(DECIDERS)
    with shown(name) as report:
        outcome = _run(
            lambda dsn: _in_turn(dsn, projection, lambda: rebuild_one(dsn, projection, codec, by="operator", force=force, report=report))
        )
    number, live = outcome.generation.generation, outcome.live
    if not outcome.switched:
        _complain(
            outcome, f"Generation {number} is kept as it is; --force switches to it, `holdbook projections drop {name} {number}` drops it."
        )
    for line in problems(outcome):
        err.print(line, soft_wrap=True, highlight=False, markup=False)
    if live is not None and live.version != outcome.generation.version and outcome.different:
        out.print(f"That is as it may be: generation {live.generation} was folded by version {live.version}.", highlight=False)
    out.print(f"Generation {number} of {name} answers now.", highlight=False)
    if drop_old and live is not None and live.generation != number:
        from projections.generations import drop

        _run(lambda dsn: asyncio.to_thread(drop, dsn, name, live.generation))
        out.print(f"Generation {live.generation} is dropped.", highlight=False)


def _complain(outcome: Outcome, advice: str = "") -> None:
    """Say what differs and end with 1, if anything does."""
    if outcome.equal:
        return
    for line in problems(outcome):
        err.print(line, soft_wrap=True, highlight=False, markup=False)
    live = outcome.live
    fail(f"{outcome.generation.name}: generation {live and live.generation} is not the fold of the log. {advice}".strip())


def problems(outcome: Outcome) -> Iterator[str]:
    """What differs, and what could not be compared."""
    name = outcome.generation.name
    for difference in outcome.different:
        yield f"{name}, {difference}"
    for partition, reason in (outcome.apart | outcome.lost).items():
        yield f"{name}, partition {partition}: {reason}"


async def _in_turn(dsn: str, projection: Projection, work: Callable[[], Coroutine[Any, Any, Outcome]]) -> Outcome:
    async with turn(dsn, projection.name):
        return await work()


def _run(work: Callable[[str], Coroutine[Any, Any, Any]]) -> Any:
    """On the prepared database of the settings; what can go wrong in words."""
    chosen = settings()
    with told(), database(chosen) as (dsn, _):
        if chosen.database_url is None:
            prepare(dsn, chosen)
        check(dsn)
        schema.create(dsn)
        try:
            return asyncio.run(work(dsn))
        except (CannotBuild, Outdated) as error:
            fail(str(error))
        except psycopg.errors.UndefinedTable:
            fail("Somebody else dropped the generation meanwhile.")


@contextmanager
def shown(title: str) -> Iterator[Report]:
    """A progress bar in events."""
    columns = (
        TextColumn("{task.fields[title]}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=err, refresh_per_second=4) as progress:
        task = progress.add_task("", total=0, title=title)
        expected = 0

        def expect(events: int) -> None:
            nonlocal expected
            expected = int(progress.tasks[task].completed) + events
            progress.update(task, total=expected)

        yield Report(
            say=lambda what: progress.update(task, description=what), expect=expect, advance=lambda events: progress.advance(task, events)
        )

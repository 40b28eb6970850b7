"""`holdbook bench`: every row of the table on a PostgreSQL of its own, in a directory that is thrown away."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from api.server import collect_less_often
from bench import curve
from bench.rows import Group, Measured, Row, registered
from bench.scale import FULL, QUICK, Scale
from bench.stage import Stage, prepared
from eventstore.embedded import EmbeddedPostgres

Result = tuple[Row, Measured]


def run(*, as_json: bool, quick: bool, with_curve: bool | None = None, only: str = "", dsn: str | None = None) -> None:
    """Measure and print: a table for people, or as JSON a list of ``{name, ratio, target, holds, ...}`` and nothing else.

    The curve (rates by kind of traffic and size of batch) is left out when quick or as JSON, unless it is asked for; ``only``
    picks rows by a part of their name; ``dsn`` is of a server to use instead, which must let us make databases. Never fails for
    a figure that is below its target.
    """
    scale = QUICK if quick else FULL
    wanted = not quick and not as_json and not only if with_curve is None else with_curve
    out = sys.stdout
    place = server() if dsn is None else nullcontext(dsn)
    with redirect_stdout(sys.stderr), place as address, prepared(address) as template:  # so that the JSON stands alone
        results = measure(address, template, scale, only=only)
        points = curve.measure(Stage(address, template, scale, lambda _: None)) if wanted and not as_json else []
    if as_json:
        print(json.dumps([told(row, measured, scale) for row, measured in results], indent=1), file=out)
        return
    console = Console(file=out)
    console.print(table(results, scale))
    if points:
        console.print(curve.table(points))


@contextmanager
def server() -> Iterator[str]:
    """A PostgreSQL with the product's own settings. Not under /tmp, which may be memory, where making things durable is free."""
    home = "/var/tmp" if Path("/var/tmp").is_dir() else None  # noqa: S108  # the directory is ours alone, by mkdtemp
    directory = Path(tempfile.mkdtemp(prefix="holdbook-bench-", dir=home))
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # or gigabytes would stay behind
    try:
        if os.geteuid() == 0:
            directory.chmod(0o711)  # PostgreSQL runs as somebody else and must pass through
        with EmbeddedPostgres(directory / "data") as postgres:
            yield postgres.dsn
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        signal.signal(signal.SIGTERM, before)


def measure(dsn: str, template: str, scale: Scale, *, only: str = "") -> list[Result]:
    """Every row, one group after the other; a group that fails counts as ratio 0, and the others go on."""
    groups = [group for group in registered() if any(only in row.name(scale) for row in group.rows)]
    results: list[Result] = []
    # No refreshing thread: it would take its time from what is measured.
    columns = (MofNCompleteColumn(), BarColumn(bar_width=20), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False) as progress:
        task = progress.add_task("", total=len(groups))
        for group in groups:
            title = group.rows[0].name(scale)

            def say(what: str, title: str = title) -> None:
                progress.update(task, description=f"{title}: {what}", refresh=True)

            say("starting")
            results.extend(_measured(group, Stage(dsn, template, scale, say)))
            progress.advance(task)
        progress.update(task, description="", refresh=True)
    return results


def _measured(group: Group, stage: Stage) -> list[Result]:
    began = time.perf_counter()
    collect_less_often()  # as the server does
    try:
        found: Sequence[Measured] = uvloop.run(_awaited(group, stage))
    except Exception as error:  # the other rows are still worth measuring
        found = [Measured(0.0, broken=f"{type(error).__name__}: {error}")] * len(group.rows)
    took = round(time.perf_counter() - began, 1)
    return [
        (row, Measured(one.ratio, {**one.detail, "took_seconds": took}, one.broken)) for row, one in zip(group.rows, found, strict=True)
    ]


async def _awaited(group: Group, stage: Stage) -> Sequence[Measured]:
    return await group.measure(stage)


def holds(row: Row, measured: Measured) -> bool:
    """Whether the target was reached, by the ratio as it is told, and nothing went wrong on the way."""
    return measured.broken is None and _ratio(measured) >= row.target


def _ratio(measured: Measured) -> float:
    return round(measured.ratio, 3)


def told(row: Row, measured: Measured, scale: Scale) -> dict[str, Any]:
    """A row as JSON."""
    entry: dict[str, Any] = {
        "name": row.name(scale),
        "ratio": _ratio(measured),
        "target": row.target,
        "holds": holds(row, measured),
        "against": row.against,
        **measured.detail,
    }
    if measured.broken is not None:
        entry["broken"] = measured.broken
    return entry


def table(results: Sequence[Result], scale: Scale) -> Table:
    """The rows for people."""
    made = Table(title="Holdbook: what must hold, as ratios in one run")
    for column in ("what", "against"):
        made.add_column(column, overflow="fold")
    for column in ("measured", "against it", "ratio", "must reach", ""):
        made.add_column(column, justify="right")
    for row, measured in results:
        verdict = "[green]holds" if holds(row, measured) else f"[red]{measured.broken or 'below'}"
        ours, theirs = (_short(measured.detail.get(side)) for side in ("ours", "theirs"))
        made.add_row(row.name(scale), row.against, ours, theirs, f"{measured.ratio:.2f}", f"{row.target:.2f}", verdict)
    return made


def _short(side: Any) -> str:
    """The middle figure of one side."""
    return f"{side['median']:,} {side.get('unit', '/s')}" if isinstance(side, dict) else ""

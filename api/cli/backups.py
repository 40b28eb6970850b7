"""``holdbook backup`` and ``holdbook restore``."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import psycopg
import structlog
import typer
from rich.progress import Progress

from api.cli.common import database, err, out, settings, told
from eventstore.backup import restoring, saving

log = structlog.get_logger(__name__)

Tell = Callable[[int, int], None]
DirectoryArgument = Annotated[Path, typer.Argument(help="Holds the backup; one directory for one store.", show_default=False)]


@contextmanager
def _progress(doing: str) -> Iterator[Tell]:
    """A bar for people; nothing where nobody looks."""
    with Progress(console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(doing, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def backup(
    directory: DirectoryArgument,
    every: Annotated[float | None, typer.Option(min=1, help="Seconds between runs; without it one run is made.")] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Read everything again, also where the directory's backup is another store's.")
    ] = False,
) -> None:
    """Write what is new in the log, and what cannot be folded from it, to files; the store goes on working."""
    chosen = settings()
    with told(), database(chosen) as (dsn, _):
        if every is None:
            out.print(_run(dsn, directory, full=full), highlight=False, soft_wrap=True)
            return
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        while not stop.is_set():
            began = time.monotonic()
            try:
                log.info("backup.done", directory=str(directory), told=_run(dsn, directory, full=full))
                full = False
            except psycopg.OperationalError as error:
                # The server may be away for a while; whatever else is wrong ends the process, so that somebody looks.
                log.error("backup.failed", reason=type(error).__name__)
            stop.wait(max(0.0, every - (time.monotonic() - began)))


def _run(dsn: str, directory: Path, *, full: bool) -> str:
    with _progress("Backing up") as tell:
        manifest, added = saving.backup(dsn, directory, full=full, progress=tell)
    return (
        f"Run {manifest.run} of {manifest.taken_at}: {added} new events, {manifest.events} in all, "
        f"{sum(1 for _ in manifest.parts())} files, {manifest.bytes} bytes."
    )


def restore(
    directory: DirectoryArgument,
    check: Annotated[bool, typer.Option("--check", help="Read and verify every file; load nothing and need no database.")] = False,
) -> None:
    """Make a store of a backup, in a new and empty database, and raise the epoch of every partition."""
    chosen = settings()
    with told():
        if check:
            with _progress("Verifying") as tell:
                manifest = restoring.verify(directory, tell)
            out.print(f"Whole: {manifest.events} events of {manifest.taken_at}, run {manifest.run}.", highlight=False, soft_wrap=True)
            return
        with database(chosen) as (dsn, _), _progress("Restoring") as tell:
            from projections import schema

            manifest, raised = restoring.restore(dsn, directory, tell)
            schema.create(dsn)
    out.print(
        f"Restored {manifest.events} events of {manifest.taken_at}. Epochs went up by {raised}. A worker fills the read models.",
        highlight=False,
        soft_wrap=True,
    )

"""``holdbook init`` and ``holdbook migrate``."""

from __future__ import annotations

from typing import Annotated

import typer

from api.cli.common import database, out, prepare, settings, told
from eventstore.schema import latest_revision


def init(
    partitions: Annotated[int | None, typer.Option(min=1, max=4096, help="Fixed for the store's life. Default: 64.")] = None,
) -> None:
    """Make an empty store, or bring one that exists up to date."""
    chosen = settings(partitions=partitions)
    with told(), database(chosen) as (dsn, _):
        count = prepare(dsn, chosen)
    out.print(f"The store is ready: {count} partitions, schema {latest_revision()}.", highlight=False)


def migrate() -> None:
    """Bring the schema up to date; safe on a live store."""
    init(None)

"""``holdbook key rotate``: changing the keys behind everything while it runs. docs/runbook-keys.md says when and in which order."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.table import Column, Table

from api.cli.common import fail, out, run_with_store, settings
from api.token_keys import fresh_for_table
from api.tokens import LEEWAY_SECONDS, REREAD_SECONDS
from eventstore.master import new_master_key
from eventstore.rewrapping import needed, rewrap
from eventstore.signing_keys import SigningKeys
from eventstore.store import Store

app = typer.Typer(help="Change the master key, or the key that access tokens are signed with, while everything runs.", no_args_is_help=True)

_LEAST_OVERLAP = 5.0
assert _LEAST_OVERLAP > 2 * REREAD_SECONDS, "every process has read a new key before it signs"


@app.command()
def master(
    check: Annotated[bool, typer.Option("--check", help="Change nothing: say how many stored keys need which master key.")] = False,
) -> None:
    """Wrap every stored key anew under the first line of the master key. May be interrupted, and run any number of times.

    When --check counts none for an old line, that line may go from the setting. Events are not touched.
    """

    async def work(store: Store, _: str) -> None:
        if store.master is None:
            fail("There is no master key: set HOLDBOOK_MASTER_KEY_FILE.")
        if not check:
            out.print(f"wrapped anew: {await rewrap(store)}", highlight=False)
        table = Table("master key", "stored keys that need it", "")
        found = await needed(store)
        for master_id, count in sorted({store.master.current: 0, **found}.items()):
            note = "wraps" if master_id == store.master.current else "its line must stay" if master_id else "not wrapped yet"
            table.add_row(master_id or "none", str(count), note)
        out.print(table)
        left = sum(count for master_id, count in found.items() if master_id != store.master.current)
        out.print("Every other line may go." if left == 0 else f"{left} need another line or none yet.", highlight=False)

    run_with_store(work)


@app.command()
def signing(
    overlap: Annotated[
        float, typer.Option(min=_LEAST_OVERLAP, max=86_400, help="Seconds for which the new key is published before it signs.")
    ] = 600.0,
) -> None:
    """Publish a new key for access tokens; after the overlap it signs, and the old one verifies until its last token is over."""
    chosen = settings()
    if chosen.token_keys is not None:
        fail("The keys are those of HOLDBOOK_TOKEN_KEYS_FILE: change the file. docs/runbook-keys.md says how.")

    async def work(store: Store, _: str) -> None:
        assert store.pool is not None
        keys = SigningKeys(store.pool, store.master)
        new = await asyncio.to_thread(fresh_for_table)
        if not await keys.read():
            await keys.make_first(new)
        else:
            await keys.rotate(new, overlap, chosen.token_seconds + LEEWAY_SECONDS)
        out.print(new.kid, highlight=False)

    run_with_store(work)


def list_signing() -> None:
    """List the keys of access tokens: which signs, which will, and which only verify any more."""

    async def work(store: Store, _: str) -> None:
        assert store.pool is not None
        table, now = Table(Column("key id", no_wrap=True), "signs from", "signs until", "verifies until", ""), datetime.now(UTC)
        rows = await SigningKeys(store.pool, store.master).read()
        for row in rows:
            state = "published" if row.signs_from > now else "signs" if row.signs_until is None or row.signs_until > now else "verifies"
            table.add_row(row.kid, *map(_moment, (row.signs_from, row.signs_until, row.verifies_until)), state)
        out.print(table)

    run_with_store(work)


def make_master() -> None:
    """Print a fresh line for the file that HOLDBOOK_MASTER_KEY_FILE names. Nothing is stored or changed."""
    typer.echo(new_master_key())


def _moment(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment:%Y-%m-%d %H:%M:%S}"

"""``holdbook tenant``: the organisations everything belongs to."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated
from uuid import UUID, uuid4

import typer
from rich.table import Table

from api.cli import auditing
from api.cli.common import err, fail, operate, out, run_with_store
from domain.identity.tenants import TENANT, CreateTenant, DeletedTenant, DeleteTenant, Tenant, tenant_stream
from eventstore.exporting import Wanted
from eventstore.pruning import prune
from eventstore.requests import Item
from eventstore.store import Store

app = typer.Typer(help="Create, list, export and delete tenants.", no_args_is_help=True)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="A label for operators, kept for ever: not a person's name.")],
    zone: Annotated[str, typer.Option(help="IANA time zone.")] = "UTC",
    tenant_id: Annotated[UUID | None, typer.Option("--id", help="Choose the id; the same one twice changes nothing.")] = None,
) -> None:
    """Create a tenant and print its id."""
    chosen = tenant_id or uuid4()

    async def work(store: Store, _: str) -> None:
        await operate(store, chosen, Item(TENANT, tenant_stream(chosen), CreateTenant(tenant_id=chosen, name=name, zone=zone)))

    run_with_store(work)
    typer.echo(chosen)


@app.command("list")
def list_() -> None:
    """List all tenants."""

    async def work(store: Store, dsn: str) -> None:
        table = Table("tenant", "name", "zone", "created")
        async with store.pool.connection() as conn:  # type: ignore[union-attr]  # opened on a database
            # From the log itself, so that a tenant made a moment ago is there.
            cursor = await conn.execute("select tenant_id, recorded_at from event where type = 'tenant.created' order by recorded_at")
            rows = await cursor.fetchall()
        for tenant_id, created in rows:
            state = (await store.state(TENANT, tenant_id, tenant_stream(tenant_id))).state
            if not isinstance(state, Tenant):
                continue  # deleted, and its beginning not pruned yet
            table.add_row(str(tenant_id), state.name, state.zone, f"{created:%Y-%m-%d %H:%M}")
        out.print(table)

    run_with_store(work)


@app.command()
def show(tenant_id: Annotated[UUID, typer.Argument(help="Its id.")]) -> None:
    """Show one tenant."""

    async def work(store: Store, _: str) -> object:
        return (await store.state(TENANT, tenant_id, tenant_stream(tenant_id))).state

    state = run_with_store(work)
    if isinstance(state, DeletedTenant):
        fail("The tenant was deleted.")
    if not isinstance(state, Tenant):
        fail("There is no such tenant.")
    out.print(f"{state.tenant_id}  {state.name}  {state.zone}", highlight=False)


@app.command()
def export(
    tenant_id: Annotated[UUID, typer.Argument(help="Its id.")],
    file: Annotated[Path, typer.Argument(help="Where to put it; must not exist.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an export that was interrupted.")] = False,
) -> None:
    """Export everything the log holds of a tenant, so that anyone can verify it (`holdbook audit verify`)."""
    auditing.export_to(file, Wanted(tenant_id), resume=resume)


@app.command()
def delete(
    tenant_id: Annotated[UUID, typer.Argument(help="Its id.")],
    yes: Annotated[bool, typer.Option("--yes", help="It cannot be undone.")] = False,
) -> None:
    """Delete a tenant: refuse its keys within a second, and prune what the log holds of it to hashes.

    May be run again, and must be when it was interrupted. Backups made before keep what they hold.
    """
    if not yes:
        fail("This cannot be undone. Export the tenant if need be, then say --yes.")

    def progress(done: int, whole: int) -> None:
        if err.is_terminal:
            err.print(f"{done:,} of {whole:,} positions", end="\r", highlight=False)

    async def work(store: Store, dsn: str) -> int:
        await operate(store, tenant_id, Item(TENANT, tenant_stream(tenant_id), DeleteTenant(tenant_id=tenant_id)))
        return await asyncio.to_thread(prune, dsn, tenant_id, progress)

    pruned = run_with_store(work)
    out.print(f"deleted {tenant_id}: {pruned:,} rows pruned", highlight=False)

"""``holdbook key``: API keys of service accounts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated
from uuid import UUID, uuid4

import typer
from rich.table import Table

from api.auth import new_key
from api.cli import rotating
from api.cli.common import err, fail, operate, out, run_with_store, settings
from domain.identity.permissions import KEY_PERMISSIONS
from domain.identity.service_accounts import (
    MAX_OVERLAP_SECONDS,
    SERVICE_ACCOUNT,
    IssueKey,
    RevokeKey,
    RotateKey,
    service_account_stream,
)
from domain.identity.tenants import TENANT, Tenant, tenant_stream
from eventstore.requests import Item
from eventstore.store import Store, partition_of

app = typer.Typer(help="Issue, list and revoke API keys; change the keys behind everything.", no_args_is_help=True)
app.add_typer(rotating.app, name="rotate")
app.command("list-signing")(rotating.list_signing)
app.command("make-master")(rotating.make_master)

TenantArgument = Annotated[UUID | None, typer.Argument(help="The tenant. Default: HOLDBOOK_DEFAULT_TENANT.", show_default=False)]
AccountOption = Annotated[UUID | None, typer.Option("--account", help="A service account; a new one when not given.")]
SCOPE_HELP = "May be repeated; all when not given. " + " ".join(f"{scope}: {meaning}" for scope, meaning in KEY_PERMISSIONS.items())


def _tenant(given: UUID | None) -> UUID:
    return given or settings().default_tenant or fail("Name a tenant, or set HOLDBOOK_DEFAULT_TENANT.")


def _minute(moment: datetime | None) -> str:
    return "never" if moment is None else f"{moment:%Y-%m-%d %H:%M}"


@app.command()
def issue(
    tenant: TenantArgument = None,
    account: AccountOption = None,
    scope: Annotated[list[str] | None, typer.Option("--scope", help=SCOPE_HELP)] = None,
    name: Annotated[str, typer.Option(help="A label for operators: not a person's name.")] = "key",
    days: Annotated[int | None, typer.Option(min=1, help="Days until it expires; never when not given.")] = None,
) -> None:
    """Issue a key and print its text, this once."""
    tenant_id, account_id = _tenant(tenant), account or uuid4()
    key = new_key(tenant_id, account_id)
    expires_at = datetime.now(UTC) + timedelta(days=days) if days else None

    async def work(store: Store, _: str) -> None:
        if not isinstance((await store.state(TENANT, tenant_id, tenant_stream(tenant_id))).state, Tenant):
            fail("There is no such tenant.")
        command = IssueKey(
            key_id=key.key_id, secret_hash=key.secret_hash, scopes=tuple(scope or KEY_PERMISSIONS), name=name, expires_at=expires_at
        )
        await operate(store, tenant_id, Item(SERVICE_ACCOUNT, service_account_stream(account_id), command))

    run_with_store(work)
    err.print(f"account {account_id}  key {key.key_id}", highlight=False)
    typer.echo(key.text)


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="The eight digits `key list` shows.")],
    account: Annotated[UUID, typer.Option(help="The service account it belongs to.")],
    tenant: Annotated[UUID | None, typer.Option(help="Default: HOLDBOOK_DEFAULT_TENANT.")] = None,
) -> None:
    """Revoke a key; within one second no process accepts it."""
    tenant_id = _tenant(tenant)

    async def work(store: Store, _: str) -> None:
        await operate(store, tenant_id, Item(SERVICE_ACCOUNT, service_account_stream(account), RevokeKey(key_id=key_id)))

    run_with_store(work)
    out.print(f"revoked {key_id}", highlight=False)


@app.command()
def renew(
    key_id: Annotated[str, typer.Argument(help="The eight digits `key list` shows.")],
    account: Annotated[UUID, typer.Option(help="The service account it belongs to.")],
    tenant: Annotated[UUID | None, typer.Option(help="Default: HOLDBOOK_DEFAULT_TENANT.")] = None,
    overlap_hours: Annotated[float, typer.Option(min=0, max=MAX_OVERLAP_SECONDS / 3600, help="How long the old one goes on.")] = 24,
) -> None:
    """Issue a key with the same name and scopes in a key's place, and print its text, this once."""
    tenant_id = _tenant(tenant)
    key = new_key(tenant_id, account)

    async def work(store: Store, _: str) -> None:
        command = RotateKey(key_id=key_id, new_key_id=key.key_id, secret_hash=key.secret_hash, overlap_seconds=round(overlap_hours * 3600))
        await operate(store, tenant_id, Item(SERVICE_ACCOUNT, service_account_stream(account), command))

    run_with_store(work)
    err.print(f"account {account}  key {key.key_id}", highlight=False)
    typer.echo(key.text)


@app.command("list")
def list_(tenant: TenantArgument = None) -> None:
    """List a tenant's keys that were not revoked, and when each was last used, to the minute."""
    tenant_id = _tenant(tenant)

    async def work(store: Store, _: str) -> None:
        table = Table("account", "key", "name", "scopes", "expires", "last used")
        place = partition_of(tenant_id, store.partitions), tenant_id
        async with store.pool.connection() as conn:  # type: ignore[union-attr]  # opened on a database
            query = (
                "select distinct stream from event where partition = %s and tenant_id = %s and type = 'service.key_issued' order by stream"
            )
            rows = await (await conn.execute(query, place)).fetchall()
            query = "select account_id, key_id, last_used_at from key_use where partition = %s and tenant_id = %s"
            used = {(account, key_id): at for account, key_id, at in await (await conn.execute(query, place)).fetchall()}
        for (stream,) in rows:
            for key in (await store.state(SERVICE_ACCOUNT, tenant_id, stream)).state.keys:
                account = UUID(stream.removeprefix("service-"))
                expires, last = _minute(key.expires_at), _minute(used.get((account, key.key_id)))
                table.add_row(str(account), key.key_id, key.name, " ".join(key.scopes), expires, last)
        out.print(table)

    run_with_store(work)

"""``holdbook key``: API keys of service accounts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated
from uuid import UUID, uuid4

import typer
from rich.table import Table

from api.auth import new_key
from api.cli.common import err, fail, operate, out, run_with_store, settings
from domain.identity.permissions import KEY_PERMISSIONS
from domain.identity.service_accounts import SERVICE_ACCOUNT, IssueKey, RevokeKey, service_account_stream
from domain.identity.tenants import TENANT, Tenant, tenant_stream
from eventstore.requests import Item
from eventstore.store import Store, partition_of

app = typer.Typer(help="Issue, list and revoke API keys.", no_args_is_help=True)

TenantArgument = Annotated[UUID | None, typer.Argument(help="The tenant. Default: HOLDBOOK_DEFAULT_TENANT.", show_default=False)]
AccountOption = Annotated[UUID | None, typer.Option("--account", help="A service account; a new one when not given.")]
SCOPE_HELP = "May be repeated; all when not given. " + " ".join(f"{scope}: {meaning}" for scope, meaning in KEY_PERMISSIONS.items())


def _tenant(given: UUID | None) -> UUID:
    return given or settings().default_tenant or fail("Name a tenant, or set HOLDBOOK_DEFAULT_TENANT.")


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


@app.command("list")
def list_(tenant: TenantArgument = None) -> None:
    """List a tenant's keys that were not revoked."""
    tenant_id = _tenant(tenant)

    async def work(store: Store, _: str) -> None:
        table = Table("account", "key", "name", "scopes", "expires")
        async with store.pool.connection() as conn:  # type: ignore[union-attr]  # opened on a database
            query = (
                "select distinct stream from event where partition = %s and tenant_id = %s and type = 'service.key_issued' order by stream"
            )
            rows = await (await conn.execute(query, (partition_of(tenant_id, store.partitions), tenant_id))).fetchall()
        for (stream,) in rows:
            for key in (await store.state(SERVICE_ACCOUNT, tenant_id, stream)).state.keys:
                expires = f"{key.expires_at:%Y-%m-%d %H:%M}" if key.expires_at else "never"
                table.add_row(str(UUID(stream.removeprefix("service-"))), key.key_id, key.name, " ".join(key.scopes), expires)
        out.print(table)

    run_with_store(work)

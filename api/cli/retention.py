"""``holdbook policy list|set``: for how many days a tenant keeps each kind of data that is no part of the log."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from api.cli.common import TenantArgument, err, fail, operate, out, run_with_store
from domain.identity.tenants import TENANT, Tenant, tenant_stream
from domain.privacy.retention import KINDS, RETENTION, ResetRetention, SetRetention, retention_stream
from eventstore.requests import Item
from eventstore.store import Store

_FOR_EVER, _DEFAULT = "for-ever", "default"


def list_(tenant: TenantArgument) -> None:
    """List for how many days each kind of data is kept."""

    async def work(store: Store, _: str) -> None:
        state = (await store.state(RETENTION, tenant, retention_stream(tenant))).state
        table = Table("kind", "days", "chosen", "bounds", "what it is")
        for name, kind in KINDS.items():
            days, chosen = state.days(name), "yes" if state.find(name) is not None else "default"
            bounds = f"{kind.least} to {kind.most or _FOR_EVER}"
            table.add_row(name, _FOR_EVER if days is None else str(days), chosen, bounds, kind.meaning)
        out.print(table)

    run_with_store(work)


def set_(
    tenant: TenantArgument,
    kind: Annotated[str, typer.Argument(help=f"One of {', '.join(KINDS)}.")],
    days: Annotated[str, typer.Argument(help=f"A number of days, {_FOR_EVER}, or {_DEFAULT}.")],
) -> None:
    """Keep a kind of data for so many days. It takes effect when a worker looks next, within an hour."""
    if not (days in (_FOR_EVER, _DEFAULT) or (days.isascii() and days.isdigit() and len(days) <= 6)):
        fail(f"Days are a number, {_FOR_EVER} or {_DEFAULT}.")
    command: SetRetention | ResetRetention = ResetRetention(kind=kind)
    if days != _DEFAULT:
        command = SetRetention(kind=kind, days=None if days == _FOR_EVER else int(days))

    async def work(store: Store, _: str) -> None:
        if not isinstance((await store.state(TENANT, tenant, tenant_stream(tenant))).state, Tenant):
            fail("There is no such tenant.")
        reply = await operate(store, tenant, Item(RETENTION, retention_stream(tenant), command))
        told = _FOR_EVER if reply["days"] is None else f"{reply['days']} days"
        err.print(f"{kind}: {told}", highlight=False)

    run_with_store(work)


def add_to(app: typer.Typer) -> None:
    """Have the group of policies hold these commands as well."""
    app.command("list")(list_)
    app.command("set")(set_)

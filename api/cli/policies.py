"""``holdbook policy``: what a tenant allows and keeps."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from api.cli import retention
from api.cli.common import TenantArgument, err, fail, operate, out, run_with_store
from domain.identity.permissions import ROLES
from domain.identity.policies import POLICIES, RemoveRatePolicy, SetRatePolicy, policies_stream
from domain.identity.tenants import TENANT, Tenant, tenant_stream
from eventstore.requests import Item
from eventstore.store import Store

app = typer.Typer(help="Rates, which hold across processes and restarts, and other policies of a tenant.", no_args_is_help=True)
retention.add_to(app)

NameArgument = Annotated[str, typer.Argument(help="The rate's name, as in /v1/rates/NAME/take.")]


@app.command("rates")
def list_rates(tenant: TenantArgument) -> None:
    """List the tenant's rates."""

    async def work(store: Store, _: str) -> None:
        table = Table("rate", "takes", "seconds", "exempt roles")
        for rate in (await store.state(POLICIES, tenant, policies_stream(tenant))).state.rates:
            table.add_row(rate.name, str(rate.amount), str(rate.seconds), " ".join(rate.exempt_roles))
        out.print(table)

    run_with_store(work)


@app.command("set-rate")
def set_rate(
    tenant: TenantArgument,
    name: NameArgument,
    amount: Annotated[int, typer.Argument(min=1, help="Takes in a window.")],
    seconds: Annotated[int, typer.Argument(min=1, help="The window's length.")],
    exempt: Annotated[
        list[str] | None, typer.Option("--exempt", help=f"A role whose takes are not counted; may be repeated: {', '.join(ROLES)}.")
    ] = None,
) -> None:
    """Make a rate or change it: so many takes of a subject in any so many seconds."""

    async def work(store: Store, _: str) -> None:
        if not isinstance((await store.state(TENANT, tenant, tenant_stream(tenant))).state, Tenant):
            fail("There is no such tenant.")
        command = SetRatePolicy(name=name, amount=amount, seconds=seconds, exempt_roles=tuple(exempt or ()))
        await operate(store, tenant, Item(POLICIES, policies_stream(tenant), command))
        err.print(f"rate {name}: {amount} in {seconds} seconds", highlight=False)

    run_with_store(work)


@app.command("remove-rate")
def remove_rate(tenant: TenantArgument, name: NameArgument) -> None:
    """Have no such rate any more."""

    async def work(store: Store, _: str) -> None:
        await operate(store, tenant, Item(POLICIES, policies_stream(tenant), RemoveRatePolicy(name=name)))
        err.print(f"rate {name} is removed", highlight=False)

    run_with_store(work)

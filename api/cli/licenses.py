"""``holdbook license``: giving people a plan from the keyboard, until plans exist."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID, uuid4

import msgspec
import typer
from pydantic import ValidationError

from api.cli.common import fail, out, run_with_store, settings
from api.people import known_user
from api.routes.licenses import SetLicense
from domain.identity.devices import DEVICES, devices_stream
from domain.identity.licenses import LICENSE, license_stream, status, terms_of
from domain.quota import QUOTA, Quota, quota_stream
from domain.quota.view import view
from eventstore.requests import Request
from eventstore.store import Store

app = typer.Typer(help="Set and show people's licenses: plan, limits, devices.", no_args_is_help=True)

UserArgument = Annotated[UUID, typer.Argument(help="The person's id.")]
TenantOption = Annotated[UUID | None, typer.Option("--tenant", help="Default: HOLDBOOK_DEFAULT_TENANT.")]


def _tenant(given: UUID | None) -> UUID:
    return given or settings().default_tenant or fail("Name a tenant, or set HOLDBOOK_DEFAULT_TENANT.")


@app.command("set")
def set_(
    user: UserArgument,
    plan: Annotated[str, typer.Option(help="Name of the plan.")],
    devices: Annotated[int, typer.Option(min=0, max=100, help="How many devices may be bound.")],
    limits: Annotated[
        Path | None, typer.Option(help="A JSON file of limits by meter, as in PUT /v1/users/{user_id}/license. Meters left out are closed.")
    ] = None,
    until: Annotated[datetime | None, typer.Option(help="From when on it is expired, in UTC; never when not given.")] = None,
    tenant: TenantOption = None,
) -> None:
    """Give a person a plan instead of what they had: all of it at once, or nothing."""
    tenant_id = _tenant(tenant)
    wanted: dict[str, Any] = {"user_id": user.hex, "plan": plan, "devices": devices}
    if limits is not None:
        wanted["limits"] = _read(limits)
    if until is not None:
        wanted["valid_until"] = until.replace(tzinfo=UTC) if until.tzinfo is None else until.astimezone(UTC)
    try:
        body = SetLicense.model_validate(wanted)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        fail(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}")

    async def work(store: Store, _: str) -> Any:
        await known_user(store, tenant_id, user)
        body.instead_of((await store.state(LICENSE, tenant_id, license_stream(user))).state)
        command_id = uuid4()
        request = Request(tenant_id, command_id, body.items(tenant_id, command_id), b"", actor="operator:cli")
        outcome = await store.submit(request)
        reply = msgspec.json.decode(outcome.reply)
        if outcome.refused:
            fail(f"{reply['message']} ({reply['code']})")
        return reply["results"][-1]

    told = run_with_store(work)
    out.print(f"{user}  {told['plan']}  {told['status']}  until {told['valid_until'] or 'for ever'}", highlight=False)


@app.command()
def show(user: UserArgument, tenant: TenantOption = None) -> None:
    """Show a person's license and what is left of its limits, from the log itself. Devices are counted, and not named."""
    tenant_id = _tenant(tenant)

    async def work(store: Store, _: str) -> list[str]:
        await known_user(store, tenant_id, user)
        license_, devices = await store.states(tenant_id, [(LICENSE, license_stream(user)), (DEVICES, devices_stream(user))])
        now, terms = datetime.now(UTC), terms_of(license_.state)
        limit = settings().default_device_limit if devices.state.limit is None else devices.state.limit
        until = terms.valid_until if terms else None
        lines = [
            f"plan     {terms.plan if terms else '-'}",
            f"status   {status(license_.state, now)}",
            f"until    {until.isoformat() if until else '-'}",
            f"devices  {len(devices.state.bound)} of {limit}",
        ]
        meters = terms.meters if terms else ()
        found = await store.states(tenant_id, [(QUOTA, quota_stream(tenant_id, user.hex, meter)) for meter in meters])
        for meter, each in zip(meters, found, strict=True):
            if isinstance(each.state, Quota):
                lines += [
                    f"{meter}  {one.limit_id}  used {one.used} of {one.amount}, {one.remaining} left"
                    for one in view(each.state, now).limits
                ]
        return lines

    out.print("\n".join(run_with_store(work)), highlight=False)


def _read(file: Path) -> Any:
    try:
        return msgspec.json.decode(file.read_bytes())
    except (OSError, msgspec.DecodeError):
        fail(f"{file.name} cannot be read as JSON.")

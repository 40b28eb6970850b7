"""``holdbook user``: the people of a tenant, and the operators of the platform."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from uuid import UUID, uuid4

import msgspec
import typer
from pydantic import TypeAdapter, ValidationError
from rich.table import Table

from api import passwords, people
from api.cli.common import TenantArgument, err, fail, out, run_with_store
from api.people import Profile
from api.problems import Problem
from api.routes.users import RESET_SECONDS, ChangeUserRole, Email, PersonName, ResetPassword, ResumePerson, SuspendPerson
from domain.identity.permissions import ROLES
from domain.identity.tenants import PLATFORM, TENANT, CreateTenant, Tenant, tenant_stream
from domain.identity.users import USER, Active, ErasedUser, NoUser, RequestReset, UserState, status, user_stream
from eventstore.requests import Item, Request
from eventstore.store import Store, partition_of

app = typer.Typer(help="Create, list, suspend and resume a tenant's people, and make operators of the platform.", no_args_is_help=True)

UserArgument = Annotated[UUID, typer.Argument(help="The user's id, as `user list` shows it.")]
EmailOption = Annotated[str, typer.Option("--email", help="What the person signs in with.")]
NameOption = Annotated[str | None, typer.Option("--name", help="The person's name; it is kept sealed.")]
PasswordOption = Annotated[
    bool, typer.Option("--password-stdin", help="Read the password from standard input. Without it a token to set one is printed.")
]
_TENANT_ROLES = [role for role in ROLES if role != "operator"]


async def _submit(store: Store, tenant_id: UUID, items: tuple[Item, ...]) -> dict[str, Any]:
    """One atomic batch of the operator at the keyboard; the last command's reply. Ends when it is refused."""
    outcome = await store.submit(Request(tenant_id, uuid4(), items, b"", actor="operator:cli"))
    told: dict[str, Any] = msgspec.json.decode(outcome.reply)
    if outcome.refused:
        fail(f"{told['message']} ({told['code']})")
    return told if len(items) == 1 else dict(told["results"][-1])


async def _tenant(store: Store, tenant_id: UUID) -> None:
    if not isinstance((await store.state(TENANT, tenant_id, tenant_stream(tenant_id))).state, Tenant):
        fail("There is no such tenant.")


def _checked(kind: Any, name: str, value: str | None) -> None:
    try:
        if value is not None:
            TypeAdapter(kind).validate_python(value)
    except ValidationError:
        fail(f"The {name} has not the shape of one.")


def _password(*, given: bool, email: str) -> str | None:
    if not given:
        return None
    password = sys.stdin.readline().rstrip("\r\n")
    try:
        passwords.check(password, email)
    except Problem as problem:
        fail(" ".join(error["message"] for error in problem.members.get("errors", ())) or problem.title)
    return password


async def _create(store: Store, tenant_id: UUID, role: str, email: str, name: str | None, password: str | None) -> str | None:
    """Make an active user and tell its id; the token to set a password with, when there is none."""
    user_id, sealing = uuid4(), store.sealing
    profile = await people.seal_profile(sealing, tenant_id, user_id, Profile(email.strip(), name))
    hashed = None if password is None else await sealing.seal(tenant_id, user_id, people.PASSWORD, await passwords.hash(password))
    login = await people.login_of_email(sealing, tenant_id, email)
    await _submit(store, tenant_id, people.create_items(tenant_id, user_id, role, profile, login, hashed))
    typer.echo(user_id)
    if password is not None:
        return None
    expires_at = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=RESET_SECONDS)
    told = await _submit(store, tenant_id, (Item(USER, user_stream(user_id), RequestReset(expires_at=expires_at)),))
    return await people.reset_token(sealing, tenant_id, user_id, told["version"], expires_at)


def _tell_token(token: str | None) -> None:
    if token is not None:
        err.print("To set a password, once and within the hour:", highlight=False)
        typer.echo(token)


@app.command()
def create(
    tenant: TenantArgument,
    email: EmailOption,
    role: Annotated[str, typer.Option("--role", help=f"One of {', '.join(_TENANT_ROLES)}.")],
    name: NameOption = None,
    password_stdin: PasswordOption = False,
) -> None:
    """Create a person of a tenant, its first owner for instance, and print the id."""
    if role not in _TENANT_ROLES or tenant == PLATFORM:
        fail(f"The role is one of {', '.join(_TENANT_ROLES)}; operators are made by `user operator`.")
    _checked(Email, "e-mail address", email.strip())
    _checked(PersonName, "name", name)
    password = _password(given=password_stdin, email=email)

    async def work(store: Store, _: str) -> str | None:
        await _tenant(store, tenant)
        return await _create(store, tenant, role, email, name, password)

    _tell_token(run_with_store(work))


@app.command()
def operator(email: EmailOption, name: NameOption = None, password_stdin: PasswordOption = False) -> None:
    """Make an operator of the platform, and the platform's tenant when there is none, and print the id."""
    _checked(Email, "e-mail address", email.strip())
    _checked(PersonName, "name", name)
    password = _password(given=password_stdin, email=email)

    async def work(store: Store, _: str) -> str | None:
        if not isinstance((await store.state(TENANT, PLATFORM, tenant_stream(PLATFORM))).state, Tenant):
            await _submit(store, PLATFORM, (Item(TENANT, tenant_stream(PLATFORM), CreateTenant(tenant_id=PLATFORM, name="Platform")),))
        return await _create(store, PLATFORM, "operator", email, name, password)

    _tell_token(run_with_store(work))


async def _row(store: Store, tenant_id: UUID, user_id: UUID, state: UserState) -> tuple[str, ...]:
    if isinstance(state, NoUser | ErasedUser):
        return str(user_id), status(state), "", "", ""
    profile = await people.open_profile(store.sealing, tenant_id, user_id, state.profile) or Profile()
    return str(user_id), status(state), state.role, profile.email or "", profile.name or ""


@app.command("list")
def list_(tenant: TenantArgument) -> None:
    """List a tenant's people with their e-mail addresses and names."""

    async def work(store: Store, _: str) -> None:
        await _tenant(store, tenant)
        table = Table("user", "status", "role", "e-mail", "name")
        async with store.pool.connection() as conn:  # type: ignore[union-attr]  # opened on a database
            # From the log itself, so that somebody made a moment ago is there.
            query = (
                "select stream from event where partition = %s and tenant_id = %s and type in ('user.invited', 'user.created') "
                "and version = 1 order by position"
            )
            rows = await (await conn.execute(query, (partition_of(tenant, store.partitions), tenant))).fetchall()
        for (stream,) in rows:
            user_id = UUID(stream.removeprefix("user-"))
            table.add_row(*await _row(store, tenant, user_id, await people.user_state(store, tenant, user_id)))
        out.print(table)

    run_with_store(work)


@app.command()
def show(tenant: TenantArgument, user: UserArgument) -> None:
    """Show one person."""

    async def work(store: Store, _: str) -> None:
        state = await people.user_state(store, tenant, user)
        if isinstance(state, NoUser):
            fail("There is no such user.")
        out.print("  ".join(filter(None, await _row(store, tenant, user, state))), highlight=False)
        if isinstance(state, Active) and state.password is None:
            out.print("no password yet", highlight=False)

    run_with_store(work)


def _act(tenant: UUID, body: ChangeUserRole | SuspendPerson | ResumePerson | ResetPassword) -> dict[str, Any]:
    async def work(store: Store, _: str) -> dict[str, Any]:
        try:
            await body.find(store, tenant)
        except Problem as problem:
            fail(problem.title)
        return await _submit(store, tenant, body.items(tenant, uuid4()))

    told: dict[str, Any] = run_with_store(work)
    return told


@app.command()
def suspend(tenant: TenantArgument, user: UserArgument) -> None:
    """Refuse a person everything, within a second in every process, until they are resumed."""
    _act(tenant, SuspendPerson(user_id=user.hex))
    out.print(f"suspended {user}", highlight=False)


@app.command()
def resume(tenant: TenantArgument, user: UserArgument) -> None:
    """Let a suspended person in again."""
    _act(tenant, ResumePerson(user_id=user.hex))
    out.print(f"resumed {user}", highlight=False)


@app.command()
def role(
    tenant: TenantArgument,
    user: UserArgument,
    role: Annotated[str, typer.Argument(help=f"One of {', '.join(_TENANT_ROLES)}.")],
) -> None:
    """Give a person another role. A tenant's last owner stays."""
    try:
        body = ChangeUserRole.model_validate({"user_id": user.hex, "role": role})
    except ValidationError:
        fail(f"The role is one of {', '.join(_TENANT_ROLES)}.")
    told = _act(tenant, body)
    out.print(f"{user} is {told['role']}", highlight=False)


@app.command("reset-password")
def reset_password(tenant: TenantArgument, user: UserArgument) -> None:
    """Print a token with which the person sets a new password: once, within the hour."""
    told = _act(tenant, ResetPassword(user_id=user.hex))
    expires_at = datetime.fromisoformat(told["expires_at"])

    async def work(store: Store, _: str) -> str:
        return await people.reset_token(store.sealing, tenant, user, told["version"], expires_at)

    _tell_token(run_with_store(work))

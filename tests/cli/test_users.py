"""``holdbook user`` against a real database."""

from __future__ import annotations

import re
from uuid import UUID, uuid4

import psycopg
import pytest
from typer.testing import CliRunner, Result

from api.cli import app
from domain.identity.tenants import PLATFORM

EMAIL, NAME, PASSWORD = "Anna.Karenina@example.com", "Anna Karenina", "correct horse battery"


@pytest.fixture(autouse=True)
def environment(database_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDBOOK_DATABASE_URL", database_dsn)
    made("init")


def run(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "250"}, input=stdin, catch_exceptions=False)


def made(*arguments: str, stdin: str | None = None) -> str:
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


def create(tenant: str, email: str = EMAIL, role: str = "owner") -> tuple[str, str]:
    """The user's id, and the token to set a password with."""
    user, token = made("user", "create", tenant, "--email", email, "--role", role, "--name", NAME).splitlines()
    assert str(UUID(user)) == user
    return user, token


def test_people_from_the_first_owner_on(database_dsn: str) -> None:
    tenant = made("tenant", "create", "Acme")
    owner, token = create(tenant)
    assert token.startswith(f"hbp_{UUID(tenant).hex}_{UUID(owner).hex}_0_")
    other, _ = create(tenant, "boris@example.com", "member")

    listed = made("user", "list", tenant)
    assert all(text in listed for text in (owner, other, EMAIL, "boris@example.com", NAME, "owner", "member", "active"))
    assert "no password yet" in made("user", "show", tenant, owner)
    assert "support" in made("user", "role", tenant, other, "support")
    made("user", "suspend", tenant, other)
    assert "suspended" in made("user", "show", tenant, other)
    made("user", "resume", tenant, other)
    assert "active" in made("user", "show", tenant, other)
    assert made("user", "reset-password", tenant, other).splitlines()[-1].startswith("hbp_")

    with psycopg.connect(database_dsn) as connection:
        stored = str(connection.execute("select stream, payload::text, reply::text, actor from event").fetchall())
    for secret in (EMAIL, EMAIL.lower(), NAME, token, token.split("_", 5)[-1]):  # what is behind the numbers may have "_" in it
        assert secret not in stored
    assert "operator:cli" in stored


def test_a_password_comes_from_standard_input_alone(database_dsn: str) -> None:
    tenant = made("tenant", "create", "Acme")

    user = made("user", "create", tenant, "--email", EMAIL, "--role", "owner", "--password-stdin", stdin=f"{PASSWORD}\n")

    assert str(UUID(user)) == user  # and no token behind it
    assert "no password" not in made("user", "show", tenant, user)
    with psycopg.connect(database_dsn) as connection:
        stored = str(connection.execute("select payload::text from event").fetchall())
    assert PASSWORD not in stored
    assert "argon2" not in stored
    weak = run("user", "create", tenant, "--email", "b@example.com", "--role", "owner", "--password-stdin", stdin="short\n")
    assert weak.exit_code == 1
    assert "short" not in re.sub(r"too short|shorter", "", weak.stderr)


def test_operators_live_in_the_platforms_tenant() -> None:
    first = made("user", "operator", "--email", EMAIL).splitlines()[0]
    second = made("user", "operator", "--email", "second@example.com").splitlines()[0]

    listed = made("user", "list", str(PLATFORM))
    assert first in listed
    assert second in listed
    assert "Platform" in made("tenant", "show", str(PLATFORM))
    assert run("user", "operator", "--email", EMAIL.upper()).exit_code == 1
    assert run("user", "role", str(PLATFORM), first, "owner").exit_code == 1
    made("user", "suspend", str(PLATFORM), first)


def test_the_last_owner_stays() -> None:
    tenant = made("tenant", "create", "Acme")
    owner, _ = create(tenant)

    for arguments in (("role", tenant, owner, "member"), ("suspend", tenant, owner)):
        refused = run("user", *arguments)
        assert refused.exit_code == 1
        assert "tenant.last_owner" in refused.stderr
    other, _ = create(tenant, "boris@example.com")
    assert "member" in made("user", "role", tenant, owner, "member")
    assert run("user", "suspend", tenant, other).exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("create", str(uuid4()), "--email", EMAIL, "--role", "owner"), "no such tenant"),
        (("create", "TENANT", "--email", "anna", "--role", "owner"), "e-mail"),
        (("create", "TENANT", "--email", EMAIL, "--role", "emperor"), "role"),
        (("create", "TENANT", "--email", EMAIL, "--role", "operator"), "role"),
        (("create", str(PLATFORM), "--email", EMAIL, "--role", "owner"), "user operator"),
        (("create", "TENANT", "--email", "Taken@example.com", "--role", "owner"), "login.taken"),
        (("list", str(uuid4())), "no such tenant"),
        (("show", "TENANT", str(uuid4())), "no such user"),
        (("suspend", "TENANT", str(uuid4())), "no such user"),
        (("role", "TENANT", str(uuid4()), "emperor"), "role"),
        (("role", "TENANT", str(uuid4()), "operator"), "no such user"),
    ],
)
def test_mistakes_are_told_in_words(arguments: tuple[str, ...], said: str) -> None:
    tenant = made("tenant", "create", "Acme")
    create(tenant, "taken@example.com")

    result = run("user", *(tenant if each == "TENANT" else each for each in arguments))

    assert result.exit_code == 1, result.output
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert "Taken@" not in result.stderr

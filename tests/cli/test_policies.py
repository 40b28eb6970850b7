"""``holdbook policy``: rates from the command line."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner, Result

from api.cli import app


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"}, catch_exceptions=False)


def test_a_rate_is_set_listed_changed_and_removed(database_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDBOOK_DATABASE_URL", database_dsn)
    tenant = run("tenant", "create", "Acme").stdout.strip()

    assert run("policy", "set-rate", tenant, "bot.commands", "5", "60", "--exempt", "owner", "--exempt", "admin").exit_code == 0
    assert run("policy", "set-rate", tenant, "bot.commands", "7", "60", "--exempt", "owner").exit_code == 0
    listed = run("policy", "rates", tenant).stdout
    assert [part.strip() for part in listed.splitlines()[3].strip("│").split("│")] == ["bot.commands", "7", "60", "owner"]
    assert run("policy", "remove-rate", tenant, "bot.commands").exit_code == 0
    assert "bot.commands" not in run("policy", "rates", tenant).stdout


def test_what_makes_no_sense_is_told_in_words(database_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDBOOK_DATABASE_URL", database_dsn)
    tenant = run("tenant", "create", "Acme").stdout.strip()

    unknown_role = run("policy", "set-rate", tenant, "bot", "5", "60", "--exempt", "king")
    unknown_rate = run("policy", "remove-rate", tenant, "bot")
    unknown_tenant = run("policy", "set-rate", "0" * 8 + "-0000-4000-8000-" + "0" * 12, "bot", "5", "60")

    assert [result.exit_code for result in (unknown_role, unknown_rate, unknown_tenant)] == [1, 1, 1]
    assert "exempt_roles" in unknown_role.stderr
    assert "no rate with this name" in unknown_rate.stderr
    assert "no such tenant" in unknown_tenant.stderr

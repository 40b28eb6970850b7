"""The command ``holdbook``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import cache
from typing import Annotated

import typer

_COMMANDS = {
    "up": "running",
    "serve": "running",
    "worker": "running",
    "init": "schema",
    "migrate": "schema",
    "backup": "backups",
    "restore": "backups",
    "replay": "replaying",
    "rebuild": "rebuilding",
    "verify": "verifying",
    "doctor": "doctor",
    "demo": "demo",
}
"""The module that has a command, as a function of the same name."""
_GROUPS = {
    "tenant": "tenants",
    "user": "users",
    "key": "keys",
    "audit": "auditing",
    "projections": "projections",
    "task": "tasks",
    "privacy": "privacy",
    "policy": "policies",
    "license": "licenses",
    "import": "importing",
}
"""The module that has a group of commands, as its ``app``."""


def made(word: str | None = None) -> typer.Typer:
    """The whole command, or what of it begins with one word: a short command takes longer to import what it does not need than to work."""
    known = {*_COMMANDS, *_GROUPS, "bench"}
    words = {word} & known or known
    app = typer.Typer(
        name="holdbook", help="An event-sourced ledger for quotas, on PostgreSQL.", no_args_is_help=True, pretty_exceptions_enable=False
    )
    for name, module in _COMMANDS.items():
        if name in words:
            app.command(name)(getattr(importlib.import_module(f"api.cli.{module}"), name))
    for name, module in _GROUPS.items():
        if name in words and importlib.util.find_spec(f"api.cli.{module}"):
            app.add_typer(importlib.import_module(f"api.cli.{module}").app, name=name)
    if "bench" in words:
        app.command("bench")(bench)
    if len(words) == 1:
        app.callback()(_alone)
    return app


def _alone() -> None:
    """Without it a single command would stand for the whole."""


def bench(
    json: Annotated[bool, typer.Option("--json", help="A list of {name, ratio, target, holds}.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Within two minutes.")] = False,
) -> None:
    """Measure this machine against the ratios we promise."""
    importlib.import_module("bench.main").run(as_json=json, quick=quick)


@cache
def _whole() -> typer.Typer:
    return made()


def __getattr__(name: str) -> typer.Typer:
    """``app`` is the whole command."""
    if name != "app":
        raise AttributeError(name)
    return _whole()


def main() -> None:
    """Entry point."""
    made(sys.argv[1] if len(sys.argv) > 1 else None)()

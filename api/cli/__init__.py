"""The command ``holdbook``."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Annotated

import typer

from api.cli import demo, doctor, keys, running, schema, tenants

app = typer.Typer(
    name="holdbook", help="An event-sourced ledger for quotas, on PostgreSQL.", no_args_is_help=True, pretty_exceptions_enable=False
)
app.command("up")(running.up)
app.command("serve")(running.serve)
app.command("worker")(running.worker)
app.command("init")(schema.init)
app.command("migrate")(schema.migrate)
app.command("doctor")(doctor.doctor)
app.command("demo")(demo.demo)
app.add_typer(tenants.app, name="tenant")
app.add_typer(keys.app, name="key")
if importlib.util.find_spec("api.cli.importing"):
    app.add_typer(importlib.import_module("api.cli.importing").app, name="import")


@app.command("bench")
def bench(
    json: Annotated[bool, typer.Option("--json", help="A list of {name, ratio, target, holds}.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Within two minutes.")] = False,
) -> None:
    """Measure this machine against the ratios we promise."""
    importlib.import_module("bench.main").run(json=json, quick=quick)


def main() -> None:
    """Entry point."""
    app()

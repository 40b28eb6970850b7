"""The command ``holdbook``."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Annotated

import typer

from api.cli import (
    auditing,
    backups,
    keys,
    licenses,
    policies,
    privacy,
    projections,
    replaying,
    retention,
    running,
    schema,
    tasks,
    tenants,
    users,
)
from api.cli.demo import demo
from api.cli.doctor import doctor
from api.cli.rebuilding import rebuild
from api.cli.verifying import verify

app = typer.Typer(
    name="holdbook", help="An event-sourced ledger for quotas, on PostgreSQL.", no_args_is_help=True, pretty_exceptions_enable=False
)
app.command("up")(running.up)
app.command("serve")(running.serve)
app.command("worker")(running.worker)
app.command("init")(schema.init)
app.command("migrate")(schema.migrate)
app.command("backup")(backups.backup)
app.command("restore")(backups.restore)
app.command("replay")(replaying.replay)
app.command("rebuild")(rebuild)
app.command("verify")(verify)
app.command("doctor")(doctor)
app.command("demo")(demo)
app.add_typer(tenants.app, name="tenant")
app.add_typer(users.app, name="user")
app.add_typer(keys.app, name="key")
app.add_typer(auditing.app, name="audit")
app.add_typer(projections.app, name="projections")
app.add_typer(tasks.app, name="task")
app.add_typer(privacy.app, name="privacy")
app.add_typer(policies.app, name="policy")
app.add_typer(licenses.app, name="license")
retention.add_to(policies.app)
if importlib.util.find_spec("api.cli.importing"):
    app.add_typer(importlib.import_module("api.cli.importing").app, name="import")


@app.command("bench")
def bench(
    json: Annotated[bool, typer.Option("--json", help="A list of {name, ratio, target, holds}.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Within two minutes.")] = False,
) -> None:
    """Measure this machine against the ratios we promise."""
    importlib.import_module("bench.main").run(as_json=json, quick=quick)


def main() -> None:
    """Entry point."""
    app()

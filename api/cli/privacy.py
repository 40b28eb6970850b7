"""``holdbook privacy``: what is done at people's request, by the operator at the keyboard."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, BinaryIO
from uuid import UUID, uuid4

import msgspec
import typer

from api.cli.common import fail, out, run_with_store, settings
from api.people import user_state
from api.privacy import erasing
from api.privacy.asking import Whose
from api.privacy.exporting import About, as_json
from api.privacy.html import as_html
from domain.privacy.people import person_of
from eventstore.requests import Request
from eventstore.store import Store
from projections.readers import Readers

app = typer.Typer(help="Export and erase the personal data of one person.", no_args_is_help=True)

SubjectArgument = Annotated[str, typer.Argument(help="A person's id, or a bot's own name for its user.")]
TenantOption = Annotated[UUID | None, typer.Option("--tenant", help="Default: HOLDBOOK_DEFAULT_TENANT.")]


def _tenant(given: UUID | None) -> UUID:
    return given or settings().default_tenant or fail("Name a tenant, or set HOLDBOOK_DEFAULT_TENANT.")


@app.command()
def erase(
    subject: SubjectArgument,
    tenant: TenantOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask. It cannot be undone.")] = False,
) -> None:
    """Make everything personal about somebody unreadable, for ever. May be repeated."""
    tenant_id = _tenant(tenant)
    person_id = person_of(tenant_id, subject)
    if person_id == tenant_id:
        fail("This is the tenant itself, and nobody.")
    if not yes:
        typer.confirm(f"Erase {person_id} of tenant {tenant_id}? It cannot be undone.", abort=True)

    async def work(store: Store, _: str) -> None:
        items = await erasing.items(store, tenant_id, person_id, await user_state(store, tenant_id, person_id))
        outcome = await store.submit(Request(tenant_id, uuid4(), items, b"", actor="operator:cli"))
        if outcome.refused:
            reply = msgspec.json.decode(outcome.reply)
            fail(f"{reply['message']} ({reply['code']})")
        await erasing.complete(store, tenant_id, person_id)

    run_with_store(work)
    out.print(f"erased {person_id}", highlight=False)


class Format(StrEnum):
    """How the export is written."""

    JSON = "json"
    HTML = "html"


@app.command()
def export(
    subject: SubjectArgument,
    file: Annotated[Path, typer.Argument(help="Where to write; it must not exist yet.")],
    tenant: TenantOption = None,
    format_: Annotated[Format, typer.Option("--format", help="json for programs, html for people.")] = Format.JSON,
) -> None:
    """Write everything that is kept about somebody, with what is sealed opened. Only the owner of the file may read it."""
    tenant_id = _tenant(tenant)
    person_id = person_of(tenant_id, subject)
    if person_id == tenant_id:
        fail("This is the tenant itself, and nobody.")

    async def work(store: Store, dsn: str) -> None:
        readers: Any = await Readers.open(dsn, connections=1)
        try:
            about = About(store, readers, tenant_id, Whose(subject, person_id, own=False), datetime.now(UTC))
            blocks = as_json(about) if format_ is Format.JSON else as_html(about)
            with _private(file) as out_file:
                async for block in blocks:
                    out_file.write(block)
        finally:
            await readers.close()

    run_with_store(work)
    out.print(f"written {file}", highlight=False)


@contextmanager
def _private(file: Path) -> Iterator[BinaryIO]:
    """A new file that is there whole or not at all."""
    part = file.with_name(file.name + ".part")
    if file.exists():
        fail(f"{file} exists.")
    try:
        with os.fdopen(os.open(part, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb") as opened:
            yield opened
            opened.flush()
            os.fsync(opened.fileno())
        part.rename(file)
    except OSError as error:
        fail(f"{file} cannot be written: {error.strerror}.")
    finally:
        part.unlink(missing_ok=True)

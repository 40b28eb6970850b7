"""`holdbook import`: history from files into the ledger, each row at its own time.

A row becomes one command of two parts, decided and recorded together: reserve what was known before the work plus a cap, then
commit what was really used. Nothing can come between the two: no expiry, although the reservation's deadline lies in the past,
and no kill. The command's id follows from the row and all rows before it in its file, so a file that is imported again, renamed,
continued after a kill, by two processes at once, or after it grew at its end, adds only what is not there yet.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, NamedTuple, Self
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import typer

from adapters.usage_file import MAX_NAME, BadRow, Columns, UsageFileError, UsageRow, is_name, read_usage
from api.cli.common import database, err, out, prepare, settings, store_at, told
from api.settings import Settings
from domain.identity.tenants import TENANT, Tenant, tenant_stream
from domain.kernel.decider import Command, Rejected
from domain.quota import QUOTA, Commit, Limit, QuotaNotFound, Reserve, SetLimits, Window, iso, quota_stream, reservation_id
from eventstore.errors import KeyReused, Overloaded, Unavailable
from eventstore.requests import Item, Outcome, Request
from eventstore.store import Store, client_command_id

ACTOR = "operator:import"
AZURE = Columns(timestamp="TIMESTAMP", before=("ContextTokens",), after=("GeneratedTokens",))
DEFAULT_CAP = 2_048
"""Above every answer in Azure's traces, whose longest has 1,899 tokens."""
RETRY_PAUSES = (0.1, 0.5, 2.0, 5.0, None)
"""Seconds; each try has waited out the writer's own retries before."""


app = typer.Typer(no_args_is_help=True)


class CannotImport(Exception):
    """The import as a whole makes no sense, and nothing was changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """What to import where.

    ``cap`` is for rows that name none. ``zone`` is that of times without an offset. ``monthly_limit`` is for quotas that do not
    exist yet; its months are those of the tenant's zone.
    """

    files: tuple[Path, ...]
    tenant_id: UUID
    meter: str
    subject: str | None = None
    columns: Columns = AZURE
    zone: str = "UTC"
    cap: int = DEFAULT_CAP
    monthly_limit: int | None = None
    rejected: Path | None = None
    source: str = ""
    """Tells apart files that begin alike and still are different uses."""
    attempts: int = 1
    """A row that was refused is tried so many times in all, those of earlier imports included."""
    in_flight: int = 500

    def __post_init__(self) -> None:
        if (self.subject is None) == (self.columns.subject is None):
            raise CannotImport("Give either a subject or the column that names it.")
        for what, name in (("subject", self.subject), ("meter", self.meter)):
            if name is not None and not is_name(name):
                raise CannotImport(f"The {what} must have 1 to {MAX_NAME} printable characters.")
        if min(self.in_flight, self.attempts) < 1 or self.cap < 0 or (self.monthly_limit is not None and self.monthly_limit < 0):
            raise CannotImport("Rows in flight and attempts must be at least 1, the cap and the limit at least 0.")
        try:
            ZoneInfo(self.zone)
        except (OSError, ValueError, KeyError):
            raise CannotImport(f"There is no time zone {self.zone!r}.") from None
        if self.rejected is not None and any(_is_same(self.rejected, path) for path in self.files):
            raise CannotImport("Rejected rows would overwrite the file that is imported.")
        if self.rejected is not None and not self.rejected.parent.is_dir():
            raise CannotImport(f"There is no folder {self.rejected.parent} for rejected rows.")


@dataclass(slots=True)
class Summary:
    """What became of the rows so far. Units are sums of the real totals, before plus after."""

    rows: int = 0
    imported: int = 0
    already_there: int = 0
    rejected: int = 0
    imported_units: int = 0
    already_there_units: int = 0
    bytes_done: int = 0
    bytes_total: int = 0
    rejected_files: list[Path] = field(default_factory=list)


Progress = Callable[[Summary], None]


class _Verdict(NamedTuple):
    status: Literal["imported", "already_there", "rejected"]
    refusal: dict[str, Any]


async def import_usage(store: Store, options: ImportOptions, progress: Progress = lambda _: None) -> Summary:
    """Book every row of the files and say what became of them.

    ``progress`` is called every now and then with the growing summary. Rows are submitted in order, so windows fill in the order
    of the file. Raises :class:`CannotImport` and :class:`adapters.usage_file.UsageFileError` before anything is changed, and the
    store's retryable errors when it stays out of reach; the same import may then simply be run again.
    """
    for path in options.files:
        next(read_usage(path, options.columns, zone=options.zone), None)  # a wrong header in the last file stops the first
    summary = Summary(bytes_total=sum(path.stat().st_size for path in options.files))
    tenant = (await store.state(TENANT, options.tenant_id, tenant_stream(options.tenant_id))).state
    if not isinstance(tenant, Tenant):
        raise CannotImport(f"There is no tenant {options.tenant_id}; make it with `holdbook tenant create`.")
    booking = _Booking(store, options, tenant.zone, await store.tenant_key(options.tenant_id))
    if options.subject is not None:
        await booking.ensure_quota(options.subject)
    done = 0
    for group, target in _rejected_files(options):
        with _RejectedRows(target) as rejected:
            for path in group:
                await _import_file(path, booking, summary, rejected, progress, done)
                done += path.stat().st_size
        if rejected.count:
            summary.rejected_files.append(target)
    summary.bytes_done = summary.bytes_total
    progress(summary)
    return summary


async def _import_file(
    path: Path, booking: _Booking, summary: Summary, rejected: _RejectedRows, progress: Progress, bytes_before: int
) -> None:
    options = booking.options
    window: deque[tuple[UsageRow | BadRow, asyncio.Task[_Verdict] | None]] = deque()

    async def settle() -> None:
        row, task = window[0]
        verdict = _bad(row) if task is None else await task
        window.popleft()
        _count(summary, row, verdict)
        if verdict.status == "rejected":
            rejected.add({"file": str(path), "line": row.line, **verdict.refusal, "raw": row.raw})
        if summary.rows % 100 == 0:
            summary.bytes_done = bytes_before + row.end
            progress(summary)

    try:
        for count, row in enumerate(read_usage(path, options.columns, zone=options.zone)):
            if len(window) >= options.in_flight:
                await settle()
            window.append((row, asyncio.create_task(booking.book(row)) if isinstance(row, UsageRow) else None))
            if count % 64 == 63:
                await asyncio.sleep(0)  # the writer commits these while we read on
        while window:
            await settle()
    finally:
        tasks = [task for _, task in window if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _bad(row: UsageRow | BadRow) -> _Verdict:
    assert isinstance(row, BadRow)
    return _Verdict("rejected", {"code": "bad_row", "reason": row.reason})


def _count(summary: Summary, row: UsageRow | BadRow, verdict: _Verdict) -> None:
    summary.rows += 1
    match verdict.status:
        case "imported":
            assert isinstance(row, UsageRow)
            summary.imported += 1
            summary.imported_units += row.total
        case "already_there":
            assert isinstance(row, UsageRow)
            summary.already_there += 1
            summary.already_there_units += row.total
        case "rejected":
            summary.rejected += 1


class _Booking:
    """Turns rows into commands and answers into verdicts."""

    def __init__(self, store: Store, options: ImportOptions, zone: str, tenant_key: bytes) -> None:
        self.store, self.options, self._zone, self._tenant_key = store, options, zone, tenant_key

    async def ensure_quota(self, subject: str) -> None:
        """Give the subject its monthly limit unless it has a quota; without one the whole import would be refused."""
        stream = self._stream(subject)
        if (await self.store.state(QUOTA, self.options.tenant_id, stream)).version:
            return
        if self.options.monthly_limit is None:
            raise CannotImport(f"{subject!r} has no quota on {self.options.meter!r}; set its limits first, or give --monthly-limit.")
        await self._set_limit(subject, stream)

    async def book(self, row: UsageRow) -> _Verdict:
        """Have one row booked, or learn what became of it before."""
        subject = row.subject if row.subject is not None else self.options.subject
        assert subject is not None
        refusal: dict[str, Any] = {}
        for attempt in range(1, self.options.attempts + 1):
            try:
                outcome = await self._submit_or_configure(self._request(row, subject, attempt), subject)
            except Rejected as rejected:
                return _Verdict("rejected", _refusal(rejected.code, rejected.message, rejected.details))
            except KeyReused:
                reason = "this row of this file was imported before with another time or amount, read from other columns or in another zone"
                return _Verdict("rejected", {"code": "key_reused", "reason": reason})
            if not outcome.refused:
                return _Verdict("already_there" if outcome.replayed else "imported", {})
            told = msgspec.json.decode(outcome.reply)
            refusal = _refusal(told["code"], told["message"], told.get("details", {}))
        return _Verdict("rejected", refusal)

    def _request(self, row: UsageRow, subject: str, attempt: int) -> Request:
        options, stream = self.options, self._stream(subject)
        command_id = self._command_id("usage", f"{row.identity.hex()}:{stream}:{attempt}:{options.source}")
        identity = reservation_id(stream, command_id)
        # A row of nothing still needs something to hold for the moment between its two events.
        held = max(1, row.before + (options.cap if row.cap is None else row.cap))
        commands: tuple[Command, ...] = (
            Reserve(subject=subject, meter=options.meter, amount=held, reservation_id=identity),
            Commit(reservation_id=identity, used=row.total),
        )
        # The cap is not part of what the row says: how much was held for a moment does not make it another use.
        body = {"at": iso(row.at), "meter": options.meter, "subject": subject, "used": row.total}
        items = tuple([Item(QUOTA, stream, command) for command in commands])
        return self._made(command_id, items, body, at=row.at, size=256 + len(row.raw))

    async def _submit_or_configure(self, request: Request, subject: str) -> Outcome:
        try:
            return await self._submit(request)
        except QuotaNotFound:
            if self.options.monthly_limit is None:
                raise
        await self._set_limit(subject, self._stream(subject))
        return await self._submit(request)

    async def _set_limit(self, subject: str, stream: str) -> None:
        options = self.options
        assert options.monthly_limit is not None
        limit = Limit("monthly", options.monthly_limit, Window("month"))
        command = SetLimits(subject=subject, meter=options.meter, zone=self._zone, limits=(limit,))
        body = {"limit": limit.amount, "meter": options.meter, "subject": subject, "zone": self._zone}
        command_id = self._command_id("limits", f"{stream}:{limit.amount}:{self._zone}")
        await self._submit(self._made(command_id, (Item(QUOTA, stream, command),), body))

    async def _submit(self, request: Request) -> Outcome:
        for pause in RETRY_PAUSES:
            try:
                return await self.store.submit(request)
            except (Overloaded, Unavailable):
                if pause is None:
                    raise
                await asyncio.sleep(pause)
        raise AssertionError

    def _made(
        self, command_id: UUID, items: tuple[Item, ...], body: dict[str, Any], *, at: datetime | None = None, size: int = 256
    ) -> Request:
        canonical = msgspec.json.encode({"operation": type(items[-1].command).__name__, **body}, order="sorted")
        fingerprint = hmac.digest(self._tenant_key, canonical, "sha256")
        return Request(self.options.tenant_id, command_id, items, fingerprint, actor=ACTOR, occurred_at=at, size=size)

    def _command_id(self, operation: str, key: str) -> UUID:
        return client_command_id(self.options.tenant_id, ACTOR, f"import.{operation}", key)

    def _stream(self, subject: str) -> str:
        return quota_stream(self.options.tenant_id, subject, self.options.meter)


def _refusal(code: str, reason: str, details: Mapping[str, Any]) -> dict[str, Any]:
    """A refusal as it stands in the file of rejected rows."""
    return {"code": code, "reason": reason, "details": dict(details)} if details else {"code": code, "reason": reason}


# Rejected rows


def _rejected_files(options: ImportOptions) -> list[tuple[tuple[Path, ...], Path]]:
    """Which files' rejected rows go where."""
    if options.rejected is not None:
        return [(options.files, options.rejected)]
    return [((path,), _rejected_beside(path)) for path in options.files]


def _rejected_beside(path: Path) -> Path:
    name = path.name + ".rejected.jsonl"
    return path.with_name(name) if os.access(path.parent, os.W_OK) else Path(name)


def _is_same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


class _RejectedRows(AbstractContextManager["_RejectedRows"]):
    """The file of rejected rows: it appears whole when the import ends, and replaces that of the import before.

    Until then the rows are in a file without a name, of which a kill leaves nothing; the next run finds them again.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.count = path, 0

    def __enter__(self) -> Self:
        self._spool = tempfile.TemporaryFile(mode="w+b", dir=self.path.parent)
        return self

    def add(self, row: dict[str, Any]) -> None:
        self.count += 1
        self._spool.write(json.dumps(row, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._spool:
            if not self.count and (error is not None or not self.path.exists()):
                return
            self._spool.seek(0)
            handle, temporary = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)
            try:
                with open(handle, "wb") as whole:
                    while chunk := self._spool.read(2**20):
                        whole.write(chunk)
                os.chmod(temporary, 0o644)
                os.replace(temporary, self.path)
            except BaseException:
                os.unlink(temporary)
                raise


# The command


@app.callback()
def _group() -> None:
    """Bring history in from files."""


@app.command()
def usage(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE", exists=True, dir_okay=False, readable=True, help="CSV with a header line, or JSONL.")
    ],
    tenant: Annotated[UUID | None, typer.Option(help="Id of the tenant whose use it is. (default HOLDBOOK_DEFAULT_TENANT)")] = None,
    meter: Annotated[str, typer.Option(help="What is counted.")] = "tokens",
    subject: Annotated[str | None, typer.Option(help="Who used it, when the rows do not say.")] = None,
    subject_column: Annotated[str | None, typer.Option(metavar="COLUMN", help="The column that says who used it.")] = None,
    timestamp: Annotated[str, typer.Option(metavar="COLUMN", help="The column of the row's time, ISO 8601.")] = AZURE.timestamp,
    zone: Annotated[str, typer.Option(help="IANA time zone of times without an offset.")] = "UTC",
    context: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Amount known before the work; may be repeated. (default ContextTokens)"),
    ] = None,
    generated: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Amount known only afterwards; may be repeated. (default GeneratedTokens if no --context)"),
    ] = None,
    cap: Annotated[
        int | None,
        typer.Option(min=0, help="What is reserved beyond the context. (default 2048, or 0 when nothing is generated)"),
    ] = None,
    cap_column: Annotated[str | None, typer.Option(metavar="COLUMN", help="The column of each row's own cap.")] = None,
    monthly_limit: Annotated[
        int | None, typer.Option(min=0, help="Limit per month for subjects without a quota; others keep theirs.")
    ] = None,
    rejected: Annotated[Path | None, typer.Option(dir_okay=False, help="Where rejected rows go. (default FILE.rejected.jsonl)")] = None,
    source: Annotated[str, typer.Option(help="Tells apart files that begin alike but are different use.")] = "",
    attempt: Annotated[int, typer.Option(min=1, max=100, help="Raise by one to try rows again that were refused.")] = 1,
    batch: Annotated[int, typer.Option(min=1, max=10_000, help="Rows under way at once.")] = 500,
    database_url: Annotated[
        str | None, typer.Option(help="PostgreSQL to use instead of the embedded one. (default HOLDBOOK_DATABASE_URL)")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the embedded PostgreSQL. (default HOLDBOOK_DATA)")] = None,
) -> None:
    """Book each row of usage files at its own time: reserve its context and a cap, commit its real total.

    Run again, also after a kill, it adds what is not there yet and nothing else. Rows that cannot be booked are written to a
    file with their line numbers and the reason; the others are imported.
    """
    chosen = settings(database_url=database_url, data=data)
    try:
        tenant_id = tenant or chosen.default_tenant
        if tenant_id is None:
            raise CannotImport("Name the tenant with --tenant.")
        columns = Columns(
            timestamp=timestamp,
            before=tuple(context or (() if generated else AZURE.before)),
            after=tuple(generated or (() if context else AZURE.after)),
            subject=subject_column,
            cap=cap_column,
        )
        options = ImportOptions(
            files=tuple(files),
            tenant_id=tenant_id,
            meter=meter,
            subject=subject,
            columns=columns,
            zone=zone,
            cap=cap if cap is not None else DEFAULT_CAP if columns.after else 0,
            monthly_limit=monthly_limit,
            rejected=rejected,
            source=source,
            attempts=attempt,
            in_flight=batch,
        )
        with told(), database(chosen) as (dsn, _), _bar() as progress:
            if chosen.database_url is None:
                prepare(dsn, chosen)
            summary = asyncio.run(_run(dsn, options, chosen, progress))
    except (CannotImport, UsageFileError) as error:
        typer.echo(f"Nothing was imported. {error}", err=True)
        raise typer.Exit(2) from None
    _show(summary)


async def _run(dsn: str, options: ImportOptions, chosen: Settings, progress: Progress) -> Summary:
    async with store_at(dsn, chosen) as store:
        return await import_usage(store, options, progress)


@contextmanager
def _bar() -> Iterator[Progress]:
    """A progress bar over the bytes of the files, on standard error."""
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("import"), BarColumn(), DownloadColumn(), TextColumn("{task.fields[rows]:,} rows"), TimeRemainingColumn())
    with Bar(*columns, console=err) as bar:
        task = bar.add_task("import", total=None, rows=0)
        yield lambda so_far: bar.update(task, completed=so_far.bytes_done, total=so_far.bytes_total, rows=so_far.rows)


def _show(summary: Summary) -> None:
    from rich.table import Table

    table = Table("", "rows", "units")
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("imported", f"{summary.imported:,}", f"{summary.imported_units:,}")
    table.add_row("already there", f"{summary.already_there:,}", f"{summary.already_there_units:,}")
    table.add_row("rejected", f"{summary.rejected:,}", "")
    table.add_row("all", f"{summary.rows:,}", f"{summary.imported_units + summary.already_there_units:,}", style="bold")
    out.print(table)
    for path in summary.rejected_files:
        out.print(f"Rejected rows, with line numbers and reasons: {path}", soft_wrap=True, markup=False)

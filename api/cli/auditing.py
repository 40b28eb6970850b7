"""``holdbook audit``: exports of the log that anyone can verify."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Annotated
from uuid import UUID

import typer

from api.cli.common import database, err, fail, out, prepare, settings, told
from api.settings import Settings
from api.signing_key import signing_key
from eventstore.auditing import Broken, Checker
from eventstore.exporting import Exporter, Wanted
from eventstore.schema import check
from eventstore.signing import BadKey, SigningKey, make_key, public_key

app = typer.Typer(help="Export the log so that anyone can verify it, and verify such an export.", no_args_is_help=True)


def _key(chosen: Settings) -> SigningKey:
    return signing_key(chosen) or fail("Set HOLDBOOK_AUDIT_KEY_FILE to a private key; `holdbook audit key --new FILE` makes one.")


@app.command()
def key(
    new: Annotated[Path | None, typer.Option(metavar="FILE", help="Make a new private key in this file, which must not exist.")] = None,
) -> None:
    """Print the public key that verifies our exports: 64 hex digits. Hand it out on another way than the exports."""
    if new is not None:
        try:
            if not make_key(new):
                fail(f"{new} exists; a key is never written over.")
        except OSError as error:
            fail(f"{new}: {error.strerror}")
        typer.echo(SigningKey(new.read_text(encoding="ascii")).public.hex())
        return
    chosen = settings()
    with told():
        typer.echo(_key(chosen).public.hex())


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="Where to put it; must not exist.")],
    tenant: Annotated[UUID | None, typer.Option(help="Only this tenant's events; of all others the hashes alone.")] = None,
    as_of_position: Annotated[
        str | None, typer.Option(metavar="PARTITION:POSITION", help="One partition, up to and with this position.")
    ] = None,
    as_of: Annotated[
        str | None, typer.Option(metavar="TIME", help="What was recorded up to this moment, as 2026-03-31T23:59:59Z; UTC unless it says.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an export of the same that was interrupted.")] = False,
) -> None:
    """Export the log, or what is one tenant's of it, as JSON Lines with signed heads (docs/audit-format.md)."""
    export_to(file, wanted(tenant, as_of_position, as_of), resume=resume)


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="An export.")],
    key_file: Annotated[
        Path | None, typer.Option("--public-key", metavar="FILE", help="The public key, 64 hex digits; else the one the file names.")
    ] = None,
) -> None:
    """Verify an export with nothing but itself and the public key. Exit code 1, and the first broken position, when it is not as signed."""
    try:
        checker = Checker(public_key(key_file.read_text(encoding="utf-8")) if key_file is not None else None)
        with file.open("rb") as lines:
            for line in lines:
                checker.take(line)
        checker.finish()
    except (Broken, BadKey) as error:
        fail(f"{error}")
    except (OSError, UnicodeDecodeError) as error:
        fail(f"It cannot be read: {error}")
    assert checker.header is not None
    heads = checker.finished
    counts = " and ".join(
        f"{number:,} {what}"
        for number, what in (
            (sum(head.events for head in heads), "events"),
            (sum(head.leaves for head in heads), "hashes of others"),
            (sum(head.pruned for head in heads), "pruned"),
        )
        if number or what == "events"
    )
    out.print(f"{counts} in {len(heads)} partitions: complete and as signed.", highlight=False)
    if key_file is None:
        err.print(
            f"Signed with {checker.header.public_key}, as the file itself says: compare it with the key you were given.", soft_wrap=True
        )


def wanted(tenant: UUID | None, position: str | None, time: str | None) -> Wanted:
    """What the options ask for."""
    if position is not None and time is not None:
        fail("Give a position or a moment, not both.")
    return Wanted(tenant, None if position is None else place(position), None if time is None else moment(time))


def moment(text: str) -> datetime:
    """A moment in ISO 8601."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        fail(f"{text!r} is no moment such as 2026-03-31T23:59:59Z.")
    return found.replace(tzinfo=found.tzinfo or UTC)


def place(text: str) -> tuple[int, int]:
    """PARTITION:POSITION."""
    partition, _, position = text.partition(":")
    if not (partition.isascii() and partition.isdigit() and position.isascii() and position.isdigit()):
        fail("A place in the log is PARTITION:POSITION, two numbers.")
    return int(partition), int(position)


def export_to(file: Path, what: Wanted, *, resume: bool = False) -> None:
    """Write an export, under another name until it is complete."""
    chosen = settings()
    if file.exists():
        fail(f"{file} exists.")
    partial = file.with_name(file.name + ".partial")
    with told(), database(chosen) as (dsn, server):
        if server is not None:
            prepare(dsn, chosen)
        check(dsn)
        key = _key(chosen)
        try:
            with _begun(partial, resume=resume) as opened, Exporter.connect(dsn) as conn:
                checker = _resumed(opened, key)
                _write(opened, Exporter(conn, key, what, datetime.now(UTC), checker).blocks())
                os.link(partial, file)  # refuses to replace what somebody put there meanwhile, as a rename does not
                partial.unlink()
                _sync_directory(file.parent)
        except Broken as error:
            fail(f"{partial} is harmed, {error}. Remove it and begin anew.")
        except OSError as error:
            fail(f"{file}: {error.strerror or error}")
    err.print(f"Signed with {key.public.hex()}", highlight=False, soft_wrap=True)


@contextmanager
def _begun(partial: Path, *, resume: bool) -> Iterator[IO[bytes]]:
    """The partial file, ours alone."""
    with open(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+b") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            fail(f"Another export writes {partial}.")
        if not resume and opened.seek(0, os.SEEK_END):
            fail(f"{partial} was begun before: go on with --resume, or remove it.")
        opened.seek(0)
        yield opened


def _resumed(opened: IO[bytes], key: SigningKey) -> Checker | None:
    """Check what is there, cut a torn last line, and stand at the end."""
    checker, good = Checker(key.public), 0
    for line in opened:
        if not line.endswith(b"\n"):
            break
        checker.take(line)
        good += len(line)
    opened.seek(good)
    opened.truncate()
    return checker if good else None


def _write(opened: IO[bytes], blocks: Iterable[bytes]) -> None:
    for block in blocks:
        opened.write(block)
    opened.flush()
    os.fsync(opened.fileno())


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

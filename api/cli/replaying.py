"""``holdbook replay``: what the log says, at any place in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import msgspec
import psycopg
import typer
from rich.table import Table

from api.cli.auditing import moment, place
from api.cli.common import database, fail, out, prepare, settings, told
from domain.catalog import DECIDERS
from domain.quota import Quota, quota_stream
from domain.quota.view import QuotaView, view
from eventstore.codec import Codec
from eventstore.exporting import Exporter
from eventstore.replaying import Folded, Until, partition_of_stream, replay_stream
from eventstore.replaying import replay as replay_partition
from eventstore.schema import check
from eventstore.store import partition_of


def replay(
    tenant: Annotated[UUID | None, typer.Option(help="The streams of this tenant.")] = None,
    stream: Annotated[str | None, typer.Option(help="One stream.")] = None,
    meter: Annotated[str | None, typer.Option(help="One quota of the tenant, with --subject.")] = None,
    subject: Annotated[str | None, typer.Option(help="One quota of the tenant, with --meter.")] = None,
    position: Annotated[
        str | None, typer.Option(metavar="PARTITION:POSITION", help="Up to and with this position of one partition.")
    ] = None,
    at: Annotated[str | None, typer.Option(metavar="TIME", help="What was recorded up to this moment; UTC unless it says.")] = None,
    export: Annotated[Path | None, typer.Option(metavar="FILE", help="JSON Lines into this file, which must not exist.")] = None,
) -> None:
    """Fold the log again, up to any position or moment, of one stream, a tenant or all, and show the states.

    Nothing is written to the store. Of a tenant or of all, every state is in memory at once.
    """
    if position is not None and at is not None:
        fail("Give a position or a moment, not both.")
    if (meter is None) != (subject is None) or (meter is not None and (tenant is None or stream is not None)):
        fail("A quota is named by --tenant, --meter and --subject.")
    where = place(position) if position is not None else None
    until = Until(where[1] if where is not None else None, moment(at) if at is not None else None)
    if meter is not None and subject is not None and tenant is not None:
        stream = quota_stream(tenant, subject, meter)
    chosen, codec = settings(), Codec(DECIDERS)
    with told(), database(chosen) as (dsn, server):
        if server is not None:
            prepare(dsn, chosen)
        partitions = check(dsn)
        with Exporter.connect(dsn) as conn:
            found = _found(conn, codec, partitions, tenant, stream, where, until)
    lines = [_told(codec, folded, until, one=stream is not None) for folded in found]
    if export is not None:
        _write(export, lines)
        out.print(f"{len(lines)} streams in {export}", highlight=False)
    else:
        out.print(_table(lines))


def _found(
    conn: psycopg.Connection[Any],
    codec: Codec,
    partitions: int,
    tenant: UUID | None,
    stream: str | None,
    where: tuple[int, int] | None,
    until: Until,
) -> Sequence[Folded]:
    wanted = list(range(partitions))
    if tenant is not None:
        wanted = [partition_of(tenant, partitions)]
    elif stream is not None:
        wanted = [partition_of_stream(conn, stream)]
    if where is not None:
        if where[0] not in wanted:
            fail(f"What is asked for is not in partition {where[0]}." if len(wanted) == 1 else f"There is no partition {where[0]}.")
        wanted = [where[0]]
    if stream is None:
        return [folded for partition in wanted for folded in replay_partition(conn, codec, partition, until, tenant)]
    folded = replay_stream(conn, codec, wanted[0], stream, until)
    if folded is None or (tenant is not None and folded.tenant_id != tenant):
        fail("There was no such stream then.")
    return [folded]


def _told(codec: Codec, folded: Folded, until: Until, *, one: bool) -> dict[str, Any]:
    decider = codec.decider_of(folded.stream)
    assert decider is not None
    line = {
        "partition": folded.partition,
        "position": folded.position,
        "tenant_id": folded.tenant_id,
        "stream": folded.stream,
        "version": folded.version,
        "recorded_at": folded.recorded_at,
        "state": msgspec.Raw(codec.freeze(decider, folded.state).encode()),
    }
    if one and isinstance(folded.state, Quota):
        line["view"] = _view(folded.state, folded, until)
    return line


def _view(state: Quota, folded: Folded, until: Until) -> QuotaView:
    """As it showed then; now when no end was given."""
    if until.position is not None:
        return view(state, folded.recorded_at)
    return view(state, until.moment or datetime.now(UTC))


def _table(lines: Iterable[dict[str, Any]]) -> Table:
    table = Table("place", "stream", "version")
    table.add_column("state", overflow="fold")
    for line in lines:
        shown = line["state"] if "view" not in line else msgspec.json.encode(line["view"])
        table.add_row(f"{line['partition']}:{line['position']}", line["stream"], str(line["version"]), bytes(shown).decode())
    return table


def _write(file: Path, lines: Iterable[dict[str, Any]]) -> None:
    try:
        with file.open("xb") as opened:
            opened.writelines(msgspec.json.encode(line) + b"\n" for line in lines)
    except OSError as error:
        fail(f"{file}: {error.strerror}")

"""``holdbook projections``: how what follows the log stands, and what to do when it stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import msgspec
import typer
from psycopg import AsyncConnection
from rich.table import Table

from api.cli.common import fail, out, run_with_store
from domain.consumers import CONSUMER, SkipEvent, consumer_stream, skip_command_id
from eventstore.requests import Item, Request
from eventstore.store import Store, partition_of
from projections import generations, operating
from projections.operating import CannotRestart, CannotSkip, Poison, Standing

app = typer.Typer(help="Show how read models and other consumers follow the log; retry or skip what stopped one.")

NameArgument = Annotated[str, typer.Argument(help="The consumer, as `projections list` names it.")]


def _with_connection(work: Callable[[AsyncConnection[Any], Store], Awaitable[Any]]) -> Any:
    async def connected(store: Store, dsn: str) -> Any:
        async with await AsyncConnection.connect(dsn, autocommit=True, options=operating.OPTIONS) as conn:
            return await work(conn, store)

    return run_with_store(connected)


@app.callback(invoke_without_command=True)
def main(context: typer.Context) -> None:
    """Show how read models and other consumers follow the log; retry or skip what stopped one."""
    if context.invoked_subcommand is None:
        list_()


@app.command("list")
def list_() -> None:
    """List consumers and generations: fold version, lag in events, state, and what they stopped at."""

    async def work(conn: AsyncConnection[Any], _: Store) -> list[Standing]:
        return await operating.standings(conn)

    table = Table("name", "generation", "version", "lag", "state")
    stopped: list[str] = []
    for each in _with_connection(work):
        version = "" if each.version is None else str(each.version)
        table.add_row(each.consumer, str(each.generation), version, str(each.lag), _state(each))
        stopped += [
            f"{each.consumer} {each.generation}, partition {place.partition}: stopped at {place.position}: {place.reason}"
            for place in each.stopped
        ]
    out.print(table)
    for line in stopped:
        out.print(line, soft_wrap=True, highlight=False, markup=False)


def _state(standing: Standing) -> str:
    """The state of a generation that is not fed by followers, or whether it follows."""
    if standing.state == "old":
        return "old"
    if standing.stopped:
        return f"stopped on {len(standing.stopped)} partition{'s' if len(standing.stopped) > 1 else ''}"
    return standing.state if standing.state in ("building", "proof") else "following"


@app.command()
def retry(
    name: NameArgument,
    partition: Annotated[int | None, typer.Option(min=0, help="Only this partition; all when not given.")] = None,
) -> None:
    """Try again what a consumer stopped at; it stops again if that is of no use."""

    async def work(conn: AsyncConnection[Any], store: Store) -> int:
        return await operating.release(conn, name, range(store.partitions) if partition is None else [partition])

    count = _with_connection(work)
    if not count:
        fail(f"{name} is not stopped{'' if partition is None else f' on partition {partition}'}.")
    out.print(f"{name} is tried again on {count} partition{'s' if count > 1 else ''}.", highlight=False)


@app.command()
def restart(
    name: NameArgument,
    partition: Annotated[int, typer.Option(min=0, help="The partition it is stopped on.")],
    position: Annotated[int, typer.Option(min=0, help="Go on behind this position, which is not ahead of where it stands.")],
) -> None:
    """Have a consumer that is no read model act again on what lies behind a position, after the log lost events that it had seen.

    What it does again it does under the same ids: commands change nothing the second time, and messages keep theirs.
    """

    async def work(conn: AsyncConnection[Any], _: Store) -> None:
        await operating.restart(conn, name, partition, position)

    try:
        _with_connection(work)
    except CannotRestart as error:
        fail(str(error))
    out.print(f"{name} goes on behind position {position} of partition {partition}.", highlight=False)


@app.command()
def skip(
    name: NameArgument,
    partition: Annotated[int, typer.Option(min=0, help="The partition it is stopped on.")],
    position: Annotated[int, typer.Option(min=1, help="The position of the event that stopped it.")],
    reason: Annotated[str, typer.Option(help="Why, for the audit: kept for ever, so without personal data.")],
    generation: Annotated[int | None, typer.Option(min=1, help="Which, when several are stopped there.")] = None,
) -> None:
    """Go on without the event that stopped a consumer. Recorded in the log; the same again completes what was interrupted."""

    async def work(conn: AsyncConnection[Any], store: Store) -> bool:
        async def record(poison: Poison) -> None:
            await _record(store, poison, reason)

        return await operating.skip(conn, name, partition, position, record, generation)

    try:
        done = _with_connection(work)
    except CannotSkip as error:
        fail(str(error))
    out.print(f"{name} {'goes on' if done else 'already went on'} without position {position} of partition {partition}.", highlight=False)


async def _record(store: Store, poison: Poison, reason: str) -> None:
    tenant_id = poison.tenant_id
    if partition_of(tenant_id, store.partitions) != poison.partition:
        raise CannotSkip(f"The event belongs to a tenant of another partition than {poison.partition}: the log is corrupt.")
    command = SkipEvent(
        consumer=poison.consumer, version=poison.version, partition=poison.partition, position=poison.position, reason=reason
    )
    command_id = skip_command_id(poison.consumer, poison.version, poison.partition, poison.position)
    item = Item(CONSUMER, consumer_stream(tenant_id, poison.consumer), command)
    outcome = await store.submit(Request(tenant_id, command_id, (item,), b"", actor="operator:cli"))
    if outcome.refused:
        raise CannotSkip(msgspec.json.decode(outcome.reply)["message"])


@app.command()
def skipped(
    restore: Annotated[bool, typer.Option("--restore", help="Also write again the table that followers ask.")] = False,
) -> None:
    """List the events that were skipped and why, from the log itself; reads all of it."""

    async def work(conn: AsyncConnection[Any], store: Store) -> Table:
        table = Table("name", "version", "partition", "position", "at", "reason")
        for partition in range(store.partitions):
            for each in await operating.recorded_skips(conn, partition):
                place = (each.consumer, str(each.version), str(partition), str(each.position))
                table.add_row(*place, f"{each.at:%Y-%m-%d %H:%M}", each.reason)
            if restore:
                await operating.restore_skips(conn, partition)
        return table

    out.print(_with_connection(work))


@app.command()
def drop(
    name: NameArgument, generation: Annotated[int, typer.Argument(min=1, help="The generation, as `projections list` numbers it.")]
) -> None:
    """Drop the tables of a generation that answers no queries: an old one, or one that is not to be finished."""

    async def work(_: Store, dsn: str) -> None:
        await asyncio.to_thread(generations.drop, dsn, name, generation)

    try:
        run_with_store(work)
    except generations.CannotDrop as error:
        fail(str(error))
    out.print(f"Generation {generation} of {name} is dropped.", highlight=False)

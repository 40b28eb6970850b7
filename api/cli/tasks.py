"""``holdbook task``: what processes, effects and webhooks have yet to do, and what to do when a lane stands still."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.table import Table

from api.cli.common import fail, out, run_with_store
from domain.tasks import TASKS, SkipTask, skip_task_id, task_stream
from eventstore.requests import Item, Request
from eventstore.store import Store
from projections import task_table
from projections.consumer import Connection
from projections.task_table import LaneState, Place

app = typer.Typer(help="List tasks of processes, effects and webhooks; retry or skip what a lane stands still at.", no_args_is_help=True)

ConsumerArgument = Annotated[str, typer.Argument(help="Whose task it is, as `task list` names it.")]
LaneArgument = Annotated[str, typer.Argument(help="The lane, as `task list` names it.")]


def _with_queue(work: Callable[[Connection, Store], Awaitable[Any]]) -> Any:
    async def connected(store: Store, dsn: str) -> Any:
        async with await task_table.connect(dsn) as conn:
            return await work(conn, store)

    return run_with_store(connected)


async def _lane(conn: Connection, store: Store, consumer: str, lane: str) -> LaneState:
    found = await task_table.states(conn, range(store.partitions), consumer=consumer, lane=lane)
    return found[0] if found else fail(f"{consumer} has nothing to do in lane {lane}.")


def _place(state: LaneState) -> Place:
    return Place(state.partition, state.consumer, state.lane)


@app.command("list")
def list_(
    consumer: Annotated[str | None, typer.Option(help="Only of this consumer.")] = None,
    stopped: Annotated[bool, typer.Option("--stopped", help="Only lanes that stand still until somebody lets them go on.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Lanes shown, at most.")] = 100,
) -> None:
    """List lanes with something to do, those that stand still first: their first task, how many wait, and what went wrong."""

    async def work(conn: Connection, store: Store) -> list[LaneState]:
        return await task_table.states(conn, range(store.partitions), consumer=consumer, stopped=stopped, limit=limit)

    table = Table("consumer", "lane", "first", "waiting", "tries", "since", "state", "last error")
    for each in _with_queue(work):
        state = "stopped" if each.stopped else "running" if each.running else f"due {each.due_at:%Y-%m-%d %H:%M:%S}"
        numbers = str(each.number), str(each.waiting), str(each.attempts)
        table.add_row(each.consumer, each.lane, *numbers, f"{each.created_at:%Y-%m-%d %H:%M}", state, each.reason or "")
    out.print(table, markup=False)


@app.command()
def retry(consumer: ConsumerArgument, lane: LaneArgument) -> None:
    """Have a lane go on now: one that stands still, or that waits for its next try."""

    async def work(conn: Connection, store: Store) -> bool:
        state = await _lane(conn, store, consumer, lane)
        # Long ago is due by every clock.
        return await task_table.retry(conn, _place(state), datetime(2000, 1, 1, tzinfo=UTC))

    if not _with_queue(work):
        fail("The lane is being worked on.")
    out.print(f"{consumer} goes on in lane {lane}.", highlight=False, markup=False)


@app.command()
def skip(
    consumer: ConsumerArgument,
    lane: LaneArgument,
    number: Annotated[int, typer.Argument(help="The lane's first task, as `task list` shows it.")],
    reason: Annotated[str, typer.Option(help="Why, for the audit: kept for ever, so without personal data.")],
) -> None:
    """Go on without the task at which a lane stands still. Recorded in the log; the same again completes what was interrupted."""

    async def work(conn: Connection, store: Store) -> None:
        state = await _lane(conn, store, consumer, lane)
        if state.stopped is None or state.number != number:
            fail(f"{consumer} does not stand still at {number} in lane {lane}.")
        await record_skip(store, state, reason)
        await task_table.skip(conn, _place(state), number, datetime(2000, 1, 1, tzinfo=UTC))

    _with_queue(work)
    out.print(f"{consumer} goes on without {number} in lane {lane}.", highlight=False, markup=False)


async def record_skip(store: Store, state: LaneState, reason: str) -> None:
    """Write to the log that a task is skipped; once, however often it is asked for."""
    command = SkipTask(consumer=state.consumer, lane=state.lane, number=state.number, reason=reason)
    item = Item(TASKS, task_stream(state.tenant_id, state.consumer, state.lane), command)
    command_id = skip_task_id(state.tenant_id, state.consumer, state.lane, state.number)
    await store.submit(Request(state.tenant_id, command_id, (item,), b"", actor="operator:cli"))

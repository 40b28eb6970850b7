"""What the commands share: settings, the database, one command to the store, output."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Annotated, Any, NamedTuple, NoReturn
from uuid import UUID, uuid4

import msgspec
import psycopg
import sqlalchemy.exc
import typer
from psycopg_pool import PoolTimeout
from pydantic import ValidationError
from rich.console import Console

from api import logs
from api.master_key import master_keys
from api.settings import PREFIX, Settings, SettingsError
from domain.catalog import DECIDERS
from domain.kernel.decider import Rejected
from eventstore.deciding import refusal_reply
from eventstore.embedded import EmbeddedError, EmbeddedPostgres, connect_or_start, data_directory
from eventstore.errors import StoreError, WrongSchema
from eventstore.requests import Item, Request
from eventstore.store import Store

out = Console(width=None if sys.stdout.isatty() else 140)
err = Console(stderr=True)

TenantArgument = Annotated[UUID, typer.Argument(help="The tenant.")]


def settings(**given: Any) -> Settings:
    """The environment's settings, options given on the command line before them; logging is set up."""
    try:
        made = Settings(**{name: value for name, value in given.items() if value is not None})
    except SettingsError as error:
        fail(str(error))
    except ValidationError as error:
        fail("\n".join(f"{PREFIX}{'_'.join(map(str, each['loc'])).upper()}: {each['msg']}." for each in error.errors()))
    logs.configure(made)
    return made


def fail(message: str) -> NoReturn:
    """Say what is wrong and end."""
    err.print(f"[red]{message}", soft_wrap=True, highlight=False)
    raise typer.Exit(1)


class Database(NamedTuple):
    """Where the store is; ``server`` is the embedded one, when it is."""

    dsn: str
    server: EmbeddedPostgres | None


@contextmanager
def database(chosen: Settings) -> Iterator[Database]:
    """The server of the settings, or the embedded one, started for so long if nobody runs it."""
    if chosen.database_url is not None:
        yield Database(chosen.database_url, None)
        return
    try:
        server = connect_or_start(data_directory(chosen.data))
    except EmbeddedError as error:
        fail(str(error))
    try:
        yield Database(server.dsn, server)
    finally:
        server.stop()


def prepare(dsn: str, chosen: Settings) -> int:
    """Bring log and read models up to date; the store's number of partitions."""
    from eventstore.schema import migrate
    from projections import schema

    partitions = migrate(dsn, partitions=chosen.partitions)
    schema.create(dsn)
    return partitions


@contextmanager
def told() -> Iterator[None]:
    """Errors people can do something about, in words instead of a traceback."""
    try:
        yield
    except Rejected as refused:
        reply = refusal_reply(refused)
        fail(" ".join(str(part) for part in (reply["message"], reply.get("field"), reply.get("details")) if part))
    except WrongSchema as error:
        fail(f"{error} (holdbook init)")
    except StoreError as error:
        fail(str(error))
    except (psycopg.OperationalError, sqlalchemy.exc.OperationalError, PoolTimeout) as error:
        fail(f"The database cannot be reached: {type(error).__name__}")


@asynccontextmanager
async def store_at(dsn: str, chosen: Settings) -> AsyncIterator[Store]:
    """An open store, drained in the end."""
    store = await Store.open(dsn, DECIDERS, chosen.writer_options(), connections=2, master=master_keys(chosen))
    try:
        yield store
    finally:
        await store.drain()


async def operate(store: Store, tenant_id: UUID, item: Item) -> dict[str, Any]:
    """Submit one command of the operator at the keyboard; raises what refuses it."""
    outcome = await store.submit(Request(tenant_id, uuid4(), (item,), b"", actor="operator:cli"))
    reply: dict[str, Any] = msgspec.json.decode(outcome.reply)
    if outcome.refused:
        fail(f"{reply['message']} ({reply['code']})")
    return reply


def run_with_store(work: Any) -> Any:
    """Open database and store, run ``await work(store, dsn)``, and tell errors in words."""
    chosen = settings()

    async def main(dsn: str) -> Any:
        async with store_at(dsn, chosen) as store:
            return await work(store, dsn)

    with told(), database(chosen) as (dsn, _):
        if chosen.database_url is None:
            prepare(dsn, chosen)
        return asyncio.run(main(dsn))

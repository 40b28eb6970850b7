"""What a measurement stands on: a server, fresh databases, helper processes, and turns in which sides are measured."""

from __future__ import annotations

import asyncio
import multiprocessing
import secrets
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

import psycopg

from bench.scale import Scale
from eventstore.schema import migrate
from projections import schema


@contextmanager
def prepared(dsn: str) -> Iterator[str]:
    """The name of a database with an empty store, which others are copied from."""
    with _database(dsn, "") as name:
        migrate(_of(dsn, name))
        schema.create(_of(dsn, name))
        yield name


@contextmanager
def _database(dsn: str, options: str) -> Iterator[str]:
    name = f"holdbook_bench_{secrets.token_hex(6)}"
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"create database {name} {options}")
    try:
        yield name
    finally:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(f"drop database {name} with (force)")


def _of(dsn: str, name: str) -> str:
    return urlsplit(dsn)._replace(path=f"/{name}").geturl()


T = TypeVar("T")
Side = Callable[[float], Awaitable[T]]
"""Measures one side for about so many seconds."""


@dataclass(frozen=True, slots=True)
class Stage:
    """``dsn`` is of a database that is only used to make others from ``template``; ``say`` tells people what is going on."""

    dsn: str
    template: str
    scale: Scale
    say: Callable[[str], None]

    @contextmanager
    def database(self) -> Iterator[str]:
        """A fresh store, dropped afterwards."""
        with _database(self.dsn, f"template {self.template}") as name:
            yield _of(self.dsn, name)

    async def in_turns(self, *sides: Side[T]) -> list[list[T]]:
        """Measure the sides A, B, A, B and so on: whatever else the machine does meets all of them alike."""
        if self.scale.warm_seconds:
            for side in sides:
                await side(self.scale.warm_seconds)
        found: list[list[T]] = [[] for _ in sides]
        for turn in range(self.scale.rounds):
            self.say(f"round {turn + 1} of {self.scale.rounds}")
            for side, results in zip(sides, found, strict=True):
                results.append(await side(self.scale.seconds))
        return found


class Helper:
    """Another process that functions of importable modules are called in."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))

    def __enter__(self) -> Helper:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    async def call(self, function: Callable[..., T], *arguments: object) -> T:
        """The function's result; what it raises is raised here."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

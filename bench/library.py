"""What our rates are compared with: the ``eventsourcing`` library as in its tutorial, and the server's own bulk insert."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from threading import Barrier
from typing import Any
from uuid import UUID

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.sql import SQL, Identifier

_TIMEOUT_SECONDS = 600
_ROOT = Path(__file__).parents[1]
_INDEXES = 3


@contextmanager
def _throw_away_schema(dsn: str) -> Iterator[str]:
    schema = f"bench_{token_hex(6)}"
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(SQL("create schema {}").format(Identifier(schema)))
    try:
        yield schema
    finally:
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute(SQL("drop schema {} cascade").format(Identifier(schema)))


def library_rate(dsn: str, threads: int, commands: int) -> float:
    """Durable commands a second of the library: each thread reserves and commits on an aggregate of its own.

    The database gets a schema of its own, dropped at the end. Runs in a process of its own, because importing the library
    patches ``dataclasses``; starting it is not counted. Raises RuntimeError with what it said when it fails.
    """
    with _throw_away_schema(dsn) as schema:
        done = subprocess.run(
            [sys.executable, "-m", "bench.library", schema, str(threads), str(commands)],
            env={**os.environ, "BENCH_DSN": dsn},  # an argument would show the password to everyone on the machine
            cwd=_ROOT,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"the library's run failed: {done.stderr[-2000:]}")
    return float(done.stdout.split()[-1])


def ceiling(dsn: str) -> float:
    """Rows a second at which the server copies a store's events from a plain temporary table into one like theirs.

    The table has the same indexes and is logged and committed like the real one. Nothing of the store changes.
    Raises ValueError when the store holds no event.
    """
    with _throw_away_schema(dsn) as schema, psycopg.connect(dsn, autocommit=True) as conn:
        rows = conn.execute("create temp table copied as select * from event").rowcount
        if not rows:
            raise ValueError("the store holds no event")
        table = Identifier(schema, "event")
        conn.execute(SQL("create table {} (like event including indexes)").format(table))
        found = conn.execute("select count(*) from pg_indexes where schemaname = %s", (schema,)).fetchone()
        assert found == (_INDEXES,)
        began = time.perf_counter()
        conn.execute(SQL("insert into {} select * from copied").format(table))
        return rows / (time.perf_counter() - began)


def _settings(dsn: str, schema: str, threads: int) -> dict[str, str]:
    parts = {key: str(value) for key, value in conninfo_to_dict(dsn).items()}
    return {
        "PERSISTENCE_MODULE": "eventsourcing.postgres",
        "POSTGRES_DBNAME": parts["dbname"],
        "POSTGRES_HOST": parts.get("host", "localhost"),
        "POSTGRES_PORT": parts.get("port", "5432"),
        "POSTGRES_USER": parts.get("user", ""),
        "POSTGRES_PASSWORD": parts.get("password", ""),
        "POSTGRES_SCHEMA": schema,
        # More than the tutorial gives, so that neither loading nor waiting for a connection is what is measured.
        "POSTGRES_POOL_SIZE": str(threads),
        "AGGREGATE_CACHE_MAXSIZE": "1000",
        "AGGREGATE_CACHE_FASTFORWARD": "n",
    }


def _measure(dsn: str, schema: str, threads: int, commands: int) -> float:
    from eventsourcing.application import Application
    from eventsourcing.domain import Aggregate, event
    from eventsourcing.utils import register_topic

    class Quota(Aggregate):
        @event("Created")
        def __init__(self, limit: int) -> None:
            self.limit, self.used = limit, 0
            self.reservations: dict[str, int] = {}

        @event("Reserved")
        def reserve(self, reservation_id: str, amount: int) -> None:
            if self.used + amount > self.limit:
                raise ValueError("quota exceeded")
            self.used += amount
            self.reservations[reservation_id] = amount

        @event("Committed")
        def commit(self, reservation_id: str, used: int) -> None:
            self.used -= self.reservations.pop(reservation_id) - used

    # The library finds classes by their qualified names, and those of a function's locals cannot be looked up.
    register_topic("bench.library:quota", Quota)
    for kind in ("Created", "Reserved", "Committed"):
        register_topic(f"bench.library:quota.{kind}", getattr(Quota, kind))

    app: Application[UUID] = Application(env=_settings(dsn, schema, threads))
    try:
        quotas = [Quota(limit=2**62) for _ in range(threads)]
        for quota in quotas:
            app.save(quota)
        pairs = max(1, commands // (2 * threads))
        start = Barrier(threads + 1)

        def work(quota_id: UUID) -> None:
            start.wait()
            for number in range(pairs):
                quota: Any = app.repository.get(quota_id)
                quota.reserve(str(number), 1)
                app.save(quota)
                quota = app.repository.get(quota_id)
                quota.commit(str(number), 1)
                app.save(quota)

        with ThreadPoolExecutor(threads) as pool:
            futures = [pool.submit(work, quota.id) for quota in quotas]
            start.wait()
            began = time.perf_counter()
            for future in futures:
                future.result()
            return 2 * pairs * threads / (time.perf_counter() - began)
    finally:
        app.close()


if __name__ == "__main__":
    print(_measure(os.environ["BENCH_DSN"], sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))

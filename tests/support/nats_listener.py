"""A listener in a process of its own that keeps its effects and its places in PostgreSQL, as a user of ours would.

``python -m tests.support.nats_listener JSON`` runs until it is ended.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg

from adapters.nats.listening import Event, Heard, Listener
from adapters.nats.names import Place

ROOT = Path(__file__).parents[2]
TABLES = """
create table heard (number bigint generated always as identity, partition int, epoch int, position bigint, id text);
create table place (partition int primary key, epoch int, position bigint)"""
_PLACE = """
insert into place values (%s, %s, %s) on conflict (partition) do update set epoch = excluded.epoch, position = excluded.position"""


async def main(plan: dict[str, Any]) -> None:
    conn = await psycopg.AsyncConnection.connect(plan["dsn"], autocommit=True)
    rows = await (await conn.execute("select * from place")).fetchall()
    listener = Listener(plan["url"], resume={partition: Place(epoch, position) for partition, epoch, position in rows})

    async def handle(heard: Heard) -> None:
        async with conn.transaction():
            await conn.execute(_PLACE, (heard.partition, *heard.place))
            if isinstance(heard, Event):
                effect = (heard.partition, *heard.place, heard.cloud_event()["id"])
                await conn.execute("insert into heard (partition, epoch, position, id) values (%s, %s, %s, %s)", effect)

    await listener.run(handle)


class ListenerProcess:
    """The other end."""

    def __init__(self, dsn: str, url: str) -> None:
        command = [sys.executable, "-m", "tests.support.nats_listener", json.dumps({"dsn": dsn, "url": url})]
        self.process = subprocess.Popen(command, cwd=ROOT)

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process.poll() is None, "it ended by itself"
        self.process.kill()
        self.process.wait()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))

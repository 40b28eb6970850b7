"""A log to publish, publishers in this process, and what must be true of the stream in the end."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid5

from adapters.nats.publishing import Options, Publisher
from eventstore.rows import Row
from tests.support.nats import Kept, Servers, ask, of_partition
from tests.support.till import Open, Take
from tests.support.worlds import SELECT, TENANT, PostgresWorld
from tests.support.worlds import ask as request

CALLERS = 50


def till(owner: UUID) -> str:
    """A tenant's till."""
    return f"till-{owner}"


class BusWorld(PostgresWorld):
    """A log whose events fill several partitions."""

    async def fill(self, commands: int, prefix: str = "a", *, tenants: int = 1) -> None:
        """Take from a till, for each tenant in turn, so many times altogether. The same prefix means the same commands."""
        store = self.stores[0] if self.stores else await self.open()
        owners = [UUID(int=TENANT.int + number) for number in range(tenants)]
        for owner in owners:
            await store.submit(request((till(owner), Open(room=1_000_000)), tenant=owner))

        async def caller(first: int) -> None:
            for number in range(first, commands, CALLERS):
                await self.take(f"{prefix}{number}", owners[number % tenants])

        await asyncio.gather(*(caller(first) for first in range(CALLERS)))

    async def take(self, name: str, owner: UUID = TENANT) -> None:
        """One command, whose id its name decides."""
        await self.stores[0].submit(request((till(owner), Take(take_id=name, amount=1)), tenant=owner, key=uuid5(owner, name)))

    async def forget(self) -> None:
        """Close every store: the next one knows nothing of the log it has not read."""
        for store in self.stores:
            await store.drain()
        self.stores.clear()

    def logs(self) -> dict[int, list[Row]]:
        """All rows by partition."""
        found: dict[int, list[Row]] = {}
        for row in self.admin.execute(f"select partition, {SELECT} from event order by partition, position", binary=True):
            found.setdefault(row[0], []).append(Row._make(row[1:]))
        return found

    def count(self) -> int:
        """Events in the log."""
        row = self.admin.execute("select count(*) from event").fetchone()
        assert row is not None
        return int(row[0])


async def until(condition: Callable[[], Any], seconds: float = 60) -> None:
    """Wait for something to become true; what it returns may be awaitable."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def publishing(dsn: str, servers: Servers, **options: Any) -> AsyncIterator[Publisher]:
    """A publisher at work in this process."""
    publisher = Publisher(dsn, range(64), Options(url=servers.url, replicas=servers.replicas, poll=0.02, **options))
    task = asyncio.create_task(publisher.run())
    try:
        yield publisher
    finally:
        publisher.stop()
        await asyncio.wait_for(task, 60)


async def caught_up(publisher: Publisher, world: BusWorld) -> None:
    """Wait until it knows of nothing left to publish of the log as it is now."""
    ends = {partition: rows[-1].position for partition, rows in world.logs().items()}

    def done() -> bool:
        lag = publisher.lag()
        heads = publisher._heads
        return publisher.trouble is None and all(lag.get(p) == 0 and heads[p][1] >= end for p, end in ends.items())

    await until(done, 120)


def assert_equal(kept: list[Kept], logs: dict[int, list[Row]]) -> None:
    """The stream holds each event of the log once, in order per partition, with its id, hash and payload, and no others."""
    assert {each.partition for each in kept} == set(logs)
    for partition, rows in logs.items():
        events = of_partition(kept, partition)
        assert [each.position for each in events] == [row.position for row in rows] == list(range(1, len(rows) + 1))
        assert [each.hash for each in events] == [row.hash for row in rows]
        assert [each.body["id"] for each in events] == [f"{row.command_id}:{row.ordinal}" for row in rows]
        assert all(f',"data":{row.payload}}}'.encode() in each.raw for each, row in zip(events, rows, strict=True))
    assert max(Counter(each.headers["Nats-Msg-Id"] for each in kept).values()) == 1


async def stored(servers: Servers) -> int:
    """Messages in the stream."""
    return int((await ask(servers.url, "STREAM.INFO.HOLDBOOK", {}))["state"]["messages"])

"""The log as builders read it: by COPY, in ranges, and ahead of whoever folds it, but never far."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress

from eventstore.copying import copied
from eventstore.errors import CorruptLog
from projections import halts
from projections.consumer import RECORDED, Connection, Recorded

TYPES = ("int8", "uuid", "text", "int8", "text", "timestamptz", "text", "uuid", "int4", "uuid", "text", "text")
"""Of the columns of :class:`Recorded`."""

_RANGE = f"select {RECORDED} from event where partition = {{}} and position > {{}} and position <= {{}} order by position"
_RANGE_EVENTS = 50_000
"""Rows read by one statement: no snapshot is held for longer than they are needed."""
_AHEAD = 8
"""Chunks that may wait."""

Rows = list[Recorded]


async def ranged(conn: Connection, partition: int, after: int, upto: int, chunk: int = 1_000) -> AsyncGenerator[Rows, None]:
    """The events of a partition behind a position up to another one that the log has, some at a time.

    Raises `CorruptLog` when one is missing.
    """
    while after < upto:
        end = min(after + _RANGE_EVENTS, upto)
        async with aclosing(copied(conn, _RANGE.format(int(partition), int(after), int(end)), TYPES, chunk)) as chunks:
            async for rows in chunks:
                found = list(map(Recorded._make, rows))
                # Positions are unique and sorted, so the last one shows whether any is missing.
                if found[-1].position != after + len(found):
                    missing = next(i for i, row in enumerate(found) if row.position != after + 1 + i)
                    raise CorruptLog(halts.gap(partition, after + 1 + missing))
                yield found
                after = found[-1].position
        if after < end:
            raise CorruptLog(halts.gap(partition, after + 1))


@asynccontextmanager
async def ahead(conn: Connection, partition: int, after: int, upto: int, chunk: int = 1_000) -> AsyncIterator[AsyncIterator[Rows]]:
    """The same, read by a task while what came before is folded. Leaving before the end closes the connection."""
    queue: asyncio.Queue[Rows | BaseException | None] = asyncio.Queue(_AHEAD)

    async def read() -> None:
        try:
            async with aclosing(ranged(conn, partition, after, upto, chunk)) as chunks:
                async for rows in chunks:
                    await queue.put(rows)
            await queue.put(None)
        except Exception as error:  # raised where the rows are awaited
            await queue.put(error)

    async def rows() -> AsyncIterator[Rows]:
        while (got := await queue.get()) is not None:
            if isinstance(got, BaseException):
                raise got
            yield got

    task = asyncio.create_task(read(), name="reading ahead")
    try:
        yield rows()
    finally:
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await conn.close()

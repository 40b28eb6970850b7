"""Reading much of the log by binary COPY: no result is ever held as a whole, neither here nor by the server."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from psycopg import AsyncConnection, errors, generators
from psycopg.abc import PQGen
from psycopg.pq.abc import PGconn
from psycopg.rows import TupleRow
from psycopg.waiting import Wait

Row = tuple[Any, ...]


async def copied(
    conn: AsyncConnection[TupleRow], query: str, types: Sequence[str], at_most: int = 1_000
) -> AsyncGenerator[list[Row], None]:
    """The rows of a query without parameters, whose columns have these types, some at a time and in order.

    A connection that is left before the end must be closed. psycopg's own iteration awaits every row; taking all rows that
    have arrived at once is twice as fast (measured: 180,000 rows/s against 390,000).
    """
    async with conn.cursor() as cursor, cursor.copy(f"copy ({query}) to stdout (format binary)") as copy:
        copy.set_types(types)
        ended = False
        while not ended:
            rows, ended = await conn.wait(_arrived(conn.pgconn, copy.formatter.parse_row, at_most))
            if rows:
                yield rows
        assert not await copy.read(), "nothing comes behind the trailer"


def _arrived(connection: PGconn, parse: Callable[[Any], Row | None], at_most: int) -> PQGen[tuple[list[Row], bool]]:
    """So many rows, or all that there are; and whether that was the end."""
    rows: list[Row] = []
    add, get = rows.append, connection.get_copy_data
    while len(rows) < at_most:
        size, data = get(1)
        if size > 0:
            row = parse(data)
            if row is None:
                return rows, True
            add(row)
        elif size == 0:
            yield Wait.R
            connection.consume_input()
        else:  # the server ended the COPY without a trailer: it failed, and the result says how
            results = yield from generators.fetch_many(connection)
            raise errors.error_from_result(results[0])
    return rows, False

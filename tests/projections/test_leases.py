"""Leases on their own: who holds what at which moment of the database's time."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from psycopg import AsyncConnection

from projections.consumer import Connection
from projections.leases import Leases

NOON = datetime(2027, 3, 28, 12, tzinfo=UTC)
PARTITIONS = (0, 1, 2, 3)
LASTING = 600
"""Seconds. They end by the test's clock; by the real one, by which a holder reckons, none ends here."""


@pytest.fixture
async def conn(database_dsn: str) -> AsyncIterator[Connection]:
    async with await AsyncConnection.connect(database_dsn, autocommit=True, options="-c role=holdbook_follower") as opened:
        yield opened


def held(leases: Leases) -> list[int]:
    return [partition for partition in PARTITIONS if leases.holds(partition)]


def after(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


async def test_the_first_one_has_them_until_they_end(conn: Connection) -> None:
    first, second = Leases(PARTITIONS, LASTING), Leases(PARTITIONS, LASTING)
    await first.renew(conn, "all", NOON)
    await second.renew(conn, "all", after(LASTING - 0.1))
    assert (held(first), held(second)) == ([0, 1, 2, 3], [])

    await second.renew(conn, "all", after(LASTING))
    await first.renew(conn, "all", after(LASTING + 0.1))
    assert (held(first), held(second)) == ([], [0, 1, 2, 3])


async def test_who_renews_keeps_them(conn: Connection) -> None:
    first, second = Leases(PARTITIONS, LASTING), Leases(PARTITIONS, LASTING)
    for seconds in range(0, 10 * LASTING, LASTING // 2):
        await first.renew(conn, "all", after(seconds))
        await second.renew(conn, "all", after(seconds + 1))

        assert (held(first), held(second)) == ([0, 1, 2, 3], [])


async def test_what_is_let_go_is_free_at_once(conn: Connection) -> None:
    first, second = Leases(PARTITIONS, LASTING), Leases(PARTITIONS, LASTING)
    await first.renew(conn, "all", NOON)
    await first.release(conn)
    assert held(first) == []

    await second.renew(conn, "all", NOON)
    assert held(second) == [0, 1, 2, 3]


async def test_only_what_is_ones_own_is_let_go(conn: Connection) -> None:
    first, second = Leases((0, 1), LASTING), Leases(PARTITIONS, LASTING)
    await first.renew(conn, "all", NOON)
    await second.renew(conn, "all", NOON)
    assert (held(first), held(second)) == ([0, 1], [2, 3])

    await second.release(conn)
    await second.renew(conn, "all", NOON)
    assert (held(first), held(second)) == ([0, 1], [2, 3])


async def test_other_names_are_other_leases(conn: Connection) -> None:
    first, second = Leases(PARTITIONS, LASTING), Leases(PARTITIONS, LASTING)
    await first.renew(conn, "before", NOON)
    await second.renew(conn, "after", NOON)
    assert held(first) == held(second) == [0, 1, 2, 3]

    await first.renew(conn, "after", after(1))
    assert (held(first), held(second)) == ([], [0, 1, 2, 3])
    rows = await (await conn.execute("select distinct follower from follower_lease")).fetchall()
    assert rows == [("after",)]


async def test_one_that_ends_later_than_any_could_is_nobodys(conn: Connection) -> None:
    first, second = Leases(PARTITIONS, LASTING), Leases(PARTITIONS, LASTING)
    await first.renew(conn, "all", after(3_600))  # then the clock is put back by an hour

    await second.renew(conn, "all", NOON)

    assert held(second) == [0, 1, 2, 3]


async def test_without_leases_everything_is_everybodys(conn: Connection) -> None:
    leases = Leases(PARTITIONS, 0)

    assert not leases.due()
    assert not leases.due(wanting=True)
    assert held(leases) == [0, 1, 2, 3]


async def test_what_was_left_behind_long_ago_is_tidied_away(conn: Connection) -> None:
    await Leases(PARTITIONS, LASTING).renew(conn, "gone", NOON)

    await Leases(PARTITIONS, LASTING).renew(conn, "all", after(2 * 86_400))

    rows = await (await conn.execute("select distinct follower from follower_lease")).fetchall()
    assert rows == [("all",)]

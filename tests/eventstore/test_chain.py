"""Nobody changes the log unseen: a flipped byte in any column, a row taken out, put in or moved breaks the chain there."""

import hashlib
import itertools
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from eventstore.rows import COLUMNS, GENESIS, Row, first_broken, leaf_hash, microseconds, row_hash
from tests.support.till import Open, Take
from tests.support.worlds import SELECT, TENANT, PostgresWorld, ask, broken

EVENTS = 12


@dataclass
class Tampering:
    """A superuser in a transaction that is rolled back: the log as it would be after the harm."""

    admin: psycopg.Connection[Any]
    partition: int

    def do(self, statement: str, *parameters: Any) -> int:
        return self.admin.execute(statement, parameters).rowcount

    def found(self) -> int | None:
        query = f"select {SELECT} from event where partition = %s order by position"
        rows = [Row._make(row) for row in self.admin.execute(query, (self.partition,), binary=True)]
        return first_broken(self.partition, rows)


@pytest.fixture
async def world(database_dsn: str) -> AsyncIterator[PostgresWorld]:
    """A log of twelve events, with every nullable column both set and null, and a refusal."""
    made = PostgresWorld(database_dsn)
    store = await made.open()
    named: dict[str, Any] = {"actor": "key:abc", "trace": "00-ab-cd-01", "cause": uuid4()}
    await store.submit(ask(("till-a", Open(room=9))))
    for n in range(4):
        await store.submit(ask(("till-a", Take(take_id=f"x{n}", twice=n % 2 == 0)), **named if n % 2 else {}))
    await store.submit(ask(("till-b", Open(room=5)), ("till-b", Take(take_id="y")), ("till-a", Take(take_id="z")), **named))
    refused = await store.submit(ask(("till-b", Take(take_id="much", amount=6)), **named))
    await store.submit(ask(("till-b", Take(take_id="last")), actor=""))
    assert refused.refused
    assert refused.position == EVENTS - 1
    assert len(made.rows()) == EVENTS
    yield made
    await made.close()


@contextmanager
def tampering(world: PostgresWorld) -> Iterator[Tampering]:
    world.admin.execute("begin")
    try:
        yield Tampering(world.admin, world.partition)
    finally:
        world.admin.execute("rollback")


async def test_an_untouched_log_holds(world: PostgresWorld) -> None:
    assert broken(world) is None
    rows = world.rows()
    assert first_broken(world.partition, rows[5:], rows[4].position, rows[4].hash) is None, "reading on from the middle"
    for column in ("cause", "actor", "trace", "reply", "fingerprint"):
        assert {getattr(row, column) is None for row in rows} == {True, False}, column


def flipped(value: Any) -> Iterator[Any]:
    """Everything that is one step away: each byte of a text flipped, nothing for something and something for nothing."""
    match value:
        case None:
            return
        case UUID():
            yield from (UUID(bytes=changed) for changed in flipped(value.bytes))
        case int():
            yield from (value + 1, value + 2**20)
        case datetime():
            yield value + timedelta(microseconds=1)
        case bytes():
            for index in range(len(value)):
                yield value[:index] + bytes([value[index] ^ 1]) + value[index + 1 :]
        case str():
            for index in range(len(value)):
                yield value[:index] + chr(ord(value[index]) ^ 1) + value[index + 1 :]
            yield from (value + " ", value[:-1])
        case _:
            raise TypeError(type(value))


NOTHING: dict[str, Any] = {"cause": UUID(int=0), "actor": "", "trace": "", "reply": "null", "fingerprint": b""}


def changes(column: str, value: Any) -> list[Any]:
    if column not in NOTHING:
        return list(flipped(value))
    return [NOTHING[column]] if value is None else [*flipped(value), None]


@pytest.mark.parametrize("column", ["partition", *COLUMNS])
async def test_one_flipped_byte_in_any_column_is_found(world: PostgresWorld, column: str) -> None:
    stored, tried = world.rows(), 0
    cast = {"payload": "::json", "reply": "::json"}.get(column, "")
    for row in stored:
        values = [world.partition + 1] if column == "partition" else changes(column, getattr(row, column))
        if column == "position":
            values = [value for value in values if value > EVENTS] + [-row.position]
        # All bytes of the row in the middle, and one of every other row.
        for value in values if row.position == 6 else values[:1] + values[-1:]:
            with tampering(world) as harm:
                try:
                    with harm.admin.transaction():
                        harm.do(
                            f"update event set {column} = %s{cast} where partition = %s and position = %s",
                            value,
                            world.partition,
                            row.position,
                        )
                except psycopg.Error:
                    continue  # not JSON, or not unique: the server does not let even a superuser
                # A row that goes from the end is missed by who knows how long the log was: by other writers and signed heads.
                at_the_end = column in ("partition", "position") and row.position == EVENTS
                expected = None if at_the_end and column == "partition" else 1 if column == "position" and value < 0 else row.position
                assert harm.found() == expected, (column, row.position, value)
                tried += 1
    assert tried >= EVENTS // 2, "hardly anything was tried"
    assert broken(world) is None


async def test_every_byte_of_a_payload_and_a_reply_counts(world: PostgresWorld) -> None:
    for row in world.rows():
        for column, text in (("payload", row.payload), ("reply", row.reply)):
            for changed in flipped(text):
                rows = [
                    other._replace(**{column: changed}) if other is row else other for other in [*world.rows()[: row.position - 1], row]
                ]
                assert first_broken(world.partition, rows) == row.position
            break  # the rows before it are the same for both columns
    assert broken(world) is None


@pytest.mark.parametrize("position", range(1, EVENTS))
async def test_a_row_taken_out_is_found(world: PostgresWorld, position: int) -> None:
    with tampering(world) as harm:
        assert harm.do("delete from event where partition = %s and position = %s", world.partition, position) == 1
        assert harm.found() == position
        # Closing the gap does not help.
        harm.do("update event set position = -position where partition = %s and position > %s", world.partition, position)
        harm.do("update event set position = -position - 1 where partition = %s and position < 0", world.partition)
        assert harm.found() == position


@pytest.mark.parametrize(("one", "two"), [(1, 2), (3, 4), (6, 7), (2, 9), (EVENTS - 1, EVENTS)])
async def test_two_rows_swapped_are_found(world: PostgresWorld, one: int, two: int) -> None:
    with tampering(world) as harm:
        for was, becomes in ((one, -1), (two, one), (-1, two)):
            harm.do("update event set position = %s where partition = %s and position = %s", becomes, world.partition, was)
        assert harm.found() == one


@pytest.mark.parametrize("position", [1, 5, EVENTS, EVENTS + 1])
async def test_a_row_put_in_is_found(world: PostgresWorld, position: int) -> None:
    names = ", ".join(column for column in COLUMNS if column not in ("position", "stream", "command_id"))
    with tampering(world) as harm:
        harm.do("update event set position = -position where partition = %s and position >= %s", world.partition, position)
        harm.do("update event set position = -position + 1 where partition = %s and position < 0", world.partition)
        harm.do(
            f"insert into event (partition, position, stream, command_id, {names}) select partition, %s, 'forged', gen_random_uuid(), "
            f"{names} from event where partition = %s and stream = 'till-a' and version = 1",
            position,
            world.partition,
        )
        assert harm.found() == position


async def test_a_forger_who_computes_hashes_must_forge_everything_after(world: PostgresWorld) -> None:
    """A row changed with its hash made right breaks the next one: only who rewrites to the end goes unseen, until heads are signed."""
    rows = world.rows()
    forged = rows[4]._replace(payload='{"take_id":"forged","amount":0,"at":"2026-01-01T00:00:00Z"}')
    forged = forged._replace(hash=row_hash(world.partition, rows[3].hash, forged))

    assert first_broken(world.partition, [*rows[:4], forged, *rows[5:]]) == 6


async def test_a_log_copied_to_another_partition_is_found(world: PostgresWorld) -> None:
    assert first_broken(world.partition + 1, world.rows()) == 1


async def test_a_column_that_is_not_covered_would_be_noticed(world: PostgresWorld) -> None:
    """The chain covers what the table holds: a column added later must enter the leaf, or this fails. A pruned row is its leaf."""
    stored = [name for (name,) in world.admin.execute("select attname from pg_attribute where attrelid = 'event'::regclass and attnum > 0")]
    assert stored == ["partition", *COLUMNS, "leaf"]


async def test_an_auditor_with_psql_and_a_page_of_code_gets_the_same_hashes(world: PostgresWorld) -> None:
    """Written from the description in `eventstore.rows`, not from its code."""
    previous = bytes(32)
    for row in world.rows():
        micros = round((row.recorded_at - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(microseconds=1))
        texts = [None if text is None else text.encode() for text in (row.actor, row.trace, row.payload, row.reply)]
        values: list[bytes | None] = [
            row.salt, struct.pack(">i", world.partition), struct.pack(">q", row.position), row.tenant_id.bytes,
            struct.pack(">q", row.version), row.command_id.bytes, struct.pack(">i", row.ordinal), struct.pack(">q", micros),
            row.stream.encode(), row.type.encode(), row.cause.bytes if row.cause else None, *texts, row.fingerprint,
        ]  # fmt: skip
        leaf = hashlib.sha256(b"".join(b"\xff" * 4 if value is None else struct.pack(">I", len(value)) + value for value in values))
        previous = hashlib.sha256(previous + leaf.digest()).digest()
        assert previous == row.hash


# Whatever moves between columns changes the leaf

ROW = Row(
    1, TENANT, "till-a", 1, UUID(int=7), 0, "till.opened", datetime(2026, 1, 1, tzinfo=UTC),
    None, None, None, "{}", None, None, bytes(16), GENESIS,
)  # fmt: skip
TEXTS = ("stream", "type", "actor", "trace", "payload", "reply")


def leaf(row: Row) -> bytes:
    return leaf_hash(3, *row[:7], microseconds(row.recorded_at), *row[8:15])


texts = st.fixed_dictionaries({name: st.text(max_size=6) for name in TEXTS})


@given(texts, st.sampled_from(list(itertools.permutations(TEXTS, 2))), st.data())
def test_characters_moved_between_columns_change_the_leaf(values: dict[str, str], pair: tuple[str, str], data: st.DataObject) -> None:
    source, target = pair
    assume(values[source])
    cut = data.draw(st.integers(0, len(values[source]) - 1))
    moved = dict(values)
    if data.draw(st.booleans()):
        moved[source], moved[target] = values[source][:cut], values[source][cut:] + values[target]
    else:
        moved[source], moved[target] = values[source][cut + 1 :], values[target] + values[source][: cut + 1]

    assume(moved != values)
    changed: dict[str, Any] = dict(moved)
    original: dict[str, Any] = dict(values)
    assert leaf(ROW._replace(**changed)) != leaf(ROW._replace(**original))


nullable = st.fixed_dictionaries(
    {
        "stream": st.text(max_size=3),
        "type": st.text(max_size=3),
        "cause": st.none() | st.sampled_from([UUID(int=0), UUID(int=2**128 - 1)]),
        "actor": st.none() | st.text(max_size=3),
        "trace": st.none() | st.text(max_size=3),
        "payload": st.text(max_size=3),
        "reply": st.none() | st.text(max_size=3),
        "fingerprint": st.none() | st.binary(max_size=3),
        "version": st.sampled_from([0, 1, 256, -1]),
        "ordinal": st.sampled_from([0, 1, 256]),
        "position": st.sampled_from([1, 2**32, 2**40]),
    }
)


@given(nullable, nullable)
def test_different_rows_have_different_leaves(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert (leaf(ROW._replace(**one)) == leaf(ROW._replace(**two))) == (one == two)


def test_a_salt_of_another_length_is_no_salt() -> None:
    row = ROW._replace(hash=row_hash(0, GENESIS, ROW))
    assert first_broken(0, [row]) is None
    assert first_broken(0, [row._replace(salt=bytes(15))]) == 1

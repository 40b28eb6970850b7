"""Changing the master key: every stored key is wrapped anew under the one that wraps at present.

What the keys open is not touched, so this takes as long as there are tenants and people, not events. Batches are small, each row is
changed only if it is still as it was read, and a run that was interrupted goes on with the rows that are left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, LiteralString, NamedTuple
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from eventstore.errors import WrongSchema
from eventstore.keyring import of_person, of_tenant
from eventstore.master import MasterKeys, NoMasterKey
from eventstore.signing_keys import of_signing_key
from eventstore.store import Store

AT_ONCE = 500
"""Rows of one transaction."""

Place = tuple[Any, ...]


class _Kind(NamedTuple):
    """Wrapped keys of one table: their rows' key columns, and to what they are bound."""

    table: LiteralString
    place: LiteralString
    types: tuple[LiteralString, ...]
    before_all: Place
    context: Callable[[Place], bytes]


_NOBODY = UUID(int=0)
_KINDS = (
    _Kind("tenant_key", "partition, tenant_id", ("int", "uuid"), (-1, _NOBODY), lambda place: of_tenant(place[1])),
    _Kind(
        "subject_key",
        "partition, tenant_id, person_id",
        ("int", "uuid", "uuid"),
        (-1, _NOBODY, _NOBODY),
        lambda place: of_person(place[1], place[2]),
    ),
    _Kind("signing_key", "kid", ("text",), ("",), lambda place: of_signing_key(place[0])),
)


async def needed(store: Store) -> Mapping[str, int]:
    """How many stored keys need each master key, by its id; bare keys, which need none, under the empty id."""
    found: dict[str, int] = {}
    async with _connection(store) as conn:
        for kind in _KINDS:
            counted = await conn.execute(f"select master_id, count(*) from {kind.table} where wrapped is not null group by 1".encode())
            for master_id, count in await counted.fetchall():
                found[master_id] = found.get(master_id, 0) + count
        bare = await (await conn.execute("select count(*) from tenant_key where key is not null")).fetchone()
        if bare is not None and bare[0]:
            found[""] = bare[0]
    return found


async def rewrap(store: Store, told: Callable[[int], None] = lambda _done: None, *, at_once: int = AT_ONCE) -> int:
    """Wrap under the present master key what is not; how many rows were changed. Several may run at once, while everything else runs.

    Raises `NoMasterKey`, and `WrongMasterKey` at the first row whose key is not configured any more; those before it are done.
    """
    if store.master is None:
        raise NoMasterKey
    done = 0
    for kind in _KINDS:
        after: Place | None = kind.before_all
        while after is not None:
            changed, after = await _rewrap_some(store, store.master, kind, after, at_once)
            done += changed
            told(done)
    return done


async def _rewrap_some(store: Store, master: MasterKeys, kind: _Kind, after: Place, at_once: int) -> tuple[int, Place | None]:
    """The next rows in the order of their keys; how many were changed, and the last one's place, None at the end."""
    bare = "or key is not null" if kind.table == "tenant_key" else ""
    key = "key" if kind.table == "tenant_key" else "null::bytea"
    these = ", ".join(f"%s::{each}" for each in kind.types)
    select = f"""
    select wrapped, master_id, {key}, {kind.place} from {kind.table} where ({kind.place}) > ({these})
    and ((wrapped is not null and master_id <> %s) {bare}) order by {kind.place} limit %s"""
    changed = 0
    async with _connection(store) as conn, conn.transaction():
        rows = await (await conn.execute(select.encode(), (*after, master.current, at_once))).fetchall()
        for wrapped, master_id, bare_key, *place in rows:
            changed += await _rewrap_one(conn, master, kind, tuple(place), wrapped, master_id, bare_key)
    return changed, tuple(rows[-1][3:]) if len(rows) == at_once else None


async def _rewrap_one(
    conn: AsyncConnection[TupleRow],
    master: MasterKeys,
    kind: _Kind,
    place: Place,
    wrapped: bytes | None,
    master_id: str,
    bare: bytes | None,
) -> int:
    """Compare and set: a key that was destroyed meanwhile stays destroyed."""
    context = kind.context(place)
    key = bytes(bare) if wrapped is None and bare is not None else await master.unwrap(master_id, bytes(wrapped or b""), context)
    name, fresh = await master.wrap(key, context)
    where = " and ".join(f"{column.strip()} = %s" for column in kind.place.split(","))
    if bare is None:
        update = f"update {kind.table} set wrapped = %s, master_id = %s where {where} and wrapped = %s"
        return (await conn.execute(update.encode(), (fresh, name, *place, wrapped))).rowcount
    update = f"update {kind.table} set wrapped = %s, master_id = %s, key = null where {where} and key = %s"
    return (await conn.execute(update.encode(), (fresh, name, *place, bare))).rowcount


def _connection(store: Store) -> Any:
    if store.pool is None:
        raise WrongSchema("A store in memory has nothing stored.")
    return store.pool.connection()

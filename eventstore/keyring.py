"""Where the keys of tenants and people are kept: wrapped, in rows of their own, or in memory.

A person's key is made once. When it is destroyed its row stays, without a key: nobody can make it anew, and processes that race for it
find out from the row. Nothing here is cached; see :mod:`eventstore.sealing`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.errors import UndefinedTable
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from eventstore.errors import WrongSchema
from eventstore.master import MasterKeys, NoMasterKey, UnknownMasterKey, WrongMasterKey

KEY_BYTES = 32

_KEEP_TENANT = """
insert into tenant_key (partition, tenant_id, key, wrapped, master_id) values (%s, %s, %s, %s, %s) on conflict do nothing"""
_READ_TENANT = "select key, wrapped, master_id from tenant_key where partition = %s and tenant_id = %s"
_WRAP_TENANT = """
update tenant_key set key = null, wrapped = %s, master_id = %s where partition = %s and tenant_id = %s and key = %s"""
_READ_PEOPLE = """
select person_id, wrapped, master_id from subject_key where partition = %s and tenant_id = %s and person_id = any(%b::uuid[])"""
_KEEP_PERSON = """
insert into subject_key (partition, tenant_id, person_id, wrapped, master_id, made_at) values (%s, %s, %s, %s, %s, %s)
on conflict do nothing"""
_TOMBSTONE = """
insert into subject_key (partition, tenant_id, person_id, made_at, shredded_at) values (%s, %s, %s, %s, %s) on conflict do nothing"""
_SHRED = """
update subject_key set wrapped = null, master_id = null, shredded_at = %s
where partition = %s and tenant_id = %s and person_id = %s and wrapped is not null"""
_KEEP_CANARY = "insert into master_key (master_id, canary) values (%s, %s) on conflict do nothing"
_READ_CANARIES = "select master_id, canary from master_key"
_LOCK = "select pg_advisory_xact_lock(%s)"
_CHECKING = 0x686F6C6D  # its number
_CANARY = b"holdbook: this text is no secret"


class Keys(Protocol):
    """Keys by whom they are of."""

    async def tenant(self, tenant_id: UUID) -> bytes:
        """The tenant's key, made when first asked for, by whichever process is first."""
        ...

    async def people(self, tenant_id: UUID, people: Collection[UUID], *, make: bool) -> Mapping[UUID, bytes | None]:
        """The keys of those who have one; None of those whose key was destroyed. ``make``: for the others a fresh one."""
        ...

    async def shred(self, tenant_id: UUID, person_id: UUID) -> bool:
        """Destroy a person's key for ever, also when there was none yet; whether it was there until now."""
        ...


class MemoryKeys:
    """For a store that forgets everything when the process ends."""

    def __init__(self) -> None:
        self._tenants: dict[UUID, bytes] = {}
        self._people: dict[tuple[UUID, UUID], bytes | None] = {}

    async def tenant(self, tenant_id: UUID) -> bytes:
        """See :class:`Keys`."""
        return self._tenants.setdefault(tenant_id, os.urandom(KEY_BYTES))

    async def people(self, tenant_id: UUID, people: Collection[UUID], *, make: bool) -> Mapping[UUID, bytes | None]:
        """See :class:`Keys`."""
        if make:
            for person_id in people:
                self._people.setdefault((tenant_id, person_id), os.urandom(KEY_BYTES))
        return {person_id: self._people[tenant_id, person_id] for person_id in people if (tenant_id, person_id) in self._people}

    async def shred(self, tenant_id: UUID, person_id: UUID) -> bool:
        """See :class:`Keys`."""
        there = self._people.get((tenant_id, person_id)) is not None
        self._people[tenant_id, person_id] = None
        return there


def of_tenant(tenant_id: UUID) -> bytes:
    """What a tenant's wrapped key is bound to."""
    return b"holdbook tenant" + tenant_id.bytes


def of_person(tenant_id: UUID, person_id: UUID) -> bytes:
    """What a person's wrapped key is bound to."""
    return b"holdbook person" + tenant_id.bytes + person_id.bytes


class StoredKeys:
    """In the database, wrapped. Without a master key tenants have bare keys there, as before there was one, and people have none."""

    def __init__(
        self, pool: AsyncConnectionPool[AsyncConnection[TupleRow]], master: MasterKeys | None, partition_of: Callable[[UUID], int]
    ) -> None:
        self._pool, self._master, self._partition_of = pool, master, partition_of

    async def check(self) -> None:
        """Refuse a master key that is not the store's, rather than begin with a second one. Raises `WrongMasterKey`."""
        if self._master is None:
            return
        try:
            async with self._pool.connection() as conn:
                if await self._is_known(conn, self._master):
                    return
                async with conn.transaction():
                    await conn.execute(_LOCK, (_CHECKING,))  # two first starts with different keys: one of them finds out
                    if await self._is_known(conn, self._master):
                        return
                    await conn.execute(_KEEP_CANARY, await self._master.wrap(_CANARY, _CANARY))
        except UndefinedTable as error:
            raise WrongSchema("It has no table master_key.") from error

    async def _is_known(self, conn: AsyncConnection[TupleRow], master: MasterKeys) -> bool:
        """Whether the store knows the key that wraps. Another may be added to one that is known, and is the first where there is none."""
        known: dict[str, bytes] = dict(await (await conn.execute(_READ_CANARIES)).fetchall())
        opened = 0
        for master_id, canary in known.items():
            try:
                opened += await master.unwrap(master_id, bytes(canary), _CANARY) == _CANARY
            except UnknownMasterKey:
                continue  # of a rotation that is over; a row that still needs it says so
        if known and not opened:
            raise WrongMasterKey(f"The store knows {', '.join(sorted(known))}.")
        return master.current in known

    async def tenant(self, tenant_id: UUID) -> bytes:
        """See :class:`Keys`. A bare key is wrapped on the way, once there is something to wrap it with."""
        place = (self._partition_of(tenant_id), tenant_id)
        async with self._pool.connection() as conn:
            found = await (await conn.execute(_READ_TENANT, place)).fetchone()
            if found is None:
                await conn.execute(_KEEP_TENANT, (*place, *await self._fresh_of_tenant(tenant_id)))
                found = await (await conn.execute(_READ_TENANT, place)).fetchone()
            assert found is not None
            key, wrapped, master_id = found
            if key is not None and self._master is not None:
                name, text = await self._master.wrap(bytes(key), of_tenant(tenant_id))
                await conn.execute(_WRAP_TENANT, (text, name, *place, key))
        return bytes(key) if key is not None else await self._unwrap(master_id, wrapped, of_tenant(tenant_id))

    async def _fresh_of_tenant(self, tenant_id: UUID) -> tuple[bytes | None, bytes | None, str | None]:
        fresh = os.urandom(KEY_BYTES)
        if self._master is None:
            return fresh, None, None
        master_id, wrapped = await self._master.wrap(fresh, of_tenant(tenant_id))
        return None, wrapped, master_id

    async def people(self, tenant_id: UUID, people: Collection[UUID], *, make: bool) -> Mapping[UUID, bytes | None]:
        """See :class:`Keys`. Raises `NoMasterKey`."""
        if self._master is None:
            raise NoMasterKey
        partition, wanted = self._partition_of(tenant_id), list(people)
        async with self._pool.connection() as conn:
            rows = await self._rows(conn, partition, tenant_id, wanted)
            if make and (missing := set(wanted).difference(person_id for person_id, *_ in rows)):
                for person_id in sorted(missing):  # in order, so that two who make several wait for each other and for nothing else
                    master_id, wrapped = await self._master.wrap(os.urandom(KEY_BYTES), of_person(tenant_id, person_id))
                    await conn.execute(_KEEP_PERSON, (partition, tenant_id, person_id, wrapped, master_id, datetime.now(UTC)))
                # Read again also what was just made: another process may have been first, or may have erased the person.
                rows += await self._rows(conn, partition, tenant_id, list(missing))
        return {
            person_id: None if wrapped is None else await self._unwrap(master_id, wrapped, of_person(tenant_id, person_id))
            for person_id, wrapped, master_id in rows
        }

    async def shred(self, tenant_id: UUID, person_id: UUID) -> bool:
        """See :class:`Keys`. The tombstone first: what is not there yet cannot be made behind our back, and what is stays to be emptied."""
        place, now = (self._partition_of(tenant_id), tenant_id, person_id), datetime.now(UTC)
        async with self._pool.connection() as conn:
            await conn.execute(_TOMBSTONE, (*place, now, now))
            return (await conn.execute(_SHRED, (now, *place))).rowcount > 0

    async def _rows(self, conn: AsyncConnection[TupleRow], partition: int, tenant_id: UUID, people: list[UUID]) -> list[Any]:
        return await (await conn.execute(_READ_PEOPLE, (partition, tenant_id, people))).fetchall()

    async def _unwrap(self, master_id: str, wrapped: bytes, context: bytes) -> bytes:
        if self._master is None:
            raise NoMasterKey
        return await self._master.unwrap(master_id, bytes(wrapped), context)

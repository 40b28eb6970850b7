"""The keys that access tokens are signed with, as the database has them: one set for the installation.

A key is published before it signs, and verifies after it signed, so that at no moment there is a process that meets a token it has no
key for. All times are the database's. The private part is wrapped by the master key and goes as soon as the key signs no more.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from eventstore.errors import StoreError
from eventstore.master import MasterKeys, NoMasterKey

_MAKING = 0x686F6C6B  # an advisory lock's number: first keys and rotations come one after the other
_STILL_SIGNING_SECONDS = 60
"""A process that was paused may go on signing with what it read before. For so long its key stays whole, and verifies for longer."""

_LOCK = "select pg_advisory_xact_lock(%s)"
_READ = """
select kid, public::text, wrapped, master_id, made_at, signs_from, signs_until, verifies_until, clock_timestamp()
from signing_key order by signs_from, kid"""
_MAKE = """
insert into signing_key (kid, public, wrapped, master_id, made_at, signs_from)
select %s, %s::json, %s, %s, now(), now() + make_interval(secs => %s)"""
_NONE_YET = " where not exists (select from signing_key where signs_until is null)"
_RETIRE = """
update signing_key set signs_until = n.signs_from, verifies_until = n.signs_from + make_interval(secs => %s)
from (select signs_from from signing_key where kid = %s) n where kid <> %s and signs_until is null"""
_UNFINISHED = "select kid from signing_key where signs_from > now()"
_EMPTY = (
    "update signing_key set wrapped = null, master_id = null where wrapped is not null and signs_until < now() - make_interval(secs => %s)"
)
_DROP = "delete from signing_key where verifies_until < now()"


class RotationUnderWay(StoreError):
    """A new signing key is published already and begins to sign soon; rotate again after that."""


class StoredSigningKey(NamedTuple):
    """A row. ``public`` is the JWK as JSON; ``private`` is bytes as they were given, None once it signs no more."""

    kid: str
    public: str
    private: bytes | None
    made_at: datetime
    signs_from: datetime
    signs_until: datetime | None
    verifies_until: datetime | None


class NewSigningKey(NamedTuple):
    """A key to keep."""

    kid: str
    public: str
    private: bytes


class SigningKeys:
    """The table."""

    def __init__(self, pool: AsyncConnectionPool[AsyncConnection[TupleRow]], master: MasterKeys | None) -> None:
        self._pool, self._master = pool, master

    async def read(self) -> list[StoredSigningKey]:
        """All that sign, will sign or still verify, by when they begin to sign. Takes away what is over. Raises `WrongMasterKey`."""
        async with self._pool.connection() as conn:
            rows = await (await conn.execute(_READ)).fetchall()
            if any(_is_over(row) for row in rows):
                await conn.execute(_EMPTY, (_STILL_SIGNING_SECONDS,))
                await conn.execute(_DROP)
        return [StoredSigningKey(row[0], row[1], await self._private(row), *row[4:8]) for row in rows if row[7] is None or row[7] >= row[8]]

    async def make_first(self, new: NewSigningKey) -> None:
        """Keep this key if there is none that signs; when two come at once, one does."""
        async with self._pool.connection() as conn, conn.transaction():
            await self._make(conn, new, 0, _NONE_YET)

    async def rotate(self, new: NewSigningKey, overlap_seconds: float, token_seconds: float) -> None:
        """Publish this key now, and let it sign after the overlap. The others verify until the last token they signed is over.

        ``token_seconds`` is the longest life of a token. Raises `RotationUnderWay`.
        """
        async with self._pool.connection() as conn, conn.transaction():
            await conn.execute(_LOCK, (_MAKING,))
            if await (await conn.execute(_UNFINISHED)).fetchone() is not None:
                raise RotationUnderWay
            await self._make(conn, new, overlap_seconds)
            await conn.execute(_RETIRE, (token_seconds + _STILL_SIGNING_SECONDS, new.kid, new.kid))

    async def _make(self, conn: AsyncConnection[TupleRow], new: NewSigningKey, after_seconds: float, only: str = "") -> None:
        if self._master is None:
            raise NoMasterKey
        master_id, wrapped = await self._master.wrap(new.private, of_signing_key(new.kid))
        await conn.execute(_LOCK, (_MAKING,))
        await conn.execute((_MAKE + only).encode(), (new.kid, new.public, wrapped, master_id, after_seconds))

    async def _private(self, row: Any) -> bytes | None:
        if row[2] is None:
            return None
        if self._master is None:
            raise NoMasterKey
        return await self._master.unwrap(row[3], bytes(row[2]), of_signing_key(row[0]))


def of_signing_key(kid: str) -> bytes:
    """What a wrapped private part is bound to."""
    return b"holdbook signing" + kid.encode()


def _is_over(row: Any) -> bool:
    _, _, wrapped, _, _, _, signs_until, verifies_until, now = row
    if verifies_until is not None and verifies_until < now:
        return True
    return wrapped is not None and signs_until is not None and (now - signs_until).total_seconds() > _STILL_SIGNING_SECONDS

"""API keys of each tenant that were not revoked, by service account; and when each was last used.

Who may do what is decided from the log itself. When a key was used is noted by the processes that saw it, in a table of its own that
no event is behind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ARRAY, Column, DateTime, Integer, MetaData, Table, Text, Uuid

from domain.identity.service_accounts import KeyIssued, KeyReplaced, KeyRevoked
from eventstore.codec import Codec
from eventstore.errors import CorruptLog
from projections.consumer import SKIPPED, Connection, Projection, Recorded
from projections.deleted import deleted
from projections.reading import Model, Reading, asks_again

NAME, VERSION, SHAPE = "keys", 1, 1
MODEL = Model(NAME, SHAPE)


def define(metadata: MetaData, generation: int) -> None:
    """The tables of one generation."""
    Table(
        f"api_key_{generation}",
        metadata,
        Column("partition", Integer, primary_key=True),
        Column("tenant_id", Uuid, primary_key=True),
        Column("account_id", Uuid, primary_key=True),
        Column("key_id", Text(collation="C"), primary_key=True),
        Column("name", Text, nullable=False),
        Column("scopes", ARRAY(Text), nullable=False),
        Column("issued_at", DateTime(timezone=True), nullable=False),
        Column("expires_at", DateTime(timezone=True)),
        info={"readers": True},
    )


class Keys:
    """The consumer."""

    name, version, starts_at_head = NAME, VERSION, False

    def __init__(self, codec: Codec, generation: int = 1) -> None:
        self.generation, self._codec = generation, codec
        table, one = f"api_key_{generation}", "where partition = %s and tenant_id = %s and account_id = %s and key_id = %s"
        self._insert = (
            f"insert into {table} (partition, tenant_id, account_id, key_id, name, scopes, issued_at, expires_at) "
            "values (%s, %s, %s, %s, %s, %s, %s, %s) on conflict do nothing"
        )
        self._revoke, self._expire = f"delete from {table} {one}", f"update {table} set expires_at = %s {one}"
        # As the aggregate does: what expired is forgotten when another key is issued.
        self._drop = f"delete from {table} where partition = %s and tenant_id = %s and account_id = %s and expires_at <= %s"
        self._end = f"delete from {table} where partition = %s and tenant_id = %s"

    async def apply(self, conn: Connection, partition: int, rows: Sequence[Recorded]) -> Callable[[], None]:
        """See :class:`projections.consumer.Consumer`."""
        gone = await deleted(conn, partition, rows)
        for row in rows:
            if row.stream.startswith("service-") and row.type != SKIPPED and row.tenant_id not in gone.silent:
                await self._fold(conn, partition, row)
        for tenant_id in gone.ending:
            await conn.execute(self._end, (partition, tenant_id))
        return self.forget

    def forget(self) -> None:
        """Nothing is kept."""

    async def _fold(self, conn: Connection, partition: int, row: Recorded) -> None:
        event: Any = self._codec.decode(row.type, row.payload)
        place = partition, row.tenant_id, UUID(row.stream.removeprefix("service-")), event.key_id
        match event:
            case KeyIssued():
                await conn.execute(self._drop, (*place[:3], event.at))
                await conn.execute(self._insert, (*place, event.name, list(event.scopes), event.at, event.expires_at))
            case KeyReplaced():
                await conn.execute(self._expire, (event.expires_at, *place))
            case KeyRevoked():
                await conn.execute(self._revoke, place)
            case _:
                raise CorruptLog(f"Stream {row.stream} holds {row.type}.")


PROJECTION = Projection(NAME, version=VERSION, shape=SHAPE, define=define, consumer=Keys)


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A key that was not revoked."""

    account_id: UUID
    key_id: str
    name: str
    scopes: list[str]
    issued_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None


class KeyReader:
    """Asks for the keys of one tenant at a time."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    @asks_again
    async def list(
        self,
        tenant_id: UUID,
        after: tuple[UUID, str] | None = None,
        limit: int = 50,
        min_position: int | None = None,
        timeout_seconds: float = 5,
    ) -> list[KeyRow]:
        """Keys by account and id, behind one.

        With ``min_position`` only after the read model has applied that position of the tenant's partition; raises
        `ProjectionBehind` when it has not in time.
        """
        await self._reading.reach(MODEL, tenant_id, min_position, timeout_seconds)
        account_id, key_id = after or (UUID(int=0), "")
        async with self._reading.begin(MODEL, tenant_id) as (conn, generation):
            query = (
                "select k.account_id, k.key_id, k.name, k.scopes, k.issued_at, k.expires_at, u.last_used_at "
                f"from api_key_{generation} k left join key_use u "
                "on u.partition = k.partition and u.tenant_id = k.tenant_id and u.account_id = k.account_id and u.key_id = k.key_id "
                "where k.partition = %s and k.tenant_id = %s and (k.account_id, k.key_id) > (%s, %s) "
                "order by k.account_id, k.key_id limit %s"
            )
            where = self._reading.partition_of(tenant_id), tenant_id, account_id, key_id, limit
            return [KeyRow(*row) for row in await (await conn.execute(query, where)).fetchall()]

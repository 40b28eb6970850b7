"""The people of each tenant: who they are, sealed, what they may do, and whether they may come in.

Who may do what is decided from the log itself; this table is for lists. A person who was erased has no row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Column, DateTime, Index, Integer, MetaData, Table, Text, Uuid

from domain.identity import users
from eventstore.codec import Codec
from projections.consumer import Connection, Projection, Recorded
from projections.deleted import deleted
from projections.reading import Model, Reading, asks_again

MODEL = Model("people", shape=1)
VERSION = 1

_SHOWN = "user_id, role, status, profile, created_at, changed_at"


def define(metadata: MetaData, generation: int) -> None:
    """The table of one generation."""
    name = f"person_{generation}"
    Table(
        name,
        metadata,
        Column("partition", Integer, primary_key=True),
        Column("tenant_id", Uuid, primary_key=True),
        Column("user_id", Uuid, primary_key=True),
        Column("role", Text(collation="C"), nullable=False),
        Column("status", Text(collation="C"), nullable=False),
        Column("profile", Text, nullable=False, comment="sealed"),
        Column("created_at", DateTime(timezone=True), nullable=False),
        Column("changed_at", DateTime(timezone=True), nullable=False),
        Index(f"{name}_by_age", "partition", "tenant_id", "created_at", "user_id"),
        info={"readers": True},
    )


class People:
    """The consumer."""

    name, version, starts_at_head = MODEL.name, VERSION, False

    def __init__(self, codec: Codec, generation: int = 1) -> None:
        self.generation, self._codec = generation, codec
        table, one = f"person_{generation}", "where partition = %s and tenant_id = %s and user_id = %s"
        self._put = (
            f"insert into {table} (partition, tenant_id, {_SHOWN}) values (%s, %s, %s, %s, %s, %s, %s, %s) "
            "on conflict (partition, tenant_id, user_id) do update "
            "set role = excluded.role, status = excluded.status, profile = excluded.profile, changed_at = excluded.changed_at"
        )
        self._change = {
            name: f"update {table} set {name} = %s, changed_at = %s {one}" for name in ("role", "status", "profile")
        }  # fmt: skip  # one statement for each column
        self._end, self._forget = f"delete from {table} {one}", f"delete from {table} where partition = %s and tenant_id = %s"

    async def apply(self, conn: Connection, partition: int, rows: Sequence[Recorded]) -> Callable[[], None]:
        """See :class:`projections.consumer.Consumer`."""
        changes = [row for row in rows if row.type.startswith("user.")]
        ending = [row for row in rows if row.type == "tenant.deleted"]
        if not changes and not ending:
            return self.forget
        gone = await deleted(conn, partition, rows)
        for row in changes:
            if row.tenant_id not in gone.silent:
                await self._take(conn, partition, row)
        for tenant_id in gone.ending:
            await conn.execute(self._forget, (partition, tenant_id))
        return self.forget

    def forget(self) -> None:
        """Nothing is kept."""

    async def _take(self, conn: Connection, partition: int, row: Recorded) -> None:
        event: Any = self._codec.decode(row.type, row.payload)
        place = partition, row.tenant_id, UUID(row.stream.removeprefix("user-"))
        match event:
            case users.UserInvited():
                await conn.execute(self._put, (*place, event.role, "invited", event.profile, event.at, event.at))
            case users.UserCreated():
                await conn.execute(self._put, (*place, event.role, "active", event.profile, event.at, event.at))
            case users.InvitationAccepted():
                await self._set(conn, place, event.at, "status", "active")
                if event.profile is not None:
                    await self._set(conn, place, event.at, "profile", event.profile)
            case users.ProfileChanged():
                await self._set(conn, place, event.at, "profile", event.profile)
            case users.RoleChanged():
                await self._set(conn, place, event.at, "role", event.role)
            case users.UserSuspended():
                await self._set(conn, place, event.at, "status", "suspended")
            case users.UserResumed():
                await self._set(conn, place, event.at, "status", "active")
            case users.UserErased():
                await conn.execute(self._end, place)
            case _:
                pass  # a password, a login, a reset: nothing that is shown here

    async def _set(self, conn: Connection, place: tuple[int, UUID, UUID], at: datetime, column: str, value: str) -> None:
        await conn.execute(self._change[column], (value, at, *place))


@dataclass(frozen=True, slots=True)
class PersonRow:
    """One person; ``profile`` is sealed."""

    user_id: UUID
    role: str
    status: str
    profile: str
    created_at: datetime
    changed_at: datetime


class PeopleReader:
    """Asks for the people of one tenant at a time."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    @asks_again
    async def list(
        self,
        tenant_id: UUID,
        *,
        role: str | None = None,
        status: str | None = None,
        after: tuple[datetime, UUID] | None = None,
        limit: int = 50,
        min_position: int | None = None,
        timeout_seconds: float = 5,
    ) -> list[PersonRow]:
        """The people of these role and status, the first who came first, behind a place in that order.

        ``min_position`` as of `projections.audit_queries.AuditReader.page`.
        """
        await self._reading.reach(MODEL, tenant_id, min_position, timeout_seconds)
        wanted = {"role = %s": role, "status = %s": status, "(created_at, user_id) > (%s, %s)": after}
        conditions = " and ".join(["partition = %s", "tenant_id = %s", *(text for text, value in wanted.items() if value is not None)])
        given = [value for value in (role, status) if value is not None]
        async with self._reading.begin(MODEL, tenant_id) as (conn, generation):
            cursor = await conn.execute(
                f"select {_SHOWN} from person_{generation} where {conditions} order by created_at, user_id limit %s",
                (self._reading.partition_of(tenant_id), tenant_id, *given, *(after or ()), limit),
                binary=True,
            )
            return [PersonRow(*row) for row in await cursor.fetchall()]


PROJECTION = Projection(MODEL.name, version=VERSION, shape=MODEL.shape, define=define, consumer=People)

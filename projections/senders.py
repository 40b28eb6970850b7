"""Sender accounts of each tenant: whose they are, their settings, and the situation each was left in by its last event.

A cooldown whose time is over stays in its row until the deadline's command has come; whoever asks looks at the time. The label is sealed
text; when the person it is about is erased it goes from here, and nothing can open what the log holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Column, DateTime, Index, Integer, MetaData, Table, Text, Uuid

from domain.privacy.people import SubjectErased, person_of
from domain.sender_account import (
    Changed,
    CooldownEnded,
    CooldownMoved,
    CooldownStarted,
    Failed,
    Recovered,
    Registered,
    Restored,
    SenderEvent,
    SenderWasExcluded,
)
from eventstore.codec import Codec
from projections.consumer import SKIPPED, Connection, Projection, Recorded
from projections.deleted import deleted
from projections.reading import Model

NAME, VERSION, SHAPE = "senders", 1, 1
MODEL = Model(NAME, SHAPE)


def define(metadata: MetaData, generation: int) -> None:
    """The tables of one generation."""
    Table(
        f"sender_{generation}",
        metadata,
        Column("partition", Integer, primary_key=True),
        Column("tenant_id", Uuid, primary_key=True),
        Column("sender_id", Text(collation="C"), primary_key=True),
        Column("owner", Text(collation="C"), nullable=False),
        Column("person_id", Uuid, nullable=False, comment="whose key the label is sealed with"),
        Column("label", Text, nullable=False),
        Column("max_consecutive_errors", Integer, nullable=False),
        Column("cooldown_seconds", Integer, nullable=False),
        Column("cooldown_cap_seconds", Integer, nullable=False),
        Column("state", Text, nullable=False),
        Column("errors", Integer, nullable=False),
        Column("reason", Text),
        Column("until", DateTime(timezone=True)),
        Index(f"sender_{generation}_person", "partition", "tenant_id", "person_id"),
        info={"readers": True},
    )


_KEYS = "partition", "tenant_id", "sender_id"
_NEW = (
    *_KEYS, "owner", "person_id", "label", "max_consecutive_errors", "cooldown_seconds", "cooldown_cap_seconds", "state", "errors",
)  # fmt: skip


class Senders:
    """The consumer."""

    name, version, starts_at_head = NAME, VERSION, False

    def __init__(self, codec: Codec, generation: int = 1) -> None:
        self.generation, self._codec, self._table = generation, codec, f"sender_{generation}"

    async def apply(self, conn: Connection, partition: int, rows: Sequence[Recorded]) -> Callable[[], None]:
        """See :class:`projections.consumer.Consumer`."""
        gone = await deleted(conn, partition, rows)
        for row in rows:
            if row.type == SKIPPED or row.tenant_id in gone.silent:
                continue
            if row.stream.startswith("sender-"):
                await self._fold(conn, partition, row.tenant_id, self._codec.decode(row.type, row.payload))
            elif row.type == SubjectErased.event_name:
                event: Any = self._codec.decode(row.type, row.payload)
                where = partition, row.tenant_id, event.person_id
                await conn.execute(
                    f"update {self._table} set label = '' where partition = %s and tenant_id = %s and person_id = %s and label <> ''", where
                )
        for tenant_id in gone.ending:
            await conn.execute(f"delete from {self._table} where partition = %s and tenant_id = %s", (partition, tenant_id))
        return self.forget

    def forget(self) -> None:
        """Nothing is kept."""

    async def _fold(self, conn: Connection, partition: int, tenant_id: UUID, event: Any) -> None:
        if isinstance(event, Registered):
            settings = event.max_consecutive_errors, event.cooldown_seconds, event.cooldown_cap_seconds
            person_id = person_of(tenant_id, event.owner)
            row = partition, tenant_id, event.sender_id, event.owner, person_id, event.label, *settings, "active", 0
            query = f"insert into {self._table} ({', '.join(_NEW)}) values ({', '.join(['%s'] * len(_NEW))}) on conflict do nothing"
            await conn.execute(query, row)
        elif changed := _changes(event):
            query = (
                f"update {self._table} set {', '.join(f'{name} = %s' for name in changed)} "
                "where partition = %s and tenant_id = %s and sender_id = %s"
            )
            await conn.execute(query, (*changed.values(), partition, tenant_id, event.sender_id))


def _changes(event: SenderEvent) -> dict[str, Any]:
    """Which columns of the sender's row an event gives another value."""
    match event:
        case Changed():
            return {
                "label": event.label,
                "max_consecutive_errors": event.max_consecutive_errors,
                "cooldown_seconds": event.cooldown_seconds,
                "cooldown_cap_seconds": event.cooldown_cap_seconds,
            }
        case Failed():
            return {"errors": event.errors}
        case Recovered():
            return {"errors": 0}
        case CooldownStarted():
            return {"state": "cooldown", "errors": event.errors, "reason": event.reason, "until": event.until}
        case CooldownMoved():
            return {"reason": event.reason, "until": event.until}
        case CooldownEnded():
            return {"state": "active", "reason": None, "until": None}
        case SenderWasExcluded():
            return {"state": "excluded", "errors": event.errors, "reason": event.reason, "until": None}
        case Restored():
            return {"state": "active", "errors": 0, "reason": None, "until": None}
        case Registered():
            return {}


PROJECTION = Projection(NAME, version=VERSION, shape=SHAPE, define=define, consumer=Senders)

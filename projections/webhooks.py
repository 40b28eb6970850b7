"""Which event goes to which endpoint: a fold of the log that queues one task for each message.

An event is matched against the endpoints as they were at its position, and the tasks are put in the transaction of the
checkpoint: each message is queued once. The lane is the endpoint, so its messages go out in the log's order. Nothing is queued
for an endpoint that is disabled; what was waiting then stays in the lane and goes on when it is enabled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple
from uuid import UUID

from domain import webhooks as domain
from eventstore.codec import Codec
from projections.consumer import Connection, Recorded
from projections.deleted import deleted
from projections.tasks import NewTask, put

NAME = "webhooks"

_ENDPOINTS = "select tenant_id, endpoint_id, types, enabled from webhook_endpoint where partition = %s"
_KEEP = """
insert into webhook_endpoint (partition, endpoint_id, tenant_id, types, enabled, position) values (%s, %s, %s, %s, %s, %s)
on conflict (partition, endpoint_id) do update set types = excluded.types, enabled = excluded.enabled, position = excluded.position"""
# The position is that of the last event that changed anything about it: who sends knows by it whether what it remembers still holds.
_END = "delete from webhook_endpoint where partition = %s and endpoint_id = %s"
_FORGET = (
    "delete from webhook_endpoint where partition = %s and tenant_id = any(%b::uuid[])",
    "delete from webhook_delivery where partition = %s and tenant_id = any(%b::uuid[])",
)
_GO_ON = (
    "update task set due_at = %s where partition = %s and consumer = %s and lane = %s and due_at > %s",
    "update task_lane set due_at = %s where partition = %s and consumer = %s and lane = %s and due_at > %s",
)
_DELIVERIES = """
insert into webhook_delivery (partition, endpoint_id, number, tenant_id, message_id, position, type, state, attempts, created_at)
select %s::int, u.endpoint_id, u.number, u.tenant_id, u.message_id, u.position, u.type, 'waiting', 0, u.created_at
from unnest(%b::uuid[], %b::bigint[], %b::uuid[], %b::text[], %b::bigint[], %b::text[], %b::timestamptz[])
  as u(endpoint_id, number, tenant_id, message_id, position, type, created_at)
on conflict do nothing"""

_matches = lru_cache(maxsize=10_000)(domain.matches)


class _Known(NamedTuple):
    types: tuple[str, ...]
    enabled: bool


class _Message(NamedTuple):
    endpoint_id: UUID
    number: int
    tenant_id: UUID
    message_id: str
    position: int
    type: str
    created_at: datetime


_Tenants = dict[UUID, dict[UUID, _Known]]


class Webhooks:
    """The consumer. ``wake`` is called after the commit of a batch that queued something."""

    name = NAME
    generation = 1
    version = 0
    starts_at_head = True
    """Nobody is told what happened before there were webhooks; an endpoint's own beginning is in the log behind that."""

    def __init__(self, codec: Codec, wake: Callable[[], None] | None = None) -> None:
        self._codec, self._wake = codec, wake or self.forget

    async def apply(self, conn: Connection, partition: int, rows: Sequence[Recorded]) -> Callable[[], None]:
        """See :class:`projections.consumer.Consumer`."""
        known: _Tenants = {}
        for tenant_id, endpoint_id, types, enabled in await (await conn.execute(_ENDPOINTS, (partition,), binary=True)).fetchall():
            known.setdefault(tenant_id, {})[endpoint_id] = _Known(tuple(types), enabled)
        if not known and not any(row.stream.startswith("webhooks-") for row in rows):
            return self.forget
        gone = await deleted(conn, partition, rows)
        if gone.ending:
            for statement in _FORGET:
                await conn.execute(statement, (partition, gone.ending))
        messages: list[_Message] = []
        for row in rows:
            if row.tenant_id in gone.silent:
                continue
            if row.stream.startswith("webhooks-"):
                messages += await self._changed(conn, partition, known.setdefault(row.tenant_id, {}), row)
            elif row.tenant_id in known:
                messages += _told(known[row.tenant_id], row)
        if not messages:
            return self.forget
        await conn.execute(_DELIVERIES, (partition, *(list(column) for column in zip(*messages, strict=True))))
        await put(conn, partition, [NewTask(NAME, each.endpoint_id.hex, each.number, each.tenant_id, "{}", None) for each in messages])
        return self._wake

    def forget(self) -> None:
        """Nothing is kept."""

    async def _changed(self, conn: Connection, partition: int, endpoints: dict[UUID, _Known], row: Recorded) -> list[_Message]:
        """Fold an event of the endpoints themselves, and tell it to those it leaves enabled."""
        if not row.type.startswith("webhook."):
            return []  # skipped by an operator, or a refusal
        event: Any = self._codec.decode(row.type, row.payload)
        endpoint_id: UUID = event.endpoint_id
        match event:
            case domain.RequestedTest():
                return [_message(row, endpoint_id)] if endpoint_id in endpoints else []
            case domain.ReplayRequested():
                told = event.message_id, event.position, event.message_type
                return [_Message(endpoint_id, row.position, row.tenant_id, *told, row.recorded_at)] if endpoint_id in endpoints else []
            case domain.Deleted():
                endpoints.pop(endpoint_id, None)
                await conn.execute(_END, (partition, endpoint_id))
            case domain.Registered():
                endpoints[endpoint_id] = _Known(event.types, True)
            case domain.Changed() if endpoint_id in endpoints:
                endpoints[endpoint_id] = _Known(event.types, endpoints[endpoint_id].enabled)
            case domain.Disabled() | domain.Enabled() if endpoint_id in endpoints:
                endpoints[endpoint_id] = endpoints[endpoint_id]._replace(enabled=isinstance(event, domain.Enabled))
        if endpoint_id in endpoints:
            types, enabled = endpoints[endpoint_id]
            await conn.execute(_KEEP, (partition, endpoint_id, row.tenant_id, list(types), enabled, row.position))
        if isinstance(event, domain.Enabled | domain.Deleted):
            # What waits for a disabled endpoint looks again every few minutes; now it need not wait for that.
            for statement in _GO_ON:
                await conn.execute(statement, (row.recorded_at, partition, NAME, endpoint_id.hex, row.recorded_at))
        return _told(endpoints, row)


def _told(endpoints: dict[UUID, _Known], row: Recorded) -> list[_Message]:
    return [_message(row, endpoint_id) for endpoint_id, (types, enabled) in endpoints.items() if enabled and _matches(types, row.type)]


def _message(row: Recorded, endpoint_id: UUID) -> _Message:
    message_id = f"{row.command_id}:{row.ordinal}"
    return _Message(endpoint_id, row.position, row.tenant_id, message_id, row.position, row.type, row.recorded_at)

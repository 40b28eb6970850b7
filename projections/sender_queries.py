"""What is asked of sender accounts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from projections.reading import Reading, asks_again
from projections.senders import MODEL

StateName = Literal["active", "cooldown", "excluded"]

_COLUMNS = (
    "sender_id", "owner", "label", "state", "errors", "reason", "until",
    "max_consecutive_errors", "cooldown_seconds", "cooldown_cap_seconds",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SenderRow:
    """A sender account; ``label`` is sealed text, or empty."""

    sender_id: str
    owner: str
    label: str
    state: StateName
    errors: int
    reason: str | None
    until: datetime | None
    max_consecutive_errors: int
    cooldown_seconds: int
    cooldown_cap_seconds: int

    def settled(self, at: datetime) -> SenderRow:
        """The situation as it is at that moment: a cooldown whose time is over has ended."""
        if self.until is None or at < self.until:
            return self
        return replace(self, state="active", reason=None, until=None)


class SenderReader:
    """Asks for the sender accounts of one tenant at a time."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    @asks_again
    async def list(
        self,
        tenant_id: UUID,
        at: datetime,
        *,
        owner: str | None = None,
        state: StateName | None = None,
        after: str | None = None,
        limit: int = 50,
        min_position: int | None = None,
        timeout_seconds: float = 5,
    ) -> list[SenderRow]:
        """Sender accounts by id, behind one, as they are at that moment.

        With ``min_position`` only after the read model has applied that position of the tenant's partition; raises
        `ProjectionBehind` when it has not in time.
        """
        await self._reading.reach(MODEL, tenant_id, min_position, timeout_seconds)
        where: dict[str, Any] = {"partition": self._reading.partition_of(tenant_id), "tenant_id": tenant_id, "at": at, "limit": limit}
        conditions = ["partition = %(partition)s", "tenant_id = %(tenant_id)s"]
        if owner is not None:
            where["owner"] = owner
            conditions.append("owner = %(owner)s")
        if state is not None:
            where["state"] = state
            conditions.append("case when state = 'cooldown' and until <= %(at)s then 'active' else state end = %(state)s")
        if after is not None:
            where["after"] = after
            conditions.append("sender_id > %(after)s")
        query = (
            f"select {', '.join(_COLUMNS)} from sender_{{generation}} where {' and '.join(conditions)} order by sender_id limit %(limit)s"
        )
        async with self._reading.begin(MODEL, tenant_id) as (conn, generation):
            cursor = await conn.execute(query.format(generation=generation), where)
            return [SenderRow(*row).settled(at) for row in await cursor.fetchall()]

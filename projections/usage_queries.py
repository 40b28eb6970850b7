"""What is asked of usage by day."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal
from uuid import UUID

from projections.reading import Reading, asks_again
from projections.usage_tables import MODEL, SUMS

By = Literal["day", "subject", "meter"]
"""One line for each day and meter; for each day, meter and subject; for each meter over all days."""

KEYS: dict[By, tuple[str, ...]] = {"day": ("day", "meter"), "subject": ("day", "meter", "subject"), "meter": ("meter",)}
"""What tells the lines apart, and their order."""


@dataclass(frozen=True, slots=True)
class UsageLine:
    """What was used; ``day`` and ``subject`` are None where all are added up.

    ``used`` was consumed or committed, ``adjusted`` is what operators corrected, ``reserved`` is what reservations began with,
    and ``released`` what of them went back unused. Refusals are of commands on a quota that existed.
    """

    day: date | None
    meter: str
    subject: str | None
    used: int
    adjusted: int
    reserved: int
    released: int
    reservations: int
    commits: int
    rollbacks: int
    expiries: int
    consumptions: int
    refusals: int


class UsageReader:
    """Asks for usage of one tenant at a time."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    @asks_again
    async def days(
        self,
        tenant_id: UUID,
        first: date,
        end: date,
        *,
        meter: str | None = None,
        subject: str | None = None,
        by: By = "day",
        after: Sequence[Any] | None = None,
        limit: int = 100,
        min_position: int | None = None,
        timeout_seconds: float = 5,
    ) -> list[UsageLine]:
        """Lines of the days from ``first`` until before ``end``, in the order of their keys, behind the keys ``after``.

        With ``min_position`` only after the read model has applied that position of the tenant's partition; raises
        `ProjectionBehind` when it has not in time.
        """
        await self._reading.reach(MODEL, tenant_id, min_position, timeout_seconds)
        keys = KEYS[by]
        where: dict[str, Any] = {"partition": self._reading.partition_of(tenant_id), "tenant_id": tenant_id, "first": first, "end": end}
        conditions = ["partition = %(partition)s", "tenant_id = %(tenant_id)s", "day >= %(first)s", "day < %(end)s"]
        for name, value in (("meter", meter), ("subject", subject)):
            if value is not None:
                where[name] = value
                conditions.append(f"{name} = %({name})s")
        if after is not None:
            where |= {f"after_{name}": value for name, value in zip(keys, after, strict=True)}
            conditions.append(f"({', '.join(keys)}) > ({', '.join(f'%(after_{name})s' for name in keys)})")
        grouped = ", ".join(keys)
        query = (
            f"select {grouped}, {', '.join(f'sum({name})' for name in SUMS)} from usage_day_{{generation}} "
            f"where {' and '.join(conditions)} group by {grouped} order by {grouped} limit %(limit)s"
        )
        async with self._reading.begin(MODEL, tenant_id) as (conn, generation):
            cursor = await conn.execute(query.format(generation=generation), {**where, "limit": limit}, binary=True)
            rows = await cursor.fetchall()
        return [_line(dict(zip(keys, row, strict=False)), row[len(keys) :], subject) for row in rows]


def _line(named: dict[str, Any], sums: Sequence[Any], subject: str | None) -> UsageLine:
    return UsageLine(named.get("day"), named["meter"], named.get("subject", subject), *(int(value) for value in sums))

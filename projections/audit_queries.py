"""What is asked of the audit log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from projections.audit import COLUMNS, MODEL
from projections.reading import Reading, asks_again


class AuditRow(NamedTuple):
    """One event without its contents. Its id is (command_id, ordinal)."""

    position: int
    recorded_at: datetime
    actor: str | None
    origin: str | None
    stream: str
    type: str
    command_id: UUID
    ordinal: int
    cause: UUID | None
    trace: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFilter:
    """Which events are meant; what is None does not matter. Times and positions are half-open: from ``since``, before ``until``."""

    actor: str | None = None
    stream: str | None = None
    type: str | None = None
    """A type, or all that begin with this when it ends with a dot."""
    since: datetime | None = None
    until: datetime | None = None
    after: int | None = None
    before: int | None = None


_OURS = "a.partition = %(partition)s and a.tenant_id = %(tenant_id)s"
_FIRST = "select a.position from audit_N a where {ours} and a.recorded_at >= %({bound})s order by a.recorded_at, a.position limit 1"
_BEYOND = 2**63 - 1
# Times never go back as positions go on, so a time is a position, and whatever else is asked pages by its own index between two.
_CONDITIONS: Mapping[str, str] = {
    "actor": "a.actor = %(actor)s",
    "stream": "a.stream = %(stream)s",
    "since": f"a.position >= coalesce(({_FIRST.format(ours=_OURS, bound='since')}), {_BEYOND})",
    "until": f"a.position < coalesce(({_FIRST.format(ours=_OURS, bound='until')}), {_BEYOND})",
    "after": "a.position > %(after)s",
    "before": "a.position < %(before)s",
}
# One look into the index for each type there is, then the first rows of each: a range of types is not in the log's order.
_OF_TYPES = """
with recursive kind(type) as (
  (select a.type from audit_N a where {ours} and a.type >= %(type)s and a.type < %(type_end)s order by a.type limit 1)
  union all
  select (select a.type from audit_N a where {ours} and a.type > kind.type and a.type < %(type_end)s order by a.type limit 1)
  from kind where kind.type is not null)
select f.* from kind cross join lateral (
  select {columns} from audit_N a where {conditions} and a.type = kind.type order by a.position {order} limit %(limit)s) f
order by f.position {order} limit %(limit)s"""
_PLAIN = "select {columns} from audit_N a where {conditions} order by a.position {order} limit %(limit)s"


class AuditReader:
    """Asks for what was recorded of one tenant at a time."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    @asks_again
    async def page(
        self,
        tenant_id: UUID,
        wanted: AuditFilter,
        *,
        newest_first: bool = True,
        limit: int = 50,
        min_position: int | None = None,
        timeout_seconds: float = 5,
    ) -> list[AuditRow]:
        """The first events that are meant, in the log's order or against it.

        With ``min_position`` only after the read model has applied that position of the tenant's partition; raises
        `ProjectionBehind` when it has not in time.
        """
        await self._reading.reach(MODEL, tenant_id, min_position, timeout_seconds)
        query, given = statement(wanted, newest_first=newest_first)
        parameters = {**given, "partition": self._reading.partition_of(tenant_id), "tenant_id": tenant_id, "limit": limit}
        async with self._reading.begin(MODEL, tenant_id) as (conn, generation):
            cursor = await conn.execute(query.replace("audit_N", f"audit_{generation}"), parameters, binary=True)
            return [AuditRow._make(row) for row in await cursor.fetchall()]


def statement(wanted: AuditFilter, *, newest_first: bool) -> tuple[str, dict[str, Any]]:
    """The query, with ``audit_N`` for the table's name, and the filter's parameters."""
    given = {name: value for name in wanted.__slots__ if (value := getattr(wanted, name)) is not None}
    conditions = [_OURS, *(condition for name, condition in _CONDITIONS.items() if name in given)]
    of_types = wanted.type is not None and wanted.type.endswith(".")
    if of_types:
        given["type_end"] = given["type"][:-1] + "/"  # the character behind the dot
    if of_types and wanted.stream is not None:  # one stream has few events, and those are in order
        conditions.append("a.type >= %(type)s and a.type < %(type_end)s")
        of_types = False
    elif wanted.type is not None and not of_types:
        conditions.append("a.type = %(type)s")
    template = _OF_TYPES if of_types else _PLAIN
    columns = ", ".join(f"a.{name}" for name in COLUMNS)
    order = "desc" if newest_first else "asc"
    return template.format(columns=columns, conditions=" and ".join(conditions), order=order, ours=_OURS), given

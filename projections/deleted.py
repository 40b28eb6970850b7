"""What read models do about deleted tenants, each in the same way, so that one built anew equals one that was there.

The log keeps ``tenant.deleted`` and, once it is pruned, nothing else of a tenant but digests. A read model drops a tenant's rows when it
comes to the deletion, and takes none of the tenant from then on: commands that were under way may have left some behind it, and
they are pruned as well. Rows that were pruned are in streams of their own, which no fold looks at. Pruning goes from the log's
end to its beginning, so whoever builds anew meanwhile never finds the later part of a stream without the earlier one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from domain.identity.tenants import TenantDeleted, tenant_stream
from projections.consumer import Connection, Recorded

_DELETIONS = f"""
select tenant_id, position from event
where partition = %s and stream = any(%b::text[]) and type = '{TenantDeleted.event_name}'"""


@dataclass(frozen=True, slots=True)
class Deleted:
    """The deleted tenants among those of a batch."""

    silent: Mapping[UUID, int]
    """Deleted before the batch's end, with the position of that: no row of theirs is taken."""
    ending: Sequence[UUID]
    """Those of them that an event of the batch deleted: what there is of them goes."""


_NONE = Deleted({}, ())


async def deleted(conn: Connection, partition: int, rows: Sequence[Recorded]) -> Deleted:
    """Ask the log which tenants of these rows, all of one partition, were deleted."""
    # Every row has a UUID of its own, and hashing those is slow: there are many rows and few tenants.
    streams = [tenant_stream(UUID(int=number)) for number in {row.tenant_id.int for row in rows}]
    found: dict[UUID, int] = dict(await (await conn.execute(_DELETIONS, (partition, streams), binary=True)).fetchall())
    if not found:
        return _NONE
    silent = {tenant_id: position for tenant_id, position in found.items() if position <= rows[-1].position}
    return Deleted(silent, [tenant_id for tenant_id, position in silent.items() if position >= rows[0].position])

"""Every read model there is. A new one is added here, and to nothing else that makes, feeds or rebuilds it."""

from __future__ import annotations

from projections import audit, deadlines, footprints, keys, licenses, people, quotas, senders, sessions, tenants, usage
from projections.consumer import Projection

PROJECTIONS: dict[str, Projection] = {
    each.name: each
    for each in (
        quotas.PROJECTION,
        tenants.PROJECTION,
        usage.PROJECTION,
        audit.PROJECTION,
        deadlines.PROJECTION,
        licenses.PROJECTION,
        senders.PROJECTION,
        keys.PROJECTION,
        sessions.PROJECTION,
        people.PROJECTION,
        footprints.PROJECTION,
    )
}

"""Every read model there is. A new one is added here, and to nothing else that makes, feeds or rebuilds it."""

from __future__ import annotations

from projections import audit, deadlines, quotas, tenants, usage
from projections.consumer import Projection

PROJECTIONS: dict[str, Projection] = {
    each.name: each for each in (quotas.PROJECTION, tenants.PROJECTION, usage.PROJECTION, audit.PROJECTION, deadlines.PROJECTION)
}

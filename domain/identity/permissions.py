"""What one may be allowed to do, and what each role and each key may: the one table of it.

A permission is checked at the route (``api.edge.ask``) and shown with it in the OpenAPI document. A key has the permissions that were
chosen when it was issued, its scopes; a person has those of the role.
"""

from __future__ import annotations

from collections.abc import Mapping

PERMISSIONS: Mapping[str, str] = {
    "usage:write": "Reserve, commit, roll back and consume; cancel reservations.",
    "usage:read": "Read quotas, usage and open reservations.",
    "quota:admin": "Set limits, grant and void credits, adjust what is used.",
    "usage:import": "Record use at a moment of the past.",
    "audit:read": "Read everything that was recorded, by whom and when.",
    "webhooks:admin": "Register webhooks, see their secrets and deliveries, send again.",
}
"""Every permission, and what it means."""

"""What one may be allowed to do, and what each role and each key may: the one table of it.

A permission is checked at the route (``api.edge.ask``) and shown with it in the OpenAPI document. A key has the permissions that were
chosen when it was issued, its scopes; a person has those of the role.
"""

from __future__ import annotations

from collections.abc import Mapping

PERMISSIONS: Mapping[str, str] = {
    "usage:write": "Reserve, commit, roll back and consume; cancel reservations. A person does it for themselves.",
    "usage:read": "Read quotas, usage and open reservations. A person reads their own.",
    "usage:others": "As a person, do the same for every subject.",
    "quota:admin": "Set limits, grant and void credits, adjust what is used.",
    "usage:import": "Record use at a moment of the past.",
    "audit:read": "Read everything that was recorded, by whom and when.",
    "webhooks:admin": "Register webhooks, see their secrets and deliveries, send again.",
    "self:manage": "See and change one's own profile, password, sessions, devices, license and consents; export and erase oneself.",
    "users:read": "See the tenant's people, their roles, devices and licenses.",
    "users:admin": "Invite people, change their roles, suspend them, end their sessions and unbind their devices.",
    "tenant:read": "See the tenant's settings and policies.",
    "tenant:admin": "Change the tenant's settings and policies.",
    "keys:admin": "Issue, rotate and revoke API keys.",
    "license:admin": "Set a person's plan, limits and number of devices.",
    "senders:read": "See sender accounts. A person sees their own.",
    "senders:write": "Register sender accounts and report their signals. A person does it for their own.",
    "senders:others": "As a person, do both for every sender account.",
    "privacy:admin": "Record consents, export and erase the personal data of anybody in the tenant.",
    "telemetry:write": "Send telemetry.",
    "operator:tenants": "Create tenants, change and suspend them, on the whole platform.",
    "operator:read": "Read any tenant's people, usage and audit; the tenant sees that it was done.",
}
"""Every permission, and what it means."""

_PLATFORM = frozenset({"operator:tenants", "operator:read"})
_PERSONAL = frozenset({"self:manage", "usage:others", "senders:others"})

KEY_PERMISSIONS: Mapping[str, str] = {name: PERMISSIONS[name] for name in PERMISSIONS if name not in _PLATFORM | _PERSONAL}
"""What a service account's key may have: it is nobody, and acts for everybody in its tenant."""

_MEMBER = frozenset({"self:manage", "usage:write", "usage:read", "senders:read", "senders:write", "telemetry:write"})
_SUPPORT = frozenset({
    "self:manage", "usage:read", "usage:others", "users:read", "tenant:read", "audit:read", "senders:read", "senders:others",
})  # fmt: skip
_MANAGER = _MEMBER | _SUPPORT | {"quota:admin", "license:admin"}
_ADMIN = frozenset(PERMISSIONS) - _PLATFORM - {"usage:import"}

ROLES: Mapping[str, frozenset[str]] = {
    "owner": frozenset(PERMISSIONS) - _PLATFORM,
    "admin": _ADMIN,
    "manager": _MANAGER,
    "member": _MEMBER,
    "support": _SUPPORT,
    "operator": frozenset({"self:manage", "operator:tenants", "operator:read"}),
}
"""What each role may. ``support`` changes nothing but what is its own; ``operator`` exists in the platform's tenant alone."""

GRANTS: Mapping[str, frozenset[str]] = {
    "owner": frozenset({"owner", "admin", "manager", "member", "support"}),
    "admin": frozenset({"manager", "member", "support"}),
    "operator": frozenset({"operator"}),
}
"""Which roles one may give, take away, suspend and end the sessions of."""

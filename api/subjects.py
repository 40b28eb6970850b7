"""Whose quotas one may use: a service account everybody's in its tenant, a person their own unless the role says more."""

from __future__ import annotations

from api.auth import Principal
from api.problems import Problem

OTHERS = "usage:others"


def only_subject(principal: Principal) -> str | None:
    """The one subject that this one may act for; None when it may be any of the tenant's."""
    if principal.user_id is None or OTHERS in principal.permissions:
        return None
    return principal.user_id.hex


def check_subject(principal: Principal, subject: str) -> None:
    """Refuse with 403 when this one may not act for the subject."""
    only = only_subject(principal)
    if only is not None and subject != only:
        raise Problem("auth.not_yours", errors=[{"field": "subject", "message": "This is not your own."}])

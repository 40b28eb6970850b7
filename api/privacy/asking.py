"""Whose personal data a request is about, and whether who asks may ask that."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from fastapi import Request

from api.auth import Principal
from api.edge import Asked, ask
from api.problems import Problem, invalid
from domain.privacy.people import person_of

ME = "me"
PERMISSION, OWN = "privacy:admin", "self:manage"


@dataclass(frozen=True, slots=True)
class Whose:
    """A subject, under which id what is personal about it is sealed, and whether it is who asks."""

    subject: str
    person_id: UUID
    own: bool


async def ask_about(request: Request, subject: str) -> tuple[Asked, Whose]:
    """Who asks, and about whom: oneself with ``self:manage``, anybody in the tenant with ``privacy:admin``."""
    asked = await ask(request)
    return asked, about(asked.principal, subject)


def about(principal: Principal, subject: str) -> Whose:
    """As :func:`ask_about`, of somebody who is known already."""
    own = principal.user_id is not None and subject in (ME, principal.user_id.hex)
    principal.require(OWN if own else PERMISSION)
    if own and principal.user_id is not None:
        return Whose(principal.user_id.hex, principal.user_id, own=True)
    if subject == ME:
        raise invalid([{"type": "subject", "loc": ("subject",), "msg": "A key is nobody: name the subject."}])
    person_id = person_of(principal.tenant_id, subject)
    if person_id == principal.tenant_id:
        # What belongs to the tenant itself, a bot's token for instance, is sealed under its own id.
        raise Problem("privacy.not_a_person")
    return Whose(subject, person_id, own=False)

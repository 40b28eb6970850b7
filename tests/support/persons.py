"""People for tests over HTTP: made behind the server, and signed in from a device."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from api import sessions
from api.devices import bind_item
from api.edge import Edge
from tests.support import people

FINGERPRINT = "a fingerprint of the first device"


@dataclass
class Person:
    """Somebody who is signed in."""

    tenant_id: UUID
    user_id: UUID
    headers: dict[str, str]
    device_id: UUID | None = None


async def create(edge: Edge, tenant_id: UUID, role: str = "member") -> UUID:
    """A person with a profile and a login."""
    return (await people.create(edge.store, tenant_id, role))[0]


async def sign_in(edge: Edge, tenant_id: UUID, user_id: UUID, fingerprint: str | None = FINGERPRINT, name: str = "Laptop") -> Person:
    """A session on a device; raises what refuses the device."""
    if fingerprint is None:
        signed_in = await sessions.start(edge, tenant_id, user_id, kind="token")
        return Person(tenant_id, user_id, {"Authorization": f"Bearer {signed_in.token}"})
    item, digest = await bind_item(edge, tenant_id, user_id, fingerprint, name)
    signed_in = await sessions.start(edge, tenant_id, user_id, kind="token", device=digest, extra=(item,))
    return Person(tenant_id, user_id, {"Authorization": f"Bearer {signed_in.token}"}, item.command.device_id)  # type: ignore[attr-defined]  # it binds


async def person(edge: Edge, tenant_id: UUID, role: str = "member", fingerprint: str | None = FINGERPRINT) -> Person:
    """Somebody new, signed in."""
    return await sign_in(edge, tenant_id, await create(edge, tenant_id, role), fingerprint)

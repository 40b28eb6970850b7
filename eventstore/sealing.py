"""Keys of tenants and of people, and what is sealed with them."""

from __future__ import annotations

from uuid import UUID


class Erased(Exception):
    """The person was erased: their key was destroyed and is never made anew."""


class Sealing:
    """Seals and opens personal data; derives secrets."""

    async def seal(self, tenant_id: UUID, person_id: UUID, purpose: str, clear: str) -> str:
        """AES-256-GCM under the person's key, which is made when there is none yet. Raises `Erased`."""
        raise NotImplementedError

    async def open(self, tenant_id: UUID, person_id: UUID, purpose: str, sealed: str) -> str | None:
        """What was sealed for that person and purpose; None when the person was erased."""
        raise NotImplementedError

    async def secret(self, tenant_id: UUID, purpose: str) -> bytes:
        """32 bytes, always the same for a tenant and purpose; tokens are made of them."""
        raise NotImplementedError

    async def person_secret(self, tenant_id: UUID, person_id: UUID, purpose: str) -> bytes:
        """As :meth:`secret`, of the person's key. Raises `Erased`."""
        raise NotImplementedError

    async def digest(self, tenant_id: UUID, purpose: str, text: str) -> str:
        """Under which something personal is found without being kept: 32 hex digits, keyed, the same for equal texts of a tenant."""
        raise NotImplementedError

    async def shred(self, tenant_id: UUID, person_id: UUID) -> bool:
        """Destroy the person's key for ever, also when there was none yet; whether it was there until now."""
        raise NotImplementedError

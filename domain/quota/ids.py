"""Names that lead to a quota: its stream, and the ids of its reservations."""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from functools import lru_cache
from hashlib import sha256
from uuid import UUID, uuid5

from domain.quota.refusals import ReservationNotFound


@lru_cache(maxsize=65_536)
def quota_stream(tenant_id: UUID, subject: str, meter: str) -> str:
    """The stream of the quota of one subject on one meter."""
    return "quota-" + uuid5(tenant_id, f"{meter}\x00{subject}").hex


def reservation_id(stream: str, command_id: UUID, index: int = 0) -> str:
    """An id that leads back to the quota's stream; ``index`` tells apart reservations of one command."""
    digest = sha256(command_id.bytes + index.to_bytes(4, "big")).digest()
    return urlsafe_b64encode(bytes.fromhex(stream[6:]) + digest[:14]).decode()


_RESERVATION_ID = re.compile(r"[A-Za-z0-9_-]{40}")


def stream_of_reservation(reservation_id: str) -> str:
    """The stream a reservation belongs to; a malformed id raises :class:`ReservationNotFound`."""
    if not _RESERVATION_ID.fullmatch(reservation_id):
        raise ReservationNotFound(reservation_id=reservation_id)
    return "quota-" + urlsafe_b64decode(reservation_id)[:16].hex()

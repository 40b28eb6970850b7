"""Secrets and signatures of Standard Webhooks.

A secret is derived whenever it is needed from the tenant's key, the endpoint and the secret's number, so that it is in no
event, no table and no snapshot. Who has the tenant's key has all secrets; who has a secret has nothing else.
"""

from __future__ import annotations

import hmac
from base64 import b64encode
from collections.abc import Iterable
from datetime import datetime
from uuid import UUID

from standardwebhooks import Webhook


def secret(tenant_key: bytes, endpoint_id: UUID, number: int) -> str:
    """The secret of an endpoint with this number, as its owner writes it: ``whsec_`` and 32 bytes in Base64.

    Fingerprints of bodies are made with the same key, but of JSON, which never begins as the text here does.
    """
    derived = hmac.digest(tenant_key, f"webhook|{endpoint_id.hex}|{number}".encode(), "sha256")
    return f"whsec_{b64encode(derived).decode()}"


def headers(message_id: str, at: datetime, body: bytes, secrets: Iterable[str]) -> dict[str, str]:
    """The three headers of a message sent at a moment (in UTC): id, time in whole seconds, a signature for each secret."""
    text = body.decode()
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": " ".join(Webhook(key).sign(message_id, at, text) for key in secrets),
    }

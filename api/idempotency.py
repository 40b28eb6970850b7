"""Which command a request is: its key, and the fingerprint of its body."""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from api.problems import Problem

KEY_PATTERN = r"^[\x20-\x7e]{1,255}$"
_KEY = re.compile(rb"[\x20-\x7e]{1,255}")
_canonical = msgspec.json.Encoder(order="sorted").encode


def key_of(headers: Mapping[bytes, bytes], correlation_id: str | None, default: Callable[[], str | None]) -> str:
    """The ``Idempotency-Key`` header, else the body's ``correlation_id``, else what the command falls back to; 400 without any."""
    given = headers.get(b"idempotency-key")
    if given is not None:
        if not _KEY.fullmatch(given):
            raise Problem("idempotency.key_invalid")
        return given.decode("ascii")
    key = correlation_id if correlation_id is not None else default()
    if key is None:
        raise Problem("idempotency.key_required")
    return key


def fingerprint(tenant_key: bytes, body: Any) -> bytes:
    """HMAC-SHA256 of the parsed body in canonical form: no spaces, keys sorted, integers exact."""
    return hmac.digest(tenant_key, _canonical(body), "sha256")

"""When a message that was not taken is sent again: soon at first, then ever more rarely, for three days."""

from __future__ import annotations

from datetime import datetime, timedelta
from hashlib import sha256

_HOUR = 3600.0
DELAYS = (5.0, 30.0, 120.0, 600.0, 1800.0, _HOUR, 2 * _HOUR, 3 * _HOUR, 6 * _HOUR, *(12 * _HOUR,) * 5)
"""Seconds after each attempt that failed; 72.7 hours in all."""
JITTER = 0.1
"""Added at most, as a part of the delay, so that what failed together does not come back together."""
MOST_ASKED_SECONDS = _HOUR
"""The longest Retry-After that is honoured; a receiver that needs more is asked again meanwhile."""


def next_attempt(attempts: int, now: datetime, message_id: str, asked_seconds: float | None = None) -> datetime | None:
    """The moment of the next attempt after ``attempts`` that failed; None after the last one.

    Attempts are counted and not days, so that a clock that jumps, or a process that was down for a week, gives nobody up. The
    jitter is drawn from the message's id: a schedule can be repeated.
    """
    if attempts > len(DELAYS):
        return None
    delay = DELAYS[attempts - 1]
    drawn = int.from_bytes(sha256(f"{message_id}|{attempts}".encode()).digest()[:4], "big") / 2**32
    return now + timedelta(seconds=max(delay, min(asked_seconds or 0.0, MOST_ASKED_SECONDS)) * (1 + JITTER * drawn))

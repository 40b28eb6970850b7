"""What a quota looks like at a moment: the one answer behind "now" and "as of".

Reservations whose expiry has passed are shown as released, although nobody may have recorded it yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from domain.quota.credits import credits_left
from domain.quota.evolve import evolve
from domain.quota.limits import Tally
from domain.quota.state import Quota, due, remaining, spendable


@dataclass(frozen=True, slots=True)
class LimitView:
    """A limit in its window of the moment. ``remaining`` may be negative; ``resets_at`` says when room comes back, None for never."""

    limit_id: str
    kind: str
    amount: int
    used: int
    reserved: int
    remaining: int
    overdrawn: int
    overflow: bool
    window_start: datetime | None
    resets_at: datetime | None


@dataclass(frozen=True, slots=True)
class GrantView:
    """A grant of credits and what may be spent of it."""

    grant_id: str
    amount: int
    remaining: int
    priority: int
    effective_at: datetime
    expires_at: datetime | None
    voided: bool


@dataclass(frozen=True, slots=True)
class QuotaView:
    """A quota at a moment. ``remaining`` is the least over all limits, credits considered; None means unlimited.

    ``used`` counts since the quota began; ``reserved`` is what open reservations hold.
    """

    subject: str
    meter: str
    zone: str
    at: datetime
    limits: tuple[LimitView, ...]
    credits_remaining: int
    grants: tuple[GrantView, ...]
    open_reservations: int
    used: int
    reserved: int
    remaining: int | None


def view(state: Quota, at: datetime) -> QuotaView:
    """The quota as it is at that moment."""
    for expired in due(state, at):
        state = evolve(state, expired)  # type: ignore[assignment]  # only expiries, which leave a quota a quota
    left = credits_left(state.grants, at)
    terms = state.terms
    return QuotaView(
        subject=terms.subject,
        meter=terms.meter,
        zone=terms.zone,
        at=at,
        limits=tuple(_limit(tally, at, left) for tally in state.limits),
        credits_remaining=left,
        grants=tuple(
            GrantView(
                grant.grant_id, grant.amount, grant.left(at), grant.priority, grant.effective_at, grant.expires_at, grant.voided is not None
            )
            for grant in state.grants
        ),
        open_reservations=len(state.open),
        used=state.used,
        reserved=state.reserved,
        remaining=remaining(state, at),
    )


def _limit(tally: Tally, at: datetime, left: int) -> LimitView:
    key = tally.locate(at)
    used, reserved, _ = tally.counts(key)
    return LimitView(
        limit_id=tally.limit.limit_id,
        kind=tally.limit.window.kind,
        amount=tally.limit.amount,
        used=used,
        reserved=reserved,
        remaining=spendable(tally, at, left),
        overdrawn=max(0, -tally.room(at)),
        overflow=tally.limit.overflow,
        window_start=tally.window_start(key),
        resets_at=tally.resets_at(at),
    )

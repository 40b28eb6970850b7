"""Credits: amounts granted once, spent after the limits that overflow into them are full.

A grant may be spent from ``effective_at`` until ``expires_at``; up to ``rollover_amount`` of what then remains stays
spendable until ``rollover_until``. What is spent before and after the expiry is counted apart, so that what a reservation
gives back lands on the side it was taken from, and what is left stays a function of the moment it is asked for.
Grants are spent in the order of priority (lowest number first), then soonest expiry (never is last), then age.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

MAX_GRANTS = 1_000
"""So many grants are remembered; ended ones give way to new ones."""

_NEVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class CreditUse:
    """So much taken from one grant. Stored for ever inside events."""

    grant_id: str
    amount: int


@dataclass(frozen=True, slots=True)
class GrantBalance:
    """A grant and what is left of it."""

    grant_id: str
    number: int
    """How many grants came before it."""
    amount: int
    priority: int
    effective_at: datetime
    expires_at: datetime | None
    rollover_amount: int
    rollover_until: datetime | None
    remaining_before: int
    """Of the amount, what was not taken before the expiry."""
    burned_after: int = 0
    """What was taken after the expiry, out of what rolled over."""
    voided: int | None = None
    """How much was left when it was voided; None while it is not."""

    def left(self, at: datetime) -> int:
        """What may be spent of it at that moment."""
        if self.voided is not None or at < self.effective_at:
            return 0
        if self.expires_at is None or at < self.expires_at:
            # Minus what was burned after, because moments may come out of order and a unit must not be spent on both sides.
            return max(0, self.remaining_before - self.burned_after)
        if self.rollover_until is None or at >= self.rollover_until:
            return 0
        return max(0, min(self.remaining_before, self.rollover_amount) - self.burned_after)

    def taken(self, amount: int, at: datetime) -> GrantBalance:
        """This grant after ``amount`` was taken at that moment; a negative amount gives back what was taken then."""
        before, after = self.remaining_before, self.burned_after
        if self.expires_at is None or at < self.expires_at:
            before -= amount
        else:
            after += amount
        return self._with(before, after, self.voided)

    def void(self, freed: int) -> GrantBalance:
        return self._with(self.remaining_before, self.burned_after, freed)

    def ended(self, at: datetime) -> bool:
        return self.voided is not None or at >= (self.rollover_until or self.expires_at or _NEVER)

    def _with(self, before: int, after: int, voided: int | None) -> GrantBalance:
        return GrantBalance(
            self.grant_id, self.number, self.amount, self.priority, self.effective_at, self.expires_at,
            self.rollover_amount, self.rollover_until, before, after, voided,
        )  # fmt: skip


Grants = tuple[GrantBalance, ...]
"""In the order in which they are spent."""


def credits_left(grants: Grants, at: datetime) -> int:
    """What may be spent of all grants together at that moment."""
    return sum([grant.left(at) for grant in grants]) if grants else 0


def draw(grants: Grants, amount: int, at: datetime) -> tuple[CreditUse, ...]:
    """From which grants ``amount`` is taken at that moment; they must have so much left."""
    uses = []
    for grant in grants:
        part = min(amount, grant.left(at))
        if part:
            uses.append(CreditUse(grant.grant_id, part))
            amount -= part
        if not amount:
            break
    assert amount == 0
    return tuple(uses)


def returned(uses: tuple[CreditUse, ...], amount: int) -> tuple[CreditUse, ...]:
    """Of what was drawn, what goes back when ``amount`` is not needed: the last drawn first."""
    back = []
    for use in reversed(uses):
        part = min(amount, use.amount)
        if part:
            back.append(CreditUse(use.grant_id, part))
        amount -= part
    return tuple(back)


def taken(grants: Grants, uses: tuple[CreditUse, ...], at: datetime, sign: int = 1) -> Grants:
    """The grants after the uses were taken at that moment, or with sign -1 given back to it."""
    amounts = {use.grant_id: use.amount * sign for use in uses}
    return tuple([grant.taken(amounts[grant.grant_id], at) if grant.grant_id in amounts else grant for grant in grants])


def find(grants: Grants, grant_id: str) -> GrantBalance | None:
    return next((grant for grant in grants if grant.grant_id == grant_id), None)


def is_full(grants: Grants, at: datetime) -> bool:
    """Whether no further grant can be remembered at that moment."""
    return len(grants) >= MAX_GRANTS and not any(grant.ended(at) for grant in grants)


def granted(grants: Grants, grant: GrantBalance, at: datetime) -> Grants:
    """The grants with one more, in the order of spending; when they are too many the oldest ended one is forgotten."""
    if len(grants) >= MAX_GRANTS:
        oldest = min((old for old in grants if old.ended(at)), key=lambda old: old.number, default=None)
        grants = tuple(old for old in grants if old is not oldest)
    return in_order((*grants, grant))


def in_order(grants: Iterable[GrantBalance]) -> Grants:
    return tuple(sorted(grants, key=lambda grant: (grant.priority, grant.expires_at or _NEVER, grant.number)))

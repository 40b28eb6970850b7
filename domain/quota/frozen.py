"""Freeze and thaw: a quota in a snapshot."""

from __future__ import annotations

from dataclasses import dataclass

from domain.kernel.persistent import Heap, Map
from domain.quota.commands import MAX_OPEN
from domain.quota.credits import GrantBalance
from domain.quota.evolve import _terms
from domain.quota.limits import NO_OVERDRAFT, FrozenTally, Overdraft, thaw_tally
from domain.quota.state import NOT_CONFIGURED, Closed, NotConfigured, Open, Quota, State


@dataclass(frozen=True, slots=True)
class FrozenQuota:
    """A quota for a snapshot, in a fixed order; one without a meter is not configured."""

    subject: str = ""
    meter: str = ""
    zone: str = "UTC"
    overdraft: Overdraft = NO_OVERDRAFT
    max_open: int = MAX_OPEN
    next_born: int = 0
    limits: tuple[FrozenTally, ...] = ()
    grants: tuple[GrantBalance, ...] = ()
    open: tuple[tuple[str, Open], ...] = ()
    closed: tuple[tuple[str, Closed], ...] = ()
    closed_before: tuple[tuple[str, Closed], ...] = ()
    used: int = 0
    reserved: int = 0


def freeze(state: State) -> FrozenQuota:
    if isinstance(state, NotConfigured):
        return FrozenQuota()
    terms = state.terms
    return FrozenQuota(
        terms.subject, terms.meter, terms.zone, terms.overdraft, terms.max_open, terms.next_born,
        tuple(tally.freeze() for tally in state.limits),
        state.grants,
        tuple(sorted(state.open.items(), key=_identity)),
        tuple(sorted(state.closed.items(), key=_identity)),
        tuple(sorted(state.closed_before.items(), key=_identity)),
        state.used, state.reserved,
    )  # fmt: skip


def _identity(pair: tuple[str, Open | Closed]) -> str:
    return pair[0]


def thaw(frozen: FrozenQuota) -> State:
    if not frozen.meter:
        return NOT_CONFIGURED
    return Quota(
        _terms(frozen.subject, frozen.meter, frozen.zone, frozen.overdraft, frozen.max_open, frozen.next_born),
        tuple(thaw_tally(tally, frozen.zone) for tally in frozen.limits),
        frozen.grants,
        Map(frozen.open),
        Heap([(held.expires_at, identity) for identity, held in frozen.open]),
        Map(frozen.closed),
        Map(frozen.closed_before),
        frozen.used,
        frozen.reserved,
    )

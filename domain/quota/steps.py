"""Steps that several decisions share: ending what is due, refusing what is too old, telling which thresholds are crossed."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar

from domain.kernel.decider import Event, Rejected
from domain.quota.events import ThresholdCrossed
from domain.quota.evolve import evolve
from domain.quota.limits import Tally
from domain.quota.refusals import QuotaNotFound
from domain.quota.state import NotConfigured, Quota, State, Terms, due


def _settled(state: State, at: datetime) -> tuple[Quota, list[Event]]:
    """The quota without what is due by then, and the events that made it so."""
    if isinstance(state, NotConfigured):
        raise QuotaNotFound()
    least = state.expiries.least
    if least is None or least[0] > at:
        return state, []
    events = due(state, at)
    settled: State = state
    for expired in events:
        settled = evolve(settled, expired)
    assert isinstance(settled, Quota)
    return settled, [*events]


class QuotaTooOld(Rejected):
    """The moment lies in a window that is no longer remembered."""

    code: ClassVar[str] = "quota.too_old"


def _check_age(limits: tuple[Tally, ...], at: datetime) -> None:
    for tally in limits:
        if tally.forgets(at):
            raise QuotaTooOld(limit_id=tally.limit.limit_id)


def _crossings(terms: Terms, tally: Tally, key: int, added: int, at: datetime) -> list[Event]:
    limit = tally.limit
    return [
        ThresholdCrossed(terms.subject, terms.meter, limit.limit_id, percent, limit.amount, tally.window_start(key), at)
        for percent in tally.crossings(key, added)
    ]

"""The quota as one value, for the catalog."""

from __future__ import annotations

from domain.kernel.decider import Decider
from domain.quota.admission import QuotaExceeded, ReservationExists, TooManyOpen
from domain.quota.commands import Adjust, Commit, Consume, Expire, Grant, Reserve, Rollback, SetLimits, VoidGrant
from domain.quota.decide import decide
from domain.quota.events import (
    Adjusted,
    Committed,
    Consumed,
    Expired,
    Granted,
    GrantVoided,
    LimitsSet,
    Progressed,
    Reserved,
    RolledBack,
    ThresholdCrossed,
)
from domain.quota.evolve import evolve
from domain.quota.frozen import FrozenQuota, freeze, thaw
from domain.quota.refusals import InvalidCommand, QuotaNotFound, ReservationClosed, ReservationNotFound
from domain.quota.replies import reply
from domain.quota.settling import CommitExceedsReserved, ReservationExpired
from domain.quota.state import NOT_CONFIGURED, State
from domain.quota.steps import QuotaTooOld
from domain.quota.terms import GrantExists, GrantNotFound, TooManyGrants

QUOTA: Decider[State] = Decider(
    category="quota",
    commands=(Reserve, Commit, Rollback, Consume, Expire, Grant, VoidGrant, SetLimits, Adjust),
    events=(
        LimitsSet, Reserved, Progressed, Committed, RolledBack, Expired, Consumed, Granted, GrantVoided, Adjusted, ThresholdCrossed,
    ),
    initial=NOT_CONFIGURED,
    decide=decide,
    evolve=evolve,
    reply=reply,
    frozen_type=FrozenQuota,
    freeze=freeze,
    thaw=thaw,
    refusals=(
        CommitExceedsReserved, GrantExists, GrantNotFound, InvalidCommand, QuotaExceeded, QuotaNotFound, QuotaTooOld,
        ReservationClosed, ReservationExists, ReservationExpired, ReservationNotFound, TooManyGrants, TooManyOpen,
    ),
)  # fmt: skip

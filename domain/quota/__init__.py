"""A quota: how much of one meter one subject may use, counted in windows and held by reservations.

Use is reserved before the work and committed after it, wholly or in parts; what is not committed is freed by a rollback or
by expiry. Every limit must have room for a reservation. What does not fit into limits that overflow is paid by credits,
and an overdraft lets limits go below zero. What is used counts in the windows of the moment it was reserved.
A reservation ends once: whoever comes first of a final commit, a rollback and the expiry wins. Expiry needs nobody's help:
each command first ends what is due by its own ``at``.
"""

from __future__ import annotations

from domain.quota.admission import QuotaExceeded, ReservationExists, TooManyOpen
from domain.quota.commands import (
    MAX_OPEN,
    MAX_TTL_SECONDS,
    Adjust,
    Commit,
    Consume,
    Expire,
    Grant,
    Mode,
    QuotaCommand,
    Reserve,
    Rollback,
    SetLimits,
    VoidGrant,
)
from domain.quota.credits import CreditUse
from domain.quota.decider import QUOTA
from domain.quota.events import (
    Adjusted,
    Committed,
    Consumed,
    Expired,
    Granted,
    GrantVoided,
    LimitsSet,
    Progressed,
    QuotaEvent,
    Reserved,
    RolledBack,
    ThresholdCrossed,
)
from domain.quota.frozen import FrozenQuota
from domain.quota.ids import quota_stream, reservation_id, stream_of_reservation
from domain.quota.limits import LIFETIME, Limit, Overdraft, Window
from domain.quota.moments import iso
from domain.quota.refusals import InvalidCommand, QuotaNotFound, ReservationClosed, ReservationNotFound
from domain.quota.settling import CommitExceedsReserved, ReservationExpired
from domain.quota.state import NOT_CONFIGURED, Closed, NotConfigured, Open, Quota, State
from domain.quota.steps import QuotaTooOld
from domain.quota.terms import GrantExists, GrantNotFound, TooManyGrants

__all__ = [
    "LIFETIME", "MAX_OPEN", "MAX_TTL_SECONDS", "NOT_CONFIGURED", "QUOTA", "Adjust", "Adjusted", "Closed", "Commit",
    "CommitExceedsReserved", "Committed", "Consume", "Consumed", "CreditUse", "Expire", "Expired", "FrozenQuota", "Grant",
    "GrantExists", "GrantNotFound", "GrantVoided", "Granted", "InvalidCommand", "Limit", "LimitsSet", "Mode",
    "NotConfigured", "Open", "Overdraft", "Progressed", "Quota", "QuotaCommand", "QuotaEvent", "QuotaExceeded",
    "QuotaNotFound", "QuotaTooOld", "ReservationClosed", "ReservationExists", "ReservationExpired", "ReservationNotFound",
    "Reserve", "Reserved", "Rollback", "RolledBack", "SetLimits", "State", "ThresholdCrossed", "TooManyGrants",
    "TooManyOpen", "VoidGrant", "Window", "iso", "quota_stream", "reservation_id", "stream_of_reservation",
]  # fmt: skip

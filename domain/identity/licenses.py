"""Licenses: under which plan a person uses what, and until when.

A license names a plan, the meters whose limits came with it, how many devices may be bound and, if it ends, when. It holds in the half-open
period up to that moment: from it on the license is expired, whether or not the deadline's command has recorded that yet. One that is
suspended waits for its resumption and may expire meanwhile. Setting a license anew replaces it, in whatever situation it is. The limits
themselves are those of the quotas, and the devices are counted where they are bound; both change in the batch that sets the license.

A person without any license is not held up here: tenants that give no licenses need none. One whose license was suspended, expired or
revoked is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, Literal, assert_never
from uuid import UUID

from domain.kernel.deadlines import Done, Due
from domain.kernel.decider import Command, Decider, Event, Rejected, event

__all__ = [
    "LICENSE", "ActiveLicense", "CheckLicense", "ExpireLicense", "ExpiredLicense", "LicenseEnded", "LicenseNotFound", "NoLicense",
    "ResumeLicense", "RevokeLicense", "RevokedLicense", "SetLicense", "SuspendLicense", "SuspendedLicense", "Terms", "license_stream",
    "licensed_person", "meters_of", "status", "terms_of",
]  # fmt: skip

MAX_METERS = 50
MAX_DEVICES = 100
EXPIRY = "expiry"


_PERSON = re.compile(r"[0-9a-f]{32}")


def license_stream(user_id: UUID) -> str:
    """The stream of a person's license."""
    return f"license-{user_id.hex}"


def licensed_person(subject: str) -> UUID | None:
    """The person whose quotas have this subject: the one whose id it is, as 32 hex digits. Of any other subject None."""
    return UUID(subject) if _PERSON.fullmatch(subject) else None


# Events. Stored for ever: never rename or remove a class or a field; a change of shape is a new version and an upcast.


@event("license.set")
@dataclass(frozen=True, slots=True)
class LicenseSet(Event):
    """A person got a license, or another one instead of the one before."""

    user_id: UUID
    plan: str
    valid_until: datetime | None
    devices: int
    meters: tuple[str, ...]
    at: datetime


@event("license.suspended")
@dataclass(frozen=True, slots=True)
class LicenseSuspended(Event):
    """A license holds no more until it is resumed."""

    at: datetime


@event("license.resumed")
@dataclass(frozen=True, slots=True)
class LicenseResumed(Event):
    """A suspended license holds again."""

    at: datetime


@event("license.revoked")
@dataclass(frozen=True, slots=True)
class LicenseRevoked(Event):
    """A license was taken away."""

    at: datetime


@event("license.expired")
@dataclass(frozen=True, slots=True)
class LicenseExpired(Event):
    """A license came to its end at ``valid_until``."""

    valid_until: datetime
    at: datetime


# Commands


@dataclass(slots=True, kw_only=True)
class SetLicense(Command):
    """``replaces`` are the meters of the license before, as whoever sends this has read them; None does not look at them.

    Whoever closes the quotas of meters that the new license is without must have seen the license that had them.
    """

    user_id: UUID
    plan: str
    valid_until: datetime | None
    devices: int
    meters: tuple[str, ...]
    replaces: tuple[str, ...] | None = None


@dataclass(slots=True, kw_only=True)
class SuspendLicense(Command):
    pass


@dataclass(slots=True, kw_only=True)
class ResumeLicense(Command):
    pass


@dataclass(slots=True, kw_only=True)
class RevokeLicense(Command):
    pass


@dataclass(slots=True, kw_only=True)
class ExpireLicense(Command):
    """What the deadline leads to; ``valid_until`` is the moment that it was set for."""

    valid_until: datetime


@dataclass(slots=True, kw_only=True)
class CheckLicense(Command):
    """Changes nothing, and refuses when the license has ended: part of a batch that needs it."""


LicenseCommand = SetLicense | SuspendLicense | ResumeLicense | RevokeLicense | ExpireLicense | CheckLicense
LicenseEvent = LicenseSet | LicenseSuspended | LicenseResumed | LicenseRevoked | LicenseExpired


# State


@dataclass(frozen=True, slots=True)
class Terms:
    """What a license gives; without ``valid_until`` it does not end by itself."""

    plan: str
    valid_until: datetime | None
    devices: int
    meters: tuple[str, ...]

    def over(self, at: datetime) -> bool:
        """Whether it has come to its end."""
        return self.valid_until is not None and self.valid_until <= at


@dataclass(frozen=True, slots=True)
class NoLicense:
    """There never was one."""


@dataclass(frozen=True, slots=True)
class ActiveLicense:
    """It holds, unless its end has come and nobody recorded it yet."""

    terms: Terms


@dataclass(frozen=True, slots=True)
class SuspendedLicense:
    """It waits to be resumed."""

    terms: Terms


@dataclass(frozen=True, slots=True)
class ExpiredLicense:
    """Its end has come."""

    terms: Terms


@dataclass(frozen=True, slots=True)
class RevokedLicense:
    """It was taken away; ``meters`` are those it had."""

    meters: tuple[str, ...] = ()


LicenseState = NoLicense | ActiveLicense | SuspendedLicense | ExpiredLicense | RevokedLicense
Status = Literal["active", "expired", "suspended", "none"]


def status(state: LicenseState, at: datetime) -> Status:
    """What the license is at that moment; its end is looked at before its suspension."""
    match state:
        case NoLicense() | RevokedLicense():
            return "none"
        case ExpiredLicense():
            return "expired"
        case ActiveLicense():
            return "expired" if state.terms.over(at) else "active"
        case SuspendedLicense():
            return "expired" if state.terms.over(at) else "suspended"
        case _:
            assert_never(state)


def terms_of(state: LicenseState) -> Terms | None:
    """What the license gives or gave; None when there is none."""
    match state:
        case NoLicense() | RevokedLicense():
            return None
        case ActiveLicense() | SuspendedLicense() | ExpiredLicense():
            return state.terms
        case _:
            assert_never(state)


def meters_of(state: LicenseState) -> tuple[str, ...]:
    """The meters whose limits came with the license, also with one that was revoked."""
    terms = terms_of(state)
    return terms.meters if terms is not None else state.meters if isinstance(state, RevokedLicense) else ()


# Decide


class InvalidLicense(Rejected):
    """A field of the license makes no sense."""

    code: ClassVar[str] = "license.invalid"
    frozen: ClassVar[bool] = False
    status: ClassVar[str] = "invalid"


class LicenseNotFound(Rejected):
    """The person has no license."""

    code: ClassVar[str] = "license.not_found"
    frozen: ClassVar[bool] = False
    status: ClassVar[str] = "not_found"


class LicenseChanged(Rejected):
    """The license was changed by somebody else at the same moment; look at it and set it again."""

    code: ClassVar[str] = "license.changed"
    frozen: ClassVar[bool] = False


class LicenseEnded(Rejected):
    """The license does not hold at present: it was suspended or revoked, or has expired.

    Not frozen: once it holds again, the same request may go through.
    """

    code: ClassVar[str] = "license.ended"
    frozen: ClassVar[bool] = False


class LicenseNotDue(Rejected):
    """The license does not end at this moment."""

    code: ClassVar[str] = "license.not_due"
    frozen: ClassVar[bool] = False


def decide_license(command: LicenseCommand, state: LicenseState) -> Sequence[Event]:
    """The checks come in this order: shape of the command, existence, situation."""
    match command:
        case SetLicense():
            return _set(command, state)
        case SuspendLicense():
            return _suspend(command, state)
        case ResumeLicense():
            return _resume(command, state)
        case RevokeLicense():
            return _revoke(command, state)
        case ExpireLicense():
            return _expire(command, state)
        case CheckLicense():
            return _check(command, state)
        case _:
            assert_never(command)


def _set(command: SetLicense, state: LicenseState) -> Sequence[Event]:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.\- ]{0,63}", command.plan):
        raise InvalidLicense("plan")
    if command.valid_until is not None and (command.valid_until.utcoffset() is None or command.valid_until <= command.at):
        raise InvalidLicense("valid_until")
    if not 0 <= command.devices <= MAX_DEVICES:
        raise InvalidLicense("devices")
    if len(command.meters) > MAX_METERS or len(set(command.meters)) != len(command.meters):
        raise InvalidLicense("limits")
    if command.replaces is not None and set(command.replaces) != set(meters_of(state)):
        raise LicenseChanged()
    wanted = Terms(command.plan, command.valid_until, command.devices, tuple(sorted(command.meters)))
    if isinstance(state, ActiveLicense) and state.terms == wanted:
        return ()
    return [LicenseSet(command.user_id, wanted.plan, wanted.valid_until, wanted.devices, wanted.meters, command.at)]


def _suspend(command: SuspendLicense, state: LicenseState) -> Sequence[Event]:
    match status(state, command.at):
        case "none":
            raise LicenseNotFound()
        case "expired":
            raise _ended(state, command.at)
        case "suspended":
            return ()
        case "active":
            return [LicenseSuspended(command.at)]


def _resume(command: ResumeLicense, state: LicenseState) -> Sequence[Event]:
    match status(state, command.at):
        case "none":
            raise LicenseNotFound()
        case "expired":
            raise _ended(state, command.at)
        case "suspended":
            return [LicenseResumed(command.at)]
        case "active":
            return ()


def _revoke(command: RevokeLicense, state: LicenseState) -> Sequence[Event]:
    match state:
        case NoLicense():
            raise LicenseNotFound()
        case RevokedLicense():
            return ()
        case ActiveLicense() | SuspendedLicense() | ExpiredLicense():
            return [LicenseRevoked(command.at)]
        case _:
            assert_never(state)


def _expire(command: ExpireLicense, state: LicenseState) -> Sequence[Event]:
    match state:
        case ActiveLicense() | SuspendedLicense():
            valid_until = state.terms.valid_until
            if valid_until is None or valid_until != command.valid_until or command.at < valid_until:
                raise LicenseNotDue()
            return [LicenseExpired(valid_until, command.at)]
        case NoLicense() | ExpiredLicense() | RevokedLicense():
            return ()
        case _:
            assert_never(state)


def _check(command: CheckLicense, state: LicenseState) -> Sequence[Event]:
    if not isinstance(state, NoLicense) and status(state, command.at) != "active":
        raise _ended(state, command.at)
    return ()


def _ended(state: LicenseState, at: datetime) -> LicenseEnded:
    terms, shown = terms_of(state), status(state, at)
    if shown == "expired" and terms is not None and terms.valid_until is not None:
        return LicenseEnded(status=shown, valid_until=terms.valid_until.isoformat())
    return LicenseEnded(status=shown)


# Evolve


def evolve_license(state: LicenseState, event: LicenseEvent) -> LicenseState:
    """Never refuses."""
    match event:
        case LicenseSet():
            return ActiveLicense(Terms(event.plan, event.valid_until, event.devices, event.meters))
        case LicenseSuspended():
            terms = terms_of(state)
            return state if terms is None else SuspendedLicense(terms)
        case LicenseResumed():
            terms = terms_of(state)
            return state if terms is None else ActiveLicense(terms)
        case LicenseExpired():
            terms = terms_of(state)
            return state if terms is None else ExpiredLicense(terms)
        case LicenseRevoked():
            return RevokedLicense(meters_of(state))
        case _:
            assert_never(event)


# Reply


def reply_license(command: LicenseCommand, before: LicenseState, after: LicenseState, events: Sequence[Event]) -> Mapping[str, Any]:
    if isinstance(command, CheckLicense):
        return {}
    terms = terms_of(after)
    if terms is None:
        return {"plan": None, "status": "none"}
    valid_until = terms.valid_until.isoformat() if terms.valid_until else None
    told = {"plan": terms.plan, "status": status(after, command.at), "valid_until": valid_until}
    return {**told, "devices": terms.devices, "meters": terms.meters}


# Freeze and thaw


@dataclass(frozen=True, slots=True)
class FrozenLicense:
    """A license for a snapshot; ``meters`` are those of one that was revoked."""

    situation: Literal["none", "active", "suspended", "expired", "revoked"] = "none"
    terms: Terms | None = None
    meters: tuple[str, ...] = ()


def freeze_license(state: LicenseState) -> FrozenLicense:
    match state:
        case NoLicense():
            return FrozenLicense()
        case ActiveLicense():
            return FrozenLicense("active", state.terms)
        case SuspendedLicense():
            return FrozenLicense("suspended", state.terms)
        case ExpiredLicense():
            return FrozenLicense("expired", state.terms)
        case RevokedLicense():
            return FrozenLicense("revoked", meters=state.meters)
        case _:
            assert_never(state)


def thaw_license(frozen: FrozenLicense) -> LicenseState:
    match frozen:
        case FrozenLicense("active", Terms() as terms):
            return ActiveLicense(terms)
        case FrozenLicense("suspended", Terms() as terms):
            return SuspendedLicense(terms)
        case FrozenLicense("expired", Terms() as terms):
            return ExpiredLicense(terms)
        case FrozenLicense("revoked"):
            return RevokedLicense(frozen.meters)
        case _:
            return NoLicense()


# Deadlines


def deadlines_of_license(event: LicenseEvent) -> Sequence[Due | Done]:
    match event:
        case LicenseSet():
            return (Done(EXPIRY) if event.valid_until is None else Due(EXPIRY, event.valid_until),)
        case LicenseRevoked() | LicenseExpired():
            return (Done(EXPIRY),)
        case LicenseSuspended() | LicenseResumed():
            return ()
        case _:
            assert_never(event)


def license_when_due(name: str, at: datetime) -> Command:
    if name != EXPIRY:
        raise LookupError(f"no deadline is named {name}")
    return ExpireLicense(valid_until=at)


LICENSE: Decider[LicenseState] = Decider(
    category="license",
    commands=(SetLicense, SuspendLicense, ResumeLicense, RevokeLicense, ExpireLicense, CheckLicense),
    events=(LicenseSet, LicenseSuspended, LicenseResumed, LicenseRevoked, LicenseExpired),
    initial=NoLicense(),
    decide=decide_license,
    evolve=evolve_license,
    reply=reply_license,
    frozen_type=FrozenLicense,
    freeze=freeze_license,
    thaw=thaw_license,
    refusals=(InvalidLicense, LicenseNotFound, LicenseChanged, LicenseEnded, LicenseNotDue),
    deadlines=deadlines_of_license,
    when_due=license_when_due,
)

"""Consents: to what somebody agreed, in which version of the text, and when.

Each purpose stands for itself: withdrawing ``marketing`` leaves ``processing`` as it is. Another version of a text needs a consent of its
own, which replaces the one before. The same consent given twice is one, and what was never given can be withdrawn: nobody has to
know first what stands. What supports a consent (a message's text, a form) is sealed before it comes here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, assert_never
from uuid import UUID, uuid5

from domain.kernel.decider import Command, Decider, Event, Rejected, event

__all__ = [
    "CONSENTS", "Consent", "ConsentGiven", "ConsentWithdrawn", "Consents", "GiveConsent", "WithdrawAllConsents", "WithdrawConsent",
    "consents_stream",
]  # fmt: skip

PURPOSE = r"^[a-z][a-z0-9_.\-]{0,62}$"
VERSION = r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,62}$"
MAX_PURPOSES = 100
MAX_EVIDENCE = 32_768


def consents_stream(tenant_id: UUID, person_id: UUID) -> str:
    """The stream of a person's consents, made of the tenant too: ids of people come from outside."""
    return f"consents-{uuid5(tenant_id, f'consents|{person_id.hex}').hex}"


# Events. Stored for ever: never rename or remove a class or a field; a change of shape is a new version and an upcast.


@event("consent.given")
@dataclass(frozen=True, slots=True)
class ConsentGiven(Event):
    """Somebody agreed to a purpose, in this version of its text. ``evidence`` is sealed."""

    person_id: UUID
    purpose: str
    version: str
    evidence: str | None
    at: datetime


@event("consent.withdrawn")
@dataclass(frozen=True, slots=True)
class ConsentWithdrawn(Event):
    """A consent ended; ``version`` is what had been agreed to."""

    person_id: UUID
    purpose: str
    version: str
    at: datetime


# Commands


@dataclass(slots=True, kw_only=True)
class GiveConsent(Command):
    person_id: UUID
    purpose: str
    version: str
    evidence: str | None = None


@dataclass(slots=True, kw_only=True)
class WithdrawConsent(Command):
    person_id: UUID
    purpose: str


@dataclass(slots=True, kw_only=True)
class WithdrawAllConsents(Command):
    """Part of an erasure."""

    person_id: UUID


ConsentCommand = GiveConsent | WithdrawConsent | WithdrawAllConsents
ConsentEvent = ConsentGiven | ConsentWithdrawn


# State


@dataclass(frozen=True, slots=True)
class Consent:
    """One that stands."""

    purpose: str
    version: str
    given_at: datetime


@dataclass(frozen=True, slots=True)
class Consents:
    """Those that stand, in the order they were given; what was withdrawn is in the log alone."""

    standing: tuple[Consent, ...] = ()

    def find(self, purpose: str) -> Consent | None:
        """The consent to a purpose, if it stands."""
        return next((consent for consent in self.standing if consent.purpose == purpose), None)


# Decide


class InvalidConsent(Rejected):
    """A field of the consent makes no sense."""

    code: ClassVar[str] = "consent.invalid"
    frozen: ClassVar[bool] = False
    status: ClassVar[str] = "invalid"


class TooManyPurposes(Rejected):
    """There are consents to as many purposes as there may be."""

    code: ClassVar[str] = "consent.too_many_purposes"
    frozen: ClassVar[bool] = False


def decide_consents(command: ConsentCommand, state: Consents) -> Sequence[Event]:
    """The checks come in this order: shape of the command, number of purposes."""
    match command:
        case GiveConsent():
            return _give(command, state)
        case WithdrawConsent():
            _check_purpose(command.purpose)
            found = state.find(command.purpose)
            return [] if found is None else [_withdrawn(command, found)]
        case WithdrawAllConsents():
            return [_withdrawn(command, consent) for consent in state.standing]
        case _:
            assert_never(command)


def _give(command: GiveConsent, state: Consents) -> Sequence[Event]:
    _check_purpose(command.purpose)
    if not re.fullmatch(VERSION, command.version):
        raise InvalidConsent("version")
    if command.evidence is not None and len(command.evidence) > MAX_EVIDENCE:
        raise InvalidConsent("evidence")
    found = state.find(command.purpose)
    if found is not None and found.version == command.version:
        return ()
    if found is None and len(state.standing) >= MAX_PURPOSES:
        raise TooManyPurposes(max_purposes=MAX_PURPOSES)
    return [ConsentGiven(command.person_id, command.purpose, command.version, command.evidence, command.at)]


def _check_purpose(purpose: str) -> None:
    if not re.fullmatch(PURPOSE, purpose):
        raise InvalidConsent("purpose")


def _withdrawn(command: WithdrawConsent | WithdrawAllConsents, consent: Consent) -> ConsentWithdrawn:
    return ConsentWithdrawn(command.person_id, consent.purpose, consent.version, command.at)


# Evolve


def evolve_consents(state: Consents, event: ConsentEvent) -> Consents:
    """Never refuses."""
    others = tuple(consent for consent in state.standing if consent.purpose != event.purpose)
    match event:
        case ConsentGiven():
            return Consents((*others, Consent(event.purpose, event.version, event.at)))
        case ConsentWithdrawn():
            return Consents(others)
        case _:
            assert_never(event)


# Reply


def reply_consents(command: ConsentCommand, before: Consents, after: Consents, events: Sequence[Event]) -> Mapping[str, Any]:
    if isinstance(command, WithdrawAllConsents):
        return {"status": "withdrawn"}
    return shown(command.purpose, after.find(command.purpose))


def shown(purpose: str, consent: Consent | None) -> Mapping[str, Any]:
    """A consent as it is told: whether it stands, and since when in which version."""
    if consent is None:
        return {"purpose": purpose, "status": "withdrawn"}
    return {"purpose": purpose, "status": "given", "version": consent.version, "given_at": consent.given_at.isoformat()}


# Freeze and thaw


def _same(state: Consents) -> Consents:
    return state


CONSENTS: Decider[Consents] = Decider(
    category="consents",
    commands=(GiveConsent, WithdrawConsent, WithdrawAllConsents),
    events=(ConsentGiven, ConsentWithdrawn),
    initial=Consents(),
    decide=decide_consents,
    evolve=evolve_consents,
    reply=reply_consents,
    frozen_type=Consents,
    freeze=_same,
    thaw=_same,
    refusals=(InvalidConsent, TooManyPurposes),
)

"""People, as privacy knows them: whose personal data is sealed with one key, and whether that was erased.

A person of the tenant has the id they have as a user; any other subject, the user of a bot for instance, has one made of tenant and
subject. What is erased stays erased: the key is destroyed and never made anew, so somebody who comes back with personal data is a new
person, with a new id. That the erasure is recorded comes first, the destruction of the key second: whoever finds the record completes
what it asks for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, assert_never
from uuid import UUID, uuid5

from domain.kernel.decider import Command, Decider, Event, event

__all__ = ["PERSON", "ErasedPerson", "RecordErasure", "SubjectErased", "person_of", "person_stream"]

_ID = re.compile(r"[0-9a-f]{32}")


def person_of(tenant_id: UUID, subject: str) -> UUID:
    """Whose key seals what is personal about a subject: 32 hex digits are the id itself."""
    if _ID.fullmatch(subject):
        return UUID(subject)
    return uuid5(tenant_id, f"person|{subject}")


def person_stream(tenant_id: UUID, person_id: UUID) -> str:
    """The stream of a person. It is made of the tenant too: ids of people come from outside, and nobody may begin another's stream."""
    return f"person-{uuid5(tenant_id, f'person|{person_id.hex}').hex}"


# Events. Stored for ever: never rename or remove a class or a field; a change of shape is a new version and an upcast.


@event("privacy.subject_erased")
@dataclass(frozen=True, slots=True)
class SubjectErased(Event):
    """Everything personal about somebody is to be unreadable from now on."""

    person_id: UUID
    at: datetime


# Commands


@dataclass(slots=True, kw_only=True)
class RecordErasure(Command):
    person_id: UUID


PersonEvent = SubjectErased


# State


@dataclass(frozen=True, slots=True)
class NotErased:
    """Nobody asked for it, or nothing is known of them."""


@dataclass(frozen=True, slots=True)
class ErasedPerson:
    """Erased, first at that moment."""

    person_id: UUID
    at: datetime


PersonState = NotErased | ErasedPerson


# Decide


def decide_person(command: RecordErasure, state: PersonState) -> Sequence[Event]:
    """Nothing is refused: whoever asks twice gets what they asked for."""
    match state:
        case NotErased():
            return [SubjectErased(command.person_id, command.at)]
        case ErasedPerson():
            return ()
        case _:
            assert_never(state)


# Evolve


def evolve_person(state: PersonState, event: PersonEvent) -> PersonState:
    """Never refuses."""
    return ErasedPerson(event.person_id, event.at)


# Reply


def reply_person(command: RecordErasure, before: PersonState, after: PersonState, events: Sequence[Event]) -> Mapping[str, Any]:
    return {"person_id": command.person_id.hex, "status": "erased"}


# Freeze and thaw


@dataclass(frozen=True, slots=True)
class FrozenPerson:
    """A person for a snapshot; one without an id was not erased."""

    person_id: UUID | None = None
    at: datetime | None = None


def freeze_person(state: PersonState) -> FrozenPerson:
    match state:
        case NotErased():
            return FrozenPerson()
        case ErasedPerson():
            return FrozenPerson(state.person_id, state.at)
        case _:
            assert_never(state)


def thaw_person(frozen: FrozenPerson) -> PersonState:
    if frozen.person_id is None or frozen.at is None:
        return NotErased()
    return ErasedPerson(frozen.person_id, frozen.at)


PERSON: Decider[PersonState] = Decider(
    category="person",
    commands=(RecordErasure,),
    events=(SubjectErased,),
    initial=NotErased(),
    decide=decide_person,
    evolve=evolve_person,
    reply=reply_person,
    frozen_type=FrozenPerson,
    freeze=freeze_person,
    thaw=thaw_person,
)

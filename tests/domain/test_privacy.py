"""Privacy: given events, when a command, then events or a refusal; and what is masked in logs."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.kernel.decider import Command, Decider, Event, Rejected
from domain.privacy.consents import (
    CONSENTS,
    MAX_PURPOSES,
    Consent,
    ConsentGiven,
    Consents,
    ConsentWithdrawn,
    GiveConsent,
    WithdrawAllConsents,
    WithdrawConsent,
    consents_stream,
)
from domain.privacy.people import PERSON, ErasedPerson, NotErased, RecordErasure, SubjectErased, person_of, person_stream
from domain.privacy.retention import KINDS, RETENTION, ResetRetention, Retention, RetentionReset, RetentionSet, SetRetention

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ANNA, ACME, OTHER = UUID(int=1), UUID(int=7), UUID(int=8)


def folded(decider: Decider[Any], given: list[Event]) -> Any:
    state = decider.initial
    for event in given:
        state = decider.evolve(state, event)
    return state


def then(decider: Decider[Any], given: list[Event], when: Command) -> list[Event] | str:
    """What the command leads to: events, or the refusal's code and field."""
    when.at = NOW
    try:
        return list(decider.decide(when, folded(decider, given)))
    except Rejected as refusal:
        return f"{refusal.code} {refusal.field_name or ''}".strip()


# People


def test_a_person_is_erased_once() -> None:
    erased = SubjectErased(ANNA, NOW)

    assert then(PERSON, [], RecordErasure(person_id=ANNA)) == [erased]
    assert then(PERSON, [erased], RecordErasure(person_id=ANNA)) == []
    assert folded(PERSON, [erased]) == ErasedPerson(ANNA, NOW)


@pytest.mark.parametrize("state", [NotErased(), ErasedPerson(ANNA, NOW)])
def test_a_person_survives_a_snapshot(state: Any) -> None:
    assert PERSON.thaw(PERSON.freeze(state)) == state


def test_an_id_is_the_person_and_any_other_subject_has_one_of_its_own_in_each_tenant() -> None:
    assert person_of(ACME, ANNA.hex) == ANNA
    assert person_of(ACME, "tg:17") == person_of(ACME, "tg:17")
    assert (
        len({person_of(ACME, "tg:17"), person_of(OTHER, "tg:17"), person_of(ACME, "tg:18"), person_of(ACME, ANNA.hex.upper() + "x")}) == 4
    )


def test_streams_of_one_person_in_two_tenants_are_two() -> None:
    """Otherwise a stranger who knows an id could write the stream's first event, and the tenant none any more."""
    assert person_stream(ACME, ANNA) != person_stream(OTHER, ANNA)
    assert consents_stream(ACME, ANNA) != consents_stream(OTHER, ANNA)


# Consents


def give(purpose: str = "marketing", version: str = "1", evidence: str | None = None) -> GiveConsent:
    return GiveConsent(person_id=ANNA, purpose=purpose, version=version, evidence=evidence)


def withdraw(purpose: str = "marketing") -> WithdrawConsent:
    return WithdrawConsent(person_id=ANNA, purpose=purpose)


def given_(purpose: str = "marketing", version: str = "1", evidence: str | None = None) -> ConsentGiven:
    return ConsentGiven(ANNA, purpose, version, evidence, NOW)


def withdrawn(purpose: str = "marketing", version: str = "1") -> ConsentWithdrawn:
    return ConsentWithdrawn(ANNA, purpose, version, NOW)


@pytest.mark.parametrize(
    ("given", "when", "expected"),
    [
        ([], give(), [given_()]),
        ([], give(evidence="hbs1.x"), [given_(evidence="hbs1.x")]),
        ([given_()], give(), []),
        ([given_()], give(version="2"), [given_(version="2")]),
        ([given_(version="2")], give(version="1"), [given_(version="1")]),
        ([given_()], give("processing"), [given_("processing")]),
        ([given_(), withdrawn()], give(), [given_()]),
        ([], withdraw(), []),
        ([given_()], withdraw("processing"), []),
        ([given_(version="2")], withdraw(), [withdrawn(version="2")]),
        ([given_(), withdrawn()], withdraw(), []),
        ([], WithdrawAllConsents(person_id=ANNA), []),
        ([given_(), given_("processing", "3")], WithdrawAllConsents(person_id=ANNA), [withdrawn(), withdrawn("processing", "3")]),
        ([given_(f"p{n}") for n in range(MAX_PURPOSES)], give(), "consent.too_many_purposes"),
        ([given_(f"p{n}") for n in range(MAX_PURPOSES)], give("p1", "2"), [given_("p1", "2")]),
        ([], give("Marketing"), "consent.invalid purpose"),
        ([], give(""), "consent.invalid purpose"),
        ([], give("a" * 64), "consent.invalid purpose"),
        ([], give("marketing\n"), "consent.invalid purpose"),
        ([], give(version=""), "consent.invalid version"),
        ([], give(version="two words"), "consent.invalid version"),
        ([], give(evidence="x" * 40_000), "consent.invalid evidence"),
        ([], withdraw("Marketing"), "consent.invalid purpose"),
    ],
)
def test_consents(given: list[Event], when: Command, expected: object) -> None:
    assert then(CONSENTS, given, when) == expected


@given(st.lists(st.tuples(st.sampled_from(["give", "withdraw"]), st.sampled_from(["a", "b"]), st.sampled_from(["1", "2"]))))
def test_the_last_word_of_each_purpose_stands(words: list[tuple[str, str, str]]) -> None:
    state, last = Consents(), dict[str, str | None]()
    for word, purpose, version in words:
        command = give(purpose, version) if word == "give" else withdraw(purpose)
        command.at = NOW
        for event in CONSENTS.decide(command, state):
            state = CONSENTS.evolve(state, event)
        last[purpose] = version if word == "give" else None

    assert {each.purpose: each.version for each in state.standing} == {name: version for name, version in last.items() if version}
    assert CONSENTS.thaw(CONSENTS.freeze(state)) == state


def test_a_consent_says_since_when_it_stands() -> None:
    assert folded(CONSENTS, [given_(version="2")]).find("marketing") == Consent("marketing", "2", NOW)


# Retention


@pytest.mark.parametrize(
    ("given", "when", "expected"),
    [
        ([], SetRetention(kind="telemetry", days=14), [RetentionSet("telemetry", 14, NOW)]),
        ([RetentionSet("telemetry", 14, NOW)], SetRetention(kind="telemetry", days=14), []),
        ([RetentionSet("telemetry", 14, NOW)], ResetRetention(kind="telemetry"), [RetentionReset("telemetry", NOW)]),
        ([], ResetRetention(kind="telemetry"), []),
        ([], SetRetention(kind="telemetry", days=0), "retention.invalid days"),
        ([], SetRetention(kind="telemetry", days=-1), "retention.invalid days"),
        ([], SetRetention(kind="telemetry", days=401), "retention.invalid days"),
        ([], SetRetention(kind="telemetry", days=None), "retention.invalid days"),
        ([], SetRetention(kind="inactive_people", days=29), "retention.invalid days"),
        ([], SetRetention(kind="inactive_people", days=30), [RetentionSet("inactive_people", 30, NOW)]),
        ([RetentionSet("inactive_people", 30, NOW)], SetRetention(kind="inactive_people", days=None),
         [RetentionSet("inactive_people", None, NOW)]),
        ([], SetRetention(kind="letters", days=3), "retention.invalid kind"),
        ([], ResetRetention(kind="letters"), "retention.invalid kind"),
    ],
)  # fmt: skip
def test_retention(given: list[Event], when: Command, expected: object) -> None:
    assert then(RETENTION, given, when) == expected


def test_defaults_hold_until_something_is_chosen() -> None:
    assert {kind: Retention().days(kind) for kind in KINDS} == {kind: KINDS[kind].default for kind in KINDS}
    assert Retention().days("inactive_people") is None
    assert folded(RETENTION, [RetentionSet("origins", 7, NOW)]).days("origins") == 7
    assert folded(RETENTION, [RetentionSet("origins", 7, NOW), RetentionReset("origins", NOW)]).days("origins") == KINDS["origins"].default


@settings(max_examples=200)
@given(st.sampled_from(sorted(KINDS)), st.one_of(st.none(), st.integers(-10, 50_000)))
def test_no_policy_is_ever_out_of_its_bounds(kind: str, days: int | None) -> None:
    told = then(RETENTION, [], SetRetention(kind=kind, days=days))

    bounds = KINDS[kind]
    within = (bounds.most is None) if days is None else bounds.least <= days <= (bounds.most or 36_500)
    assert isinstance(told, list) == within


def test_ids_are_of_anybody() -> None:
    subject = uuid4().hex
    assert person_of(ACME, subject).hex == subject

"""Upcasters raise old payloads step by step, and nothing else ever changes what was stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from domain.kernel.decider import Decider, Event, event
from eventstore.codec import Codec


@event("sample.happened", version=3)
@dataclass(frozen=True, slots=True, kw_only=True)
class Happened(Event):
    amount_minor: int
    currency: str
    note: str | None = None


def decider(upcasts: dict[tuple[str, int], Any]) -> Decider[None]:
    return Decider(
        category="sample",
        commands=(),
        events=(Happened,),
        initial=None,
        decide=lambda command, state: (),
        evolve=lambda state, event: None,
        reply=lambda command, before, after, events: {},
        frozen_type=None,
        freeze=lambda state: None,
        thaw=lambda frozen: None,
        upcasts=upcasts,
    )


STEPS = {
    ("sample.happened", 1): lambda old: {"amount_minor": old["amount"] * 100},
    ("sample.happened", 2): lambda old: {**old, "currency": "RUB"},
}


@pytest.mark.parametrize(
    ("stored", "payload", "expected"),
    [
        ("sample.happened", '{"amount": 5}', Happened(amount_minor=500, currency="RUB")),
        ("sample.happened.v2", '{"amount_minor": 5}', Happened(amount_minor=5, currency="RUB")),
        ("sample.happened.v3", '{"amount_minor": 5, "currency": "EUR"}', Happened(amount_minor=5, currency="EUR")),
    ],
)
def test_every_version_is_read_as_the_present_one(stored: str, payload: str, expected: Happened) -> None:
    assert Codec([decider(STEPS)]).decode(stored, payload) == expected


def test_an_event_is_written_under_its_present_version() -> None:
    stored, payload = Codec([decider(STEPS)]).encode(Happened(amount_minor=1, currency="RUB"))

    assert (stored, payload) == ("sample.happened.v3", '{"amount_minor":1,"currency":"RUB","note":null}')


def test_a_missing_upcaster_is_found_at_start() -> None:
    with pytest.raises(KeyError):
        Codec([decider({("sample.happened", 1): STEPS["sample.happened", 1]})])


def test_two_aggregates_of_one_category_are_refused() -> None:
    with pytest.raises(ValueError, match="two aggregates"):
        Codec([decider(STEPS), decider(STEPS)])

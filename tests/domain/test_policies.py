"""Rates of a tenant: what may be set, what changes nothing, what is refused."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from domain.identity.policies import (
    MAX_AMOUNT,
    MAX_RATES,
    MAX_SECONDS,
    POLICIES,
    InvalidPolicy,
    Policies,
    RateNotFound,
    RatePolicy,
    RateRemoved,
    RateSet,
    RemoveRatePolicy,
    SetRatePolicy,
    TooManyRates,
)

AT = datetime(2026, 11, 21, 5, 45, tzinfo=UTC)
BOT = SetRatePolicy(name="bot", amount=5, seconds=60, exempt_roles=("owner", "admin"), at=AT)


def given(*commands: Any) -> Policies:
    state = POLICIES.initial
    for command in commands:
        for event in POLICIES.decide(command, state):
            state = POLICIES.evolve(state, event)
    return state


def test_a_rate_is_set_with_its_roles_in_one_order() -> None:
    assert POLICIES.decide(BOT, given()) == [RateSet("bot", 5, 60, ("admin", "owner"), AT)]
    assert given(BOT).rate("bot") == RatePolicy("bot", 5, 60, ("admin", "owner"))


def test_what_is_set_already_leaves_no_event() -> None:
    same = SetRatePolicy(name="bot", amount=5, seconds=60, exempt_roles=("admin", "owner", "admin"), at=AT)

    assert POLICIES.decide(same, given(BOT)) == ()


def test_a_change_replaces_the_rate_and_leaves_the_others() -> None:
    model = SetRatePolicy(name="ai", amount=3, seconds=300, at=AT)
    wider = SetRatePolicy(name="bot", amount=9, seconds=60, at=AT)

    assert given(BOT, model, wider).rates == (RatePolicy("ai", 3, 300, ()), RatePolicy("bot", 9, 60, ()))


def test_a_rate_is_removed_once() -> None:
    state = given(BOT)

    assert POLICIES.decide(RemoveRatePolicy(name="bot", at=AT), state) == [RateRemoved("bot", AT)]
    with pytest.raises(RateNotFound):
        POLICIES.decide(RemoveRatePolicy(name="bot", at=AT), given(BOT, RemoveRatePolicy(name="bot", at=AT)))


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("name", ""),
        ("name", "Bot"),
        ("name", "b" * 42),
        ("amount", 0),
        ("amount", MAX_AMOUNT + 1),
        ("seconds", 0),
        ("seconds", MAX_SECONDS + 1),
        ("exempt_roles", ("nobody",)),
    ],
)
def test_a_field_that_makes_no_sense_is_named(field: str, wrong: Any) -> None:
    fields = {"name": "bot", "amount": 5, "seconds": 60, "exempt_roles": (), field: wrong}

    with pytest.raises(InvalidPolicy) as refused:
        POLICIES.decide(SetRatePolicy(**fields, at=AT), given())

    assert refused.value.field_name == field


def test_there_are_only_so_many_rates_and_each_may_still_be_changed() -> None:
    full = given(*(SetRatePolicy(name=f"r{i}", amount=1, seconds=1, at=AT) for i in range(MAX_RATES)))

    with pytest.raises(TooManyRates):
        POLICIES.decide(BOT, full)
    assert POLICIES.decide(SetRatePolicy(name="r1", amount=2, seconds=1, at=AT), full)

"""Logins: whose each is, and that it is one person's at most."""

from datetime import UTC, datetime
from uuid import UUID

import pytest

from domain.identity.logins import LOGIN, ClaimLogin, LoginClaimed, LoginReleased, ReleaseLogin, is_login
from domain.kernel.decider import Command, Event
from tests.domain.test_tenants import then

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ANNA, BORIS = UUID(int=1), UUID(int=2)
CLAIMED, RELEASED = LoginClaimed(ANNA, NOW), LoginReleased(ANNA, NOW)


@pytest.mark.parametrize(
    ("given", "when", "expected"),
    [
        ([], ClaimLogin(user_id=ANNA), [CLAIMED]),
        ([CLAIMED], ClaimLogin(user_id=ANNA), []),
        ([CLAIMED], ClaimLogin(user_id=BORIS), "login.taken"),
        ([CLAIMED], ReleaseLogin(user_id=ANNA), [RELEASED]),
        ([CLAIMED], ReleaseLogin(user_id=BORIS), []),
        ([], ReleaseLogin(user_id=ANNA), []),
        ([CLAIMED, RELEASED], ClaimLogin(user_id=BORIS), [LoginClaimed(BORIS, NOW)]),
    ],
)
def test_a_login_is_one_persons_at_most(given: list[Event], when: Command, expected: object) -> None:
    assert then(LOGIN, given, when) == expected  # type: ignore[arg-type]  # state types differ by decider


@pytest.mark.parametrize("given", [[], [CLAIMED], [CLAIMED, RELEASED]])
def test_freezing_and_thawing_change_nothing(given: list[Event]) -> None:
    state = LOGIN.initial
    for event in given:
        state = LOGIN.evolve(state, event)

    assert LOGIN.thaw(LOGIN.freeze(state)) == state


def test_only_a_digest_has_the_shape_of_a_login() -> None:
    assert is_login("ab" * 16)
    assert not is_login("anna@example.com")
    assert not is_login("AB" * 16)

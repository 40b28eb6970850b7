"""Keys of service accounts: given events, when a command, then events or a refusal."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest

from domain.identity.service_accounts import (
    MAX_KEYS,
    SERVICE_ACCOUNT,
    IssueKey,
    KeyIssued,
    KeyReplaced,
    KeyRevoked,
    RevokeKey,
    RotateKey,
    ServiceAccount,
)
from tests.support.kit import NOW, given

HASH, OTHER = "a" * 64, "b" * 64
DAY = timedelta(days=1)
ISSUED = KeyIssued("0000000a", HASH, ("usage:read",), "bot", None, NOW)
LIMITED = replace(ISSUED, expires_at=NOW + 30 * DAY)


def issue(key_id: str = "0000000a", **more: Any) -> IssueKey:
    return IssueKey(**{"key_id": key_id, "secret_hash": HASH, "scopes": ("usage:read",), "name": "bot", **more})


def rotate(**more: Any) -> RotateKey:
    return RotateKey(**{"key_id": "0000000a", "new_key_id": "0000000b", "secret_hash": OTHER, "overlap_seconds": 600, **more})


def follows(expires_at: datetime | None = None, at: datetime = NOW) -> KeyIssued:
    return KeyIssued("0000000b", OTHER, ("usage:read",), "bot", expires_at, at)


def test_a_key_is_issued_once() -> None:
    given(SERVICE_ACCOUNT).when(issue()).then(ISSUED)
    given(SERVICE_ACCOUNT, ISSUED).when(issue(), NOW + DAY).then()
    given(SERVICE_ACCOUNT, LIMITED).when(issue(expires_at=NOW + 30 * DAY), NOW + DAY).then()
    given(SERVICE_ACCOUNT, ISSUED).when(issue(name="other")).refused("service.key_exists")
    given(SERVICE_ACCOUNT, ISSUED, KeyRevoked("0000000a", NOW)).when(issue()).refused("service.key_exists")


def test_an_account_that_must_be_there_is_there_or_was() -> None:
    given(SERVICE_ACCOUNT).when(issue(begins=False)).refused("service.account_not_found")
    given(SERVICE_ACCOUNT, ISSUED).when(issue("0000000b", secret_hash=OTHER, begins=False)).then(follows())
    ended = KeyRevoked("0000000a", NOW)
    given(SERVICE_ACCOUNT, ISSUED, ended).when(issue("0000000b", secret_hash=OTHER, begins=False)).then(follows())


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"key_id": "A"}, "key_id"),
        ({"secret_hash": "x"}, "secret_hash"),
        ({"scopes": ()}, "scopes"),
        ({"scopes": ("self:manage",)}, "scopes"),
        ({"name": ""}, "name"),
        ({"expires_at": NOW}, "expires_at"),
    ],
)
def test_a_key_that_makes_no_sense_is_refused(more: dict[str, Any], field: str) -> None:
    given(SERVICE_ACCOUNT).when(issue(**more)).refused("service.key_invalid", field)


def test_a_rotation_issues_the_same_anew_and_ends_the_old_one_after_the_overlap() -> None:
    replaced = KeyReplaced("0000000a", "0000000b", NOW + timedelta(seconds=600), NOW)
    given(SERVICE_ACCOUNT, ISSUED).when(rotate()).then(follows(), replaced)

    state = SERVICE_ACCOUNT.initial
    for event in (ISSUED, follows(), replaced):
        state = SERVICE_ACCOUNT.evolve(state, event)
    old, new = state.find("0000000a"), state.find("0000000b")
    assert old is not None
    assert new is not None
    assert old.valid(NOW + timedelta(seconds=599.9))
    assert not old.valid(NOW + timedelta(seconds=600))
    assert new.valid(NOW + timedelta(days=10_000))


def test_a_key_that_was_to_expire_is_followed_by_one_that_lasts_as_long() -> None:
    later = NOW + 29 * DAY + timedelta(hours=23, minutes=59)
    ends = KeyReplaced("0000000a", "0000000b", NOW + 30 * DAY, later)
    given(SERVICE_ACCOUNT, LIMITED).when(rotate(), later).then(follows(later + 30 * DAY, later), ends)

    soon = KeyReplaced("0000000a", "0000000b", NOW + timedelta(seconds=600), NOW)
    again = rotate(new_key_id="0000000c", overlap_seconds=0)
    third = replace(follows(NOW + 30 * DAY), key_id="0000000c")
    given(SERVICE_ACCOUNT, LIMITED, follows(NOW + 30 * DAY), soon).when(again).then(third, KeyReplaced("0000000a", "0000000c", NOW, NOW))


def test_what_cannot_be_rotated() -> None:
    given(SERVICE_ACCOUNT).when(rotate()).refused("service.key_not_found")
    given(SERVICE_ACCOUNT, ISSUED, KeyRevoked("0000000a", NOW)).when(rotate()).refused("service.key_not_found")
    given(SERVICE_ACCOUNT, LIMITED).when(rotate(), NOW + 30 * DAY).refused("service.key_expired")
    given(SERVICE_ACCOUNT, ISSUED).when(rotate(may_give=frozenset({"usage:write"}))).refused("service.scopes_not_yours")
    given(SERVICE_ACCOUNT, ISSUED).when(rotate(new_key_id="0000000a")).refused("service.key_exists")
    given(SERVICE_ACCOUNT, ISSUED).when(rotate(overlap_seconds=-1)).refused("service.key_invalid", "overlap_seconds")
    given(SERVICE_ACCOUNT, ISSUED).when(rotate(expires_at=NOW)).refused("service.key_invalid", "expires_at")


def test_an_account_has_so_many_good_keys_and_forgets_expired_ones_with_the_next() -> None:
    many = [replace(LIMITED, key_id=f"{number:08x}") for number in range(MAX_KEYS)]
    given(SERVICE_ACCOUNT, *many).when(issue("ffffffff")).refused("service.too_many_keys")
    given(SERVICE_ACCOUNT, *many).when(rotate(new_key_id="ffffffff")).refused("service.too_many_keys")

    late = NOW + 31 * DAY
    next_one = replace(ISSUED, key_id="ffffffff", at=late)
    given(SERVICE_ACCOUNT, *many).when(issue("ffffffff"), late).then(next_one)
    given(SERVICE_ACCOUNT, *many, next_one).when(issue("00000001"), late).refused("service.key_exists")
    given(SERVICE_ACCOUNT, *many, next_one).when(RevokeKey(key_id="00000001"), late).then()


def test_a_snapshot_is_the_state() -> None:
    state = ServiceAccount()
    for event in (LIMITED, follows(), KeyReplaced("0000000a", "0000000b", NOW + DAY, NOW), KeyRevoked("0000000b", NOW)):
        state = SERVICE_ACCOUNT.evolve(state, event)

    stored = msgspec.json.decode(msgspec.json.encode(SERVICE_ACCOUNT.freeze(state)), type=SERVICE_ACCOUNT.frozen_type)
    assert SERVICE_ACCOUNT.thaw(stored) == state

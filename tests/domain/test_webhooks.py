"""Endpoints: given events, when a command, then events or a refusal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID

import msgspec
import pytest

from domain import webhooks
from domain.kernel.decider import Command, Event, Rejected
from domain.webhooks import (
    MAX_ENDPOINTS,
    OVERLAP_SECONDS,
    WEBHOOKS,
    ChangeEndpoint,
    DeleteEndpoint,
    DisableEndpoint,
    EnableEndpoint,
    Endpoints,
    RegisterEndpoint,
    ReplayMessage,
    RotateSecret,
    SendTest,
    matches,
)

AT = datetime(2027, 3, 28, 0, 30, tzinfo=UTC)
LATER = AT + timedelta(hours=1)
A, B = UUID(int=10), UUID(int=11)
URL = "https://hooks.example.com/in"
REGISTERED = webhooks.Registered(A, URL, ("quota.",), "billing", AT)
DISABLED = webhooks.Disabled(A, "failing", AT)
MESSAGE = "0f0e0d0c-0b0a-4908-8706-050403020100:0"


def given(*events: Event) -> Endpoints:
    state = WEBHOOKS.initial
    for event in events:
        state = WEBHOOKS.evolve(state, event)
    return state


def when(state: Endpoints, command: Command, at: datetime = LATER) -> Sequence[Event]:
    command.at = at
    return WEBHOOKS.decide(command, state)


def refused(state: Endpoints, command: Command) -> Rejected:
    with pytest.raises(Rejected) as caught:
        when(state, command)
    return caught.value


def register(**other: Any) -> RegisterEndpoint:
    return RegisterEndpoint(**{"endpoint_id": A, "url": URL, "types": ("quota.",), "description": "billing", **other})


def test_an_endpoint_is_registered_enabled_with_its_first_secret() -> None:
    assert when(given(), register(), AT) == [REGISTERED]

    (endpoint,) = given(REGISTERED).endpoints
    assert (endpoint.disabled, endpoint.signing(LATER)) == (None, (1,))


def test_registering_the_same_again_changes_nothing_and_something_else_under_its_id_is_refused() -> None:
    assert when(given(REGISTERED), register()) == ()
    assert refused(given(REGISTERED), register(url=f"{URL}/other")).code == "webhook.exists"


def test_a_tenant_has_so_many_endpoints_and_no_more() -> None:
    full = given(*(webhooks.Registered(UUID(int=n), URL, (), "", AT) for n in range(MAX_ENDPOINTS)))

    assert refused(full, register(endpoint_id=UUID(int=999))).code == "webhook.too_many"
    assert when(WEBHOOKS.evolve(full, webhooks.Deleted(UUID(int=3), AT)), register(endpoint_id=UUID(int=999)))


@pytest.mark.parametrize(
    "url",
    [
        "", "hooks.example.com", "ftp://hooks.example.com/", "https://", "https:///in", "https://user@hooks.example.com/",
        "https://user:pw@hooks.example.com/", "https://@hooks.example.com/", "https://hooks.example.com/#part", "https://hooks.example.com\\@evil/",
        "https://hooks.example.com/ in", "https://hooks.example.com/\tin", "https://hooks.exämple.com/", "https://hooks.example.com:0/",
        "https://hooks.example.com:99999/", "https://hooks.example.com:x/", "https://[::1/", "https://::1/", "https://[fe80::1%25eth0]/",
        "https://[v1.x]/", "https://hooks..example.com/", "https://.example.com/", "https://ho\u200boks.example.com/",
        "https://a/" + "x" * 2000,
        "javascript:alert(1)", "https:/hooks.example.com", "HTTPS://hooks.example.com/", "https://hooks.example.com:80@evil/",
        "https://[::1]evil/", "https://%31%32%37.0.0.1/",
    ],
)  # fmt: skip
def test_what_parsers_could_read_in_two_ways_is_no_address(url: str) -> None:
    for command in (register(url=url), ChangeEndpoint(endpoint_id=A, url=url)):
        rejected = refused(given(REGISTERED), command)
        assert (rejected.code, rejected.field_name, rejected.frozen) == ("webhook.invalid", "url", False)


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example.com", "http://hooks.example.com:8080/a/b?c=d&e=%2F", "https://1.1.1.1/", "https://[2606:4700::1111]:8443/in",
        "https://xn--exmple-cua.com/", "https://a_b.example.com/~x", "https://hooks.example.com./",
    ],
)  # fmt: skip
def test_plain_addresses_are_taken(url: str) -> None:
    assert when(given(), register(url=url))


@pytest.mark.parametrize(
    "types", [("",), ("Quota.",), ("quota.*",), ("quota..",), (".quota",), ("quota.", "quota."), ("x" * 101,), ("a.",) * 101]
)
def test_types_that_make_no_sense_are_refused(types: tuple[str, ...]) -> None:
    assert refused(given(), register(types=types)).field_name == "types"


def test_a_description_has_a_limit() -> None:
    assert refused(given(), register(description="x" * 201)).field_name == "description"


@pytest.mark.parametrize(
    ("types", "stored", "expected"),
    [
        ((), "quota.reserved", True),
        ((), "quota.reserved.v3", True),
        (("quota.",), "quota.reserved", True),
        (("quota.",), "quotas.reserved", False),
        (("quota.reserved",), "quota.reserved", True),
        (("quota.reserved",), "quota.reserved.v2", True),
        (("quota.reserved",), "quota.reserved_again", False),
        (("quota",), "quota.reserved", False),
        (("tenant.", "quota.committed"), "quota.committed", True),
        ((), "webhook.disabled", True),
        (("webhook.",), "webhook.registered", False),
        (("webhook.registered",), "webhook.registered", False),
        ((), "webhook.secret_rotated.v2", False),
        ((), "service.key_issued", False),
        (("service.key_issued",), "service.key_issued", False),
        ((), "log.pruned", False),
        ((), "consumer.skipped", False),
    ],
)
def test_an_endpoint_is_told_of_its_types_and_never_of_what_is_nobodys_news(types: tuple[str, ...], stored: str, expected: bool) -> None:
    assert matches(types, stored) is expected


def test_a_change_is_recorded_once() -> None:
    change = ChangeEndpoint(endpoint_id=A, url=f"{URL}/2", types=(), description="")

    (event,) = when(given(REGISTERED), change)
    assert event == webhooks.Changed(A, f"{URL}/2", (), "", LATER)
    assert when(given(REGISTERED, event), change) == ()


def test_an_old_secret_signs_along_for_its_time() -> None:
    (rotated,) = when(given(REGISTERED), RotateSecret(endpoint_id=A))
    (endpoint,) = given(REGISTERED, rotated).endpoints
    end = LATER + timedelta(seconds=OVERLAP_SECONDS)

    assert endpoint.signing(LATER) == (2, 1)
    assert endpoint.signing(end - timedelta(microseconds=1)) == (2, 1)
    assert endpoint.signing(end) == (2,)


def test_a_rotation_without_overlap_ends_all_older_secrets_at_once() -> None:
    state = given(REGISTERED)
    for overlap in (OVERLAP_SECONDS, OVERLAP_SECONDS, 0):
        (event,) = when(state, RotateSecret(endpoint_id=A, overlap_seconds=overlap))
        state = WEBHOOKS.evolve(state, event)

    assert state.endpoints[0].signing(LATER) == (4,)


def test_a_later_rotation_does_not_prolong_an_older_secret() -> None:
    first = webhooks.SecretRotated(A, 2, AT + timedelta(hours=2), AT)
    (second,) = when(given(REGISTERED, first), RotateSecret(endpoint_id=A))
    endpoint = given(REGISTERED, first, second).endpoints[0]

    assert endpoint.signing(AT + timedelta(hours=1, minutes=59)) == (3, 2, 1)
    assert endpoint.signing(AT + timedelta(hours=2)) == (3, 2)


def test_only_so_many_secrets_sign_at_once() -> None:
    state = given(REGISTERED)
    for _ in range(3):
        (event,) = when(state, RotateSecret(endpoint_id=A))
        state = WEBHOOKS.evolve(state, event)

    assert refused(state, RotateSecret(endpoint_id=A)).code == "webhook.too_many_secrets"
    assert when(state, RotateSecret(endpoint_id=A, overlap_seconds=0))
    assert when(state, RotateSecret(endpoint_id=A), LATER + timedelta(days=2))


@pytest.mark.parametrize("overlap", [-1, 7 * 86_400 + 1])
def test_an_overlap_has_bounds(overlap: int) -> None:
    assert refused(given(REGISTERED), RotateSecret(endpoint_id=A, overlap_seconds=overlap)).field_name == "overlap_seconds"


def test_disabling_and_enabling_are_recorded_when_they_change_something() -> None:
    assert when(given(REGISTERED), DisableEndpoint(endpoint_id=A)) == [webhooks.Disabled(A, "asked", LATER)]
    assert when(given(REGISTERED, DISABLED), DisableEndpoint(endpoint_id=A)) == ()
    assert when(given(REGISTERED, DISABLED), EnableEndpoint(endpoint_id=A)) == [webhooks.Enabled(A, LATER)]
    assert when(given(REGISTERED), EnableEndpoint(endpoint_id=A)) == ()


@pytest.mark.parametrize(
    "mended",
    [
        webhooks.Changed(A, f"{URL}/2", (), "", AT),
        webhooks.SecretRotated(A, 2, AT, AT),
        webhooks.Enabled(A, AT),
    ],
)
def test_an_endpoint_that_was_mended_meanwhile_is_not_given_up(mended: Event) -> None:
    seen = given(REGISTERED).endpoints[0].revision
    give_up = DisableEndpoint(endpoint_id=A, reason="failing", revision=seen)

    assert when(given(REGISTERED), give_up) == [webhooks.Disabled(A, "failing", LATER)]
    assert when(given(REGISTERED, mended), give_up) == ()


def test_a_test_and_a_replay_are_events_of_their_own() -> None:
    assert when(given(REGISTERED), SendTest(endpoint_id=A, message_id=MESSAGE)) == [webhooks.RequestedTest(A, LATER)]
    replay = ReplayMessage(endpoint_id=A, message_id=MESSAGE, message_type="quota.reserved", position=7)
    assert when(given(REGISTERED), replay) == [webhooks.ReplayRequested(A, MESSAGE, "quota.reserved", 7, LATER)]
    assert refused(given(REGISTERED, DISABLED), replay).code == "webhook.is_disabled"
    assert refused(given(REGISTERED, DISABLED), SendTest(endpoint_id=A, message_id=MESSAGE)).code == "webhook.is_disabled"


@pytest.mark.parametrize(
    "command",
    [
        ChangeEndpoint(endpoint_id=B, url=URL),
        RotateSecret(endpoint_id=B),
        DisableEndpoint(endpoint_id=B),
        EnableEndpoint(endpoint_id=B),
        DeleteEndpoint(endpoint_id=B),
        SendTest(endpoint_id=B, message_id=MESSAGE),
        ReplayMessage(endpoint_id=B, message_id=MESSAGE, message_type="quota.reserved", position=7),
    ],
    ids=lambda command: type(command).__name__,
)
def test_nothing_can_be_asked_of_an_endpoint_that_is_not_there(command: Command) -> None:
    for state in (given(REGISTERED), given(REGISTERED, webhooks.Registered(B, URL, (), "", AT), webhooks.Deleted(B, AT))):
        rejected = refused(state, command)
        assert (rejected.code, rejected.status, rejected.frozen) == ("webhook.not_found", "not_found", False)


def test_replies_tell_what_people_see_and_no_secret() -> None:
    before, after = given(), given(REGISTERED)

    told = WEBHOOKS.reply(register(), before, after, [REGISTERED])

    assert told["webhook_id"] == A.hex
    assert (told["state"], told["secret_number"], told["url"]) == ("enabled", 1, URL)
    assert "whsec" not in str(told)
    assert WEBHOOKS.reply(DeleteEndpoint(endpoint_id=A), after, before, [])["status"] == "deleted"


def test_a_state_survives_a_snapshot() -> None:
    state = given(REGISTERED, webhooks.SecretRotated(A, 2, LATER, AT), DISABLED, webhooks.Registered(B, URL, (), "", AT))
    text = msgspec.json.encode(WEBHOOKS.freeze(state))

    assert WEBHOOKS.thaw(msgspec.json.decode(text, type=WEBHOOKS.frozen_type)) == state


def test_every_command_and_event_is_listed() -> None:
    classes = [cast("type[Any]", value) for value in vars(webhooks).values() if isinstance(value, type)]

    assert {c for c in classes if issubclass(c, Event) and c is not Event} == set(WEBHOOKS.events)
    assert {c for c in classes if issubclass(c, Command) and c is not Command} == set(WEBHOOKS.commands)
    assert {c for c in classes if issubclass(c, Rejected) and c is not Rejected} == set(WEBHOOKS.refusals)
    assert all("secret" not in field.name and "key" not in field.name for event in WEBHOOKS.events for field in fields(cast("Any", event)))

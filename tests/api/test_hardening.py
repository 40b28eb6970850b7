"""Headers of every answer, and whose word about the client's address is taken."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from api.hardening import Hardening
from api.origin import Origin, client_address, household_of, network_of, origin_of
from api.settings import Settings
from tests.api.conftest import Site

PROXIES = Settings(trusted_proxies="10.0.0.0/8, 2001:db8:1::/48")


def scope(peer: str | None, forwarded: str | list[str] | None = None, proto: str | None = None, scheme: str = "http") -> dict[str, Any]:
    lines = [] if forwarded is None else [forwarded] if isinstance(forwarded, str) else forwarded
    headers = [(b"x-forwarded-for", line.encode()) for line in lines]
    if proto is not None:
        headers.append((b"x-forwarded-proto", proto.encode()))
    return {"client": None if peer is None else (peer, 1), "scheme": scheme, "headers": headers}


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("10.0.0.1", "203.0.113.9", "203.0.113.9"),
        ("10.0.0.1", "6.6.6.6, 203.0.113.9", "203.0.113.9"),  # what stands left of it the client wrote itself
        ("10.0.0.1", "6.6.6.6, 203.0.113.9, 10.0.0.2", "203.0.113.9"),
        ("10.0.0.1", ["6.6.6.6", "203.0.113.9", "10.0.0.2"], "203.0.113.9"),
        ("10.0.0.1", "203.0.113.9, what is this", "10.0.0.1"),
        ("10.0.0.1", "203.0.113.9, junk, 10.0.0.7", "10.0.0.7"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", None, "10.0.0.1"),
        ("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),  # a client inside: every hop is ours
        ("10.0.0.1", "203.0.113.9:4711", "203.0.113.9"),
        ("10.0.0.1", "[2001:db8:2::1]:443", "2001:db8:2::1"),
        ("10.0.0.1", "::ffff:203.0.113.9", "203.0.113.9"),
        ("::ffff:10.0.0.1", "203.0.113.9", "203.0.113.9"),
        ("2001:db8:1::5", "203.0.113.9", "203.0.113.9"),
        ("203.0.113.9", "6.6.6.6", "203.0.113.9"),  # not one of ours: what it says is worth nothing
        ("11.0.0.1", "10.0.0.1", "11.0.0.1"),
    ],
)
def test_hops_are_believed_from_the_right_and_only_ours(peer: str, forwarded: Any, address: str) -> None:
    assert client_address(scope(peer, forwarded), PROXIES) == address


def test_nobody_is_believed_without_the_setting() -> None:
    assert origin_of(scope("10.0.0.1", "6.6.6.6", "https"), Settings()) == Origin("10.0.0.1", False)
    assert origin_of(scope(None, "6.6.6.6"), Settings(trusted_proxies="0.0.0.0/0")) == Origin("unknown", False)


@pytest.mark.parametrize(
    ("peer", "forwarded", "proto", "secure"),
    [
        ("10.0.0.1", "203.0.113.9", "https", True),
        ("10.0.0.1", "203.0.113.9", "http", False),
        ("10.0.0.1", "203.0.113.9", "https, http", False),  # the client wrote https, our proxy http
        ("10.0.0.1", "203.0.113.9, 10.0.0.2", "https, http", True),  # the outer proxy spoke TLS, the way inside is plain
        ("203.0.113.9", None, "https", False),
        ("10.0.0.1", "203.0.113.9", "nonsense", False),
    ],
)
def test_the_scheme_is_taken_from_the_hop_that_knows_it(peer: str, forwarded: str | None, proto: str, secure: bool) -> None:
    assert origin_of(scope(peer, forwarded, proto), PROXIES).secure is secure


def test_a_list_without_end_is_read_to_its_bound_only() -> None:
    assert client_address(scope("10.0.0.1", ", ".join(["6.6.6.6", *["10.0.0.2"] * 40])), PROXIES) == "10.0.0.2"


def test_networks_that_are_none_are_refused_by_name_without_the_value() -> None:
    with pytest.raises(ValidationError) as refused:
        Settings(trusted_proxies="10.0.0.0/8, secret")
    assert "trusted_proxies" in str(refused.value)
    assert "secret" not in str(refused.value)


def test_addresses_are_shortened_to_what_neighbours_share() -> None:
    assert [network_of(each) for each in ("203.0.113.9", "2001:db8:2:3::9", "unknown")] == ["203.0.113.0/24", "2001:db8:2::/48", "unknown"]
    assert [household_of(each) for each in ("203.0.113.9", "2001:db8:2:3::9")] == ["203.0.113.9", "2001:db8:2:3::/64"]


@pytest.mark.parametrize(
    ("settings", "given", "sent"),
    [
        (Settings(), scope("203.0.113.9"), False),
        (Settings(), scope("203.0.113.9", None, "https"), False),
        (Settings(), scope("203.0.113.9", scheme="https"), True),
        (PROXIES, scope("10.0.0.1", "203.0.113.9", "https"), True),
        (PROXIES, scope("203.0.113.9", None, "https"), False),
        (Settings(hsts_seconds=0), scope("203.0.113.9", scheme="https"), False),
    ],
)
def test_strict_transport_security_is_said_only_over_tls(settings: Settings, given: dict[str, Any], sent: bool) -> None:
    names = dict(Hardening(settings).of(given, []))

    assert (b"strict-transport-security" in names) is sent


def test_a_page_keeps_its_own_policy_and_cache_header() -> None:
    own = [(b"content-security-policy", b"default-src 'self'"), (b"cache-control", b"public, max-age=60")]

    added = dict(Hardening(Settings()).of(scope("203.0.113.9"), own))

    assert not {b"content-security-policy", b"cache-control"} & set(added)
    assert added[b"x-content-type-options"] == b"nosniff"


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("path", ["/v1/usage", "/v1/nothing", "/livez", "/v1/auth/nothing", "/openapi.json", "/v1/usage/reserve"])
async def test_every_answer_carries_them_once(site: Site, path: str) -> None:
    for headers in ({}, site.account.headers):
        answer = await site.client.get(path, headers=headers)

        told = {name: answer.headers.get_list(name) for name in _EXPECTED}
        assert told == {name: [value] for name, value in _EXPECTED.items()}


_EXPECTED = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
}

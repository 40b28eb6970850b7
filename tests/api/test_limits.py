"""The shield: how many requests a session, a person, a key and an address may send in a while."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from fastapi import FastAPI

from api.app import create_app
from api.auth import Principal
from api.limits import Shield, Windows
from api.problems import Problem
from api.settings import Settings
from domain.catalog import DECIDERS
from domain.identity.permissions import ROLES
from eventstore.store import Store
from tests.api.conftest import Site
from tests.support.people import sign_in, signed


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def person(user_id: UUID | None = None, session: str = "s1", role: str = "member") -> Principal:
    user_id = user_id or uuid4()
    return Principal(TENANT, user_id.hex, f"user:{user_id.hex}", ROLES[role], session, user_id, role)


TENANT = uuid4()
MANY = Settings(rate_token_per_second=20, rate_user_per_minute=100)


def taken(shield: Shield, principal: Principal, most: int = 1000) -> int:
    """How many requests pass until one is refused."""
    for count in range(most):
        try:
            shield.person(principal)
        except Problem:
            return count
    return most


def test_twenty_a_second_of_one_session_then_room_again_as_time_goes_on() -> None:
    clock = Clock()
    shield, who = Shield(MANY, clock), person()

    assert taken(shield, who) == 20
    clock.now += 0.99
    assert taken(shield, who) == 0
    clock.now += 0.02
    assert taken(shield, who) == 20


def test_a_hundred_a_minute_of_one_person_whatever_the_number_of_sessions() -> None:
    clock = Clock()
    shield, user_id = Shield(MANY, clock), uuid4()

    counts = [taken(shield, person(user_id, f"s{i}")) for i in range(7)]

    assert counts == [20, 20, 20, 20, 20, 0, 0]
    assert taken(shield, person(session="another")) == 20
    clock.now += 60.01
    assert taken(shield, person(user_id)) == 20


def test_the_window_moves_and_does_not_begin_anew_at_a_border() -> None:
    clock = Clock()
    shield, who = Shield(Settings(rate_token_per_second=0, rate_user_per_minute=6), clock), person()
    for _ in range(6):
        shield.person(who)
        clock.now += 10

    assert taken(shield, who) == 1  # the first has just left
    clock.now += 10
    assert taken(shield, who) == 1


def test_what_the_person_s_limit_refuses_takes_nothing_from_the_session() -> None:
    shield, user_id = Shield(Settings(rate_token_per_second=5, rate_user_per_minute=3), Clock()), uuid4()
    assert taken(shield, person(user_id)) == 3

    with pytest.raises(Problem) as refused:
        shield.person(person(user_id))

    assert refused.value.members["policy"] == "user"
    assert [len(window.moments) for window in shield.windows._windows.values()] == [3, 3]


def test_headers_tell_policies_and_what_is_left() -> None:
    clock = Clock()
    shield, who = Shield(MANY, clock), person()
    shield.person(who)
    clock.now += 0.5

    headers = dict(shield.person(who))

    assert headers == {
        b"ratelimit-policy": b'"token";q=20;w=1, "user";q=100;w=60',
        b"ratelimit": b'"token";r=18;t=1, "user";r=98;t=60',
    }


def test_a_refusal_says_which_policy_and_when_to_come_again() -> None:
    clock = Clock()
    shield, who = Shield(Settings(rate_token_per_second=0, rate_user_per_minute=2), clock), person()
    shield.person(who)
    clock.now += 12.5
    shield.person(who)

    with pytest.raises(Problem) as refused:
        shield.person(who)

    assert refused.value.body()["code"] == "rate.limited"
    assert (refused.value.status, refused.value.members["policy"]) == (429, "user")
    assert refused.value.headers["Retry-After"] == "48"


def test_an_ipv6_client_is_its_network_of_64_bits() -> None:
    shield = Shield(Settings(rate_address_per_minute=2), Clock())
    shield.address("2001:db8::1")
    shield.address("2001:db8::2")

    with pytest.raises(Problem):
        shield.address("2001:db8::3")
    assert shield.address("2001:db8:0:1::1")


def test_invented_addresses_do_not_fill_the_memory() -> None:
    clock = Clock()
    windows = Windows(clock, remembered=100)
    for i in range(10_000):
        assert windows.acquire_entry(str(i), 5, 60)
    assert len(windows) <= 100

    clock.now += 61
    for _ in range(60):
        windows.acquire_entry("again", 100, 60)
    assert len(windows) == 1


def test_keys_have_no_limit_unless_one_is_set() -> None:
    assert not Shield(Settings()).counts_keys
    shield = Shield(Settings(rate_key_per_second=2), Clock())
    key = replace(person(), user_id=None)

    shield.key(key)
    shield.key(key)
    with pytest.raises(Problem):
        shield.key(key)


@asynccontextmanager
async def application(principal: Principal | None, **settings: Any) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient]]:
    """The real application over a store that forgets, and with a clock that stands still; whoever sends is that principal."""
    store = Store.in_memory(DECIDERS)
    nobody: Any = None
    app = create_app(store, nobody, Settings(**settings))
    app.state.edge.shield = Shield(app.state.edge.settings, Clock())

    async def known(*_: Any, **__: Any) -> Principal | None:
        return principal

    if principal is not None:
        app.state.edge.authenticator.principal = known
    transport = httpx.ASGITransport(app=app, client=("203.0.113.9", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://holdbook") as client:
        yield app, client
    await store.drain()


async def test_every_route_counts_a_person_and_answers_carry_the_headers() -> None:
    async with application(person(role="owner"), rate_token_per_second=0, rate_user_per_minute=3) as (_, client):
        body = {"amount": 1, "correlation_id": "1"}
        answers = [
            await client.post("/v1/usage/reserve", json=body),
            await client.get("/v1/policies/rates"),
            await client.post("/v1/batches", content=b"nonsense"),
            await client.get("/v1/policies/rates"),
        ]

    assert [answer.status_code for answer in answers] == [404, 200, 400, 429]
    assert [answer.headers["ratelimit"] for answer in answers] == [f'"user";r={left};t=60' for left in (2, 1, 0, 0)]
    assert answers[3].json()["policy"] == "user"
    assert answers[3].headers["content-type"] == "application/problem+json"


async def test_nothing_of_a_refused_request_is_recorded() -> None:
    async with application(person(role="owner"), rate_token_per_second=0, rate_user_per_minute=1) as (app, client):
        await client.get("/v1/policies/rates")
        for i in range(5):
            assert (await client.post("/v1/usage/reserve", json={"amount": 1, "correlation_id": str(i)})).status_code == 429

        rows = await app.state.edge.store.writer(TENANT).log.read(0, 100)

    assert rows == []


async def test_below_auth_requests_are_counted_by_address_and_a_made_up_header_changes_nothing() -> None:
    async with application(None, rate_address_per_minute=2) as (_, client):
        answers = [
            await client.post("/v1/auth/nothing", headers={"X-Forwarded-For": f"6.6.6.{i}", "Authorization": "Bearer x"}) for i in range(3)
        ]
        elsewhere = await client.get("/livez")

    assert [answer.status_code for answer in answers] == [404, 404, 429]
    assert answers[0].headers["ratelimit-policy"] == '"address";q=2;w=60'
    assert elsewhere.status_code == 200
    assert "ratelimit" not in elsewhere.headers


async def test_behind_a_trusted_proxy_each_client_is_counted_alone() -> None:
    async with application(None, rate_address_per_minute=1, trusted_proxies="203.0.113.0/24") as (_, client):
        answers = [await client.post("/v1/auth/nothing", headers={"X-Forwarded-For": f"6.6.6.{i}"}) for i in (1, 2, 1)]

    assert [answer.status_code for answer in answers] == [404, 404, 429]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_key_s_answers_carry_no_limit_by_default(site: Site) -> None:
    answer = await site.get("/v1/quotas")

    assert answer.status_code == 200
    assert "ratelimit" not in answer.headers


@pytest.mark.asyncio(loop_scope="module")
async def test_a_person_s_token_is_counted_on_whatever_route_and_another_session_apart(site: Site) -> None:
    who = await signed(site, "member")
    again = await sign_in(site, who.tenant_id, who.user_id, who.role, who.email)
    edge = site.app.state.edge
    before, edge.shield = edge.shield, Shield(Settings(rate_token_per_second=3, rate_user_per_minute=5), Clock())
    try:
        paths = ["/v1/usage", "/v1/sessions", "/v1/quotas", "/v1/usage"]
        first = [await site.client.get(path, headers=who.headers) for path in paths]
        second = [await site.client.get("/v1/quotas", headers=again.headers) for _ in range(3)]
        key = await site.get("/v1/quotas")
    finally:
        edge.shield = before

    assert [answer.status_code for answer in first] == [404, 200, 200, 429]
    assert first[3].json()["policy"] == "token"
    assert [answer.status_code for answer in second] == [200, 200, 429]
    assert second[2].json()["policy"] == "user"
    assert key.status_code == 200

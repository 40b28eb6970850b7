"""A person without the permission for others uses and reads their own quotas alone, whichever address they try."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import httpx
import pytest

from api.bodies import CommandBody
from api.routes.batches import COMMANDS
from domain.identity.permissions import ROLES
from tests.api.conftest import Site
from tests.support.people import signed

pytestmark = pytest.mark.asyncio(loop_scope="module")


@asynccontextmanager
async def person(site: Site, role: str = "member") -> AsyncIterator[tuple[httpx.AsyncClient, str]]:
    """A client that sends a person's access token, and the subject that is theirs."""
    who = await signed(site, role)
    async with httpx.AsyncClient(base_url=site.url, headers=who.headers, timeout=30, trust_env=False) as client:
        yield client, who.user_id.hex


async def limited(site: Site, *subjects: str) -> int:
    """The quota of each, and the log's position behind them."""
    answers = [await site.limit(subject) for subject in subjects]
    return int(answers[-1].headers["holdbook-position"])


def not_yours(answer: httpx.Response) -> bool:
    return answer.status_code == 403 and answer.json()["code"] == "auth.not_yours"


async def test_their_own_is_meant_when_none_is_named(site: Site) -> None:
    async with person(site) as (client, mine):
        await limited(site, mine, "default")
        reserved = await client.post("/v1/usage/reserve", json={"messages": 40, "correlation_id": "1"})
        named = await client.post("/v1/usage/consume", json={"messages": 5, "subject": mine, "correlation_id": "2"})
        position = named.headers["holdbook-position"]
        usage = await client.get("/v1/usage", params={"min_position": position})

    assert (reserved.json()["remaining"], named.json()["remaining"]) == (60, 55)
    assert usage.json()["subject"] == mine
    assert (await site.get("/v1/usage", min_position=position)).json()["limits"][0]["remaining"] == 100


TRIES: dict[str, Callable[[httpx.AsyncClient, str], Awaitable[httpx.Response]]] = {
    "reserve": lambda client, theirs: client.post("/v1/usage/reserve", json={"messages": 1, "subject": theirs, "correlation_id": "x"}),
    "reserve, old address": lambda client, theirs: client.post(
        "/usage/reserve", json={"messages": 1, "subject": theirs, "correlation_id": "x"}
    ),
    "check": lambda client, theirs: client.post(
        "/v1/usage/reserve", json={"messages": 1, "subject": theirs, "mode": "check_only", "correlation_id": "x"}
    ),
    "consume": lambda client, theirs: client.post("/v1/usage/consume", json={"messages": 1, "subject": theirs, "correlation_id": "x"}),
    "batch": lambda client, theirs: client.post(
        "/v1/batches",
        json={"correlation_id": "x", "commands": [{"op": "reserve", "messages": 1}, {"op": "consume", "messages": 1, "subject": theirs}]},
    ),
    "usage": lambda client, theirs: client.get("/v1/usage", params={"subject": theirs}),
    "usage, default by name": lambda client, _: client.get("/v1/usage", params={"subject": "default"}),
    "as it was": lambda client, theirs: client.get("/v1/usage", params={"subject": theirs, "as_of": "2030-01-01T00:00:00Z"}),
    "quota": lambda client, theirs: client.get(f"/v1/quotas/messages/{theirs}"),
    "reservations": lambda client, theirs: client.get(f"/v1/quotas/messages/{theirs}/reservations"),
    "days": lambda client, theirs: client.get("/v1/usage/days", params={"from": "2026-11-01", "to": "2026-11-30", "subject": theirs}),
    "rate": lambda client, theirs: client.post("/v1/rates/bot/take", json={"subject": theirs}),
    "rate, exempt": lambda client, _: client.post("/v1/rates/bot/take", json={"exempt": True}),
}


@pytest.mark.parametrize("way", TRIES)
async def test_somebody_else_s_is_refused_and_nothing_recorded(site: Site, way: str) -> None:
    theirs = uuid4().hex
    async with person(site) as (client, mine):
        await limited(site, mine, theirs, "default")
        before = len(await site.rows())

        answer = await TRIES[way](client, theirs)

    assert not_yours(answer), answer.text
    assert len(await site.rows()) == before


@pytest.mark.parametrize("way", ["commit", "commit in part", "rollback", "cancel", "batch", "atomic batch"])
async def test_somebody_else_s_reservation_is_not_there(site: Site, way: str) -> None:
    theirs = uuid4().hex
    async with person(site) as (client, mine):
        await limited(site, mine, theirs)
        held = (await site.post("/v1/usage/reserve", {"messages": 10, "subject": theirs}, key=uuid4().hex)).json()["reservation_id"]
        before = len(await site.rows())

        code, status = await ended(client, way, held)

    assert (code, status) == ("quota.reservation_not_found", 404)
    assert len(await site.rows()) == before
    again = await site.post("/v1/usage/commit", {"reservation_id": held, "used": 10})
    assert again.json()["used"] == 10


async def ended(client: httpx.AsyncClient, way: str, reservation_id: str) -> tuple[str, int]:
    body = {"reservation_id": reservation_id}
    match way:
        case "commit":
            answer = await client.post("/v1/usage/commit", json={**body, "used": 1})
        case "commit in part":
            answer = await client.post("/v1/usage/commit", json={**body, "used": 1, "final": False, "correlation_id": "p"})
        case "rollback":
            answer = await client.post("/v1/usage/rollback", json=body)
        case "cancel":
            answer = await client.post(f"/v1/reservations/{reservation_id}/cancel")
        case _:
            commands = [{"op": "rollback", **body}]
            answer = await client.post("/v1/batches", json={"atomic": way == "atomic batch", "correlation_id": "b", "commands": commands})
            if way == "batch":
                told = answer.json()["results"][0]
                return told["problem"]["code"], told["status"]
    return answer.json()["code"], answer.status_code


async def test_their_own_reservation_ends_as_they_say(site: Site) -> None:
    async with person(site) as (client, mine):
        await limited(site, mine)
        held = []
        for i in range(2):
            reserved = await client.post("/v1/usage/reserve", json={"messages": 10, "correlation_id": str(i)})
            held.append(reserved.json()["reservation_id"])

        committed = await client.post("/v1/usage/commit", json={"reservation_id": held[0], "used": 7})
        rolled_back = await client.post("/v1/usage/rollback", json={"reservation_id": held[1]})

    assert (committed.json()["used"], rolled_back.json()["freed"]) == (7, 10)


async def test_lists_show_their_own_alone(site: Site) -> None:
    theirs = uuid4().hex
    async with person(site) as (client, mine):
        await limited(site, mine, theirs, "default")
        for subject in (mine, theirs):
            await site.limit(subject, "tokens")
            last = await site.post("/v1/usage/consume", {"messages": 3, "subject": subject}, key=uuid4().hex)
        position = int(last.headers["holdbook-position"])
        await client.get("/v1/usage", params={"min_position": position})

        listed = (await client.get("/v1/quotas")).json()["quotas"]
        of_meter = (await client.get("/v1/quotas", params={"meter": "tokens"})).json()["quotas"]
        first = await client.get("/v1/quotas", params={"limit": 1})
        second = await client.get(first.headers["link"].partition(">")[0].lstrip("<"))
        today = datetime.now(UTC).date()
        around = {"from": str(today - timedelta(days=1)), "to": str(today + timedelta(days=2))}
        days = await client.get("/v1/usage/days", params={**around, "by": "subject", "min_position": position})

    assert [(quota["meter"], quota["subject"]) for quota in listed] == [("messages", mine), ("tokens", mine)]
    assert [(quota["meter"], quota["subject"]) for quota in of_meter] == [("tokens", mine)]
    assert [(quota["meter"], quota["subject"]) for quota in second.json()["quotas"]] == [("tokens", mine)]
    assert days.status_code == 200, days.text
    assert [(line["meter"], line["subject"]) for line in days.json()["lines"]] == [("messages", mine)]


@pytest.mark.parametrize("role", ["owner", "admin", "manager"])
async def test_roles_that_act_for_others_do(site: Site, role: str) -> None:
    theirs = uuid4().hex
    async with person(site, role) as (client, _):
        await limited(site, theirs, "default")
        reserved = await client.post("/v1/usage/reserve", json={"messages": 1, "subject": theirs, "correlation_id": "1"})
        default = await client.post("/v1/usage/reserve", json={"messages": 1, "correlation_id": "2"})
        ended_ = await client.post("/v1/usage/commit", json={"reservation_id": reserved.json()["reservation_id"], "used": 1})
        position = default.headers["holdbook-position"]
        seen = await client.get("/v1/usage", params={"subject": theirs, "min_position": position})

    assert [reserved.status_code, default.status_code, ended_.status_code, seen.status_code] == [200] * 4
    assert (await site.get("/v1/usage", min_position=position)).json()["limits"][0]["remaining"] == 99


async def test_a_person_s_role_may_exempt_them_from_a_rate(site: Site) -> None:
    headers = {**site.account.headers, "Idempotency-Key": "1"}
    policy = {"amount": 1, "seconds": 600, "exempt_roles": ["admin"]}
    assert (await site.client.put("/v1/policies/rates/bot", json=policy, headers=headers)).status_code == 200

    async with person(site) as (member, _), person(site, "admin") as (admin, _):
        counted = [(await member.post("/v1/rates/bot/take", json={})).status_code for _ in range(2)]
        free = [(await admin.post("/v1/rates/bot/take", json={})).json()["exempt"] for _ in range(3)]

    assert counted == [200, 429]
    assert free == [True] * 3


async def test_every_command_that_a_member_may_send_in_a_batch_looks_at_who_asks() -> None:
    open_to_members = [command for command in COMMANDS if command.permission in ROLES["member"]]

    assert open_to_members
    for command in open_to_members:
        assert command.asked_by is not CommandBody.asked_by, command

"""Many commands in one request."""

from typing import Any

import pytest

from tests.api.conftest import Site

pytestmark = pytest.mark.asyncio(loop_scope="module")


def consume(amount: int, subject: str = "default") -> dict[str, Any]:
    return {"op": "consume", "subject": subject, "meter": "messages", "amount": amount}


async def used(site: Site, answer: Any, subject: str = "default") -> int:
    position = answer.headers.get("Holdbook-Position")
    seen: int = (await site.get("/v1/usage", subject=subject, min_position=position or 0)).json()["used"]
    return seen


async def test_atomic_takes_all(site: Site) -> None:
    await site.limit("a")
    await site.limit("b")
    body = {"atomic": True, "correlation_id": "k", "commands": [consume(1, "a"), consume(2, "b"), consume(3, "a")]}

    answer = await site.post("/v1/batches", body)
    again = await site.post("/v1/batches", body)

    assert [result["remaining"] for result in answer.json()["results"]] == [99, 98, 96]
    assert again.content == answer.content
    assert again.headers["Idempotent-Replayed"] == "true"
    assert (await used(site, answer, "a"), await used(site, answer, "b")) == (4, 2)


@pytest.mark.parametrize("commands", [[consume(1), consume(500), consume(1)], [consume(500)]])
async def test_atomic_takes_nothing_when_one_is_refused_and_says_which(site: Site, commands: list[Any]) -> None:
    await site.limit()

    answer = await site.post("/v1/batches", {"atomic": True, "correlation_id": "k", "commands": commands})

    assert (answer.status_code, answer.json()["code"], answer.json()["index"]) == (409, "quota.exceeded", len(commands) // 2)
    assert await used(site, answer) == 0


async def test_atomic_of_one_answers_like_a_batch(site: Site) -> None:
    await site.limit()

    answer = await site.post("/v1/batches", {"atomic": True, "correlation_id": "k", "commands": [consume(1)]})

    assert [result["used"] for result in answer.json()["results"]] == [1]


async def test_each_for_itself(site: Site) -> None:
    await site.limit()
    commands = [
        consume(60),
        consume(60),
        {"op": "rollback", "reservation_id": "A" * 40},
        consume(40),
        {"op": "reserve", "amount": 1, "mode": "check_only", "meter": "messages"},
    ]
    body = {"correlation_id": "k", "commands": commands}

    answer = await site.post("/v1/batches", body)
    results = answer.json()["results"]

    assert [result["status"] for result in results] == [200, 409, 404, 200, 409]
    assert results[1]["problem"]["code"] == "quota.exceeded"
    assert results[3]["body"]["remaining"] == 0
    assert await used(site, answer) == 100
    again = await site.post("/v1/batches", body)
    assert again.content == answer.content


async def test_all_replayed_is_said(site: Site) -> None:
    await site.limit()
    body = {"correlation_id": "k", "commands": [consume(1), consume(2)]}

    first = await site.post("/v1/batches", body)
    again = await site.post("/v1/batches", body)

    assert "Idempotent-Replayed" not in first.headers
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.content == first.content


@pytest.mark.parametrize("atomic", [True, False])
async def test_a_key_covers_the_whole_batch(site: Site, atomic: bool) -> None:
    await site.limit()
    body = {"atomic": atomic, "correlation_id": "k", "commands": [consume(1), consume(2)]}
    first = await site.post("/v1/batches", body)

    longer = await site.post("/v1/batches", {**body, "commands": [consume(1), consume(2), consume(3)]})

    assert (longer.status_code, longer.json()["code"]) == (422, "idempotency.key_reused")
    assert await used(site, first) == 3


async def test_every_operation_is_known(site: Site) -> None:
    quota = {"meter": "messages", "subject": "all"}
    commands = [
        {"op": "set_limits", **quota, "limits": [{"limit_id": "t", "amount": 10, "overflow": True}]},
        {"op": "grant", **quota, "grant_id": "g", "amount": 5},
        {"op": "adjust", **quota, "amount": 2, "reason": "start"},
        {"op": "consume", **quota, "amount": 1},
        {"op": "void_grant", **quota, "grant_id": "g"},
    ]

    answer = await site.post("/v1/batches", {"atomic": True, "correlation_id": "k", "commands": commands})

    assert answer.status_code == 200, answer.text
    assert answer.json()["results"][4]["freed"] == 5


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"commands": []}, "commands"),
        ({"commands": [consume(1)] * 1001}, "commands"),
        ({"commands": [consume(1), {"op": "dance"}]}, "commands.1"),
        ({"commands": [consume(1), {"amount": 1}]}, "commands.1"),
        ({"commands": [consume(1), consume(0)]}, "commands.1.amount"),
        ({"commands": [{**consume(1), "x": 1}]}, "commands.0.x"),
        ({"commands": [{**consume(1), "correlation_id": "own"}]}, "commands.0.correlation_id"),
        ({"commands": [consume(1)], "x": 1}, "x"),
    ],
)
async def test_bad_items_name_their_field(site: Site, body: Any, field: str) -> None:
    answer = await site.post("/v1/batches", {"correlation_id": "k", **body})

    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["field"] == field

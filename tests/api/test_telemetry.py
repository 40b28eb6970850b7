"""Telemetry over HTTP: what is kept leads to nobody, counts once, and is told as counts."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from api.privacy.telemetry import TelemetryBatch, anonymous
from eventstore.sealing import Sealing
from tests.api.conftest import Site

pytestmark = pytest.mark.asyncio(loop_scope="module")

INSTALLATION = "desktop-of-anna-7f3a"
AT = "2026-11-21T05:45:31Z"


def event(name: str = "broadcast.finished", *, event_id: str | None = None, at: str = AT, **properties: Any) -> dict[str, Any]:
    return {"event_id": event_id or str(uuid4()), "name": name, "at": at, "properties": properties}


async def send(site: Site, *events: dict[str, Any], installation: str = INSTALLATION) -> Any:
    return await site.post("/v1/telemetry", {"installation_id": installation, "events": list(events)})


async def stored(site: Site) -> list[str]:
    assert site.store.pool is not None
    async with await psycopg.AsyncConnection.connect(str(site.store.pool.conninfo), options="-c role=holdbook_follower") as conn:
        query = "select t::text from telemetry t where tenant_id = %s"
        return [row[0] for row in await (await conn.execute(query, (site.account.tenant_id,))).fetchall()]


async def test_an_event_counts_once_however_often_it_is_sent(site: Site) -> None:
    one, other = event(messages=3), event("broadcast.stopped")

    first = await send(site, one, one, other)
    again = await send(site, one)

    assert (first.status_code, first.json()) == (202, {"accepted": 2, "repeated": 1})
    assert again.json() == {"accepted": 0, "repeated": 1}


async def test_the_same_batch_from_many_at_once_counts_once(site: Site) -> None:
    events = [event(number=n) for n in range(50)]

    answers = await asyncio.gather(*(send(site, *(events if n % 2 else reversed(events))) for n in range(8)))

    assert [answer.status_code for answer in answers] == [202] * 8
    assert sum(answer.json()["accepted"] for answer in answers) == 50


async def test_neither_who_sent_it_nor_when_exactly_is_kept(site: Site) -> None:
    sent = event(seconds=31.456789, theme="dark", resumed=False)
    await send(site, sent)

    (row,) = await stored(site)

    assert INSTALLATION not in row
    assert sent["event_id"] not in row
    assert site.account.account_id.hex not in row.replace("-", "")
    assert "05:00:00" in row
    assert "45:31" not in row
    assert "31.46" in row


async def test_an_installation_is_another_one_on_another_day_and_of_another_tenant() -> None:
    sealing, tenant = Sealing(), uuid4()
    batch = TelemetryBatch.model_validate_json(
        json.dumps({"installation_id": INSTALLATION, "events": [{"event_id": str(UUID(int=7)), "name": "a", "at": AT}]})
    )

    async def seen(of: UUID, day: int) -> UUID:
        return (await anonymous(sealing, of, batch, datetime(2026, 11, day, 6, tzinfo=UTC)))[0].installation

    assert await seen(tenant, 21) == await seen(tenant, 21)
    assert len({await seen(tenant, 21), await seen(tenant, 22), await seen(uuid4(), 21)}) == 3


async def test_a_moment_in_the_future_counts_as_now(site: Site) -> None:
    await send(site, event(at="2100-01-01T00:00:00Z"))

    (row,) = await stored(site)

    assert "2100-01" not in row  # the year alone may be in an id


@pytest.mark.parametrize(
    ("value", "taken"),
    [
        (1, True), (-5.5, True), (True, True), ("dark", True), ("1.2.3", True), ("ru", True),
        (79161234567, False), (1e300, False), ("Anna Petrova", False), ("anna@example.com", False), ("79161234567", False),
        ("id-4711471147", False),
        ("10.20.30.40", False), ("x" * 33, False), ("", False), ({"a": 1}, False), ([1], False), (None, False), ("Dark", False),
    ],
)  # fmt: skip
async def test_properties_hold_no_free_text(site: Site, value: Any, taken: bool) -> None:
    answer = await send(site, event(property=value))

    assert answer.status_code == (202 if taken else 422), answer.text
    if not taken:
        assert answer.json()["errors"][0]["field"].startswith("events.0.properties")
        if isinstance(value, str) and value:
            assert value not in answer.text
    assert len(await stored(site)) == taken


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"installation_id": "short", "events": [event()]}, "installation_id"),
        ({"installation_id": INSTALLATION, "events": []}, "events"),
        ({"installation_id": INSTALLATION, "events": [event()] * 501}, "events"),
        ({"installation_id": INSTALLATION, "events": [{**event(), "name": "Anna's name"}]}, "events.0.name"),
        ({"installation_id": INSTALLATION, "events": [{**event(), "event_id": "anna"}]}, "events.0.event_id"),
        ({"installation_id": INSTALLATION, "events": [{**event(), "at": "2026-11-21T05:45:31"}]}, "events.0.at"),
        ({"installation_id": INSTALLATION, "events": [{**event(), "user": "anna"}]}, "events.0.user"),
        ({"installation_id": INSTALLATION, "events": [{**event(), "properties": {f"p{n}": n for n in range(21)}}]}, "events.0.properties"),
    ],
)
async def test_bad_input_names_its_field_and_keeps_nothing(site: Site, body: dict[str, Any], field: str) -> None:
    answer = await site.post("/v1/telemetry", body)

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == field
    assert await stored(site) == []


async def test_the_summary_counts_a_tenants_own(site: Site) -> None:
    now = datetime.now(UTC).isoformat()
    await send(site, event(at=now), event(at=now))
    await send(site, event(at=now), installation="another-one")
    await send(site, event("app.started", at=now))
    other = await site.issue(await site.tenant())

    mine = (await site.get("/v1/telemetry/summary")).json()["counts"]
    theirs = (await site.get("/v1/telemetry/summary", account=other)).json()["counts"]

    assert [(each["name"], each["events"], each["installations"]) for each in mine] == [("app.started", 1, 1), ("broadcast.finished", 3, 2)]
    assert theirs == []


async def test_sending_and_reading_need_their_permissions(site: Site) -> None:
    writer = await site.issue(site.account.tenant_id, ("telemetry:write",))

    assert (await site.post("/v1/telemetry", {"installation_id": INSTALLATION, "events": [event()]}, account=writer)).status_code == 202
    assert (await site.get("/v1/telemetry/summary", account=writer)).status_code == 403


async def test_nothing_of_it_is_in_the_log(site: Site) -> None:
    before = len(await site.rows())

    await send(site, event(messages=3))

    assert len(await site.rows()) == before

"""What was refused at the door: counted and sampled within bounds, shown to the tenant, never in the log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import pytest_asyncio

from api.refusals import MOST_PLACES, MOST_SAMPLES, NOBODY, Refusals, purge
from eventstore.store import Store, partition_of
from tests.api.conftest import Site

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOON = datetime.now(UTC).replace(hour=12, minute=34, second=56, microsecond=0)
"""Of this day: what is much older is removed by the server itself."""


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now


@pytest_asyncio.fixture(loop_scope="module")
async def clock() -> Clock:
    return Clock()


@pytest_asyncio.fixture(loop_scope="module")
async def refusals(site: Site, clock: Clock) -> AsyncIterator[Refusals]:
    """A recorder of its own on the site's database; what it keeps is kept by the test."""
    yield Refusals(site.store, clock)


async def shown(site: Site, **params: Any) -> list[dict[str, Any]]:
    answer = await site.get("/v1/refusals", **params)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["refusals"]
    return found


async def test_a_flood_is_one_row_with_ten_samples_that_name_nobody(site: Site, refusals: Refusals, clock: Clock) -> None:
    for i in range(500):
        clock.now += timedelta(milliseconds=1)
        refusals.note("sign_in", site.account.tenant_id, f"login-{i % 2}", f"203.0.113.{i % 250}")

    await refusals.flush()

    [row] = await shown(site)
    assert (row["hour"], row["kind"], row["count"]) == (f"{NOON:%Y-%m-%d}T12:00:00Z", "sign_in", 500)
    assert len(row["samples"]) == MOST_SAMPLES
    assert {sample["network"] for sample in row["samples"]} == {"203.0.113.0/24"}
    assert len({sample["credential"] for sample in row["samples"]}) == 2
    assert "login-" not in str(row)
    assert row["samples"][0]["at"] == f"{NOON:%Y-%m-%d}T12:34:56.001000Z"


async def test_two_processes_and_two_times_add_up_and_keep_the_first_samples(site: Site, refusals: Refusals, clock: Clock) -> None:
    other = Refusals(site.store, clock)
    for i in range(7):
        refusals.note("rate", site.account.tenant_id, f"a{i}", "203.0.113.9")
        other.note("rate", site.account.tenant_id, f"b{i}", "2001:db8:1:2::9")
    for recorder in (refusals, other, refusals):
        await recorder.flush()

    [row] = await shown(site)
    assert row["count"] == 14
    assert [sample["network"] for sample in row["samples"]] == ["203.0.113.0/24"] * 7 + ["2001:db8:1::/48"] * 3


async def test_digests_are_the_tenant_s_own(site: Site, refusals: Refusals) -> None:
    other = await site.issue(await site.tenant())
    for account in (site.account, other):
        refusals.note("permission", account.tenant_id, "the same", None)
    await refusals.flush()

    mine = (await shown(site))[0]["samples"][0]["credential"]
    theirs = (await site.get("/v1/refusals", account=other)).json()["refusals"][0]["samples"][0]["credential"]

    assert mine
    assert mine != theirs


async def test_pages_follow_each_other_from_the_newest(site: Site, refusals: Refusals, clock: Clock) -> None:
    for _ in range(3):
        for kind in ("csrf", "rate"):
            refusals.note(kind, site.account.tenant_id)
        clock.now += timedelta(hours=1)
    await refusals.flush()

    pages, path = [], "/v1/refusals?limit=4"
    while path:
        answer = await site.client.get(path, headers=site.account.headers)
        pages.append([(row["hour"][11:13], row["kind"]) for row in answer.json()["refusals"]])
        path = answer.headers.get("link", "").partition(">")[0].lstrip("<")

    assert pages == [[("14", "rate"), ("14", "csrf"), ("13", "rate"), ("13", "csrf")], [("12", "rate"), ("12", "csrf")]]
    assert (await site.get("/v1/refusals", cursor="WyJ4IiwgInkiXQ")).status_code == 422


async def test_retention_removes_what_began_before_a_moment(site: Site, refusals: Refusals, clock: Clock, module_database: str) -> None:
    for _ in range(3):
        refusals.note("token", site.account.tenant_id)
        clock.now += timedelta(hours=1)
    await refusals.flush()
    place = (partition_of(site.account.tenant_id, site.store.partitions), site.account.tenant_id)

    async with await psycopg.AsyncConnection.connect(module_database, options="-c role=holdbook_follower", autocommit=True) as conn:
        assert await purge(conn, *place, NOON.replace(hour=14, minute=0, second=0), limit=1) == 1
        assert await purge(conn, *place, NOON.replace(hour=14, minute=0, second=0)) == 1

    assert [row["hour"][11:13] for row in await shown(site)] == ["14"]


async def test_what_waits_has_bounds_and_what_is_more_is_nobody_s(site: Site) -> None:
    recorder = Refusals(Store.in_memory(()))
    for _ in range(MOST_PLACES + 50):
        recorder.note("sign_in", uuid4())

    assert len(recorder._waiting) <= MOST_PLACES + 1
    assert sum(place.count for place in recorder._waiting.values()) == MOST_PLACES + 50
    assert [place.count for (tenant, *_), place in recorder._waiting.items() if tenant == NOBODY] == [50]


async def test_what_cannot_be_kept_waits_for_the_next_time(site: Site, refusals: Refusals, module_database: str) -> None:
    refusals.note("rate", site.account.tenant_id, "k", "203.0.113.9")
    # Waiting for the table's lock must not keep the server from giving it back.
    async with await psycopg.AsyncConnection.connect(module_database, autocommit=True) as conn:
        await conn.execute("alter table door_refusal rename to door_refusal_away")
        await refusals.flush()
        await conn.execute("alter table door_refusal_away rename to door_refusal")
    refusals.note("rate", site.account.tenant_id, "k", "203.0.113.9")

    await refusals.flush()

    [row] = await shown(site)
    assert (row["count"], len(row["samples"])) == (2, 2)


async def test_the_door_itself_notes_and_the_log_holds_nothing_of_it(site: Site, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site.app.state.edge.refusals, "_clock", clock)  # all within one hour
    reader = await site.issue(site.account.tenant_id, ("usage:read",))
    before = len(await site.rows())

    assert (await site.post("/v1/usage/reserve", {"amount": 1}, account=reader)).status_code == 403
    assert (await site.get("/v1/refusals", account=reader)).status_code == 403
    wrong = {"Authorization": site.account.headers["Authorization"][:-4] + "AAAA"}
    assert (await site.client.get("/v1/usage", headers=wrong)).status_code == 401
    await site.app.state.edge.refusals.flush()

    deadline = asyncio.get_running_loop().time() + 60
    while sum(row["count"] for row in await shown(site)) < 2:  # the server itself may be just keeping them
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.05)
    [row] = await shown(site)
    assert (row["kind"], row["count"]) == ("permission", 2)
    assert {sample["network"] for sample in row["samples"]} == {"127.0.0.0/24"}
    assert reader.key_id not in str(row)
    assert len(await site.rows()) == before
    assert b'holdbook_door_refusals_total{kind="permission"}' in site.app.state.edge.metrics.text()
    assert b'holdbook_door_refusals_total{kind="token"}' in site.app.state.edge.metrics.text()


async def test_the_server_keeps_them_by_itself(site: Site) -> None:
    site.app.state.edge.refusals.note("csrf", site.account.tenant_id)
    deadline = asyncio.get_running_loop().time() + 60

    while not (found := await shown(site)):
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.05)

    assert [(row["kind"], row["count"]) for row in found] == [("csrf", 1)]


async def test_what_was_taken_is_kept_at_the_end(site: Site, refusals: Refusals) -> None:
    refusals.note("csrf", site.account.tenant_id)
    service = asyncio.create_task(refusals.run())
    refusals.stop()
    await asyncio.wait_for(service, 60)

    assert [row["count"] for row in await shown(site)] == [1]


async def test_a_role_that_reads_for_tenants_cannot_see_the_table(site: Site, module_database: str) -> None:
    with (
        psycopg.connect(module_database, options="-c role=holdbook_reader") as conn,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        conn.execute("select * from door_refusal")

"""The license over HTTP: given, shown as it is at the moment, ended; and what its end holds up."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from api.edge import Edge
from api.licensed import Showing, shown
from domain.identity.licenses import LICENSE, license_stream
from tests.api.conftest import Site
from tests.support.persons import Person, person, sign_in

pytestmark = pytest.mark.asyncio(loop_scope="module")

MONTHLY = {"limit_id": "monthly", "amount": 100, "window": {"kind": "month"}}
PRO: dict[str, Any] = {"plan": "pro", "devices": 2, "limits": {"tokens": {"zone": "Europe/Moscow", "limits": [MONTHLY]}}}


def edge_of(site: Site) -> Edge:
    edge: Edge = site.app.state.edge
    return edge


async def license_of(site: Site, who: Person, **headers: str) -> httpx.Response:
    return await site.client.get("/v1/license", headers={**who.headers, **headers})


async def give(site: Site, user_id: UUID, body: Any = PRO, *, key: str | None = None, by: dict[str, str] | None = None) -> httpx.Response:
    headers = {**(by or site.account.headers), "Idempotency-Key": key or uuid4().hex}
    return await site.client.put(f"/v1/users/{user_id.hex}/license", json=body, headers=headers)


async def seen(site: Site, who: Person, done: httpx.Response) -> dict[str, Any]:
    """The license as of what was just done."""
    assert done.status_code == 200, done.text
    answer = await site.client.get("/v1/license", params={"min_position": done.headers["Holdbook-Position"]}, headers=who.headers)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def consume(site: Site, who: Person, amount: int, **more: Any) -> httpx.Response:
    body = {"subject": who.user_id.hex, "meter": "tokens", "amount": amount, "correlation_id": uuid4().hex, **more}
    return await site.post("/v1/usage/consume", body)


async def test_the_plan_sets_everything_at_once_and_the_person_sees_it(site: Site) -> None:
    who = await person(edge_of(site), site.account.tenant_id)
    nothing = (await license_of(site, who)).json()

    given, before = await give(site, who.user_id, {**PRO, "valid_until": "2100-01-01T03:00:00+03:00"}), datetime.now(UTC)
    found = await seen(site, who, given)

    assert nothing["plan"] is None
    assert (nothing["status"], nothing["quota"], nothing["device_binding"]["limit"]) == ("none", [], 3)
    assert given.json() == {
        "plan": "pro", "status": "active", "valid_until": "2100-01-01T00:00:00+00:00", "devices": 2, "meters": ["tokens"],
    }  # fmt: skip
    assert list(found) == ["plan", "status", "quota", "device_binding"]
    assert (found["plan"], found["status"]) == ("pro", "active")
    (meter,) = found["quota"]
    (limit,) = meter["limits"]
    start, end = datetime.fromisoformat(limit["window"]["start"]), datetime.fromisoformat(limit["window"]["end"])
    assert start <= datetime.now(UTC)
    assert before < end
    assert (start + timedelta(hours=3)).day == 1
    assert {**limit, "window": None} == {
        "limit_id": "monthly", "amount": 100, "used": 0, "reserved": 0, "remaining": 100, "window": None,
    }  # fmt: skip
    binding = found["device_binding"]
    assert (binding["limit"], binding["bound"], binding["this_device"]) == (2, 1, True)
    assert [device["name"] for device in binding["devices"]] == ["Laptop"]


async def test_the_tag_changes_with_what_is_used_and_with_nothing_else(site: Site) -> None:
    edge = edge_of(site)
    who = await person(edge, site.account.tenant_id)
    await seen(site, who, await give(site, who.user_id))
    first = await license_of(site, who)
    tag = first.headers["ETag"]

    same = await license_of(site, who, **{"If-None-Match": tag})
    among = await license_of(site, who, **{"If-None-Match": f'"other", W/{tag}'})
    another = await license_of(site, who, **{"If-None-Match": '"other"'})
    await seen(site, who, await consume(site, who, 7))
    changed = await license_of(site, who, **{"If-None-Match": tag})

    assert tag.startswith('"')
    assert first.headers["Cache-Control"] == "private, no-cache"
    assert (same.status_code, same.content, same.headers["ETag"]) == (304, b"", tag)
    assert (among.status_code, another.status_code) == (304, 200)
    assert changed.status_code == 200
    assert changed.json()["quota"][0]["limits"][0]["used"] == 7
    assert changed.headers["ETag"] != tag


async def test_a_rolling_window_gives_room_back_and_keeps_its_tag_while_nothing_happens(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    edge = edge_of(site)
    who = await person(edge, site.account.tenant_id)
    rolling = {"limit_id": "burst", "amount": 5, "window": {"kind": "rolling", "seconds": 60}}
    await give(site, who.user_id, {**PRO, "limits": {"tokens": {"limits": [rolling]}}})
    await seen(site, who, await consume(site, who, 5))
    now = datetime.now(UTC)
    monkeypatch.setattr(edge, "licensed", Showing(clock=lambda: now))

    full = await license_of(site, who)
    (limit,) = full.json()["quota"][0]["limits"]
    end = datetime.fromisoformat(limit["window"]["end"])
    now = end - timedelta(microseconds=1)
    still = await license_of(site, who)
    now = end
    later = await license_of(site, who)

    assert limit["remaining"] == 0
    assert (still.content, still.headers["ETag"]) == (full.content, full.headers["ETag"])
    assert later.json()["quota"][0]["limits"][0]["remaining"] == 5
    assert later.headers["ETag"] != full.headers["ETag"]


async def test_a_month_rolls_over_without_an_event(site: Site) -> None:
    """The moment is given in; that it is the clock's when somebody asks is seen in the other tests."""
    edge = edge_of(site)
    who = await person(edge, site.account.tenant_id)
    limits = await give(site, who.user_id)
    await seen(site, who, limits)
    await seen(site, who, await consume(site, who, 7))
    row = await edge.readers.licenses.get(who.tenant_id, who.user_id)

    (now,) = shown(row, ["Laptop"], 3, None, datetime.now(UTC)).quota[0].limits
    assert now.window.end is not None
    (last,) = shown(row, ["Laptop"], 3, None, now.window.end - timedelta(microseconds=1)).quota[0].limits
    (next_,) = shown(row, ["Laptop"], 3, None, now.window.end).quota[0].limits

    assert (now.used, last.used, next_.used) == (7, 7, 0)
    assert next_.window.start == now.window.end


async def test_it_is_over_at_its_end_whether_or_not_that_was_recorded(site: Site) -> None:
    edge = edge_of(site)
    who = await person(edge, site.account.tenant_id)
    end = datetime.now(UTC) + timedelta(days=1)
    await seen(site, who, await give(site, who.user_id, {**PRO, "valid_until": end.isoformat()}))
    row = await edge.readers.licenses.get(who.tenant_id, who.user_id)

    assert shown(row, ["Laptop"], 3, None, end - timedelta(microseconds=1)).status == "active"
    assert shown(row, ["Laptop"], 3, None, end).status == "expired"


async def test_nothing_is_taken_under_a_license_that_does_not_hold(site: Site) -> None:
    who = await person(edge_of(site), site.account.tenant_id)
    path = f"/v1/users/{who.user_id.hex}/license"
    await give(site, who.user_id)
    reserve = {"subject": who.user_id.hex, "meter": "tokens", "amount": 1, "correlation_id": "held up"}
    open_ = await site.post("/v1/usage/reserve", {**reserve, "correlation_id": "before"})

    suspended = await site.post(f"{path}/suspend", {"correlation_id": "s"})
    refused = await site.post("/v1/usage/reserve", reserve)
    by_person = await site.client.post(
        "/v1/usage/consume", json={"meter": "tokens", "amount": 1, "correlation_id": "p"}, headers=who.headers
    )
    held_up = {name: value for name, value in reserve.items() if name != "correlation_id"}
    commands = [{"op": "consume", "subject": "other", "amount": 1}, {"op": "reserve", **held_up}]
    batch = {"atomic": True, "correlation_id": "b", "commands": commands}
    await site.limit("other")
    in_batch = await site.post("/v1/batches", batch)
    committed = await site.post("/v1/usage/commit", {"reservation_id": open_.json()["reservation_id"], "used": 1})
    shown_ = await seen(site, who, committed)
    resumed = await site.post(f"{path}/resume", {"correlation_id": "r"})
    again = await site.post("/v1/usage/reserve", reserve)

    assert (suspended.json()["status"], resumed.json()["status"], shown_["status"]) == ("suspended", "active", "suspended")
    for answer in (refused, by_person, in_batch):
        assert (answer.status_code, answer.json()["code"]) == (409, "license.ended"), answer.text
        assert answer.json()["details"] == {"status": "suspended"}
    assert "index" not in refused.json()
    assert in_batch.json()["index"] == 1
    assert shown_["quota"][0]["limits"][0]["used"] == 1, "what was reserved before is counted, and nothing else"
    assert (again.status_code, again.json()["status"]) == (200, "reserved")


async def test_a_revoked_license_is_none_and_holds_up_too(site: Site) -> None:
    who = await person(edge_of(site), site.account.tenant_id)
    await give(site, who.user_id)
    path = f"/v1/users/{who.user_id.hex}/license"

    revoked = await site.client.delete(path, headers={**site.account.headers, "Idempotency-Key": "d"})
    found = await seen(site, who, revoked)
    refused = await consume(site, who, 1)
    renewed = await give(site, who.user_id)

    assert revoked.json() == {"plan": None, "status": "none"}
    assert (found["plan"], found["status"]) == (None, "none")
    assert (refused.status_code, refused.json()["code"]) == (409, "license.ended")
    assert (await seen(site, who, renewed))["status"] == "active"
    assert (await consume(site, who, 1)).status_code == 200


async def test_what_the_next_plan_is_without_is_closed(site: Site) -> None:
    who = await person(edge_of(site), site.account.tenant_id)
    await give(site, who.user_id, {**PRO, "limits": {**PRO["limits"], "pictures": {"limits": [MONTHLY]}}})
    await consume(site, who, 7)

    found = await seen(site, who, await give(site, who.user_id))
    refused = await consume(site, who, 1, meter="pictures")

    amounts = {meter["meter"]: [(limit["amount"], limit["used"]) for limit in meter["limits"]] for meter in found["quota"]}
    assert amounts == {"tokens": [(100, 7)], "pictures": [(0, 0)]}
    assert (refused.status_code, refused.json()["code"]) == (409, "quota.exceeded")


async def test_of_two_plans_given_at_once_both_are_whole(site: Site) -> None:
    """Neither leaves a meter open that the last one is without."""
    who = await person(edge_of(site), site.account.tenant_id)
    plans = [{"plan": name, "devices": 1, "limits": {name: {"limits": [MONTHLY]}}} for name in ("one", "two", "three")]

    answers = await asyncio.gather(*(give(site, who.user_id, plan) for plan in plans))

    done = [answer for answer in answers if answer.status_code == 200]
    assert done
    assert {answer.json()["code"] for answer in answers if answer.status_code != 200} <= {"license.changed"}
    last = max(done, key=lambda answer: int(answer.headers["Holdbook-Position"]))
    found = await seen(site, who, last)
    still_open = [meter["meter"] for meter in found["quota"] if meter["limits"][0]["amount"]]
    assert still_open == [found["plan"]]


async def test_the_same_plan_under_the_same_key_is_answered_the_same(site: Site) -> None:
    who = await person(edge_of(site), site.account.tenant_id)
    first = await give(site, who.user_id, key="k")
    between = await give(site, who.user_id, {**PRO, "plan": "other", "limits": {}})

    again = await give(site, who.user_id, key="k")
    other = await give(site, who.user_id, {**PRO, "plan": "third"}, key="k")

    assert between.status_code == 200
    assert (again.content, again.headers["Idempotent-Replayed"]) == (first.content, "true")
    assert (other.status_code, other.json()["code"]) == (422, "idempotency.key_reused")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"plan": ""}, "plan"),
        ({"plan": "a\nb"}, "plan"),
        ({"devices": -1}, "devices"),
        ({"devices": 101}, "devices"),
        ({"devices": None}, "devices"),
        ({"valid_until": "2020-01-01T00:00:00Z"}, "valid_until"),
        ({"valid_until": "2100-01-01T00:00:00"}, "valid_until"),
        ({"limits": {"tokens": {"limits": [{"limit_id": "a", "amount": -1}]}}}, "limits.tokens.limits.0.amount"),
        ({"limits": {"tokens": {"limits": [MONTHLY, MONTHLY]}}}, "limits"),
        ({"secret": "hunter2"}, "secret"),
    ],
)
async def test_a_plan_that_makes_no_sense_changes_nothing(site: Site, change: dict[str, Any], field: str) -> None:
    who = await person(edge_of(site), site.account.tenant_id)
    before = (await site.store.state(LICENSE, who.tenant_id, license_stream(who.user_id))).version

    answer = await give(site, who.user_id, {**PRO, **change})

    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["field"].startswith(field)
    assert "hunter2" not in answer.text
    assert (await site.store.state(LICENSE, who.tenant_id, license_stream(who.user_id))).version == before


async def test_nobody_elses_license_is_read_or_set(site: Site) -> None:
    edge = edge_of(site)
    who, colleague, support, manager = [
        await person(edge, site.account.tenant_id, role) for role in ("member", "member", "support", "manager")
    ]
    stranger = await person(edge, await site.tenant(), "owner")
    await seen(site, who, await give(site, who.user_id))
    path = f"/v1/users/{who.user_id.hex}/license"

    told = {}
    for name, asker in (("colleague", colleague), ("support", support), ("manager", manager), ("stranger", stranger)):
        read = await site.client.get(path, headers=asker.headers)
        written = await give(site, who.user_id, by=asker.headers)
        told[name] = read.status_code, written.status_code

    assert told == {"colleague": (403, 403), "support": (200, 403), "manager": (200, 200), "stranger": (404, 404)}
    assert (await license_of(site, colleague)).json()["plan"] is None
    assert (await site.get("/v1/license")).status_code == 403
    assert (await site.client.get("/v1/license")).status_code == 401
    shown_ = (await site.client.get(path, headers=support.headers)).json()
    assert shown_["device_binding"]["this_device"] is False


async def test_a_position_is_waited_for_and_one_that_is_none_is_refused(site: Site) -> None:
    who = await person(edge_of(site), site.account.tenant_id)

    for value in ("-1", "x", "1&min_positions=2"):
        answer = await site.client.get(f"/v1/license?min_position={value}", headers=who.headers)
        assert (answer.status_code, answer.json()["code"]) == (422, "request.invalid")


async def test_an_unbound_device_is_not_this_device(site: Site) -> None:
    edge = edge_of(site)
    who = await person(edge, site.account.tenant_id)
    phone = await sign_in(edge, who.tenant_id, who.user_id, None)

    found = (await seen(site, phone, await give(site, who.user_id)))["device_binding"]

    assert (found["bound"], found["this_device"]) == (1, False)


async def test_an_answer_that_was_kept_ends_at_the_moment_that_changes_it(site: Site) -> None:
    edge = edge_of(site)
    who = await person(edge, site.account.tenant_id)
    end = datetime.now(UTC) + timedelta(days=1)
    await seen(site, who, await give(site, who.user_id, {**PRO, "valid_until": end.isoformat()}))
    now = end - timedelta(seconds=0.5)
    showing = Showing(clock=lambda: now)

    async def status() -> str:
        found = json.loads(await showing.body(edge, who.tenant_id, who.user_id, None, None))
        return str(found["status"])

    before = await status()
    now = end
    after = await status()
    now = end - timedelta(microseconds=1)  # the clock was set back

    assert (before, after, await status()) == ("active", "expired", "active")


async def test_a_reservation_that_expired_is_not_shown_as_held_any_longer(site: Site) -> None:
    edge = edge_of(site)
    who = await person(edge, site.account.tenant_id)
    await give(site, who.user_id)
    body = {"subject": who.user_id.hex, "meter": "tokens", "amount": 9, "ttl_seconds": 900, "correlation_id": "r"}
    reserved = await site.post("/v1/usage/reserve", body)
    await seen(site, who, reserved)
    expires_at = datetime.fromisoformat(reserved.json()["expires_at"])
    now = expires_at - timedelta(microseconds=1)
    showing = Showing(clock=lambda: now)

    async def held() -> int:
        found = json.loads(await showing.body(edge, who.tenant_id, who.user_id, None, None))
        return int(found["quota"][0]["limits"][0]["reserved"])

    before = await held()
    now = expires_at

    assert (before, await held()) == (9, 0)


async def test_a_kept_answer_is_for_the_device_that_asked(site: Site) -> None:
    edge = edge_of(site)
    who = await person(edge, site.account.tenant_id)
    await seen(site, who, await give(site, who.user_id))
    elsewhere = await sign_in(edge, who.tenant_id, who.user_id, None)

    shown_ = [(await license_of(site, one)).json()["device_binding"]["this_device"] for one in (who, elsewhere, who)]

    assert shown_ == [True, False, True]


async def test_the_end_is_recorded_by_its_deadline(site: Site) -> None:
    who = await person(edge_of(site), site.account.tenant_id)
    end = datetime.now(UTC) + timedelta(seconds=5)  # or a slow machine gives what is over already
    given = await give(site, who.user_id, {**PRO, "valid_until": end.isoformat()})
    assert given.status_code == 200, given.text

    async with asyncio.timeout(30):
        while "license.expired" not in {row.type for row in await site.rows()}:  # noqa: ASYNC110  # what records it is in the server
            await asyncio.sleep(0.1)

    (expired,) = [row for row in await site.rows() if row.type == "license.expired"]
    assert (expired.stream, expired.recorded_at >= end) == (license_stream(who.user_id), True)
    refused = await consume(site, who, 1)
    assert (refused.status_code, refused.json()["details"]["status"]) == (409, "expired")

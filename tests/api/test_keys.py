"""API keys over HTTP: what is shown and never kept, who may give what, rotation with an overlap, and when each was last used."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from api.key_use import KeyUse
from domain.identity.permissions import KEY_PERMISSIONS
from eventstore.store import partition_of
from tests.api.conftest import Site
from tests.support.people import call, signed

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEYS = "/v1/keys"
SCOPES = ["usage:read", "usage:write"]


async def issue(site: Site, *, key: str | None = None, **more: Any) -> httpx.Response:
    answer = await site.post(KEYS, {"name": "bot", "scopes": SCOPES, **more}, key=key or uuid4().hex)
    assert answer.status_code == 200, answer.text
    return answer


async def rotate(site: Site, key_id: str, *, key: str | None = None, **body: Any) -> httpx.Response:
    return await site.post(f"{KEYS}/{key_id}/rotate", body, key=key or uuid4().hex)


async def opens(site: Site, text: str) -> bool:
    answer = await site.client.get("/v1/quotas", headers={"Authorization": f"Bearer {text}"})
    assert answer.status_code in (200, 401), answer.text
    return answer.status_code == 200


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110  # what is waited for is a second of time, or another task of the server
            await asyncio.sleep(0.05)


async def listed(site: Site, position: str | int | None = None) -> dict[str, dict[str, Any]]:
    more: dict[str, Any] = {} if position is None else {"min_position": position}
    answer = await site.get(KEYS, limit=200, **more)
    assert answer.status_code == 200, answer.text
    return {each["key_id"]: each for each in answer.json()["keys"]}


async def test_an_issued_key_opens_the_door_and_its_text_is_nowhere_in_the_log(site: Site) -> None:
    answer = await issue(site)
    told = answer.json()
    account, number = told["key_id"].split("_")

    assert told["account_id"] == account
    assert told["key"].startswith(f"hbk_{site.account.tenant_id.hex}_{account}_{number}_")
    assert answer.headers["Cache-Control"] == "no-store"
    assert await opens(site, told["key"])
    secret = told["key"].removeprefix(f"hbk_{site.account.tenant_id.hex}_{account}_{number}_")
    for row in await site.rows():
        assert secret not in row.payload
        assert secret not in (row.reply or "")


async def test_the_same_request_shows_the_same_text_and_another_key_another(site: Site) -> None:
    first, again, other = await issue(site, key="a"), await issue(site, key="a"), await issue(site, key="b")

    assert again.content == first.content
    assert again.headers["Idempotent-Replayed"] == "true"
    assert other.json()["key"] != first.json()["key"]
    assert other.json()["account_id"] != first.json()["account_id"]
    issued = [row for row in await site.rows() if row.type == "service.key_issued"]
    assert len(issued) == 3, "the site's own key, and one for each request"


async def test_a_key_for_an_account_that_is_there(site: Site) -> None:
    first = (await issue(site)).json()
    second = (await issue(site, account_id=first["account_id"])).json()
    assert second["account_id"] == first["account_id"]
    assert second["key_id"] != first["key_id"]

    stranger = await site.issue(await site.tenant())
    for account_id in (uuid4().hex, stranger.account_id.hex):
        body = {"name": "bot", "scopes": SCOPES, "account_id": account_id}
        refused = await site.post(KEYS, body, key=uuid4().hex)
        assert (refused.status_code, refused.json()["code"]) == (404, "service.account_not_found"), refused.text


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"scopes": []}, "scopes"),
        ({"scopes": ["usage:read", "usage:read"]}, "scopes"),
        ({"scopes": ["self:manage"]}, "scopes"),
        ({"scopes": ["root"]}, "scopes"),
        ({"name": ""}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"expires_at": "2030-01-01T00:00:00"}, "expires_at"),
        ({"account_id": "1"}, "account_id"),
        ({"secret": "x"}, "secret"),
    ],
)
async def test_a_field_that_makes_no_sense_is_named(site: Site, more: dict[str, Any], field: str) -> None:
    before = len(await site.rows())
    answer = await site.post(KEYS, {"name": "bot", "scopes": SCOPES, **more}, key=uuid4().hex)

    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field), answer.text
    assert len(await site.rows()) == before


async def test_one_gives_only_what_one_may_do_oneself(site: Site) -> None:
    keeper = await site.issue(site.account.tenant_id, ["keys:admin", "usage:read"])
    body = {"name": "bot", "scopes": ["usage:read"]}
    assert (await site.post(KEYS, body, account=keeper, key="a")).status_code == 200
    denied = await site.post(KEYS, {**body, "scopes": SCOPES}, account=keeper, key="b")
    assert (denied.status_code, denied.json()["permission"]) == (403, "usage:write")

    mightier = (await issue(site)).json()["key_id"]
    before = len(await site.rows())
    denied = await site.post(f"{KEYS}/{mightier}/rotate", {}, account=keeper, key="c")
    assert (denied.status_code, denied.json()["code"]) == (409, "service.scopes_not_yours")
    assert "hbk_" not in denied.text
    assert len(await site.rows()) == before

    reader = await site.issue(site.account.tenant_id, ["usage:read"])
    for answer in (
        await site.post(KEYS, body, account=reader, key="d"),
        await site.get(KEYS, account=reader),
        await site.client.delete(f"{KEYS}/{mightier}", headers=reader.headers),
    ):
        assert (answer.status_code, answer.json()["permission"]) == (403, "keys:admin")


async def test_a_rotation_leaves_no_moment_without_a_good_key(site: Site) -> None:
    old = (await issue(site, expires_at=(datetime.now(UTC) + timedelta(days=30)).isoformat())).json()
    answer = await rotate(site, old["key_id"], key="r", overlap_seconds=1)
    new = answer.json()

    assert answer.status_code == 200, answer.text
    assert (new["name"], new["scopes"], new["account_id"]) == (old["name"], old["scopes"], old["account_id"])
    assert new["old_key_id"] == old["key_id"]
    assert await opens(site, new["key"])
    lasts = datetime.fromisoformat(new["expires_at"]) - datetime.now(UTC)
    assert timedelta(days=29, hours=23) < lasts <= timedelta(days=30)
    again = await rotate(site, old["key_id"], key="r", overlap_seconds=1)
    assert again.content == answer.content

    async def ended() -> bool:
        return not await opens(site, old["key"])

    await until(ended)
    assert datetime.now(UTC) >= datetime.fromisoformat(new["old_expires_at"])
    assert await opens(site, new["key"])
    late = await rotate(site, old["key_id"])
    assert (late.status_code, late.json()["code"]) == (409, "service.key_expired")


async def test_the_old_key_is_good_during_the_overlap(site: Site) -> None:
    old = (await issue(site)).json()
    new = (await rotate(site, old["key_id"], overlap_seconds=600)).json()
    await asyncio.sleep(1.1)  # what was read of the account is used for one second

    assert await opens(site, old["key"])
    assert await opens(site, new["key"])
    assert new["expires_at"] is None


async def test_a_revoked_key_is_refused_within_a_second_and_leaves_the_list(site: Site) -> None:
    told = (await issue(site)).json()
    assert await opens(site, told["key"])
    gone = await site.client.delete(f"{KEYS}/{told['key_id']}", headers=site.account.headers)
    assert gone.json() == {"key_id": told["key_id"], "status": "revoked"}

    revoked = time.monotonic()

    async def shut() -> bool:
        asked = time.monotonic()
        if not await opens(site, told["key"]):
            return True
        assert asked - revoked < 3, "however long the answer took"
        return False

    await until(shut)
    again = await site.client.delete(f"{KEYS}/{told['key_id']}", headers=site.account.headers)
    assert (again.status_code, again.json()["status"]) == (200, "revoked")
    assert told["key_id"] not in await listed(site, gone.headers["Holdbook-Position"])

    other = await site.issue(await site.tenant())
    mine = (await issue(site)).json()
    for answer in (
        await site.client.delete(f"{KEYS}/{mine['key_id']}", headers=other.headers),
        await site.post(f"{KEYS}/{mine['key_id']}/rotate", {}, account=other, key="x"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (404, "service.key_not_found")
    assert await opens(site, mine["key"])


async def test_keys_are_listed_by_page_with_their_end_and_without_their_secret(site: Site) -> None:
    first = (await issue(site, name="same")).json()
    second = await issue(site, name="same", account_id=first["account_id"])
    rotated = await rotate(site, first["key_id"], overlap_seconds=900)
    found = await listed(site, rotated.headers["Holdbook-Position"])

    mine = site.account
    assert set(found) == {
        f"{mine.account_id.hex}_{mine.key_id}", first["key_id"], second.json()["key_id"], rotated.json()["key_id"],
    }  # fmt: skip
    assert datetime.fromisoformat(found[first["key_id"]]["expires_at"]) == datetime.fromisoformat(rotated.json()["old_expires_at"])
    assert found[rotated.json()["key_id"]]["name"] == "same"
    assert found[rotated.json()["key_id"]]["scopes"] == SCOPES
    assert "secret" not in str(found)

    pages, url = [], f"{KEYS}?limit=3"
    while url:
        page = await site.client.get(url, headers=site.account.headers)
        pages.append([each["key_id"] for each in page.json()["keys"]])
        url = page.links.get("next", {}).get("url", "")
    assert [len(page) for page in pages] == [3, 1]
    assert sorted(found) == [key_id for page in pages for key_id in page]


async def test_when_a_key_was_last_used_is_kept_and_only_goes_forward(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site.app.state.edge, "key_use", KeyUse(site.store))  # the server's own is kept once a minute, perhaps now
    mine = f"{site.account.account_id.hex}_{site.account.key_id}"
    started = datetime.now(UTC)
    issued = await issue(site)
    assert (await listed(site, issued.headers["Holdbook-Position"]))[mine]["last_used_at"] is None, "not kept yet"

    await site.app.state.edge.key_use.flush()
    found = await listed(site)
    used = datetime.fromisoformat(found[mine]["last_used_at"])
    assert started - timedelta(seconds=1) <= used <= datetime.now(UTC)
    assert found[issued.json()["key_id"]]["last_used_at"] is None

    behind = KeyUse(site.store, clock=(started - timedelta(hours=1)).timestamp)
    principal = await site.app.state.edge.authenticator.principal({b"authorization": f"Bearer {site.account.text}".encode()}, "GET")
    behind.note(principal)
    await behind.flush()
    assert datetime.fromisoformat((await listed(site))[mine]["last_used_at"]) >= used


async def test_use_is_kept_when_the_service_stops_and_after_a_database_that_was_away(site: Site) -> None:
    principal = await site.app.state.edge.authenticator.principal({b"authorization": f"Bearer {site.account.text}".encode()}, "GET")
    at = datetime.now(UTC) + timedelta(hours=1)  # later than what the server notes of this test's own requests
    use = KeyUse(site.store, clock=at.timestamp)
    pool, use._pool = use._pool, _Away()  # type: ignore[assignment]  # a pool that gives no connection
    use.note(principal)
    await use.flush()
    use._pool = pool
    running = asyncio.create_task(use.run())
    use.stop()
    await running

    assert await kept(site) == at


class _Away:
    def connection(self) -> Any:
        raise OSError("away")


async def kept(site: Site) -> datetime | None:
    assert site.store.pool is not None
    partition = partition_of(site.account.tenant_id, site.store.partitions)
    async with site.store.pool.connection() as conn:
        query = "select last_used_at from key_use where partition = %s and tenant_id = %s and account_id = %s and key_id = %s"
        found = await conn.execute(query, (partition, site.account.tenant_id, site.account.account_id, site.account.key_id))
        row = await found.fetchone()
    return None if row is None else row[0]


async def test_other_tenants_do_not_see_when_a_key_was_used(site: Site) -> None:
    await issue(site)
    await site.app.state.edge.key_use.flush()
    other = await site.issue(await site.tenant())
    position = (await site.post(KEYS, {"name": "b", "scopes": list(KEY_PERMISSIONS)}, account=other, key="k")).headers["Holdbook-Position"]
    found = await site.get(KEYS, account=other, min_position=position)

    assert {UUID(each["account_id"]) for each in found.json()["keys"]} >= {other.account_id}
    assert site.account.account_id.hex not in found.text


async def test_the_audit_shows_no_digest_of_a_secret(site: Site) -> None:
    position = (await issue(site)).headers["Holdbook-Position"]
    found = await site.get("/v1/audit", type="service.key_issued", min_position=position)

    assert len(found.json()["entries"]) == 2
    assert all("name" in entry["payload"] for entry in found.json()["entries"])
    assert "secret_hash" not in found.text


async def test_a_person_gives_what_their_role_may_and_no_permission_of_persons(site: Site) -> None:
    admin, member = await signed(site, "admin"), await signed(site, "member")
    made = await call(site, admin, "POST", KEYS, {"name": "bot", "scopes": SCOPES})
    assert made.status_code == 200, made.text
    assert await opens(site, made.json()["key"])

    denied = await call(site, admin, "POST", KEYS, {"name": "bot", "scopes": ["usage:import"]})
    assert (denied.status_code, denied.json()["permission"]) == (403, "usage:import")
    denied = await call(site, admin, "POST", f"{KEYS}/{site.account.account_id.hex}_{site.account.key_id}/rotate", {})
    assert (denied.status_code, denied.json()["code"]) == (409, "service.scopes_not_yours")
    for answer in (await call(site, member, "POST", KEYS, {"name": "bot", "scopes": SCOPES}), await call(site, member, "GET", KEYS)):
        assert (answer.status_code, answer.json()["permission"]) == (403, "keys:admin")

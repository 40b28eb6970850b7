"""Signing in by Telegram over HTTP: who is let in, who becomes a member, and that a proof starts one session."""

from __future__ import annotations

import asyncio
import json
import random
import time
from typing import Any
from urllib.parse import urlencode
from uuid import UUID, uuid4

import httpx
import pytest

from api import people
from domain.identity.tenants import TENANT, ChangeTenantSettings, tenant_stream
from domain.identity.users import USER, Active, ResumeUser, SuspendUser, user_stream
from tests.adapters.test_telegram_login import BOT, OTHER_BOT, by_app, by_widget
from tests.api.conftest import Account, Site
from tests.support.signing_in import FINGERPRINT, bearer

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def telegram(site: Site, *, registration: str = "open", token: str = BOT, account: Account | None = None) -> None:
    """Let a tenant's people sign in through a bot."""
    account = account or site.account
    settings = ChangeTenantSettings(name="Acme", zone="UTC", locale="en", currency="EUR", registration=registration)
    await site.operate(account.tenant_id, TENANT, tenant_stream(account.tenant_id), settings)
    answer = await set_bot(site, token, account)
    assert answer.status_code == 200, answer.text


async def set_bot(site: Site, token: str, account: Account | None = None, key: str | None = None) -> httpx.Response:
    headers = {**(account or site.account).headers, "Idempotency-Key": key or uuid4().hex}
    return await site.client.put("/v1/tenant/telegram", json={"bot_token": token, "bot_username": "acme_bot"}, headers=headers)


def somebody() -> int:
    return random.randrange(10**6, 10**12)  # an account's number, no secret


def widget(number: int, token: str = BOT, **more: str) -> dict[str, Any]:
    """What the Login Widget gives: numbers where it gives numbers."""
    fields = {"id": str(number), "first_name": "Ada", "username": "ada_l", "auth_date": str(int(time.time())), **more}
    signed: dict[str, Any] = dict(by_widget(fields, token))
    return {**signed, "id": number, "auth_date": int(fields["auth_date"])}


async def send(
    site: Site, body: dict[str, Any], fingerprint: str | None = FINGERPRINT, *, path: str = "telegram", tenant_id: UUID | None = None
) -> httpx.Response:
    device = {} if fingerprint is None else {"device_fingerprint": fingerprint}
    headers = {"Holdbook-Tenant": str(tenant_id or site.account.tenant_id)}
    return await site.client.post(f"/v1/auth/{path}", json={**body, **device}, headers=headers)


def refused(answer: httpx.Response) -> str:
    assert answer.status_code == 401, answer.text
    code: str = answer.json()["code"]
    return code


async def test_whoever_is_new_becomes_a_member_where_anybody_may_join(site: Site) -> None:
    await telegram(site)
    number = somebody()
    before = len(await site.rows())

    answer = await send(site, widget(number))

    assert answer.status_code == 200, answer.text
    user = answer.json()["user"]
    assert (user["email"], user["name"], user["role"]) == (None, "Ada", "member")
    rows = (await site.rows())[before:]
    assert [row.type for row in rows] == ["login.claimed", "user.created", "signin.succeeded", "device.bound", "session.started"]
    assert len({row.command_id for row in rows}) == 1
    state: Active = (await site.store.state(USER, site.account.tenant_id, user_stream(UUID(user["user_id"])))).state
    assert state.password is None
    clear = await site.store.sealing.open(site.account.tenant_id, state.user_id, people.PROFILE, state.profile)
    assert json.loads(clear or "") == {"name": "Ada", "telegram": {"id": number, "username": "ada_l"}}
    assert (await site.client.get("/v1/devices", headers=bearer(answer))).status_code == 200


async def test_another_name_leaves_what_telegram_said(site: Site) -> None:
    await telegram(site)
    number = somebody()
    answer = await send(site, widget(number))
    user_id = UUID(answer.json()["user"]["user_id"])

    changed = await site.client.put("/v1/me", json={"name": "Countess"}, headers={**bearer(answer), "Idempotency-Key": "name"})

    assert changed.status_code == 200, changed.text
    state: Active = (await site.store.state(USER, site.account.tenant_id, user_stream(user_id))).state
    clear = await site.store.sealing.open(site.account.tenant_id, user_id, people.PROFILE, state.profile)
    assert json.loads(clear or "") == {"name": "Countess", "telegram": {"id": number, "username": "ada_l"}}


async def test_nothing_of_telegram_stands_in_the_log_in_clear(site: Site) -> None:
    await telegram(site)
    number = somebody()
    proof = widget(number, first_name="Ada Augusta")  # what is sealed may well have an Ada in it
    await send(site, proof)

    text = " ".join(f"{row.stream} {row.payload} {row.reply} {row.actor}" for row in await site.rows())
    for personal in (str(number), "Augusta", "ada_l", BOT, BOT.split(":")[1], proof["hash"]):
        assert personal not in text


async def test_the_same_person_comes_back_by_widget_and_by_app(site: Site) -> None:
    await telegram(site)
    number = somebody()

    first = await send(site, widget(number))
    user = json.dumps({"id": number, "first_name": "Ada", "username": "ada_l"})
    data = by_app({"user": user, "auth_date": str(int(time.time())), "query_id": "AAH", "signature": "zL-ucjNyREiHDE8"})
    second = await send(site, {"init_data": urlencode(data)}, path="telegram-app")

    assert first.json()["user"]["user_id"] == second.json()["user"]["user_id"]
    devices = await site.client.get("/v1/devices", headers=bearer(second))
    assert len(devices.json()["devices"]) == 1


async def test_whoever_is_new_is_refused_where_people_are_invited(site: Site) -> None:
    await telegram(site, registration="invited")
    before = len(await site.rows())

    assert refused(await send(site, widget(somebody()))) == "auth.sign_in_refused"
    assert len(await site.rows()) == before


async def test_a_lost_answer_is_given_again_to_the_same_device_alone(site: Site) -> None:
    await telegram(site)
    proof = widget(somebody())
    first = await send(site, proof)
    before = len(await site.rows())

    again, elsewhere = await send(site, proof), await send(site, proof, "a fingerprint of a thief")
    nowhere = await send(site, proof, None)

    assert again.status_code == 200, again.text
    assert again.headers["Holdbook-Refresh-Token"] == first.headers["Holdbook-Refresh-Token"]
    assert again.json()["user"] == first.json()["user"]
    assert refused(elsewhere) == "auth.proof_used"
    assert (nowhere.status_code, nowhere.json()["errors"][0]["field"]) == (422, "device_fingerprint")
    assert len(await site.rows()) == before, "neither of them left anything"


async def test_a_proof_whose_session_went_on_or_ended_is_used_up(site: Site) -> None:
    await telegram(site)
    refreshed, ended = widget(somebody()), widget(somebody())
    first, other = await send(site, refreshed), await send(site, ended)
    body = {"refresh_token": first.headers["Holdbook-Refresh-Token"], "device_fingerprint": FINGERPRINT}

    gone_on = await site.client.post("/v1/auth/refresh", json=body)
    left = await site.client.post("/v1/auth/logout", headers={**bearer(other), "Idempotency-Key": uuid4().hex})

    assert (gone_on.status_code, left.status_code) == (200, 200), gone_on.text + left.text
    assert refused(await send(site, refreshed)) == "auth.proof_used"
    assert refused(await send(site, ended)) == "auth.proof_used"


async def test_the_same_proof_twice_at_once_is_one_person_and_one_session(site: Site) -> None:
    await telegram(site)
    proof = widget(somebody())

    answers = await asyncio.gather(*(send(site, proof) for _ in range(4)))

    assert {answer.status_code for answer in answers} == {200}, [answer.text for answer in answers]
    assert len({answer.json()["user"]["user_id"] for answer in answers}) == 1
    assert len({answer.headers["Holdbook-Refresh-Token"] for answer in answers}) == 1
    assert [row.type for row in await site.rows()].count("user.created") == 1


async def test_two_proofs_of_one_new_person_at_once_make_one_person(site: Site) -> None:
    await telegram(site)
    number = somebody()

    answers = await asyncio.gather(*(send(site, widget(number, last_name=f"of {each}")) for each in range(3)))

    assert {answer.status_code for answer in answers} == {200}, [answer.text for answer in answers]
    assert len({answer.json()["user"]["user_id"] for answer in answers}) == 1
    assert len({answer.headers["Holdbook-Refresh-Token"] for answer in answers}) == 3


async def test_forgeries_are_refused_with_one_answer(site: Site) -> None:
    await telegram(site)
    other = await site.issue(await site.tenant())
    await telegram(site, token=OTHER_BOT, account=other)
    none = await site.tenant()
    number = somebody()
    good = widget(number)
    old = by_widget({"id": str(number), "auth_date": str(int(time.time()) - 301)})
    before = len(await site.rows())

    answers = [
        await send(site, {**good, "id": number + 1}),
        await send(site, {**good, "first_name": "Eva"}),
        await send(site, {**good, "last_name": "Added"}),
        await send(site, {name: value for name, value in good.items() if name != "username"}),
        await send(site, {**good, "hash": good["hash"].upper()}),
        await send(site, {**good, "auth_date": good["auth_date"] + 1}),
        await send(site, {**old, "id": number, "auth_date": int(old["auth_date"])}),
        await send(site, widget(number, OTHER_BOT)),
        await send(site, good, tenant_id=other.tenant_id),
        await send(site, good, tenant_id=none),
        await send(site, good, tenant_id=uuid4()),
        await send(site, {"init_data": urlencode(by_app({"user": json.dumps({"id": number})}, OTHER_BOT))}, path="telegram-app"),
    ]

    assert {answer.text for answer in answers} == {answers[0].text}
    assert refused(answers[0]) == "auth.sign_in_refused"
    assert len(await site.rows()) == before
    assert (await send(site, good)).status_code == 200


@pytest.mark.parametrize(
    ("change", "field"),
    [({"id": "5"}, "id"), ({"id": 0}, "id"), ({"auth_date": 1.5}, "auth_date"), ({"hash": None}, "hash"), ({"is_admin": "1"}, "is_admin")],
)
async def test_a_bad_body_is_told_by_its_field_and_never_repeated(site: Site, change: dict[str, Any], field: str) -> None:
    proof = widget(somebody())
    answer = await send(site, {**proof, **change})

    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == [field]
    assert proof["hash"] not in answer.text


async def test_the_suspended_are_refused_until_they_are_resumed(site: Site) -> None:
    await telegram(site)
    number = somebody()
    user_id = UUID((await send(site, widget(number))).json()["user"]["user_id"])

    await site.operate(site.account.tenant_id, USER, user_stream(user_id), SuspendUser())
    assert refused(await send(site, widget(number, last_name="x"))) == "auth.sign_in_refused"
    await site.operate(site.account.tenant_id, USER, user_stream(user_id), ResumeUser())
    assert (await send(site, widget(number, last_name="y"))).status_code == 200


async def test_the_bot_is_shown_by_its_name_replaced_and_removed(site: Site) -> None:
    get, headers = "/v1/tenant/telegram", {**site.account.headers, "Idempotency-Key": uuid4().hex}
    missing = await site.client.get(get, headers=site.account.headers)
    await telegram(site)

    shown = await site.client.get(get, headers=site.account.headers)
    bad = await set_bot(site, "not a token")
    replaced = await set_bot(site, OTHER_BOT)
    by_old, by_new = await send(site, widget(somebody())), await send(site, widget(somebody(), OTHER_BOT))
    removed = await site.client.request("DELETE", get, json={}, headers=headers)
    after = await send(site, widget(somebody(), OTHER_BOT))

    assert (missing.status_code, missing.json()["code"]) == (404, "telegram.bot_not_found")
    assert shown.json() == {"bot_username": "acme_bot"}
    assert [error["field"] for error in bad.json()["errors"]] == ["bot_token"]
    assert "not a token" not in bad.text
    assert BOT not in replaced.text
    assert (by_old.status_code, by_new.status_code) == (401, 200)
    assert removed.json() == {"status": "removed"}
    assert refused(after) == "auth.sign_in_refused"


async def test_a_bots_token_is_in_no_fingerprint(site: Site) -> None:
    key = uuid4().hex

    first, again = await set_bot(site, BOT, key=key), await set_bot(site, OTHER_BOT, key=key)

    assert first.status_code == again.status_code == 200
    assert again.headers["Idempotent-Replayed"] == "true", "a token cannot be found out by trying others under the key"


async def test_only_administrators_set_the_bot(site: Site) -> None:
    reader = await site.issue(site.account.tenant_id, ("tenant:read",))

    assert (await set_bot(site, BOT, reader)).status_code == 403

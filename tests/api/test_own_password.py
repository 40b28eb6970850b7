"""Accepting an invitation, changing one's password, and setting a new one with what an administrator gave for it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from api import people
from domain.identity.tenants import TENANT, Tenant, tenant_stream
from tests.api.conftest import Site
from tests.support.signing_in import FINGERPRINT, PASSWORD, WRONG, bearer, fail_before, login, somebody, standing

pytestmark = pytest.mark.asyncio(loop_scope="module")
NEW = "another long enough one"


async def post(site: Site, path: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> httpx.Response:
    return await site.client.post(path, json=body, headers=headers)


async def invited(site: Site, email: str, role: str = "member") -> dict[str, Any]:
    """What the inviter was answered."""
    owner = await somebody(site, role="owner")
    body = {"email": email, "role": role, "name": "Eva Lind", "correlation_id": uuid4().hex}
    answer = await post(site, "/v1/invitations", body, bearer(await login(site, owner.email)))
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


def address() -> str:
    return f"{uuid4().hex}@example.com"


async def accept(site: Site, token: str, password: str = PASSWORD, **more: Any) -> httpx.Response:
    return await post(site, "/v1/auth/accept", {"invitation_token": token, "password": password, "device_fingerprint": FINGERPRINT, **more})


async def test_whoever_accepts_is_signed_in_and_has_a_password(site: Site) -> None:
    email = address()
    told = await invited(site, email)
    before = len(await site.rows())

    answer = await accept(site, told["invitation_token"], name="Eva Maria")

    assert answer.json()["user"] == {"user_id": told["user_id"], "email": email, "name": "Eva Maria", "role": "member"}
    rows = (await site.rows())[before:]
    assert [row.type for row in rows] == ["user.accepted", "signin.succeeded", "device.bound", "session.started"]
    assert len({row.command_id for row in rows}) == 1
    assert (await login(site, email)).status_code == 200
    text = " ".join(f"{row.payload} {row.reply}" for row in await site.rows())
    for secret in (email, "Eva Lind", "Eva Maria", PASSWORD, "argon2", told["invitation_token"]):
        assert secret not in text


async def test_an_accepted_owner_is_one_of_the_tenants(site: Site) -> None:
    told = await invited(site, address(), "owner")
    await accept(site, told["invitation_token"])

    tenant: Tenant = (await site.store.state(TENANT, site.account.tenant_id, tenant_stream(site.account.tenant_id))).state
    assert UUID(told["user_id"]) in tenant.owners


async def test_an_invitation_is_accepted_once_also_by_two_at_once(site: Site) -> None:
    told = await invited(site, address())

    answers = await asyncio.gather(*(accept(site, told["invitation_token"], f"{PASSWORD} {number}") for number in range(3)))

    assert sorted(answer.status_code for answer in answers) == [200, 401, 401], [answer.text for answer in answers]
    again = await accept(site, told["invitation_token"])
    assert (again.status_code, again.json()["code"]) == (401, "auth.token_not_good")


async def test_an_invitation_is_no_use_when_forged_or_over(site: Site) -> None:
    told = await invited(site, address())
    good: str = told["invitation_token"]
    user_id, tenant_id, past = UUID(told["user_id"]), site.account.tenant_id, datetime.now(UTC) - timedelta(days=1)
    sealing = site.store.sealing
    forged = {
        "last character": good[:-1] + ("A" if good[-1] != "A" else "B"),
        "other user": good.replace(user_id.hex, uuid4().hex),
        "other tenant": good.replace(tenant_id.hex, (await site.tenant()).hex),
        "later end": "_".join([*good.split("_")[:4], "4000000000", "_".join(good.split("_")[5:])]),
        "end of days": "_".join([*good.split("_")[:4], "9" * 12, "_".join(good.split("_")[5:])]),
        "other number": await people.invitation_token(sealing, tenant_id, user_id, 7, datetime.now(UTC) + timedelta(days=1)),
        "of a reset": await people.reset_token(sealing, tenant_id, user_id, 1, datetime.now(UTC) + timedelta(days=1)),
        "nothing": "hbi_" + "x" * 40,
    }

    answers = {name: await accept(site, text) for name, text in forged.items()}
    ended = await post(
        site, "/v1/auth/reset", {"reset_token": await people.reset_token(sealing, tenant_id, user_id, 0, past), "password": PASSWORD}
    )

    assert {(answer.status_code, answer.json()["code"]) for answer in [*answers.values(), ended]} == {(401, "auth.token_not_good")}, answers
    assert (await accept(site, good)).status_code == 200


@pytest.mark.parametrize("password", ["short", "password123", "aaaaaaaaaaaa", "EMAIL"])
async def test_a_password_that_may_not_be_is_told_by_its_field_and_spends_nothing(site: Site, password: str) -> None:
    email = address()
    told = await invited(site, email)
    password = email if password == "EMAIL" else password

    refused = await accept(site, told["invitation_token"], password)

    assert refused.status_code == 422, refused.text
    assert [error["field"] for error in refused.json()["errors"]] == ["password"]
    assert password not in refused.text
    assert (await accept(site, told["invitation_token"])).status_code == 200


# Changing it


async def over(site: Site, session: dict[str, str]) -> None:
    """What was read of a session is used for a second."""
    async with asyncio.timeout(20):
        while (await site.client.get("/v1/devices", headers=session)).status_code != 401:  # noqa: ASYNC110  # nothing tells of it
            await asyncio.sleep(0.1)


async def test_a_changed_password_ends_every_session(site: Site) -> None:
    ada = await somebody(site)
    here, there = bearer(await login(site, ada.email)), bearer(await login(site, ada.email, fingerprint="a fingerprint of another"))

    changed = await post(site, "/v1/auth/password", {"old": PASSWORD, "new": NEW}, here)

    assert changed.json() == {"status": "password_set"}
    for session in (here, there):
        await over(site, session)
    assert (await login(site, ada.email)).status_code == 401
    assert (await login(site, ada.email, NEW)).status_code == 200


async def test_a_wrong_old_password_counts_as_a_guess(site: Site) -> None:
    ada = await somebody(site)
    session = bearer(await login(site, ada.email))

    refused = await post(site, "/v1/auth/password", {"old": WRONG, "new": NEW}, session)
    assert (refused.status_code, refused.json()["code"]) == (403, "auth.password_wrong")
    assert (await standing(site, ada)).failures == 1

    await login(site, ada.email)
    await fail_before(site, ada, 9)
    waiting = await post(site, "/v1/auth/password", {"old": PASSWORD, "new": NEW}, session)
    assert (waiting.status_code, waiting.json()["code"]) == (429, "auth.slow_down")
    assert (await standing(site, ada)).failures == 9


async def test_the_rules_hold_for_a_changed_password_and_keys_have_none(site: Site) -> None:
    ada = await somebody(site)
    session = bearer(await login(site, ada.email))

    refused = await post(site, "/v1/auth/password", {"old": PASSWORD, "new": ada.email}, session)
    by_key = await post(site, "/v1/auth/password", {"old": PASSWORD, "new": NEW}, site.account.headers)
    nobody = await post(site, "/v1/auth/password", {"old": PASSWORD, "new": NEW})

    assert [error["field"] for error in refused.json()["errors"]] == ["new"]
    assert (by_key.status_code, nobody.status_code) == (403, 401)
    assert (await login(site, ada.email)).status_code == 200


async def test_of_two_who_change_it_at_once_one_does(site: Site) -> None:
    ada = await somebody(site)
    sessions = [bearer(await login(site, ada.email)) for _ in range(2)]

    answers = await asyncio.gather(
        *(post(site, "/v1/auth/password", {"old": PASSWORD, "new": f"{NEW} {number}"}, sessions[number]) for number in range(2))
    )

    done = [number for number, answer in enumerate(answers) if answer.status_code == 200]
    assert len(done) == 1, [answer.text for answer in answers]
    assert (await login(site, ada.email, f"{NEW} {done[0]}")).status_code == 200


# Setting a new one


async def reset_token(site: Site, user_id: UUID) -> str:
    admin = await somebody(site, role="admin")
    headers = bearer(await login(site, admin.email))
    answer = await post(site, f"/v1/users/{user_id.hex}/reset-password", {"correlation_id": uuid4().hex}, headers)
    assert answer.status_code == 200, answer.text
    token: str = answer.json()["reset_token"]
    return token


async def test_a_reset_works_once_ends_sessions_and_the_wait(site: Site) -> None:
    ada = await somebody(site)
    session = bearer(await login(site, ada.email))
    token = await reset_token(site, ada.user_id)
    await fail_before(site, ada, 10)

    answers = await asyncio.gather(
        *(post(site, "/v1/auth/reset", {"reset_token": token, "password": f"{NEW} {number}"}) for number in range(2))
    )

    done = [number for number, answer in enumerate(answers) if answer.status_code == 200]
    assert len(done) == 1, [answer.text for answer in answers]
    again = await post(site, "/v1/auth/reset", {"reset_token": token, "password": NEW})
    assert (again.status_code, again.json()["code"]) == (401, "auth.token_not_good")
    assert (await login(site, ada.email, f"{NEW} {done[0]}")).status_code == 200, "and nobody waits"
    await over(site, session)


async def test_a_reset_token_is_of_no_use_after_the_password_was_changed(site: Site) -> None:
    ada = await somebody(site)
    token = await reset_token(site, ada.user_id)
    await post(site, "/v1/auth/password", {"old": PASSWORD, "new": NEW}, bearer(await login(site, ada.email)))

    refused = await post(site, "/v1/auth/reset", {"reset_token": token, "password": PASSWORD})

    assert refused.json()["code"] == "auth.token_not_good"
    assert (await login(site, ada.email, NEW)).status_code == 200

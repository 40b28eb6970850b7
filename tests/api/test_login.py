"""Signing in by password: who is let in, what is recorded, and that nobody can tell who exists."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from argon2 import PasswordHasher

from api import passwords, people, signing_in
from domain.identity.tenants import TENANT, SuspendTenant, tenant_stream
from domain.identity.users import USER, Active, SetPassword, SuspendUser, user_stream
from tests.api.conftest import Site
from tests.support.people import edge_of
from tests.support.signing_in import FINGERPRINT, PASSWORD, WRONG, Somebody, bearer, login, somebody, standing, verifications

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_the_right_password_is_answered_with_a_token_its_person_and_its_end(site: Site) -> None:
    ada = await somebody(site, role="manager")

    answer = await login(site, ada.email.upper(), device_name="Desk")

    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert set(body) == {"token", "user", "exp"}
    assert body["user"] == {"user_id": ada.user_id.hex, "email": ada.email, "name": "Ada Lovelace", "role": "manager"}
    assert 0 < body["exp"] - time.time() <= edge_of(site).settings.token_seconds
    assert answer.headers["Holdbook-Refresh-Token"].startswith("hbr_")
    assert answer.headers["Cache-Control"] == "no-store"
    devices = await site.client.get("/v1/devices", headers=bearer(answer))
    assert devices.status_code == 200, devices.text
    assert [device["name"] for device in devices.json()["devices"]] == ["Desk"]


async def test_a_sign_in_is_one_command_and_tells_the_log_nothing_personal(site: Site) -> None:
    ada = await somebody(site)
    before = len(await site.rows())

    await login(site, ada.email, device_name="Ada's desk")

    rows = (await site.rows())[before:]
    assert [row.type for row in rows] == ["signin.succeeded", "device.bound", "session.started"]
    assert len({row.command_id for row in rows}) == 1
    text = " ".join(f"{row.stream} {row.payload} {row.reply} {row.actor}" for row in await site.rows())
    for personal in (ada.email, "Lovelace", "Ada's", PASSWORD, FINGERPRINT, "argon2"):  # three letters alone may be in a sealed text
        assert personal not in text
    assert rows[0].actor is not None
    assert rows[0].actor.startswith(f"user:{ada.user_id.hex}")


async def _change(site: Site, who: Somebody, command: Any) -> None:
    await site.operate(who.tenant_id, USER, user_stream(who.user_id), command)


async def test_whatever_is_wrong_the_answer_is_the_same_and_costs_one_verification(site: Site) -> None:
    ada, without, suspended = await somebody(site), await somebody(site, password=None), await somebody(site)
    await _change(site, suspended, SuspendUser())
    admin = await somebody(site, role="admin")
    asked = {"email": "invited@example.com", "role": "member", "correlation_id": uuid4().hex}
    invited = await site.client.post("/v1/invitations", json=asked, headers=bearer(await login(site, admin.email)))
    assert invited.status_code == 200, invited.text
    closed = await site.tenant()
    there = await somebody(site, closed)
    await site.operate(closed, TENANT, tenant_stream(closed), SuspendTenant())
    tries = {
        "wrong": (ada.email, WRONG, None),
        "unknown": ("nobody@example.com", PASSWORD, None),
        "no password": (without.email, PASSWORD, None),
        "suspended": (suspended.email, PASSWORD, None),
        "invited": ("invited@example.com", PASSWORD, None),
        "unknown tenant": (ada.email, PASSWORD, uuid4()),
        "suspended tenant": (there.email, PASSWORD, closed),
        "other tenant": (ada.email, PASSWORD, await site.tenant()),
    }

    answers = {}
    for name, (email, password, tenant_id) in tries.items():
        with verifications() as seen:
            answer = await login(site, email, password, tenant_id=tenant_id)
        shown = {key: value for key, value in answer.headers.items() if key not in ("x-request-id", "date")}
        answers[name] = (answer.status_code, answer.text, shown, len(seen))

    assert len({str(answer) for answer in answers.values()}) == 1, answers
    status, text, _, count = answers["wrong"]
    assert (status, count) == (401, 1)
    assert "auth.sign_in_refused" in text
    assert (await login(site, ada.email)).status_code == 200, "and one failure keeps nobody out"


async def test_a_tenant_that_somebody_made_up_gets_no_key(site: Site) -> None:
    invented = uuid4()

    await login(site, "nobody@example.com", tenant_id=invented)
    await site.client.post("/v1/auth/accept", json={"invitation_token": _token("hbi", invented), "password": PASSWORD})
    await site.client.post("/v1/auth/reset", json={"reset_token": _token("hbr", invented), "password": PASSWORD})

    assert site.store.pool is not None
    async with site.store.pool.connection() as conn:
        found = await (await conn.execute("select count(*) from tenant_key where tenant_id = %s", (invented,))).fetchone()
    assert found == (0,)


def _token(kind: str, tenant_id: UUID) -> str:
    return f"{kind}_{tenant_id.hex}_{uuid4().hex}_1_1900000000_{'A' * 43}"


def standing_still(moment: datetime) -> type[datetime]:
    class Still(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return moment

    return Still


async def test_names_that_are_nobodys_are_slowed_down_like_the_others(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    ada, nobody = await somebody(site), f"{uuid4().hex}@example.com"

    async def last_failed(email: str) -> datetime:
        known = await standing(site, ada) if email == ada.email else edge_of(site).guesses.standing(ada.tenant_id, email)
        assert known.last_failed_at is not None
        return known.last_failed_at

    statuses = {}
    for email in (ada.email, nobody):
        answers = [await login(site, email, WRONG) for _ in range(3)]
        with monkeypatch.context() as patched:  # the wait is of one second, which may be over by now
            patched.setattr(signing_in, "datetime", standing_still(await last_failed(email)))
            answers.append(await login(site, email, WRONG))
        statuses[email] = [answer.status_code for answer in answers]
        assert answers[3].json()["code"] == "auth.slow_down"
        assert answers[3].headers["Retry-After"] == "1"
        assert "retry_at" in answers[3].json()

    assert list(statuses.values()) == [[401, 401, 401, 429]] * 2


async def test_refusals_are_sent_at_moments_that_tell_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signing_in, "REFUSAL_SECONDS", 2.0)  # longer than what is done takes, also where it takes long
    ada = await somebody(site)

    for email in (ada.email, "nobody@example.com"):
        began = time.monotonic()
        await login(site, email, WRONG)
        assert time.monotonic() - began >= 2.0, "not as soon as it is known"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"email": "a@b.c", "password": PASSWORD}, "device_fingerprint"),
        ({"email": "a@b.c", "password": PASSWORD, "device_fingerprint": "short"}, "device_fingerprint"),
        ({"email": "a@b.c", "password": "p" * 1025, "device_fingerprint": FINGERPRINT}, "password"),
        ({"email": "a@b.c", "password": "", "device_fingerprint": FINGERPRINT}, "password"),
        ({"email": "", "password": PASSWORD, "device_fingerprint": FINGERPRINT}, "email"),
        ({"email": "a@b.c", "password": 1234567890123, "device_fingerprint": FINGERPRINT}, "password"),
        ({"email": "a@b.c", "password": PASSWORD, "device_fingerprint": FINGERPRINT, "session": "other"}, "session"),
        ({"email": "a@b.c", "password": PASSWORD, "device_fingerprint": FINGERPRINT, "admin": True}, "admin"),
    ],
)
async def test_a_bad_body_is_told_by_its_field_and_never_repeated(site: Site, body: dict[str, Any], field: str) -> None:
    answer = await site.client.post("/v1/auth/login", json=body, headers={"Holdbook-Tenant": str(site.account.tenant_id)})

    assert answer.status_code == 422, answer.text
    assert [error["field"] for error in answer.json()["errors"]] == [field]
    assert PASSWORD not in answer.text
    assert "ppp" not in answer.text
    assert "1234567890123" not in answer.text


async def test_one_device_too_many_is_refused_by_name_and_only_with_the_right_password(site: Site) -> None:
    ada = await somebody(site)
    for name in ("Desk", "Laptop", "Phone"):
        assert (await login(site, ada.email, fingerprint=f"fingerprint of {name}", device_name=name)).status_code == 200
    before = await site.rows()

    refused = await login(site, ada.email, fingerprint="fingerprint of a fourth")
    wrong = await login(site, ada.email, WRONG, fingerprint="fingerprint of a fourth")

    assert refused.status_code == 409, refused.text
    assert refused.json()["code"] == "device.limit_reached"
    assert refused.json()["details"] == {"limit": 3, "devices": ["Desk", "Laptop", "Phone"]}
    assert wrong.json()["code"] == "auth.sign_in_refused"
    assert [row.type for row in (await site.rows())[len(before) :]] == ["signin.failed"], "the refused device left nothing"
    assert (await login(site, ada.email, fingerprint="fingerprint of Phone")).status_code == 200


async def test_a_password_changed_while_somebody_signs_in_with_the_old_one_lets_them_not_in(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = await somebody(site)
    session = bearer(await login(site, ada.email))
    real = passwords.verify
    changed: list[int] = []

    async def verify(password: str, hashed: str | None) -> passwords.Verdict:
        verdict = await real(password, hashed)
        if not changed:
            changed.append(0)
            answer = await site.client.post("/v1/auth/password", json={"old": PASSWORD, "new": "another long one"}, headers=session)
            changed[0] = answer.status_code
        return verdict

    monkeypatch.setattr(passwords, "verify", verify)
    answer = await login(site, ada.email)

    assert changed == [200]
    assert (answer.status_code, answer.json()["code"]) == (401, "auth.sign_in_refused")


async def test_a_hash_of_less_effort_is_replaced_when_its_password_is_seen(site: Site) -> None:
    ada = await somebody(site)
    weak = PasswordHasher(time_cost=1, memory_cost=8 * 1024, parallelism=1).hash(PASSWORD)
    sealing = site.store.sealing
    await _change(site, ada, SetPassword(password=await sealing.seal(ada.tenant_id, ada.user_id, people.PASSWORD, weak)))

    assert (await login(site, ada.email)).status_code == 200

    user: Active = (await site.store.state(USER, ada.tenant_id, user_stream(ada.user_id))).state
    assert user.password is not None
    kept = await sealing.open(ada.tenant_id, ada.user_id, people.PASSWORD, user.password)
    assert kept is not None
    assert kept != weak
    assert f"m={passwords.MEMORY_KIB},t={passwords.PASSES}" in kept
    before = len(await site.rows())
    assert (await login(site, ada.email)).status_code == 200
    assert "user.password_set" not in [row.type for row in (await site.rows())[before:]], "once"


async def test_a_request_without_a_tenant_says_what_is_missing(site: Site) -> None:
    answer = await site.client.post("/v1/auth/login", json={"email": "a@b.c", "password": PASSWORD, "device_fingerprint": FINGERPRINT})

    assert (answer.status_code, answer.json()["code"]) == (400, "auth.tenant_required")


async def test_sign_ins_are_counted_by_what_became_of_them(site: Site) -> None:
    ada = await somebody(site)
    await login(site, ada.email)
    await login(site, ada.email, WRONG)

    text = (await site.client.get("/metrics")).text

    for labels in ('method="password",result="success"', 'method="password",result="password"'):
        assert f"holdbook_sign_ins_total{{{labels}}}" in text
    assert ada.email not in text


async def test_a_browser_is_signed_in_by_a_cookie_and_needs_no_device(site: Site) -> None:
    ada = await somebody(site)
    site.client.cookies.clear()

    answer = await login(site, ada.email, fingerprint=None, session="browser")
    site.client.cookies.clear()

    assert answer.status_code == 200, answer.text
    assert answer.json()["token"] is None
    assert "HttpOnly" in answer.headers["set-cookie"]
    assert "Holdbook-Refresh-Token" not in answer.headers

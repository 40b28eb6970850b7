"""The export of everything about somebody: whole, in order, opened; of nobody else; and nothing in it after the erasure."""

from __future__ import annotations

import asyncio
import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from api.people import PASSWORD, Profile, create_items, login_of_email, seal_profile
from domain.identity.devices import DEVICES, BindDevice, devices_stream
from domain.identity.sessions import SESSION, StartSession, session_stream
from domain.identity.users import USER, SetPassword, user_stream
from eventstore.requests import Item, Request
from tests.api.conftest import Site

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOT = Path(__file__).parents[2]
EMAIL, NAME, LAPTOP = "exported@example.org", "Ex <b>Ported</b> & Söhne", "Ex's laptop"


async def person(site: Site, email: str = EMAIL) -> UUID:
    tenant_id, user_id, sealing = site.account.tenant_id, uuid4(), site.store.sealing
    profile = await seal_profile(sealing, tenant_id, user_id, Profile(email, NAME))
    password = await sealing.seal(tenant_id, user_id, PASSWORD, "$argon2id$a-hash")
    login = await login_of_email(sealing, tenant_id, email)
    device = BindDevice(device_id=uuid4(), fingerprint="cd" * 16, name=await sealing.seal(tenant_id, user_id, "device.name", LAPTOP))
    session_id = uuid4()
    session = StartSession(
        session_id=session_id, user_id=user_id, kind="token", device="cd" * 16, lifetime_seconds=86_400, idle_seconds=86_400
    )
    items = (
        *create_items(tenant_id, user_id, "member", profile, login, password),
        Item(DEVICES, devices_stream(user_id), device),
        Item(SESSION, session_stream(session_id), session),
    )
    outcome = await site.store.submit(Request(tenant_id, uuid4(), items, b""))
    assert not outcome.refused, outcome.reply
    await site.limit(user_id.hex, "letters")
    used = await site.post("/v1/usage/consume", {"subject": user_id.hex, "meter": "letters", "amount": 3}, key=uuid4().hex)
    assert used.status_code == 200, used.text
    headers = {**site.account.headers, "Idempotency-Key": uuid4().hex}
    body = {"version": "7", "evidence": "ticked the box"}
    await site.client.put(f"/v1/privacy/{user_id.hex}/consents/marketing", json=body, headers=headers)
    return user_id


async def exported(site: Site, subject: str) -> dict[str, Any]:
    """Once the read models have come so far that it has its session and what was used of its quota."""
    for _ in range(500):
        answer = await site.get(f"/v1/privacy/{subject}/export")
        assert answer.status_code == 200, answer.text
        told: dict[str, Any] = answer.json()
        if told["now"]["sessions"] and [each["used"] for each in told["now"]["quotas"]] == [3]:
            return told
        await asyncio.sleep(0.02)
    raise AssertionError("the read models did not come")


async def test_it_holds_everything_opened_and_in_order(site: Site) -> None:
    user_id = await person(site)

    told = await exported(site, user_id.hex)

    now = told["now"]
    assert now["profile"] == {"status": "active", "role": "member", "email": EMAIL, "name": NAME, "signs_in_with": ["email"]}
    assert [each["name"] for each in now["devices"]] == [LAPTOP]
    assert [(each["purpose"], each["version"]) for each in now["consents"]] == [("marketing", "7")]
    assert [(each["meter"], each["used"]) for each in now["quotas"]] == [("letters", 3)]
    assert [each["kind"] for each in now["sessions"]] == ["token"]
    types = [each["type"] for each in told["events"]]
    assert types == ["user.created", "consent.given", "device.bound", "session.started", "quota.limits_set", "quota.consumed"]
    created, given = told["events"][0], told["events"][1]
    assert created["payload"]["profile"] == {"email": EMAIL, "name": NAME}
    assert created["payload"]["password"] == "[sealed]"
    assert given["payload"]["evidence"] == "ticked the box"
    assert "hbs1." not in json.dumps(told)


async def test_a_long_past_comes_whole(site: Site) -> None:
    user_id, tenant_id = await person(site, "long@example.org"), site.account.tenant_id
    sealed = await site.store.sealing.seal(tenant_id, user_id, PASSWORD, "$argon2id$another")
    for _ in range(12):
        items = tuple(Item(USER, user_stream(user_id), SetPassword(password=sealed)) for _ in range(100))
        await site.store.submit(Request(tenant_id, uuid4(), items, b""))

    told = (await site.get(f"/v1/privacy/{user_id.hex}/export")).json()

    versions = [each["version"] for each in told["events"] if each["stream"] == user_stream(user_id)]
    assert versions == list(range(1, 1_202))


async def test_the_page_is_for_people_and_runs_nothing(site: Site) -> None:
    user_id = await person(site, "page@example.org")
    await exported(site, user_id.hex)

    answer = await site.client.get(f"/v1/privacy/{user_id.hex}/export", headers={**site.account.headers, "Accept": "text/html"})

    page = answer.text
    assert "({" not in page, "people read no program's brackets"
    assert "()" not in page
    assert not re.search(r"\dT\d\d:", page), "nor its moments"
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "Ex &lt;b&gt;Ported&lt;/b&gt; &amp; Söhne" in page
    assert "<b>Ported" not in page
    assert not re.search(r"<script|javascript:|\son\w+=|<img|<link|https?://", page)
    assert page.endswith("</body></html>\n")


async def test_of_an_api_clients_subject_and_of_nobody(site: Site) -> None:
    headers = {**site.account.headers, "Idempotency-Key": uuid4().hex}
    await site.client.put("/v1/privacy/tg:55/consents/processing", json={"version": "1", "evidence": "/start"}, headers=headers)

    known = (await site.get("/v1/privacy/tg:55/export")).json()
    unknown = (await site.get("/v1/privacy/tg:nobody/export")).json()

    assert [each["payload"]["evidence"] for each in known["events"]] == ["/start"]
    assert unknown["events"] == []
    assert unknown["now"]["profile"] == {"status": "none"}


async def test_another_tenant_gets_nothing_of_it(site: Site) -> None:
    user_id = await person(site, "hidden@example.org")
    other = await site.issue(await site.tenant())
    poor = await site.issue(site.account.tenant_id, ("users:read",))

    theirs = await site.get(f"/v1/privacy/{user_id.hex}/export", account=other)
    without = await site.get(f"/v1/privacy/{user_id.hex}/export", account=poor)

    assert theirs.json()["events"] == []
    assert "hidden@example.org" not in theirs.text
    assert without.status_code == 403


async def test_after_the_erasure_nothing_personal_is_in_it(site: Site) -> None:
    user_id = await person(site, "forgotten@example.org")
    await exported(site, user_id.hex)
    await site.post(f"/v1/privacy/{user_id.hex}/erase", {"confirm": True}, key="erase")

    text = (await site.get(f"/v1/privacy/{user_id.hex}/export")).text

    told = json.loads(text)
    assert told["now"]["profile"] == {"status": "erased"}
    assert told["now"]["erasure"]["erased_at"]
    for personal in ("forgotten@example.org", "Ported", LAPTOP, "ticked the box", "hbs1."):
        assert personal not in text


async def test_the_command_line_writes_a_file_for_its_owner_alone(site: Site, module_database: str, tmp_path: Path) -> None:
    user_id = await person(site, "cli@example.org")
    environment = {**os.environ, "HOLDBOOK_DATABASE_URL": module_database, "HOLDBOOK_DEFAULT_TENANT": str(site.account.tenant_id)}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "api.cli", "privacy", *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180, check=False)

    file, page = tmp_path / "export.json", tmp_path / "export.html"
    first = await asyncio.to_thread(run, "export", user_id.hex, str(file))
    again = await asyncio.to_thread(run, "export", user_id.hex, str(file))
    html = await asyncio.to_thread(run, "export", user_id.hex, str(page), "--format", "html")

    assert first.returncode == 0, first.stderr
    assert json.loads(file.read_bytes())["now"]["profile"]["email"] == "cli@example.org"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert again.returncode == 1
    assert html.returncode == 0
    assert page.read_text().endswith("</html>\n")
    assert sorted(os.listdir(tmp_path)) == ["export.html", "export.json"]

"""Slow-down and lock-out: what guessing costs, what it leaves, and who gets out of it."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from math import ceil
from uuid import uuid4

import pytest

from api import passwords
from domain.identity.signins import SIGNIN, SignOutEverywhere, signin_stream
from tests.api.conftest import Site
from tests.support.people import edge_of
from tests.support.signing_in import WRONG, Somebody, bearer, fail_before, login, somebody, standing, verifications

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def events_of(site: Site, who: Somebody) -> list[str]:
    return [row.type for row in await site.rows() if row.stream == signin_stream(who.user_id)]


async def test_a_burst_of_guesses_is_looked_at_no_faster_than_a_row_of_them(site: Site) -> None:
    ada = await somebody(site)

    answers = await asyncio.gather(*(login(site, ada.email, f"{WRONG} {number}") for number in range(12)))

    failed = [json.loads(row.payload) for row in await site.rows() if row.stream == signin_stream(ada.user_id)]
    for one, next_ in pairwise(failed):
        assert datetime.fromisoformat(next_["at"]) >= datetime.fromisoformat(one["wait_until"] or one["at"])
    assert 3 <= len(failed) < 12
    assert sorted(answer.status_code for answer in answers) == [401] * len(failed) + [429] * (12 - len(failed))


@pytest.mark.parametrize(("failures", "code"), [(9, "auth.slow_down"), (10, "auth.sign_in_refused")])
async def test_a_right_password_is_no_way_in_when_others_failed_while_it_was_looked_at(
    site: Site, monkeypatch: pytest.MonkeyPatch, failures: int, code: str
) -> None:
    ada = await somebody(site)
    real = passwords.verify

    async def verify(password: str, hashed: str | None) -> passwords.Verdict:
        verdict = await real(password, hashed)
        await fail_before(site, ada, failures)
        return verdict

    monkeypatch.setattr(passwords, "verify", verify)
    answer = await login(site, ada.email)

    assert answer.json()["code"] == code
    assert set(await events_of(site, ada)) <= {"signin.failed", "signin.locked"}


async def test_the_right_password_in_a_wait_gets_nobody_in_and_is_not_looked_at(site: Site) -> None:
    ada = await somebody(site)
    await fail_before(site, ada, 9)
    state, before = await standing(site, ada), datetime.now(UTC)

    with verifications() as seen:
        answer = await login(site, ada.email)

    assert (answer.status_code, answer.json()["code"]) == (429, "auth.slow_down")
    assert state.wait_until is not None
    assert state.last_failed_at is not None
    assert state.wait_until - state.last_failed_at == timedelta(seconds=64)
    least, most = [ceil((state.wait_until - moment).total_seconds()) for moment in (datetime.now(UTC), before)]
    assert least <= int(answer.headers["Retry-After"]) <= most
    assert seen == [False], "one verification, and not against the person's hash"
    assert await events_of(site, ada) == ["signin.failed"] * 9


async def test_the_right_password_after_the_wait_gets_in_and_ends_the_row(site: Site) -> None:
    ada = await somebody(site)
    await fail_before(site, ada, 9, timedelta(seconds=65))

    assert (await login(site, ada.email)).status_code == 200
    assert (await standing(site, ada)).failures == 0


async def test_a_locked_person_is_refused_like_one_who_is_not_there(site: Site) -> None:
    ada = await somebody(site)
    await fail_before(site, ada, 10, timedelta(minutes=14))
    before = await events_of(site, ada)

    with verifications() as seen:
        locked, unknown = await login(site, ada.email), await login(site, f"{uuid4().hex}@example.com")

    assert before[-1] == "signin.locked"
    assert locked.status_code == unknown.status_code == 401
    assert locked.text == unknown.text
    assert seen == [False, False]
    assert await events_of(site, ada) == before
    assert "retry-after" not in locked.headers


async def test_a_lock_ends_by_itself_and_the_next_failure_locks_for_longer(site: Site) -> None:
    ada = await somebody(site)
    await fail_before(site, ada, 10, timedelta(minutes=16))

    assert (await login(site, ada.email, WRONG)).status_code == 401

    state = await standing(site, ada)
    assert state.last_failed_at is not None
    assert state.wait_until is not None
    assert state.wait_until - state.last_failed_at == timedelta(minutes=30)
    assert (await login(site, ada.email)).status_code == 401


async def test_a_lock_that_is_over_lets_the_right_password_in(site: Site) -> None:
    ada = await somebody(site)
    await fail_before(site, ada, 12, timedelta(minutes=61))

    assert (await login(site, ada.email)).status_code == 200


async def test_names_that_are_nobodys_are_locked_by_the_same_numbers(site: Site) -> None:
    guesses, email = edge_of(site).guesses, f"{uuid4().hex}@example.com"
    at = datetime.now(UTC) - timedelta(minutes=20)
    for _ in range(10):
        until = guesses.standing(site.account.tenant_id, email).wait_until
        at = at if until is None else max(at, until)
        guesses.fail(site.account.tenant_id, email.upper(), at)

    standing = guesses.standing(site.account.tenant_id, email)
    assert standing.failures == 10
    assert standing.wait_until is not None
    assert standing.wait_until - at == timedelta(minutes=15)
    assert guesses.standing(uuid4(), email).failures == 0, "by tenant"


async def test_an_administrator_ends_the_wait(site: Site) -> None:
    ada, admin, member = await somebody(site), await somebody(site, role="admin"), await somebody(site)
    await fail_before(site, ada, 10)
    path, body = f"/v1/users/{ada.user_id.hex}/unlock", {"correlation_id": uuid4().hex}

    refused = await site.client.post(path, json=body, headers=bearer(await login(site, member.email)))
    unlocked = await site.client.post(path, json=body, headers=bearer(await login(site, admin.email)))

    assert refused.status_code == 403
    assert unlocked.json() == {"status": "unlocked"}
    assert (await login(site, ada.email)).status_code == 200


async def test_an_administrator_ends_the_wait_of_those_alone_whose_role_is_theirs_to_give(site: Site) -> None:
    owner, admin = await somebody(site, role="owner"), await somebody(site, role="admin")
    await fail_before(site, owner, 10)
    headers, body = bearer(await login(site, admin.email)), {"correlation_id": uuid4().hex}

    refused = await site.client.post(f"/v1/users/{owner.user_id.hex}/unlock", json=body, headers=headers)
    unknown = await site.client.post(f"/v1/users/{uuid4().hex}/unlock", json=body, headers=headers)

    assert (refused.status_code, unknown.status_code) == (403, 404)
    assert (await standing(site, owner)).failures == 10


async def test_somebody_else_is_not_kept_out_by_it(site: Site) -> None:
    ada, eva = await somebody(site), await somebody(site)
    await fail_before(site, ada, 10)

    assert (await login(site, eva.email)).status_code == 200


async def test_sessions_go_on_while_signing_in_is_locked(site: Site) -> None:
    ada = await somebody(site)
    session = bearer(await login(site, ada.email))
    await fail_before(site, ada, 10)

    assert (await site.client.get("/v1/devices", headers=session)).status_code == 200


async def test_signing_out_everywhere_does_not_end_a_lock(site: Site) -> None:
    ada = await somebody(site)
    await fail_before(site, ada, 10)
    await site.operate(ada.tenant_id, SIGNIN, signin_stream(ada.user_id), SignOutEverywhere())

    assert (await login(site, ada.email)).status_code == 401


async def test_refused_sign_ins_are_counted_and_not_in_the_log(site: Site) -> None:
    ada = await somebody(site)
    await fail_before(site, ada, 10)
    await login(site, ada.email)  # both are counted now, whatever ran before
    before, counted = len(await site.rows()), await _counted(site)

    for _ in range(3):
        await login(site, ada.email)

    assert len(await site.rows()) == before
    assert len(counted) == 2
    assert await _counted(site) == {name: count + 3 for name, count in counted.items()}


async def _counted(site: Site) -> dict[str, float]:
    names = ('holdbook_sign_ins_total{method="password",result="waiting"}', 'holdbook_door_refusals_total{kind="sign_in"}')
    lines = [line.rsplit(" ", 1) for line in (await site.client.get("/metrics")).text.splitlines() if line.startswith(names)]
    return {name: float(count) for name, count in lines}

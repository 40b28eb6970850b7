"""Refreshing a session over HTTP: rotation, a lost answer, theft, another device, two at once."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import httpx
import msgspec
import pytest
import pytest_asyncio

from api import sessions
from api.devices import bind_item
from api.refreshing import Rotations
from api.sessions import REFRESH_HEADER, SignedIn
from domain.identity.devices import DEVICES, UnbindDevice, devices_stream
from domain.identity.sessions import GRACE_SECONDS, SESSION, Ended, Session, session_stream
from domain.identity.tenants import TENANT, SuspendTenant, tenant_stream
from domain.identity.users import USER, SuspendUser, user_stream
from tests.api.conftest import Site
from tests.support.people import edge_of, made

pytestmark = pytest.mark.asyncio(loop_scope="module")

REFRESH = "/v1/auth/refresh"
FINGERPRINT = "fingerprint-of-the-desk"


class Clock:
    """A monotonic clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Owner:
    """A person with a session on a device."""

    site: Site
    user_id: UUID
    session: SignedIn

    @property
    def token(self) -> str:
        assert self.session.refresh_token is not None
        return self.session.refresh_token

    async def refresh(self, token: str | None = None, fingerprint: str | None = FINGERPRINT) -> httpx.Response:
        body: dict[str, Any] = {"refresh_token": token or self.token}
        if fingerprint is not None:
            body["device_fingerprint"] = fingerprint
        return await self.site.client.post(REFRESH, json=body)

    async def state(self) -> Any:
        tenant_id = self.site.account.tenant_id
        return (await self.site.store.state(SESSION, tenant_id, session_stream(self.session.session_id))).state

    async def me(self, answer: httpx.Response) -> int:
        """Whether the access token of an answer lets its owner in."""
        headers = {"Authorization": f"Bearer {answer.json()['token']}"}
        return (await self.site.client.get("/v1/sessions", headers=headers)).status_code


@pytest.fixture
def clock(site: Site, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock by which this process knows how long ago it rotated."""
    clock = Clock()
    monkeypatch.setattr(edge_of(site), "rotations", Rotations(clock))
    return clock


@pytest_asyncio.fixture(loop_scope="module")
async def owner(site: Site) -> AsyncIterator[Owner]:
    tenant_id = site.account.tenant_id
    user_id, _ = await made(site, tenant_id, "member", name="Ada")
    bind, digest = await bind_item(edge_of(site), tenant_id, user_id, FINGERPRINT, "Desk")
    yield Owner(site, user_id, await sessions.start(edge_of(site), tenant_id, user_id, device=digest, extra=(bind,)))


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


async def test_a_refresh_gives_the_next_tokens_and_says_whose_they_are(owner: Owner) -> None:
    answer = await owner.refresh()

    assert answer.status_code == 200, answer.text
    assert set(answer.json()) == {"token", "user", "exp"}
    assert answer.json()["user"]["name"] == "Ada"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers[REFRESH_HEADER] not in ("", owner.token)
    assert answer.headers[REFRESH_HEADER] not in answer.text
    assert await owner.me(answer) == 200


async def test_each_token_of_a_long_row_works_once_it_is_the_last(owner: Owner) -> None:
    token = owner.token
    for number in range(2, 8):
        answer = await owner.refresh(token)
        token = answer.headers[REFRESH_HEADER]
        assert f"_{number}_" in token


async def test_a_lost_answer_is_given_again_within_the_grace(owner: Owner, clock: Clock) -> None:
    lost = await owner.refresh()
    clock.now += GRACE_SECONDS - 1
    again = await owner.refresh()

    assert again.headers[REFRESH_HEADER] == lost.headers[REFRESH_HEADER]
    assert (await owner.state()).number == 2
    assert await owner.me(again) == await owner.me(lost) == 200


async def test_a_token_used_twice_ends_the_session_for_both(owner: Owner, clock: Clock) -> None:
    thiefs = await owner.refresh()
    clock.now += GRACE_SECONDS
    owners = await owner.refresh()

    assert code(owners) == (401, "auth.refresh_reused")
    assert code(await owner.refresh(thiefs.headers[REFRESH_HEADER])) == (401, "auth.session_ended")
    assert await owner.state() == Ended(owner.session.session_id, owner.user_id, "reuse", (await owner.state()).at)
    await asyncio.sleep(1.05)  # for which what was read is used
    assert await owner.me(thiefs) == 401


async def test_one_that_is_older_still_ends_the_session_at_once(owner: Owner) -> None:
    second = await owner.refresh()
    await owner.refresh(second.headers[REFRESH_HEADER])

    assert code(await owner.refresh()) == (401, "auth.refresh_reused")
    assert isinstance(await owner.state(), Ended)


async def test_the_live_token_from_another_device_ends_the_session(owner: Owner) -> None:
    assert code(await owner.refresh(fingerprint="another fingerprint")) == (401, "auth.device_mismatch")
    assert code(await owner.refresh()) == (401, "auth.session_ended")


async def test_within_the_grace_another_device_gets_nothing_either(owner: Owner) -> None:
    await owner.refresh()

    assert code(await owner.refresh(fingerprint="another fingerprint")) == (401, "auth.device_mismatch")


async def test_a_refresh_that_names_no_device_changes_nothing(owner: Owner) -> None:
    answer = await owner.refresh(fingerprint=None)

    assert code(answer) == (422, "request.invalid")
    assert answer.json()["errors"][0]["field"] == "device_fingerprint"
    assert isinstance(await owner.state(), Session)


async def test_two_at_once_with_the_same_token_get_the_same_next_one(owner: Owner) -> None:
    answers = await asyncio.gather(*(owner.refresh() for _ in range(5)))

    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.headers[REFRESH_HEADER] for answer in answers}) == 1
    assert (await owner.state()).number == 2


async def test_a_client_that_leaves_before_the_answer_may_ask_again(owner: Owner) -> None:
    address = urlsplit(owner.site.url)
    body = msgspec.json.encode({"refresh_token": owner.token, "device_fingerprint": FINGERPRINT})
    with socket.create_connection((address.hostname, address.port)) as raw:
        head = f"POST {REFRESH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        raw.sendall(head.encode() + body)
        async with asyncio.timeout(60):
            while (await owner.state()).number == 1:  # noqa: ASYNC110  # the log says it, and this client does not listen
                await asyncio.sleep(0.01)

    answer = await owner.refresh()
    assert answer.status_code == 200
    assert "_2_" in answer.headers[REFRESH_HEADER]


@pytest.mark.parametrize("change", ["number", "session", "tenant", "mac", "shape", "short"])
async def test_a_forged_token_is_nobodys(owner: Owner, change: str) -> None:
    prefix, tenant, session, number, mac = owner.token.split("_", 4)
    parts = {"tenant": tenant, "session": session, "number": number, "mac": mac}
    forged = {
        "number": "2", "session": uuid4().hex, "tenant": uuid4().hex, "mac": ("A" if mac[0] != "A" else "B") + mac[1:],
    }  # fmt: skip
    if change in parts:
        parts[change] = forged[change]
    token = "_".join((prefix, *parts.values()))
    token = {"shape": "hbk_" + token[4:], "short": token[:-1]}.get(change, token)

    answer = await owner.refresh(token)

    assert code(answer) == (401, "auth.refresh_invalid")
    assert token not in answer.text
    assert isinstance(await owner.state(), Session)


async def test_an_invented_tenant_gets_no_key(owner: Owner) -> None:
    tenant = uuid4()
    await owner.refresh(f"hbr_{tenant.hex}_{uuid4().hex}_1_{'x' * 43}")

    assert owner.site.store.pool is not None
    async with owner.site.store.pool.connection() as conn:
        found = await (await conn.execute("select count(*) from tenant_key where tenant_id = %s", (tenant,))).fetchone()
    assert found == (0,)


async def test_who_is_suspended_or_unbound_or_of_a_suspended_tenant_is_refused(site: Site, owner: Owner) -> None:
    tenant_id = site.account.tenant_id
    devices = (await site.store.state(DEVICES, tenant_id, devices_stream(owner.user_id))).state
    await site.operate(tenant_id, DEVICES, devices_stream(owner.user_id), UnbindDevice(device_id=devices.bound[0].device_id))
    assert code(await owner.refresh()) == (401, "auth.session_ended")

    user_id, _ = await made(site, tenant_id, "member")
    other = Owner(site, user_id, await sessions.start(edge_of(site), tenant_id, user_id))
    await site.operate(tenant_id, USER, user_stream(user_id), SuspendUser())
    assert code(await other.refresh()) == (403, "auth.user_suspended")

    user_id, _ = await made(site, tenant_id, "member")
    third = Owner(site, user_id, await sessions.start(edge_of(site), tenant_id, user_id))
    await site.operate(tenant_id, TENANT, tenant_stream(tenant_id), SuspendTenant())
    assert code(await third.refresh()) == (403, "auth.tenant_suspended")


async def test_no_token_is_in_the_log(site: Site, owner: Owner) -> None:
    answer = await owner.refresh()

    text = "".join(f"{row.payload}{row.reply}{row.actor}" for row in await site.rows())
    for secret in (owner.token, answer.headers[REFRESH_HEADER], answer.json()["token"]):
        assert secret[-40:] not in text

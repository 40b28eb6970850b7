"""Browser sessions over HTTP: the cookie, what other sites cannot do with it, and how long it lives."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import httpx
import pytest
import pytest_asyncio

from api import passwords, people, sessions
from api.auth import Authenticator
from api.browser import cookie_value
from api.people import Profile
from domain.identity.sessions import EXTEND_SECONDS, SESSION, Ended, Session, session_stream
from eventstore.requests import Request
from tests.api.conftest import Site
from tests.support.doors import door_by_a_clock
from tests.support.people import edge_of, signed

pytestmark = pytest.mark.asyncio(loop_scope="module")

NAME = "__Host-holdbook"
PASSWORD = "correct horse battery"
RESERVE = "/v1/usage/reserve"


@dataclass
class Browser:
    """A browser that somebody may be signed in with. It sends what it is told and keeps what it is given."""

    site: Site
    user_id: UUID
    email: str
    cookie: str | None = None

    @property
    def host(self) -> str:
        return urlsplit(self.site.url).netloc

    async def send(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> httpx.Response:
        given = {"Cookie": f"theme=dark; {NAME}={self.cookie}"} if self.cookie is not None else {}
        async with httpx.AsyncClient(base_url=self.site.url, timeout=30, trust_env=False) as client:
            return await client.request(method, path, json=body, headers={**given, **(headers or {})})

    async def sign_in(self, **headers: str) -> httpx.Response:
        body = {"email": self.email, "password": PASSWORD, "session": "browser"}
        tenant = {"Holdbook-Tenant": str(self.site.account.tenant_id)}
        answer = await self.send("POST", "/v1/auth/login", body, {**tenant, **headers})
        if (morsel := morsel_of(answer)) is not None:
            self.cookie = morsel.value
        return answer

    async def csrf(self) -> dict[str, str]:
        answer = await self.send("GET", "/v1/auth/csrf")
        assert answer.status_code == 200, answer.text
        return {"X-CSRF-Token": answer.json()["csrf_token"]}

    @property
    def session_id(self) -> UUID:
        assert self.cookie is not None
        return UUID(self.cookie.split("_")[3])

    async def state(self) -> Any:
        return (await self.site.store.state(SESSION, self.site.account.tenant_id, session_stream(self.session_id))).state


def morsel_of(answer: httpx.Response) -> Any:
    return SimpleCookie(answer.headers.get("set-cookie", "")).get(NAME)


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


@pytest_asyncio.fixture(loop_scope="module")
async def browser(site: Site) -> Browser:
    tenant_id, user_id, sealing = site.account.tenant_id, uuid4(), site.store.sealing
    email = f"{user_id.hex}@example.com"
    profile = await people.seal_profile(sealing, tenant_id, user_id, Profile(email, "Ada"))
    password = await sealing.seal(tenant_id, user_id, people.PASSWORD, await passwords.hash(PASSWORD))
    login = await people.login_of_email(sealing, tenant_id, email)
    items = people.create_items(tenant_id, user_id, "member", profile, login, password)
    assert not (await site.store.submit(Request(tenant_id, uuid4(), items, b""))).refused
    return Browser(site, user_id, email)


async def test_the_cookie_is_for_this_host_over_tls_and_for_no_script(browser: Browser) -> None:
    answer = await browser.sign_in()

    assert answer.status_code == 200, answer.text
    morsel = morsel_of(answer)
    assert (morsel["secure"], morsel["httponly"], morsel["samesite"].lower(), morsel["path"], morsel["domain"]) == (
        True,
        True,
        "lax",
        "/",
        "",
    )
    assert 0 < int(morsel["max-age"]) <= 30 * 86_400
    assert answer.json()["token"] is None
    assert "holdbook-refresh-token" not in answer.headers
    assert answer.headers["cache-control"] == "no-store"
    assert browser.cookie is not None
    assert browser.cookie not in answer.text


async def test_the_cookie_lets_in(browser: Browser) -> None:
    await browser.sign_in()
    assert (await browser.send("GET", "/v1/sessions")).status_code == 200

    assert code(await browser.send("POST", RESERVE, {"messages": 1, "correlation_id": "k"}, await browser.csrf())) == (
        404,
        "quota.not_found",
    )


HERE, EVIL = "http://{host}", "https://evil.example"
NOT_SENT = {"X-CSRF-Token": ""}
MATRIX: list[tuple[str, str, dict[str, str], bool]] = [
    ("reading needs nothing", "GET", NOT_SENT, True),
    ("reading for another site changes nothing", "GET", {**NOT_SENT, "Origin": EVIL, "Sec-Fetch-Site": "cross-site"}, True),
    ("writing with the header", "POST", {}, True),
    ("writing with the header from here", "POST", {"Origin": HERE, "Sec-Fetch-Site": "same-origin"}, True),
    ("writing behind a proxy that ends TLS", "POST", {"Origin": "https://app.example.com", "Host": "app.example.com"}, True),
    ("writing to a named port", "POST", {"Origin": "https://app.example.com", "Host": "app.example.com:443"}, True),
    ("writing without the header", "POST", NOT_SENT, False),
    ("writing with another header", "POST", {"X-CSRF-Token": "x" * 43}, False),
    ("writing without the header from here", "POST", {**NOT_SENT, "Origin": HERE}, False),
    ("another site", "POST", {"Origin": EVIL}, False),
    ("another port", "POST", {"Origin": "http://127.0.0.1:1"}, False),
    ("another host that ends alike", "POST", {"Origin": "http://evil{host}"}, False),
    ("a page without an origin", "POST", {"Origin": "null"}, False),
    ("nonsense", "POST", {"Origin": "http://["}, False),
    ("a sister site", "POST", {"Sec-Fetch-Site": "same-site"}, False),
    ("another site, by the browser's word", "POST", {"Sec-Fetch-Site": "cross-site"}, False),
    ("here, but another site by the browser's word", "POST", {"Origin": HERE, "Sec-Fetch-Site": "cross-site"}, False),
    ("putting without the header", "PUT", NOT_SENT, False),
    ("deleting without the header", "DELETE", NOT_SENT, False),
]  # fmt: skip


@pytest.mark.parametrize(("method", "headers", "allowed"), [row[1:] for row in MATRIX], ids=[row[0] for row in MATRIX])
async def test_what_other_sites_can_make_a_browser_do(browser: Browser, method: str, headers: dict[str, str], allowed: bool) -> None:
    await browser.sign_in()
    sent = {**await browser.csrf(), **{name: value.format(host=browser.host) for name, value in headers.items()}}
    path = {"GET": "/v1/sessions", "POST": RESERVE, "PUT": "/v1/me", "DELETE": f"/v1/sessions/{uuid4().hex}"}[method]

    answer = await browser.send(method, path, None if method == "GET" else {"messages": 1, "correlation_id": "k"}, sent)

    assert (answer.status_code != 403) is allowed, answer.text
    if not allowed:
        assert code(answer) == (403, "auth.csrf")


async def test_the_header_of_another_session_is_none(browser: Browser) -> None:
    await browser.sign_in()
    other = await browser.csrf()
    browser.cookie = None
    await browser.sign_in()

    assert code(await browser.send("POST", RESERVE, {"messages": 1}, other)) == (403, "auth.csrf")


async def test_a_bearer_counts_before_the_cookie_and_needs_no_header(site: Site, browser: Browser) -> None:
    await browser.sign_in()
    who = await signed(site, "owner")

    found = (await browser.send("GET", "/v1/me", headers=who.headers)).json()
    assert found["user_id"] == who.user_id.hex
    assert (await browser.send("POST", RESERVE, {"messages": 1, "correlation_id": "k"}, who.headers)).status_code == 404
    assert code(await browser.send("GET", "/v1/me", headers={"Authorization": "Bearer x.y.z"})) == (401, "auth.token_invalid")


async def test_a_planted_cookie_is_not_taken_over(site: Site, browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = door_by_a_clock(site, monkeypatch)
    await browser.sign_in()
    attackers, planted = Browser(site, browser.user_id, browser.email, browser.cookie), browser.cookie
    first = await attackers.state()
    assert (await attackers.send("GET", "/v1/sessions")).status_code == 200

    await browser.sign_in()

    assert browser.cookie != planted
    assert browser.session_id != first.session_id
    assert await attackers.state() == Ended(first.session_id, browser.user_id, "replaced", (await attackers.state()).at)
    assert isinstance(await browser.state(), Session)
    clock.pass_a_second()
    assert (await attackers.send("GET", "/v1/sessions")).status_code == 401


async def test_signing_in_with_a_cookie_that_is_not_genuine_ends_nobodys_session(site: Site, browser: Browser) -> None:
    await browser.sign_in()
    victim = await browser.state()
    assert browser.cookie is not None
    browser.cookie = browser.cookie[:-43] + "x" * 43

    assert (await browser.sign_in()).status_code == 200

    state = (await site.store.state(SESSION, site.account.tenant_id, session_stream(victim.session_id))).state
    assert isinstance(state, Session)


@pytest.mark.parametrize("headers", [{"Origin": EVIL}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}])
async def test_another_site_cannot_sign_a_browser_in(browser: Browser, headers: dict[str, str]) -> None:
    answer = await browser.sign_in(**headers)

    assert code(answer) == (403, "auth.csrf")
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("part", ["tenant", "user", "session", "mac", "prefix"])
async def test_a_forged_cookie_is_nobodys(browser: Browser, part: str) -> None:
    await browser.sign_in()
    assert browser.cookie is not None
    prefix, tenant, user, session, mac = browser.cookie.split("_", 4)
    parts = {"prefix": prefix, "tenant": tenant, "user": user, "session": session, "mac": mac}
    parts[part] = {"prefix": "hbx", "mac": ("A" if mac[0] != "A" else "B") + mac[1:]}.get(part, uuid4().hex)
    browser.cookie = "_".join(parts.values())

    assert (await browser.send("GET", "/v1/sessions")).status_code == 401


async def test_the_cookie_of_a_token_session_cannot_be_made(site: Site, browser: Browser) -> None:
    """Even the right secret makes no cookie of a session that was begun with tokens."""
    tenant_id = site.account.tenant_id
    session = await sessions.start(edge_of(site), tenant_id, browser.user_id)
    browser.cookie = await cookie_value(site.store.sealing, tenant_id, browser.user_id, session.session_id)

    assert code(await browser.send("GET", "/v1/sessions")) == (401, "auth.session_ended")


async def test_leaving_ends_it_and_has_the_browser_forget_the_cookie(browser: Browser) -> None:
    await browser.sign_in()

    answer = await browser.send("POST", "/v1/auth/logout", headers=await browser.csrf())

    assert answer.status_code == 200, answer.text
    morsel = morsel_of(answer)
    assert (morsel.value, morsel["max-age"], morsel["secure"]) == ("", "0", True)
    assert (await browser.state()).reason == "logout"


async def test_use_moves_the_end_once_an_hour_and_not_at_each_request(
    site: Site, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    await browser.sign_in()
    taken: list[Any] = []
    submit = site.store.submit

    def noted(request: Request) -> Any:
        taken.extend(type(item.command).__name__ for item in request.items)
        return submit(request)

    monkeypatch.setattr(site.store, "submit", noted)
    for _ in range(3):
        await browser.send("GET", "/v1/sessions")
    assert (await browser.state()).number == 1
    assert not taken

    later = datetime.now(UTC) + timedelta(seconds=EXTEND_SECONDS + 5)

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return later

    monkeypatch.setattr("api.auth.datetime", Later)
    assert (await browser.send("GET", "/v1/sessions")).status_code == 200
    async with asyncio.timeout(20):
        while not taken:  # noqa: ASYNC110  # nobody waits for it, so nothing tells of it
            await asyncio.sleep(0.01)

    assert taken == ["ExtendSession"]


async def test_without_tls_the_cookie_has_another_name(site: Site, browser: Browser) -> None:
    await browser.sign_in()
    headers = {b"cookie": f"{NAME}={browser.cookie}".encode()}
    insecure = Authenticator(site.store, edge_of(site).tokens, insecure_cookies=True)

    with pytest.raises(Exception, match=r"auth\.required"):
        await insecure.principal(headers)
    assert (await insecure.principal({b"cookie": f"holdbook={browser.cookie}".encode()})).user_id == browser.user_id

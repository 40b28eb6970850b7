"""Sessions at the door over HTTP: who comes in by a token, what ends one, and how soon."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import httpx
import msgspec
import pytest

from api import sessions
from api.auth import Authenticator
from api.devices import bind_item
from api.problems import Problem
from domain.catalog import DECIDERS
from domain.identity.devices import DEVICES, UnbindAll, devices_stream
from domain.identity.sessions import SESSION, Ended, EndSession, StartSession, session_stream
from domain.identity.tenants import TENANT, DeleteTenant, SuspendTenant, tenant_stream
from domain.identity.users import USER, ChangeRole, EraseUser, ResumeUser, SuspendUser, user_stream
from domain.kernel.decider import Rejected
from eventstore.store import Store
from tests.api.conftest import Site
from tests.support.doors import DoorClock, door_by_a_clock
from tests.support.people import Signed, edge_of, made, sign_in, signed

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(autouse=True)
def clock(site: Site, monkeypatch: pytest.MonkeyPatch) -> DoorClock:
    """The clock by which the door knows how old is what it read."""
    return door_by_a_clock(site, monkeypatch)


async def listed(site: Site, who: Signed, **params: Any) -> httpx.Response:
    return await site.client.get("/v1/sessions", headers=who.headers, params=params)


async def post(site: Site, who: Signed, path: str) -> httpx.Response:
    return await site.client.post(path, headers=who.headers)


async def becomes(site: Site, clock: DoorClock, who: Signed, expected: tuple[int, str]) -> None:
    """A second later the door answers so."""
    clock.pass_a_second()
    answer = await listed(site, who)
    assert (answer.status_code, "" if answer.status_code == 200 else answer.json()["code"]) == expected


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


async def again(site: Site, who: Signed) -> Signed:
    """The same person in another session."""
    return await sign_in(site, who.tenant_id, who.user_id, who.role, who.email)


async def ids(site: Site, who: Signed, position: str) -> list[str]:
    answer = await listed(site, who, min_position=position)
    assert answer.status_code == 200, answer.text
    return [each["session_id"] for each in answer.json()["sessions"]]


async def test_a_token_lets_in_and_shows_ones_own_sessions_alone(site: Site) -> None:
    who, other = await signed(site, "member"), await signed(site, "member")
    tenant_id = site.account.tenant_id
    bind, digest = await bind_item(edge_of(site), tenant_id, who.user_id, "fingerprint-1", "Ada's desk")
    on_desk = await sessions.start(edge_of(site), tenant_id, who.user_id, device=digest, extra=(bind,))
    await signed(site, "member")

    answer = await listed(site, who, min_position=on_desk.position)

    found = answer.json()["sessions"]
    assert [(each["kind"], each["device"], each["current"]) for each in found] == [("token", "Ada's desk", False), ("token", None, True)]
    assert found[0]["session_id"] == on_desk.session_id.hex
    assert answer.headers["cache-control"] == "no-store"
    assert len((await listed(site, other, min_position=on_desk.position)).json()["sessions"]) == 1


async def test_the_answer_says_who_signed_in_and_keeps_the_refresh_token_out_of_the_body(site: Site) -> None:
    tenant_id = site.account.tenant_id
    user_id, email = await made(site, tenant_id, "manager", name="Ada")
    answer = await sessions.signed_in_response(edge_of(site), await sessions.start(edge_of(site), tenant_id, user_id))

    body = msgspec.json.decode(answer.body)
    assert body["user"] == {"user_id": user_id.hex, "email": email, "name": "Ada", "role": "manager"}
    assert set(body) == {"token", "user", "exp"}
    assert answer.headers["holdbook-refresh-token"].startswith("hbr_")
    assert b"hbr_" not in bytes(answer.body)


async def test_leaving_ends_this_session_and_no_other(site: Site, clock: DoorClock) -> None:
    who = await signed(site, "member")
    other = await again(site, who)

    answer = await post(site, who, "/v1/auth/logout")

    assert (answer.status_code, answer.json()["status"]) == (200, "ended")
    await becomes(site, clock, who, (401, "auth.session_ended"))
    assert len(await ids(site, other, answer.headers["holdbook-position"])) == 1


async def test_leaving_everywhere_ends_all_until_now(site: Site, clock: DoorClock) -> None:
    who, stranger = await signed(site, "member"), await signed(site, "member")
    other = await again(site, who)

    answer = await post(site, other, "/v1/auth/logout-everywhere")

    assert answer.json() == {"user_id": who.user_id.hex, "status": "signed_out"}
    for each in (who, other):
        await becomes(site, clock, each, (401, "auth.session_ended"))
    assert (await listed(site, stranger)).status_code == 200
    later = await again(site, who)
    assert len(await ids(site, later, str((await site.rows())[-1].position))) == 1


async def test_one_session_is_ended_by_its_owner_alone(site: Site, clock: DoorClock) -> None:
    who, stranger, owner = await signed(site, "member"), await signed(site, "member"), await signed(site, "owner")
    other = await again(site, who)
    mine = (await edge_of(site).tokens.verify(other.headers["Authorization"][7:]))["sid"]

    for nobody in (stranger, owner):
        assert code(await site.client.delete(f"/v1/sessions/{mine}", headers=nobody.headers)) == (404, "session.not_found")
    assert code(await site.client.delete(f"/v1/sessions/{uuid4().hex}", headers=who.headers)) == (404, "session.not_found")
    answer = await site.client.delete(f"/v1/sessions/{mine}", headers=who.headers)

    assert answer.json() == {"session_id": mine, "status": "ended"}
    await becomes(site, clock, other, (401, "auth.session_ended"))
    assert mine not in await ids(site, who, answer.headers["holdbook-position"])


@pytest.mark.parametrize(
    ("by", "of", "status"),
    [("owner", "admin", 200), ("admin", "member", 200), ("admin", "admin", 403), ("manager", "member", 403), ("member", "member", 403)],
)
async def test_an_administrator_ends_the_sessions_of_those_below(site: Site, clock: DoorClock, by: str, of: str, status: int) -> None:
    who, other = await signed(site, by), await signed(site, of)

    assert (await post(site, who, f"/v1/users/{other.user_id.hex}/logout")).status_code == status

    clock.pass_a_second()
    assert (await listed(site, other)).status_code == (401 if status == 200 else 200)


async def test_of_nobody_there_are_no_sessions_to_end(site: Site) -> None:
    assert code(await post(site, await signed(site, "owner"), f"/v1/users/{uuid4().hex}/logout")) == (404, "user.not_found")


async def test_a_key_has_no_session(site: Site) -> None:
    for method, path in (("GET", "/v1/sessions"), ("POST", "/v1/auth/logout"), ("GET", "/v1/auth/csrf")):
        answer = await site.client.request(method, path, headers=site.account.headers)
        assert code(answer) == (403, "auth.permission_missing")


async def test_a_suspended_person_is_out_within_a_second_and_in_again_when_resumed(site: Site, clock: DoorClock) -> None:
    who = await signed(site, "member")
    stream = user_stream(who.user_id)
    await site.operate(who.tenant_id, USER, stream, SuspendUser())
    await becomes(site, clock, who, (403, "auth.user_suspended"))

    await site.operate(who.tenant_id, USER, stream, ResumeUser())
    await becomes(site, clock, who, (200, ""))


async def test_another_role_counts_within_a_second(site: Site, clock: DoorClock) -> None:
    who = await signed(site, "manager")
    assert (await site.client.get("/v1/users", headers=who.headers)).status_code == 200

    await site.operate(who.tenant_id, USER, user_stream(who.user_id), ChangeRole(role="member"))

    clock.pass_a_second()
    assert code(await site.client.get("/v1/users", headers=who.headers)) == (403, "auth.permission_missing")


async def test_an_unbound_device_is_out_and_bound_anew_brings_no_old_session_back(site: Site, clock: DoorClock) -> None:
    tenant_id = site.account.tenant_id
    user_id, email = await made(site, tenant_id, "member")
    headers = []
    for _ in range(2):
        bind, digest = await bind_item(edge_of(site), tenant_id, user_id, "fingerprint-1", None)
        session = await sessions.start(edge_of(site), tenant_id, user_id, device=digest, extra=(bind,))
        headers.append(Signed(tenant_id, user_id, "member", email, {"Authorization": f"Bearer {session.token}"}))
        assert (await listed(site, headers[-1])).status_code == 200
        if len(headers) == 1:
            await site.operate(tenant_id, DEVICES, devices_stream(user_id), UnbindAll())
            await becomes(site, clock, headers[0], (401, "auth.session_ended"))

    clock.pass_a_second()
    assert code(await listed(site, headers[0])) == (401, "auth.session_ended")
    answer = await listed(site, headers[1], min_position=session.position)
    assert [each["session_id"] for each in answer.json()["sessions"]] == [session.session_id.hex]


async def test_a_suspended_tenant_lets_nobody_in(site: Site, clock: DoorClock) -> None:
    who = await signed(site, "owner")
    await site.operate(who.tenant_id, TENANT, tenant_stream(who.tenant_id), SuspendTenant())
    await becomes(site, clock, who, (403, "auth.tenant_suspended"))


async def test_a_deleted_tenant_is_nobodys(site: Site, clock: DoorClock) -> None:
    who = await signed(site, "owner")
    await site.operate(who.tenant_id, TENANT, tenant_stream(who.tenant_id), DeleteTenant(tenant_id=who.tenant_id))
    await becomes(site, clock, who, (401, "auth.token_invalid"))


@pytest.mark.parametrize("changed", ["sub", "sid", "tid"])
async def test_a_token_of_another_tenant_person_or_session_opens_nothing(site: Site, changed: str) -> None:
    who, other = await signed(site, "member"), await signed(site, "owner", await site.tenant())
    tokens = edge_of(site).tokens
    mine, theirs = [await tokens.verify(each.headers["Authorization"][7:]) for each in (who, other)]
    token = await tokens.mint({**mine, changed: theirs[changed]})

    answer = await site.client.get("/v1/sessions", headers={"Authorization": f"Bearer {token}"})

    assert code(answer) == (401, "auth.token_invalid")


@pytest.mark.parametrize("missing", ["tid", "sid"])
@pytest.mark.parametrize("value", [None, 7, "nothing", {}])
async def test_a_token_without_a_session_of_ours_opens_nothing(site: Site, missing: str, value: Any) -> None:
    who = await signed(site, "member")
    tokens = edge_of(site).tokens
    claims = await tokens.verify(who.headers["Authorization"][7:])
    claims = {**claims, missing: value} if value is not None else {name: each for name, each in claims.items() if name != missing}

    answer = await site.client.get("/v1/sessions", headers={"Authorization": f"Bearer {await tokens.mint(claims)}"})

    assert code(answer) == (401, "auth.token_invalid")


async def test_a_wrong_signature_asks_the_log_for_nothing(site: Site, clock: DoorClock, monkeypatch: pytest.MonkeyPatch) -> None:
    who = await signed(site, "member")
    await listed(site, who)
    session_id = UUID((await edge_of(site).tokens.verify(who.headers["Authorization"][7:]))["sid"])
    asked: list[str] = []
    states = site.store.states

    async def counted(tenant_id: UUID, wanted: Any) -> Any:
        asked.extend(stream for _, stream in wanted)
        return await states(tenant_id, wanted)

    monkeypatch.setattr(site.store, "states", counted)
    head, _, _ = who.headers["Authorization"].rpartition(".")
    clock.pass_a_second()

    for signature in ("A" * 342, "", "x"):
        answer = await site.client.get("/v1/sessions", headers={"Authorization": f"{head}.{signature}"})
        assert code(answer) == (401, "auth.token_invalid")
    assert session_stream(session_id) not in asked  # others may be asked for by what works in the background
    assert (await listed(site, who)).status_code == 200
    assert session_stream(session_id) in asked


async def test_what_a_session_did_is_recorded_under_its_person(site: Site) -> None:
    who = await signed(site, "owner")
    answer = await post(site, who, "/v1/auth/logout-everywhere")

    position = int(answer.headers["holdbook-position"])
    actors = [row.actor for row in await site.rows() if row.position == position]
    assert len(actors) == 1
    assert str(actors[0]).startswith(f"user:{who.user_id.hex}")


async def test_the_same_session_id_starts_once_and_its_tokens_are_made_again(site: Site) -> None:
    tenant_id, session_id = site.account.tenant_id, uuid4()
    user_id, _ = await made(site, tenant_id, "member")
    first, second = await asyncio.gather(
        *(sessions.start(edge_of(site), tenant_id, user_id, session_id=session_id) for _ in range(2))
    )  # fmt: skip
    assert first.refresh_token == second.refresh_token

    other, _ = await made(site, tenant_id, "member")
    with pytest.raises(Rejected, match=r"session\.exists"):
        await sessions.start(edge_of(site), tenant_id, other, session_id=session_id)


async def test_what_ends_in_one_process_is_over_in_every_other(site: Site, clock: DoorClock, module_database: str) -> None:
    who = await signed(site, "member")
    headers = {b"authorization": who.headers["Authorization"].encode()}
    store = await Store.open(module_database, DECIDERS)
    try:
        other = Authenticator(store, edge_of(site).tokens, clock=clock)
        assert (await other.principal(headers)).user_id == who.user_id

        assert (await post(site, who, "/v1/auth/logout")).status_code == 200

        clock.pass_a_second()
        with pytest.raises(Problem) as refused:
            await other.principal(headers)
        assert refused.value.code == "auth.session_ended"
    finally:
        await store.drain()


async def test_one_that_nobody_uses_ends_by_itself(site: Site) -> None:
    who = await signed(site, "member")
    session_id = uuid4()
    stream = session_stream(session_id)
    command = StartSession(
        session_id=session_id, user_id=who.user_id, kind="token", device=None, lifetime_seconds=60, idle_seconds=1
    )  # fmt: skip
    await site.operate(who.tenant_id, SESSION, stream, command)

    async with asyncio.timeout(60):
        while not isinstance((await site.store.state(SESSION, who.tenant_id, stream)).state, Ended):  # noqa: ASYNC110  # the log says it
            await asyncio.sleep(0.1)

    assert (await site.store.state(SESSION, who.tenant_id, stream)).state.reason == "expired"
    assert session_id.hex not in await ids(site, who, str((await site.rows())[-1].position))


async def test_an_erased_person_has_no_sessions_any_more(site: Site, clock: DoorClock) -> None:
    who = await signed(site, "member")
    await site.operate(who.tenant_id, USER, user_stream(who.user_id), EraseUser())
    await becomes(site, clock, who, (401, "auth.session_ended"))
    position = (await site.rows())[-1].position
    readers = edge_of(site).readers
    assert await readers.sessions.list(who.tenant_id, who.user_id, datetime.now(UTC), min_position=position) == []


async def test_one_that_ended_is_forgotten_by_the_read_model(site: Site) -> None:
    who = await signed(site, "member")
    other = await again(site, who)
    ended = UUID((await edge_of(site).tokens.verify(other.headers["Authorization"][7:]))["sid"])
    await site.operate(who.tenant_id, SESSION, session_stream(ended), EndSession(reason="admin"))

    assert ended.hex not in await ids(site, who, str((await site.rows())[-1].position))

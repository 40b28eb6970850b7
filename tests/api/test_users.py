"""People over HTTP: invitations, roles and who may give them, suspension, resets, profiles; and nothing personal in the database."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import msgspec
import psycopg
import pytest

from api import people
from api.routes.users import SuspendPerson
from domain.identity.logins import LOGIN, ClaimLogin, login_stream
from domain.identity.permissions import GRANTS
from domain.identity.tenants import TENANT, Tenant, tenant_stream
from domain.identity.users import USER, Active, EraseUser, Invited, InviteUser, SetPassword, UserChanged, user_stream
from eventstore.requests import Item, Request
from tests.api.conftest import Site
from tests.support.people import Signed, call, made, sign_in, signed

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROLES = ("owner", "admin", "manager", "member", "support")


def anna() -> str:
    """An address that nobody has."""
    return f"anna-{uuid4().hex}@example.com"


async def invite(site: Site, email: str, who: Signed | None = None, *, role: str = "member", key: str | None = None, **more: Any) -> Any:
    return await call(site, who, "POST", "/v1/invitations", {"email": email, "role": role, **more}, key=key)


async def accept(site: Site, token: str) -> UUID:
    """As the route for it does."""
    tenant_id = site.account.tenant_id
    said = await people.read_invitation(site.store.sealing, token)
    assert said is not None
    assert said.tenant_id == tenant_id
    state = await people.user_state(site.store, tenant_id, said.user_id)
    assert isinstance(state, Invited)
    password = await site.store.sealing.seal(tenant_id, said.user_id, people.PASSWORD, "hash")
    outcome = await site.store.submit(Request(tenant_id, uuid4(), people.accept_items(tenant_id, state, said.number, password), b""))
    assert not outcome.refused, outcome.reply
    return said.user_id


async def owners(site: Site) -> set[UUID]:
    tenant_id = site.account.tenant_id
    state = (await site.store.state(TENANT, tenant_id, tenant_stream(tenant_id))).state
    assert isinstance(state, Tenant)
    return set(state.owners)


# Invitations


async def test_an_invitation_is_made_once_for_a_key_and_its_token_is_in_no_event(site: Site) -> None:
    email = anna()
    first = await invite(site, email, key="k", name="Anna Karenina")
    again = await invite(site, email, key="k", name="Anna Karenina")

    assert first.status_code == 200, first.text
    assert first.headers["Cache-Control"] == "no-store"
    told = first.json()
    assert (told["status"], told["role"]) == ("invited", "member")
    assert again.json() == told
    assert again.headers["Idempotent-Replayed"] == "true"
    log = "".join(f"{row.payload}{row.reply}{row.stream}{row.actor}" for row in await site.rows())
    assert told["invitation_token"] not in log
    assert told["invitation_token"].split("_", 5)[-1] not in log
    other = await invite(site, anna(), key="k", name="Anna Karenina")
    assert other.json()["code"] == "idempotency.key_reused"


async def test_the_invited_become_active_and_owners_are_counted(site: Site) -> None:
    owner = await signed(site, "owner")
    told = (await invite(site, anna(), owner, role="owner")).json()
    assert await owners(site) == {owner.user_id}

    user_id = await accept(site, told["invitation_token"])

    assert await owners(site) == {owner.user_id, user_id}
    assert (await call(site, None, "GET", f"/v1/users/{user_id.hex}")).json()["status"] == "active"


async def test_a_token_that_was_changed_is_none(site: Site) -> None:
    token: str = (await invite(site, anna())).json()["invitation_token"]
    kind, tenant, user, number, end, mac = token.split("_", 5)
    forged = [
        "_".join((kind, tenant, user, number, str(int(end) + 1), mac)),
        "_".join((kind, tenant, user, "2", end, mac)),
        "_".join((kind, tenant, uuid4().hex, number, end, mac)),
        "_".join((kind, uuid4().hex, user, number, end, mac)),
        "_".join(("hbp", tenant, user, number, end, mac)),
        token[:-1] + ("A" if token[-1] != "A" else "B"),
        "",
        "hbi_",
    ]

    sealing = site.store.sealing
    assert await people.read_invitation(sealing, token) is not None
    for text in forged:
        assert await people.read_invitation(sealing, text) is None
        assert await people.read_reset(sealing, text, datetime.now(UTC)) is None


async def test_an_address_is_one_persons_in_a_tenant_however_it_is_written(site: Site) -> None:
    email = anna()
    assert (await invite(site, email)).status_code == 200

    taken = await invite(site, email.upper())

    assert (taken.status_code, taken.json()["code"]) == (409, "login.taken")
    assert email not in taken.text.lower()


async def test_two_who_invite_the_same_address_at_once_invite_one(site: Site) -> None:
    email = anna()
    answers = await asyncio.gather(*(invite(site, email) for _ in range(8)))

    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 7
    assert {answer.json()["code"] for answer in answers if answer.status_code == 409} == {"login.taken"}
    created = [row for row in await site.rows() if row.type == "user.invited"]
    assert len(created) == 1


async def test_an_address_may_be_in_two_tenants(site: Site) -> None:
    email, other = anna(), await site.issue(await site.tenant())
    mine = await invite(site, email)
    headers = {**other.headers, "Idempotency-Key": "k"}
    theirs = await site.client.post("/v1/invitations", json={"email": email, "role": "member"}, headers=headers)

    assert (mine.status_code, theirs.status_code) == (200, 200)
    assert mine.json()["user_id"] != theirs.json()["user_id"]
    streams = {row.stream for row in await site.rows() if row.type == "login.claimed"}
    found = await site.store.writer(other.tenant_id).log.read(0, 100_000)
    assert streams.isdisjoint({row.stream for row in found if row.tenant_id == other.tenant_id})


async def test_an_invitation_that_ended_is_made_again_for_the_same_user(site: Site) -> None:
    tenant_id, email = site.account.tenant_id, anna()
    other, long_ago = uuid4(), datetime.now(UTC) - timedelta(days=30)
    login = await people.login_of_email(site.store.sealing, tenant_id, email)
    profile = await people.seal_profile(site.store.sealing, tenant_id, other, people.Profile(email))
    items = (
        Item(LOGIN, login_stream(login), ClaimLogin(user_id=other)),
        Item(
            USER,
            user_stream(other),
            InviteUser(user_id=other, role="member", profile=profile, login=login, expires_at=long_ago + timedelta(days=7)),
        ),
    )
    await site.store.submit(Request(tenant_id, uuid4(), items, b"", occurred_at=long_ago))
    ended = await people.invitation_token(site.store.sealing, tenant_id, other, 1, (long_ago + timedelta(days=7)).replace(microsecond=0))

    again = await invite(site, email, role="manager", key="again")
    replayed = await invite(site, email, role="manager", key="again")

    assert again.status_code == 200, again.text
    assert (again.json()["user_id"], again.json()["role"]) == (other.hex, "manager")
    assert replayed.json() == again.json()
    assert again.json()["invitation_token"] != ended
    assert await accept(site, again.json()["invitation_token"]) == other


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"role": "member"}, "email"),
        ({"email": "anna", "role": "member"}, "email"),
        ({"email": "an na@example.com", "role": "member"}, "email"),
        ({"email": f"{'a' * 250}@example.com", "role": "member"}, "email"),
        ({"email": "a@example.com", "role": "emperor"}, "role"),
        ({"email": "a@example.com", "role": "member", "name": ""}, "name"),
        ({"email": "a@example.com", "role": "member", "expires_in_seconds": 1}, "expires_in_seconds"),
        ({"email": "a@example.com", "role": "member", "password": "hunter2hunter2"}, "password"),
    ],
)
async def test_bad_invitations_are_named_and_nothing_is_repeated(site: Site, body: dict[str, Any], field: str) -> None:
    answer = await call(site, None, "POST", "/v1/invitations", body)

    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == [field]
    assert not any(isinstance(value, str) and len(value) > 6 and value in answer.text for value in body.values())
    assert not [row for row in await site.rows() if row.stream.startswith(("user-", "login-"))]


# Roles


@pytest.mark.parametrize("mine", [*ROLES, None])
async def test_who_may_give_which_role(site: Site, mine: str | None) -> None:
    may = GRANTS.get(mine or "admin", frozenset())
    for role in (*ROLES, "operator"):
        who = None if mine is None else await signed(site, mine)  # a session of its own: each may ask so often a second
        invited = await invite(site, anna(), who, role=role)
        assert invited.status_code == (200 if role in may else 403), (mine, role, invited.text)
        if role == "operator":
            continue
        for given in (*ROLES, "operator"):
            await made(site, site.account.tenant_id, "owner")  # so that nobody is the last one
            user_id, _ = await made(site, site.account.tenant_id, role)
            changed = await call(site, who, "PUT", f"/v1/users/{user_id.hex}/role", {"role": given})
            expected = 200 if {role, given} <= may and given != "operator" else 403
            assert changed.status_code == expected, (mine, role, given, changed.text)


@pytest.mark.parametrize("what", ["suspend", "resume", "reset-password"])
async def test_nobody_acts_on_whom_they_could_not_make(site: Site, what: str) -> None:
    admin, (owner, _) = await signed(site, "admin"), await made(site, site.account.tenant_id, "owner")
    for who in (admin, None):
        refused = await call(site, who, "POST", f"/v1/users/{owner.hex}/{what}")
        assert (refused.status_code, refused.json()["code"]) == (403, "users.role_not_yours")
    member, (other, _) = await signed(site, "member"), await made(site, site.account.tenant_id, "member")
    assert (await call(site, member, "POST", f"/v1/users/{other.hex}/{what}")).json()["code"] == "auth.permission_missing"


async def test_a_role_holds_at_once(site: Site) -> None:
    owner, member = await signed(site, "owner"), await signed(site, "member")
    assert (await call(site, member, "GET", "/v1/users")).status_code == 403

    changed = await call(site, owner, "PUT", f"/v1/users/{member.user_id.hex}/role", {"role": "support"})

    assert changed.json() == {"user_id": member.user_id.hex, "status": "active", "role": "support"}
    for _ in range(200):
        if (await call(site, member, "GET", "/v1/users")).status_code == 200:
            break
        await asyncio.sleep(0.02)
    else:
        raise AssertionError("the new role never came")


# The last owner


async def test_two_owners_who_demote_each_other_at_once_leave_one(site: Site) -> None:
    anna_, boris = await signed(site, "owner"), await signed(site, "owner")

    answers = await asyncio.gather(
        call(site, anna_, "PUT", f"/v1/users/{boris.user_id.hex}/role", {"role": "member"}),
        call(site, boris, "PUT", f"/v1/users/{anna_.user_id.hex}/role", {"role": "member"}),
    )

    assert sorted(answer.status_code for answer in answers) == [200, 409], [answer.text for answer in answers]
    assert [answer.json()["code"] for answer in answers if answer.status_code == 409] == ["tenant.last_owner"]
    left = await owners(site)
    assert len(left) == 1
    states = [await people.user_state(site.store, site.account.tenant_id, user_id) for user_id in (anna_.user_id, boris.user_id)]
    assert {state.user_id for state in states if isinstance(state, Active) and state.role == "owner"} == left


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [("PUT", "role", {"role": "admin"}), ("POST", "suspend", None)],
)
async def test_the_last_owner_can_be_neither_demoted_nor_suspended(site: Site, method: str, path: str, body: Any) -> None:
    owner = await signed(site, "owner")
    invited = (await invite(site, anna(), owner, role="owner")).json()

    refused = await call(site, owner, method, f"/v1/users/{owner.user_id.hex}/{path}", body)

    assert (refused.status_code, refused.json()["code"]) == (409, "tenant.last_owner")
    assert "index" not in refused.json()
    await accept(site, invited["invitation_token"])
    assert (await call(site, owner, method, f"/v1/users/{owner.user_id.hex}/{path}", body)).status_code == 200
    assert await owners(site) == {UUID(invited["user_id"])}


async def test_a_suspended_owner_is_none_until_resumed(site: Site) -> None:
    anna_, boris = await signed(site, "owner"), await signed(site, "owner")
    path = f"/v1/users/{boris.user_id.hex}"

    assert (await call(site, anna_, "POST", f"{path}/suspend")).json()["status"] == "suspended"
    assert await owners(site) == {anna_.user_id}
    assert (await call(site, anna_, "POST", f"/v1/users/{anna_.user_id.hex}/suspend")).json()["code"] == "tenant.last_owner"
    assert (await call(site, anna_, "POST", f"{path}/resume")).json()["status"] == "active"
    assert await owners(site) == {anna_.user_id, boris.user_id}


async def test_a_change_made_for_another_situation_is_refused_and_leaves_nothing(site: Site) -> None:
    """What a route read may be outdated when the batch is decided: then a member would become an owner whom the tenant does not know."""
    tenant_id = site.account.tenant_id
    user_id, _ = await made(site, tenant_id, "member")
    body = SuspendPerson(user_id=user_id.hex)
    await body.find(site.store, tenant_id)
    owner = await signed(site, "owner")
    await call(site, owner, "PUT", f"/v1/users/{user_id.hex}/role", {"role": "owner"})
    with pytest.raises(UserChanged):
        await site.store.submit(Request(tenant_id, uuid4(), body.items(tenant_id, uuid4()), b""))

    assert await owners(site) == {owner.user_id, user_id}


# Suspension, resets, profiles


async def test_the_suspended_are_refused_and_let_in_again(site: Site) -> None:
    owner, member = await signed(site, "owner"), await signed(site, "member")
    assert (await call(site, member, "GET", "/v1/me")).status_code == 200

    for what, status in (("suspend", 403), ("resume", 200)):
        assert (await call(site, owner, "POST", f"/v1/users/{member.user_id.hex}/{what}")).status_code == 200
        for _ in range(200):
            if (answer := await call(site, member, "GET", "/v1/me")).status_code == status:
                break
            await asyncio.sleep(0.02)
        else:
            raise AssertionError(answer.text)


async def test_a_reset_token_is_the_same_for_a_key_and_works_once(site: Site) -> None:
    tenant_id, owner = site.account.tenant_id, await signed(site, "owner")
    user_id, _ = await made(site, tenant_id, "member")
    path = f"/v1/users/{user_id.hex}/reset-password"
    first = await call(site, owner, "POST", path, key="r")
    again = await call(site, owner, "POST", path, key="r")
    assert first.status_code == 200, first.text
    assert again.json() == first.json()
    token = first.json()["reset_token"]
    sealing, now = site.store.sealing, datetime.now(UTC)
    said = await people.read_reset(sealing, token, now)
    assert said is not None
    assert (said.tenant_id, said.user_id, said.number) == (tenant_id, user_id, 0)
    assert await people.read_reset(sealing, token, now + timedelta(hours=1)) is None
    assert not any(token.split("_", 5)[-1] in f"{row.payload}{row.reply}" for row in await site.rows())

    command = SetPassword(password="sealed", version=said.number)
    outcomes = [await site.store.submit(Request(tenant_id, uuid4(), (Item(USER, user_stream(user_id), command),), b"")) for _ in range(2)]

    assert [outcome.refused for outcome in outcomes] == [False, True]
    assert msgspec.json.decode(outcomes[1].reply)["code"] == "user.password_changed"


async def test_one_sees_and_changes_oneself(site: Site) -> None:
    member = await signed(site, "member")
    me = (await call(site, member, "GET", "/v1/me")).json()
    assert (me["user_id"], me["email"], me["name"], me["role"]) == (member.user_id.hex, member.email, "Test", "member")
    assert me["tenant_id"] == member.tenant_id.hex
    assert "usage:write" in me["permissions"]

    for body, name in (({"name": "Анна"}, "Анна"), ({"name": None}, None)):
        changed = await call(site, member, "PUT", "/v1/me", body)
        assert changed.status_code == 200, changed.text
        assert "Анна" not in changed.text
        me = (await call(site, member, "GET", "/v1/me")).json()
        assert (me["name"], me["email"]) == (name, member.email)
    assert (await call(site, None, "GET", "/v1/me")).status_code == 403
    assert (await call(site, member, "PUT", "/v1/me", {"name": "x", "role": "owner"})).status_code == 422


async def test_people_are_listed_by_pages_and_filters(site: Site) -> None:
    tenant_id, roles = site.account.tenant_id, ("member", "support")
    expected = [(await made(site, tenant_id, roles[number % 2], name=f"Person {number}"))[0].hex for number in range(7)]
    invited = await invite(site, anna())
    position = invited.headers["Holdbook-Position"]

    found: list[str] = []
    url: str | None = f"/v1/users?limit=3&min_position={position}"
    while url is not None:
        answer = await site.client.get(url, headers=site.account.headers)
        assert answer.status_code == 200, answer.text
        found += [user["user_id"] for user in answer.json()["users"]]
        url = answer.links.get("next", {}).get("url")

    assert found == [*expected, invited.json()["user_id"]]
    listed = (await site.get("/v1/users", role="support", min_position=position)).json()["users"]
    assert [user["name"] for user in listed] == ["Person 1", "Person 3", "Person 5"]
    assert all("@example.com" in user["email"] for user in listed)
    waiting = (await site.get("/v1/users", status="invited")).json()["users"]
    assert [user["user_id"] for user in waiting] == [invited.json()["user_id"]]
    for wrong in ("role=emperor", "status=erased", "cursor=x", "cursor=WyIxIiwiMiJd", "limit=0", "q=1"):
        assert (await site.client.get(f"/v1/users?{wrong}", headers=site.account.headers)).status_code == 422


async def test_the_erased_are_nobody_any_more(site: Site) -> None:
    tenant_id = site.account.tenant_id
    member = await signed(site, "member")
    outcome = await site.store.submit(Request(tenant_id, uuid4(), (Item(USER, user_stream(member.user_id), EraseUser()),), b""))

    shown = await call(site, None, "GET", f"/v1/users/{member.user_id.hex}")
    assert shown.json() == {"user_id": member.user_id.hex, "status": "erased"}
    listed = (await site.get("/v1/users", min_position=outcome.position)).json()["users"]
    assert member.user_id.hex not in [user["user_id"] for user in listed]
    changed = await call(site, None, "PUT", f"/v1/users/{member.user_id.hex}/role", {"role": "support"})
    assert (changed.status_code, changed.json()["code"]) == (409, "user.erased")


async def test_nobody_sees_the_people_of_another_tenant(site: Site) -> None:
    user_id, email = await made(site, site.account.tenant_id, "member")
    stranger = await signed(site, "owner", await site.tenant())
    for method, path, body in (
        ("GET", "", None),
        ("PUT", "/role", {"role": "support"}),
        ("POST", "/suspend", None),
        ("POST", "/reset-password", None),
    ):
        answer = await call(site, stranger, method, f"/v1/users/{user_id.hex}{path}", body)
        assert (answer.status_code, answer.json()["code"]) == (404, "user.not_found")
    assert email not in (await call(site, stranger, "GET", "/v1/users")).text


# The database


async def test_nothing_personal_stands_in_the_database_in_clear(site: Site, module_database: str) -> None:
    email, name = f"Grep-{uuid4().hex}@Example.com", f"Grepname {uuid4().hex}"
    owner = await signed(site, "owner")
    told = (await invite(site, email, owner, name=name)).json()
    user_id = await accept(site, told["invitation_token"])
    member = await sign_in(site, owner.tenant_id, user_id, "member", email)
    newer = f"Newname {uuid4().hex}"
    assert (await call(site, member, "PUT", "/v1/me", {"name": newer})).status_code == 200
    assert (await invite(site, email.lower(), owner)).status_code == 409
    last = await call(site, owner, "POST", f"/v1/users/{user_id.hex}/reset-password")
    listed = await call(site, owner, "GET", "/v1/users", min_position=last.headers["Holdbook-Position"])
    assert newer in listed.text

    rows = 0
    with psycopg.connect(module_database) as conn:
        tables = conn.execute("select schemaname, tablename from pg_tables where schemaname not in ('pg_catalog', 'information_schema')")
        whole = []
        for schema, table in tables.fetchall():
            found = [text for (text,) in conn.execute(f'select t::text from "{schema}"."{table}" t').fetchall()]
            rows += len(found)
            whole.append("\n".join(found).lower())
    assert rows > 20
    dump = "\n".join(whole)
    assert user_id.hex in dump  # it is the right database
    for secret in (email, email.split("@", maxsplit=1)[0], name, newer, told["invitation_token"], last.json()["reset_token"]):
        assert secret.lower() not in dump
        assert secret.encode().hex() not in dump

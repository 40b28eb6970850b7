"""Devices over HTTP: one's own, somebody's, and the last place that two want."""

import asyncio
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest

from api import passwords
from api.devices import bind_item, devices_of, limit_problem
from api.edge import Edge
from api.people import PASSWORD, Profile, create_items, login_of_email, seal_profile
from domain.catalog import DECIDERS
from domain.identity.devices import DEVICES, DeviceLimitReached, SetDeviceLimit, devices_stream
from eventstore.requests import Request
from eventstore.store import Store
from tests.api.conftest import Site
from tests.support.persons import Person, create, person, sign_in

pytestmark = pytest.mark.asyncio(loop_scope="module")


def edge_of(site: Site) -> Edge:
    edge: Edge = site.app.state.edge
    return edge


async def devices(site: Site, who: Person) -> list[dict[str, Any]]:
    answer = await site.client.get("/v1/devices", headers=who.headers)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["devices"]
    return found


async def gone(site: Site, who: Person) -> httpx.Response:
    """The first answer that keeps somebody out. Asked too often, that would be the one of the session's rate."""
    async with asyncio.timeout(20):
        while (answer := await site.client.get("/v1/devices", headers=who.headers)).status_code == 200:  # noqa: ASYNC110  # what ends it is in the server
            await asyncio.sleep(0.1)
    return answer


async def test_the_device_one_signs_in_from_is_bound_and_shown(site: Site) -> None:
    edge = edge_of(site)
    who = await person(edge, site.account.tenant_id)
    other = await sign_in(edge, who.tenant_id, who.user_id, "another fingerprint", "Phone")
    again = await sign_in(edge, who.tenant_id, who.user_id, "another fingerprint", "Phone with another name")

    found = await devices(site, other)

    assert [(each["name"], each["current"]) for each in found] == [("Laptop", False), ("Phone", True)]
    assert await devices(site, again) == found
    assert (await site.client.get("/v1/devices", headers=who.headers)).json()["limit"] == edge.settings.default_device_limit


async def test_a_device_is_renamed_and_its_name_stands_nowhere_in_clear(site: Site, module_database: str) -> None:
    who = await person(edge_of(site), site.account.tenant_id)
    (before,) = await devices(site, who)
    path, name = f"/v1/devices/{before['device_id']}", "Annas geheimes Notizbuch"

    first = await site.client.put(path, json={"name": name, "correlation_id": "r1"}, headers=who.headers)
    again = await site.client.put(path, json={"name": name, "correlation_id": "r1"}, headers=who.headers)
    other = await site.client.put(path, json={"name": "x", "correlation_id": "r1"}, headers=who.headers)

    assert (first.status_code, first.json()) == (200, {"device_id": before["device_id"], "status": "bound"})
    assert (again.content, again.headers["Idempotent-Replayed"]) == (first.content, "true")
    assert (other.status_code, other.json()["code"]) == (422, "idempotency.key_reused")
    assert [each["name"] for each in await devices(site, who)] == [name]
    with psycopg.connect(module_database) as conn:
        kept = "\n".join(text for (text,) in conn.execute("select e::text from event e where tenant_id = %s", (who.tenant_id,)))
    assert "device.renamed" in kept
    assert name not in kept
    assert "a fingerprint of the first device" not in kept


@pytest.mark.parametrize("body", [{}, {"name": ""}, {"name": "a\nb"}, {"name": "x" * 101}, {"name": 3}, {"name": "x", "user_id": "0" * 32}])
async def test_a_name_that_is_none_is_refused(site: Site, body: dict[str, Any]) -> None:
    who = await person(edge_of(site), site.account.tenant_id)
    (device,) = await devices(site, who)

    answer = await site.client.put(f"/v1/devices/{device['device_id']}", json={**body, "correlation_id": "r"}, headers=who.headers)

    assert (answer.status_code, answer.json()["code"]) == (422, "request.invalid")
    assert await devices(site, who) == [device]


async def test_an_unbound_device_is_signed_out_and_its_place_is_free(site: Site) -> None:
    edge = edge_of(site)
    who = await person(edge, site.account.tenant_id)
    phone = await sign_in(edge, who.tenant_id, who.user_id, "another fingerprint", "Phone")
    assert len(await devices(site, phone)) == 2

    assert phone.device_id is not None
    answer = await site.client.delete(f"/v1/devices/{phone.device_id.hex}", headers=who.headers)
    repeated = await site.client.delete(f"/v1/devices/{phone.device_id.hex}", headers=who.headers)
    unknown = await site.client.delete(f"/v1/devices/{uuid4().hex}", headers=who.headers)

    assert (answer.status_code, answer.json()) == (200, {"device_id": phone.device_id.hex, "status": "unbound"})
    assert repeated.content == answer.content
    assert (unknown.status_code, unknown.json()["code"]) == (404, "device.not_found")
    assert (await gone(site, phone)).status_code == 401
    assert [each["name"] for each in await devices(site, who)] == ["Laptop"]


async def test_one_device_too_many_is_told_the_names_of_those_that_are_bound(site: Site) -> None:
    edge = edge_of(site)
    who = await person(edge, site.account.tenant_id)
    await site.operate(who.tenant_id, DEVICES, devices_stream(who.user_id), SetDeviceLimit(limit=1))

    with pytest.raises(DeviceLimitReached) as refused:
        await sign_in(edge, who.tenant_id, who.user_id, "another fingerprint")
    problem = await limit_problem(edge, who.tenant_id, who.user_id, refused.value)

    told = problem.body()
    assert (told["status"], told["code"], told["details"]) == (409, "device.limit_reached", {"limit": 1, "devices": ["Laptop"]})
    assert "index" not in told


async def test_of_two_who_want_the_last_place_one_gets_it(site: Site, module_database: str) -> None:
    """Through two processes' stores on one database, so that no lock inside a process decides."""
    edge = edge_of(site)
    other = await Store.open(module_database, DECIDERS)
    try:
        for _ in range(5):
            user_id = await create(edge, site.account.tenant_id)
            await site.operate(site.account.tenant_id, DEVICES, devices_stream(user_id), SetDeviceLimit(limit=2))
            await sign_in(edge, site.account.tenant_id, user_id)

            async def bind(number: int, user_id: Any = user_id) -> bool:
                item, _ = await bind_item(edge, site.account.tenant_id, user_id, f"fingerprint {number}", None)
                request = Request(site.account.tenant_id, uuid4(), (item,), b"")
                try:
                    await (other if number % 2 else edge.store).submit(request)
                except DeviceLimitReached:
                    return False
                return True

            won = await asyncio.gather(*(bind(number) for number in range(6)))

            assert sum(won) == 1
            assert len((await devices_of(edge, site.account.tenant_id, user_id)).bound) == 2
    finally:
        await other.drain()


async def test_who_looks_after_people_sees_and_unbinds_their_devices(site: Site) -> None:
    edge = edge_of(site)
    tenant_id = site.account.tenant_id
    who, support, manager = [await person(edge, tenant_id, role) for role in ("member", "support", "admin")]
    path = f"/v1/users/{who.user_id.hex}/devices"

    seen = await site.client.get(path, headers=support.headers)
    (device,) = seen.json()["devices"]
    forbidden = await site.client.delete(f"{path}/{device['device_id']}", headers=support.headers)
    done = await site.client.delete(f"{path}/{device['device_id']}", headers=manager.headers)

    assert (device["name"], device["current"]) == ("Laptop", False)
    assert (forbidden.status_code, forbidden.json()["permission"]) == (403, "users:admin")
    assert done.status_code == 200, done.text
    assert (await gone(site, who)).status_code == 401


async def test_an_owner_is_not_signed_out_by_an_administrator(site: Site) -> None:
    edge = edge_of(site)
    owner, admin = [await person(edge, site.account.tenant_id, role) for role in ("owner", "admin")]
    (device,) = await devices(site, owner)

    answer = await site.client.delete(f"/v1/users/{owner.user_id.hex}/devices/{device['device_id']}", headers=admin.headers)

    assert (answer.status_code, answer.json()["code"]) == (403, "users.role_not_yours")
    assert await devices(site, owner) == [device]


async def test_nobody_elses_devices_are_reached(site: Site) -> None:
    """Neither by another person of the tenant nor by another tenant's administrator or key."""
    edge = edge_of(site)
    who, colleague = [await person(edge, site.account.tenant_id) for _ in range(2)]
    stranger = await person(edge, await site.tenant(), "owner")
    (device,) = await devices(site, who)
    path = f"/v1/users/{who.user_id.hex}/devices"

    for headers, status in ((colleague.headers, 403), (stranger.headers, 404)):
        assert (await site.client.get(path, headers=headers)).status_code == status
        assert (await site.client.delete(f"{path}/{device['device_id']}", headers=headers)).status_code == status
        assert (await site.client.delete(f"/v1/devices/{device['device_id']}", headers=headers)).status_code == 404
        renamed = await site.client.put(f"/v1/devices/{device['device_id']}", json={"name": "x", "correlation_id": "s"}, headers=headers)
        assert renamed.status_code == 404
    assert (await site.get("/v1/devices")).status_code == 403
    assert await devices(site, who) == [device]


async def test_two_who_sign_in_at_once_for_the_last_place(site: Site) -> None:
    """Over HTTP: one is let in, the other is told which devices are bound, by name."""
    edge, tenant_id, user_id = edge_of(site), site.account.tenant_id, uuid4()
    sealing, email, password = edge.store.sealing, f"{uuid4().hex}@example.com", "correct horse battery staple"
    profile = await seal_profile(sealing, tenant_id, user_id, Profile(email, "Somebody"))
    kept = await sealing.seal(tenant_id, user_id, PASSWORD, await passwords.hash(password))
    items = create_items(tenant_id, user_id, "member", profile, await login_of_email(sealing, tenant_id, email), kept)
    assert not (await edge.store.submit(Request(tenant_id, uuid4(), items, b""))).refused
    await site.operate(tenant_id, DEVICES, devices_stream(user_id), SetDeviceLimit(limit=1))

    async def login(device: str) -> httpx.Response:
        body = {"email": email, "password": password, "device_fingerprint": f"fingerprint of {device}", "device_name": device}
        return await site.client.post("/v1/auth/login", json=body, headers={"Holdbook-Tenant": str(tenant_id)})

    answers = await asyncio.gather(login("Laptop"), login("Phone"))

    won, lost = sorted(answers, key=lambda answer: answer.status_code)
    assert (won.status_code, lost.status_code) == (200, 409), [answer.text for answer in answers]
    bound = (await site.client.get("/v1/devices", headers={"Authorization": f"Bearer {won.json()['token']}"})).json()["devices"]
    assert lost.json()["code"] == "device.limit_reached"
    assert lost.json()["details"] == {"limit": 1, "devices": [bound[0]["name"]]}

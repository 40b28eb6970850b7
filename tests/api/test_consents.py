"""Consents over HTTP: given, superseded, withdrawn; what supports them stays sealed; each for its own subject and tenant."""

from __future__ import annotations

from uuid import uuid4

import pytest

from domain.privacy.people import person_of
from tests.api.conftest import Site

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def put(site: Site, subject: str, purpose: str, key: str | None = None, /, **body: object) -> tuple[int, dict[str, object]]:
    headers = {**site.account.headers, "Idempotency-Key": key or uuid4().hex}
    answer = await site.client.put(f"/v1/privacy/{subject}/consents/{purpose}", json=body, headers=headers)
    return answer.status_code, answer.json()


async def withdraw(site: Site, subject: str, purpose: str) -> tuple[int, dict[str, object]]:
    headers = {**site.account.headers, "Idempotency-Key": uuid4().hex}
    answer = await site.client.delete(f"/v1/privacy/{subject}/consents/{purpose}", headers=headers)
    return answer.status_code, answer.json()


async def test_purposes_stand_apart_and_a_newer_version_supersedes(site: Site) -> None:
    assert (await put(site, "tg:17", "processing", version="1"))[1]["status"] == "given"
    assert (await put(site, "tg:17", "marketing", version="1", evidence="/start yes-please"))[0] == 200
    assert (await put(site, "tg:17", "processing", version="2"))[1]["version"] == "2"
    assert (await withdraw(site, "tg:17", "marketing")) == (200, {"purpose": "marketing", "status": "withdrawn"})

    told = (await site.get("/v1/privacy/tg:17/consents")).json()

    assert [(each["purpose"], each["version"]) for each in told["consents"]] == [("processing", "2")]
    assert [(each["purpose"], each["status"], each["version"], each["evidence"]) for each in told["history"]] == [
        ("processing", "given", "1", None),
        ("marketing", "given", "1", "/start yes-please"),
        ("processing", "given", "2", None),
        ("marketing", "withdrawn", "1", None),
    ]


async def test_history_comes_in_pages(site: Site) -> None:
    for version in range(5):
        await put(site, "tg:18", "processing", version=str(version))

    first = await site.get("/v1/privacy/tg:18/consents", limit=3)
    second = await site.client.get(first.links["next"]["url"], headers=site.account.headers)

    assert [each["version"] for each in first.json()["history"] + second.json()["history"]] == ["0", "1", "2", "3", "4"]
    assert "next" not in second.links


async def test_the_same_consent_twice_is_one_and_a_key_answers_as_before(site: Site) -> None:
    first = await put(site, "tg:19", "processing", "key-1", version="1", evidence="form 7")
    again = await put(site, "tg:19", "processing", "key-1", version="1", evidence="form 7")
    await put(site, "tg:19", "processing", version="1")

    assert first == again
    assert (await put(site, "tg:19", "processing", "key-1", version="1", evidence="form 8"))[0] == 422
    assert len((await site.get("/v1/privacy/tg:19/consents")).json()["history"]) == 1


async def test_evidence_is_sealed_in_the_log(site: Site) -> None:
    await put(site, "tg:20", "processing", version="1", evidence="signed by hand")

    rows = [row for row in await site.rows() if row.type == "consent.given"]

    assert len(rows) == 1
    assert "signed by hand" not in rows[0].payload + str(rows[0].reply)
    assert "hbs1." in rows[0].payload


@pytest.mark.parametrize(
    ("purpose", "body", "field"),
    [
        ("processing", {}, "version"),
        ("processing", {"version": "two words"}, "version"),
        ("processing", {"version": "1", "evidence": "x" * 4001}, "evidence"),
        ("processing", {"version": "1", "subject": "other"}, "subject"),
        ("Processing", {"version": "1"}, "purpose"),
        ("processing", {"version": 1}, "version"),
    ],
)
async def test_bad_input_names_its_field_and_leaves_nothing(site: Site, purpose: str, body: dict[str, object], field: str) -> None:
    before = len(await site.rows())

    status, told = await put(site, "tg:21", purpose, **body)

    assert (status, told["code"]) == (422, "request.invalid")
    assert [each["field"] for each in told["errors"]] == [field]  # type: ignore[attr-defined]  # a list
    assert len(await site.rows()) == before


async def test_another_tenant_sees_and_changes_nothing(site: Site) -> None:
    subject = uuid4().hex
    await put(site, subject, "processing", version="1", evidence="ours")
    other = await site.issue(await site.tenant())

    found = await site.get(f"/v1/privacy/{subject}/consents", account=other)
    headers = {**other.headers, "Idempotency-Key": "k"}
    given = await site.client.put(f"/v1/privacy/{subject}/consents/processing", json={"version": "9"}, headers=headers)

    assert found.json() == {"consents": [], "history": []}
    assert given.status_code == 200
    assert [each["version"] for each in (await site.get(f"/v1/privacy/{subject}/consents")).json()["consents"]] == ["1"]


async def test_a_key_needs_the_permission_and_a_subject(site: Site) -> None:
    poor = await site.issue(site.account.tenant_id, ("usage:write", "telemetry:write"))

    assert (await site.get("/v1/privacy/tg:17/consents", account=poor)).status_code == 403
    assert (await site.get("/v1/privacy/me/consents")).status_code == 422
    assert (await site.get(f"/v1/privacy/{site.account.tenant_id.hex}/consents")).json()["code"] == "privacy.not_a_person"


async def test_after_erasure_nothing_personal_is_kept_any_more(site: Site) -> None:
    await put(site, "tg:22", "processing", version="1", evidence="the form of tg 22")

    erased = await site.post("/v1/privacy/tg:22/erase", {"confirm": True}, key="e")
    told = (await site.get("/v1/privacy/tg:22/consents")).json()

    assert erased.json() == {"person_id": person_of(site.account.tenant_id, "tg:22").hex, "status": "erased"}
    assert told["consents"] == []
    assert [(each["status"], each["evidence"]) for each in told["history"]] == [("given", None), ("withdrawn", None)]
    assert (await put(site, "tg:22", "processing", version="1", evidence="again"))[1]["code"] == "privacy.erased"
    assert (await put(site, "tg:22", "processing", version="1"))[0] == 200

"""A deleted tenant at the door."""

from __future__ import annotations

import asyncio
import time
from uuid import uuid4

import pytest

from domain.identity.tenants import TENANT, DeleteTenant, tenant_stream
from tests.api.conftest import Site

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_the_keys_of_a_deleted_tenant_are_refused_within_a_second_and_nobody_elses(site: Site) -> None:
    gone = await site.issue(await site.tenant())
    body = {"amount": 1, "correlation_id": uuid4().hex}
    await site.limit(account=gone)
    assert (await site.post("/v1/usage/consume", body, account=gone)).status_code == 200

    await site.operate(gone.tenant_id, TENANT, tenant_stream(gone.tenant_id), DeleteTenant(tenant_id=gone.tenant_id))
    answers = []
    deleted = asked = time.monotonic()
    while (answer := await site.post("/v1/usage/consume", body, account=gone)).status_code != 401:
        answers.append(answer)
        assert asked - deleted < 3, "however long the answer took"
        await asyncio.sleep(0.02)
        asked = time.monotonic()

    assert answer.json()["code"] == "auth.key_invalid"
    # Until then the store itself refuses: not even an answer of the past is given again.
    assert {(each.status_code, each.json()["code"]) for each in answers} <= {(409, "tenant.deleted")}
    assert (await site.post("/v1/usage/consume", {"amount": 1}, key=uuid4().hex)).status_code in (200, 404)
    assert (await site.get("/v1/quotas", account=gone)).status_code == 401

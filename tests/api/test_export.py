"""A tenant's own export over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest

from api.routes import exports
from eventstore.auditing import Checker
from eventstore.errors import CorruptLog
from eventstore.exporting import Exporter, Wanted
from tests.api.conftest import Site
from tests.support.tenants import some_key

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATH = "/v1/audit/export"


@pytest.fixture(autouse=True)
def public(site: Site, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The server's key for a test; its public half."""
    key = some_key(tmp_path_factory.mktemp("key"))
    monkeypatch.setattr(exports, "signing_key", lambda _settings: key)
    return key.public


def checked(lines: list[bytes], public: bytes) -> Checker:
    checker = Checker(public)
    for line in lines:
        checker.take(line)
    checker.finish()
    return checker


async def test_a_tenant_gets_its_own_events_signed_and_nobody_elses(site: Site, public: bytes) -> None:
    await site.limit()
    other = await site.issue(await site.tenant())
    await site.limit(account=other)

    answer = await site.get(PATH)

    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-ndjson")
    lines = answer.content.splitlines(keepends=True)
    (head,) = checked(lines, public).finished
    assert head.events == len(await site.rows()) == 3
    assert other.tenant_id.hex not in answer.text


async def test_it_ends_at_a_moment(site: Site, public: bytes) -> None:
    await site.limit()
    rows = await site.rows()

    answer = await site.get(PATH, as_of=rows[1].recorded_at.isoformat())

    assert json.loads(answer.content.splitlines()[-1])["events"] == 2
    before = (rows[0].recorded_at - timedelta(microseconds=1)).isoformat()
    assert json.loads((await site.get(PATH, as_of=before)).content.splitlines()[-1])["events"] == 0


async def test_who_may_not_and_what_cannot(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    poor = await site.issue(site.account.tenant_id, ["usage:read"])
    assert (await site.get(PATH, account=poor)).json()["code"] == "auth.permission_missing"
    assert (await site.client.get(PATH)).status_code == 401
    assert (await site.get(PATH, as_of="noon")).status_code == 422
    assert (await site.get(PATH, tenant=uuid4().hex)).status_code == 422
    monkeypatch.setattr(exports, "signing_key", lambda _settings: None)
    assert (await site.get(PATH)).json()["code"] == "audit.no_key"


async def test_one_at_a_time_and_a_client_that_leaves_makes_room(site: Site, public: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that never ends, read by a client that goes away."""
    begun, ended = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    connections: list[psycopg.Connection[Any]] = []

    class Endless(Exporter):
        def blocks(self) -> Iterator[bytes]:
            connections.append(self._conn)
            loop.call_soon_threadsafe(begun.set)
            while True:
                yield b"x" * 100_000

    end = exports._UnderWay.end

    def told(under_way: exports._UnderWay) -> None:
        end(under_way)
        ended.set()

    with monkeypatch.context() as patched:
        patched.setattr(exports, "Exporter", Endless)
        patched.setattr(exports._UnderWay, "end", told)
        async with site.client.stream("GET", PATH, headers=site.account.headers) as answer:
            assert answer.status_code == 200
            await asyncio.wait_for(begun.wait(), 30)
            second = await site.get(PATH)
            assert (second.status_code, second.json()["code"]) == (503, "store.overloaded")
        await asyncio.wait_for(ended.wait(), 30)
    async with asyncio.timeout(30):
        while not connections[0].closed:  # noqa: ASYNC110  # psycopg tells nobody
            await asyncio.sleep(0.01)
    checked((await site.get(PATH)).content.splitlines(keepends=True), public)


async def test_a_log_that_does_not_hold_gives_no_answer_or_one_without_a_head(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(exports, "Wanted", lambda tenant_id, moment: Wanted(tenant_id, position=(99, 1)))
        assert (await site.get(PATH)).status_code == 500
        assert not site.app.state.edge.exporting

    def broken(*_: object) -> bytes:
        raise CorruptLog

    monkeypatch.setattr(Exporter, "_signed", broken)
    with pytest.raises(httpx.RemoteProtocolError):
        await site.get(PATH)
    assert not site.app.state.edge.exporting

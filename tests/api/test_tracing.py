"""A request can be found again: in its answer, its log lines, its events, and in what follows from them."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import sys
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
import structlog

from api.logs import configure
from api.routes import health
from api.services import running
from api.settings import Settings
from tests.api.conftest import Site

pytestmark = pytest.mark.asyncio(loop_scope="module")

RESERVE = "/v1/usage/reserve"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def lines() -> Iterator[Any]:
    """The log as it would be written, line by line."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    configure(Settings(log_level="debug"))
    _as_configured_now()
    written = io.StringIO()
    handler = root.handlers[0]
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(written)
    yield lambda: [json.loads(line) for line in written.getvalue().splitlines()]
    root.handlers[:], root.level = before
    structlog.reset_defaults()
    _as_configured_now()


def _as_configured_now() -> None:
    """A module's logger stays as it was configured when it was first used."""
    for module in list(sys.modules.values()):
        if isinstance(log := vars(module).get("log"), structlog._config.BoundLoggerLazyProxy):
            vars(log).pop("bind", None)


async def test_every_answer_says_which_request_it_answers(site: Site) -> None:
    mine = await site.client.get("/livez", headers={"X-Request-Id": "web-1.a:b/c+d=e@f_g"})
    made = [await site.client.get(path) for path in ("/livez", "/livez", "/nowhere", RESERVE, "/openapi.json")]

    assert mine.headers["X-Request-Id"] == "web-1.a:b/c+d=e@f_g"
    ids = [answer.headers["X-Request-Id"] for answer in made]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in ids)
    assert [answer.headers.get_list("X-Request-Id") for answer in made] == [[each] for each in ids]


@pytest.mark.parametrize("bad", ["", "a b", "a" * 129, 'a"b', "<script>", "a;b", "ü".encode().decode("latin-1")])
async def test_an_id_that_is_not_safe_is_replaced(site: Site, bad: str) -> None:
    answer = await site.client.get("/livez", headers={b"X-Request-Id": bad.encode("latin-1")})

    assert re.fullmatch("[0-9a-f]{32}", answer.headers["X-Request-Id"])


async def test_an_error_can_be_found_in_the_log(site: Site, lines: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def bug(edge: Any) -> str:
        raise RuntimeError("a bug")

    monkeypatch.setattr(health, "_store", bug)

    answer = await site.client.get("/readyz", headers={"X-Request-Id": "find-me", "traceparent": TRACE})

    assert answer.status_code == 500
    assert answer.json()["instance"] == "urn:holdbook:request:find-me"
    (line,) = [line for line in lines() if line["event"] == "request_failed"]
    assert line["request_id"] == "find-me"
    assert line["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
    assert line["exception"][0]["exc_value"] == "a bug"


async def test_refusals_have_the_same_bytes_whoever_asks_again(site: Site) -> None:
    """An instance in them would be another request's."""
    await site.limit()
    body = {"messages": 1000, "correlation_id": "k"}

    first, again = await site.post(RESERVE, body), await site.post(RESERVE, body)

    assert first.status_code == 409
    assert first.content == again.content
    assert "instance" not in first.json()
    assert first.headers["X-Request-Id"] != again.headers["X-Request-Id"]


async def test_requests_at_once_do_not_share_their_ids(site: Site, lines: Any) -> None:
    names = [f"at-once-{number}" for number in range(20)]

    await asyncio.gather(*(site.client.get("/readyz", headers={"X-Request-Id": name}) for name in names))

    answered = [line["request_id"] for line in lines() if line["event"] == "request_answered" and line["route"] == "/readyz"]
    assert sorted(answered) == sorted(names)


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (TRACE, TRACE),
        (None, None),
        ("00-00000000000000000000000000000000-b7ad6b7169203331-01", None),
        (TRACE.upper(), None),
        ("nonsense", None),
    ],
)
async def test_a_trace_goes_into_the_events_and_none_is_made_up(site: Site, sent: str | None, kept: str | None) -> None:
    await site.limit()
    headers = {**site.account.headers, **({"traceparent": sent} if sent else {})}

    await site.client.post(RESERVE, json={"messages": 1, "correlation_id": "k"}, headers=headers)
    await site.client.post(RESERVE, json={"messages": 1000, "correlation_id": "l"}, headers=headers)

    rows = await site.rows()
    assert [row.trace for row in rows[-2:]] == [kept, kept]
    assert rows[-1].type == "command.refused"


async def test_log_lines_hold_no_secrets_and_no_bodies(site: Site, lines: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = f"in-confidence-{uuid4().hex}"
    await site.limit()
    await site.client.get(f"/v1/quotas/messages/{secret}", headers=site.account.headers)
    await site.post(RESERVE, {"messages": 1, "correlation_id": secret, "subject": secret})
    await site.post(RESERVE, {"messages": secret, "correlation_id": "k"})
    await site.client.get(f"/v1/quotas/messages/default?token={secret}", headers={"Authorization": f"Bearer {secret}"})

    async def bug(edge: Any) -> str:
        password = secret
        raise RuntimeError(str(len(password)))

    monkeypatch.setattr(health, "_store", bug)
    await site.client.get("/readyz", headers=site.account.headers)

    text = json.dumps(lines())
    assert "request_failed" in text
    assert text.count("request_answered") >= 5
    assert secret not in text
    assert site.account.text not in text
    assert site.account.text.split("_", 4)[4] not in text


async def test_background_work_says_whose_line_it_is(lines: Any) -> None:
    class Sweeper:
        def __init__(self) -> None:
            self._stop = asyncio.Event()

        async def run(self) -> None:
            structlog.get_logger("sweeper").warning("swept")
            logging.getLogger("library").warning("complained")
            await self._stop.wait()

        def stop(self) -> None:
            self._stop.set()

    async with running([Sweeper()]):
        await asyncio.sleep(0)
        structlog.get_logger("other").warning("elsewhere")

    told = {line["event"]: line for line in lines()}
    assert told["swept"]["service"] == told["complained"]["service"] == "Sweeper"
    assert "service" not in told["elsewhere"]
    ours = [told[name] for name in ("swept", "complained", "elsewhere")]  # a server may have said something meanwhile
    assert all("timestamp" in line and line["level"] == "warning" for line in ours)


async def test_a_writer_does_not_log_under_the_request_that_began_it(site: Site) -> None:
    from api.tracing import SERVING

    seen = []
    writer = site.store.writer(site.account.tenant_id)
    commit = writer._commit

    async def watched(batch: Any) -> None:
        seen.append(SERVING.get())
        await commit(batch)

    writer._commit = watched  # type: ignore[method-assign]
    try:
        await site.limit()
    finally:
        writer._commit = commit  # type: ignore[method-assign]

    assert seen == [None]

"""A letter bot and its users (A5): consent, export, the right to be forgotten, retention, walked over HTTP on `holdbook up`."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import httpx

from tests.journeys.conftest import run

Up = tuple[subprocess.Popen[str], str]
ANNA = "tg:4711"


class Bot:
    """The bot's server side: an API key, and the messenger's own ids of its users."""

    def __init__(self, http: httpx.Client, key: str) -> None:
        self.http, self.key = http, key

    def ask(self, method: str, path: str, body: Any = None, *, update: str | None = None, accept: str = "*/*") -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.key}", "Idempotency-Key": update or uuid4().hex, "Accept": accept}
        return self.http.request(method, path, json=body, headers=headers)

    def done(self, method: str, path: str, body: Any = None, *, update: str | None = None) -> Any:
        answer = self.ask(method, path, body, update=update)
        assert answer.status_code in (200, 202), f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json()


def until(ask: Callable[[], Any], right: Callable[[Any], bool], seconds: float = 60) -> Any:
    """What is answered once the read models have come so far."""
    deadline = time.monotonic() + seconds
    while not right(found := ask()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def test_a_letter_bots_user_agrees_looks_and_leaves(up: Up, environment: dict[str, str]) -> None:
    _, address = up
    found = re.search(r"[0-9a-f]{8}-[0-9a-f-]{27}", run(environment, "tenant", "create", "Letters"))
    assert found is not None
    tenant = found.group()
    may = ("usage:write", "usage:read", "quota:admin", "privacy:admin", "tenant:admin", "tenant:read", "telemetry:write")
    key = run(environment, "key", "issue", tenant, *(part for scope in may for part in ("--scope", scope))).strip()

    with httpx.Client(base_url=address, timeout=30, trust_env=False) as http:
        bot = Bot(http, key)
        consents = f"/v1/privacy/{ANNA}/consents"

        # /start: processing is agreed to, marketing is asked for apart and refused; the messenger sends an update twice.
        agreed = {"version": "2026-03", "evidence": "/start, button: I agree"}
        first = bot.done("PUT", f"{consents}/processing", agreed, update="tg:letters:1")
        assert bot.done("PUT", f"{consents}/processing", agreed, update="tg:letters:1") == first
        assert [each["purpose"] for each in bot.done("GET", consents)["consents"]] == ["processing"]

        # She writes a letter, then changes her mind about marketing, twice. A newer text is agreed to anew.
        bot.done("PUT", f"/v1/quotas/letters/{ANNA}/limits", {"limits": [{"limit_id": "free", "amount": 3}]})
        bot.done("POST", "/v1/usage/consume", {"subject": ANNA, "meter": "letters", "amount": 1}, update="tg:letters:2")
        bot.done("PUT", f"{consents}/marketing", {"version": "1"})
        bot.done("DELETE", f"{consents}/marketing")
        bot.done("PUT", f"{consents}/processing", {"version": "2026-11"})
        told = bot.done("GET", consents)
        assert [(each["purpose"], each["version"]) for each in told["consents"]] == [("processing", "2026-11")]
        assert [(each["purpose"], each["status"]) for each in told["history"]] == [
            ("processing", "given"), ("marketing", "given"), ("marketing", "withdrawn"), ("processing", "given"),
        ]  # fmt: skip
        assert told["history"][0]["evidence"] == "/start, button: I agree"

        # /mydata: everything, for programs and for people.
        mydata = f"/v1/privacy/{ANNA}/export"
        export = until(lambda: bot.done("GET", mydata), lambda told: [each["used"] for each in told["now"]["quotas"]] == [1])
        assert export["now"]["quotas"][0]["used"] == 1
        assert "quota.consumed" in [each["type"] for each in export["events"]]
        page = bot.ask("GET", f"/v1/privacy/{ANNA}/export", accept="text/html")
        assert page.headers["content-type"].startswith("text/html")
        assert "I agree" in page.text

        # /forgetme, sent twice because the answer was lost.
        erase = f"/v1/privacy/{ANNA}/erase"
        gone = bot.done("POST", erase, {"confirm": True}, update="tg:letters:9")
        assert bot.done("POST", erase, {"confirm": True}, update="tg:letters:9") == gone
        assert bot.done("GET", consents)["consents"] == []
        assert "I agree" not in bot.ask("GET", f"/v1/privacy/{ANNA}/export").text
        kept = until(lambda: bot.ask("GET", f"/v1/quotas/letters/{ANNA}").json(), lambda told: "used" in told)
        assert kept["used"] == 1, "the tenant's books keep their numbers"

        # Retention: a policy of the tenant's own, over HTTP and at the keyboard.
        assert bot.done("PUT", "/v1/policies/retention/telemetry", {"days": 7}) == {"kind": "telemetry", "days": 7}
        shown = {each["kind"]: each for each in bot.done("GET", "/v1/policies/retention")["retention"]}
        assert (shown["telemetry"]["days"], shown["telemetry"]["chosen"], shown["inactive_people"]["days"]) == (7, True, None)
        run(environment, "policy", "set", tenant, "inactive_people", "365")
        assert re.search(r"inactive_people\W+365", run(environment, "policy", "list", tenant))
        refused = bot.ask("PUT", "/v1/policies/retention/telemetry", {"days": 10_000})
        assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "days")
        assert bot.done("DELETE", "/v1/policies/retention/telemetry") == {"kind": "telemetry", "days": 30}

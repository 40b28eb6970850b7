"""A marketplace of ad slots: the platform's operator, channel owners who come by Telegram, and nothing between them (S1, S7, H5)."""

from __future__ import annotations

import hashlib
import hmac
import subprocess
import time
from typing import Any
from uuid import uuid4

import httpx

from domain.identity.tenants import PLATFORM
from tests.journeys.conftest import run
from tests.journeys.test_broadcaster import Person, sign_in, until

Up = tuple[subprocess.Popen[str], str]
BOT_TOKEN = "110201543:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw"
OPERATOR = ("root@platform.example", "a-long-operator-password")


def proof(telegram_id: int, name: str, **changed: Any) -> dict[str, Any]:
    """What Telegram's Login Widget hands to a page, signed as its documentation says."""
    fields = {"id": telegram_id, "first_name": name, "username": name.lower(), "auth_date": int(time.time())}
    text = "\n".join(f"{key}={fields[key]}" for key in sorted(fields))
    signature = hmac.new(hashlib.sha256(BOT_TOKEN.encode()).digest(), text.encode(), hashlib.sha256).hexdigest()
    return {**fields, "hash": signature, "device_fingerprint": f"browser of {name}", **changed}


def opened(http: httpx.Client, operator: Person, name: str, email: str) -> tuple[str, Person]:
    """A tenant, its first owner in it."""
    tenant = operator.done("POST", "/v1/operator/tenants", {"name": name, "registration": "open", "currency": "RUB"})["tenant_id"]
    invited = operator.done("POST", f"/v1/operator/tenants/{tenant}/owners", {"email": email, "role": "owner"})
    body = {"invitation_token": invited["invitation_token"], "password": "owner-of-channels", "device_fingerprint": "the owner's desk"}
    return tenant, Person(http, http.post("/v1/auth/accept", json=body, headers={"Holdbook-Tenant": tenant}))


def test_channel_owners_come_by_telegram_and_see_nothing_of_each_other(up: Up, environment: dict[str, str]) -> None:
    _, address = up
    run(environment, "user", "operator", "--email", OPERATOR[0], "--password-stdin", stdin=f"{OPERATOR[1]}\n")

    with httpx.Client(base_url=address, timeout=30, trust_env=False) as http:
        operator = Person(http, sign_in(http, str(PLATFORM), OPERATOR, {"device_fingerprint": "operator's desk"}))
        north, of_north = opened(http, operator, "North channels", "nina@north.example")
        south, of_south = opened(http, operator, "South channels", "sam@south.example")

        # S1: registration by Telegram Login; the same proof is good for one session.
        of_north.done("PUT", "/v1/tenant/telegram", {"bot_token": BOT_TOKEN, "bot_username": "north_slots_bot"})
        given = proof(81, "Pavel")
        joined = http.post("/v1/auth/telegram", json=given, headers={"Holdbook-Tenant": north})
        pavel = Person(http, joined)
        assert (pavel.told["user"]["role"], pavel.told["user"]["name"]) == ("member", "Pavel")
        again = Person(http, http.post("/v1/auth/telegram", json=proof(81, "Pavel"), headers={"Holdbook-Tenant": north}))
        assert again.user_id == pavel.user_id, "the same person, not another one"
        stolen = http.post("/v1/auth/telegram", json={**given, "device_fingerprint": "a thief's"}, headers={"Holdbook-Tenant": north})
        assert stolen.status_code == 401
        for forged in (proof(82, "Eve", first_name="Nina"), proof(82, "Eve", hash="0" * 64), proof(82, "Eve", auth_date=1_700_000_000)):
            assert http.post("/v1/auth/telegram", json=forged, headers={"Holdbook-Tenant": north}).status_code == 401
        elsewhere = http.post("/v1/auth/telegram", json=proof(83, "Pavel"), headers={"Holdbook-Tenant": south})
        assert elsewhere.status_code in (401, 404, 409), "South has no bot"

        # S7: what is North's is nobody else's, the platform's operator is seen looking.
        of_north.done("PUT", f"/v1/quotas/slots/{pavel.user_id}/limits", {"limits": [{"limit_id": "free", "amount": 1}]})
        pavel.done("POST", "/v1/usage/consume", {"meter": "slots", "amount": 1})
        assert pavel.ask("POST", "/v1/usage/consume", {"meter": "slots", "amount": 1}).status_code == 409
        assert of_south.ask("GET", f"/v1/users/{pavel.user_id}").status_code == 404
        assert of_south.ask("GET", f"/v1/quotas/slots/{pavel.user_id}").status_code == 404
        theirs = until(lambda: of_south.done("GET", "/v1/users")["users"], bool)
        assert [each["email"] for each in theirs] == ["sam@south.example"]
        assert of_north.ask("GET", f"/v1/operator/tenants/{south}").status_code == 403
        people = until(lambda: operator.done("GET", f"/v1/operator/tenants/{north}/users")["users"], lambda it: len(it) == 2)
        assert {each["name"] for each in people} >= {"Pavel"}
        looks = until(lambda: of_north.done("GET", "/v1/audit?type=operator.")["entries"], bool)
        assert {entry["actor"].split(":")[0] for entry in looks} == {"operator"}
        assert of_south.done("GET", "/v1/audit?type=operator.looked")["entries"] == []

        # A suspended owner's people are refused at once, and let in again.
        operator.done("POST", f"/v1/operator/tenants/{north}/suspend", {"correlation_id": uuid4().hex})
        shut = until(lambda: pavel.ask("GET", "/v1/me"), lambda it: it.status_code == 403)
        assert shut.json()["code"] == "auth.tenant_suspended"
        operator.done("POST", f"/v1/operator/tenants/{north}/resume", {"correlation_id": uuid4().hex})
        assert until(lambda: pavel.ask("GET", "/v1/me"), lambda it: it.status_code == 200).status_code == 200

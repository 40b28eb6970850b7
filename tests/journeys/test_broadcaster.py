"""A desktop broadcaster's people, devices, licenses and sender accounts (T1 to T5, T8), walked over HTTP on `holdbook up`."""

from __future__ import annotations

import re
import subprocess
import time
from typing import Any
from uuid import uuid4

import httpx
import jwt

from tests.journeys.conftest import run

Up = tuple[subprocess.Popen[str], str]
OWNER, CUSTOMER = ("olga@tgflow.example", "correct-horse-1"), ("ivan@customer.example", "battery-staple-2")
DESK, LAPTOP, PHONE = ({"device_fingerprint": f"{name}-0123456789", "device_name": name} for name in ("desk", "laptop", "phone"))


class Person:
    """Somebody with a token, as the desktop program keeps one."""

    def __init__(self, http: httpx.Client, signed_in: httpx.Response) -> None:
        assert signed_in.status_code == 200, signed_in.text
        self.http, self.told = http, signed_in.json()
        self.refresh_token = signed_in.headers["Holdbook-Refresh-Token"]
        self.user_id: str = self.told["user"]["user_id"]

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        sent = {"Authorization": f"Bearer {self.told['token']}", "Idempotency-Key": uuid4().hex} | headers
        return self.http.request(method, path, json=body, headers=sent)

    def done(self, method: str, path: str, body: Any = None) -> Any:
        answer = self.ask(method, path, body)
        assert answer.status_code == 200, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json()


def sign_in(http: httpx.Client, tenant: str, who: tuple[str, str], device: dict[str, str]) -> httpx.Response:
    body = {"email": who[0], "password": who[1], **device}
    return http.post("/v1/auth/login", json=body, headers={"Holdbook-Tenant": tenant})


def until(ask: Any, right: Any, seconds: float = 60) -> Any:
    """What is answered once the read model has come so far. Asked ever less often, for a person may ask a hundred times in a minute."""
    deadline, pause = time.monotonic() + seconds, 0.1
    while not right(found := ask()) and time.monotonic() < deadline:
        time.sleep(pause)
        pause = min(2.0, 1.5 * pause)
    return found


def test_a_broadcaster_and_its_customer(up: Up, environment: dict[str, str]) -> None:
    _, address = up
    found = re.search(r"[0-9a-f]{8}-[0-9a-f-]{27}", run(environment, "tenant", "create", "TGFlow"))
    assert found is not None
    tenant = found.group()
    run(environment, "user", "create", tenant, "--email", OWNER[0], "--role", "owner", "--password-stdin", stdin=f"{OWNER[1]}\n")

    with httpx.Client(base_url=address, timeout=30, trust_env=False) as http:
        # T1: sign in as the desktop program does; anyone may check the token with the public keys.
        signed_in = sign_in(http, tenant, OWNER, DESK)
        owner = Person(http, signed_in)
        assert set(owner.told) == {"token", "user", "exp"}
        keys = jwt.PyJWKSet.from_dict(http.get("/.well-known/jwks.json").json())
        header = jwt.get_unverified_header(owner.told["token"])
        claims = jwt.decode(owner.told["token"], keys[header["kid"]].key, algorithms=["RS256"], options={"verify_aud": False})
        assert (header["alg"], claims["sub"], claims["exp"]) == ("RS256", owner.user_id, owner.told["exp"])

        # A customer comes by an invitation.
        invited = owner.done("POST", "/v1/invitations", {"email": CUSTOMER[0], "name": "Ivan", "role": "member"})
        accepted = {"invitation_token": invited["invitation_token"], "password": CUSTOMER[1], **DESK}
        customer = Person(http, http.post("/v1/auth/accept", json=accepted, headers={"Holdbook-Tenant": tenant}))
        assert customer.told["user"]["role"] == "member"

        # T3: the license, set by an operator of the tenant and read by the customer.
        limits = {"messages": {"limits": [{"limit_id": "month", "amount": 100, "window": {"kind": "month"}}]}}
        owner.done("PUT", f"/v1/users/{customer.user_id}/license", {"plan": "pro", "devices": 2, "limits": limits})
        license_ = until(lambda: customer.ask("GET", "/v1/license"), lambda it: it.status_code == 200 and it.json()["plan"] == "pro")
        assert set(license_.json()) == {"plan", "status", "quota", "device_binding"}
        assert license_.json()["status"] == "active"
        same = customer.ask("GET", "/v1/license", **{"If-None-Match": license_.headers["ETag"]})
        assert (same.status_code, same.content) == (304, b"")
        assert customer.ask("PUT", f"/v1/users/{customer.user_id}/license", {"plan": "free"}).status_code == 403

        # T2: two devices fit, the third is told which are bound, by name; one that is unbound makes room.
        laptop = Person(http, sign_in(http, tenant, CUSTOMER, LAPTOP))
        refused = sign_in(http, tenant, CUSTOMER, PHONE)
        assert (refused.status_code, refused.json()["code"]) == (409, "device.limit_reached")
        assert "laptop" in refused.text
        assert LAPTOP["device_fingerprint"] not in refused.text
        devices = customer.done("GET", "/v1/devices")["devices"]
        bound = next(each["device_id"] for each in devices if each["name"] == "laptop")
        customer.done("DELETE", f"/v1/devices/{bound}")
        Person(http, sign_in(http, tenant, CUSTOMER, PHONE))
        gone = until(lambda: laptop.ask("GET", "/v1/license"), lambda it: it.status_code == 401)
        assert gone.status_code == 401, "a session of an unbound device is over"

        # T1: a refresh repeats the fingerprint; the answer that was lost is given again.
        again = {"refresh_token": customer.refresh_token, "device_fingerprint": DESK["device_fingerprint"]}
        first, second = http.post("/v1/auth/refresh", json=again), http.post("/v1/auth/refresh", json=again)
        assert first.headers["Holdbook-Refresh-Token"] == second.headers["Holdbook-Refresh-Token"] != customer.refresh_token
        customer = Person(http, second)

        # T5 and T4: a sender in cooldown cannot reserve, and nothing is held for it.
        customer.done("POST", "/v1/senders", {"sender_id": "sender-1", "label": "+7 900 000-00-01"})
        wanted = {"messages": 40, "sender_id": "sender-1"}
        held = customer.done("POST", "/v1/usage/reserve", wanted)
        customer.done("POST", "/v1/senders/sender-1/signals", {"signal": "flood_wait", "seconds": 600})
        cooling = customer.ask("POST", "/v1/usage/reserve", wanted)
        assert (cooling.status_code, cooling.json()["code"]) == (409, "sender.cooling_down")
        assert "retry_at" in cooling.json()["details"]
        customer.done("POST", "/v1/usage/commit", {"reservation_id": held["reservation_id"], "used": 31})
        used = until(
            lambda: customer.done("GET", "/v1/license")["quota"][0]["limits"][0], lambda it: (it["used"], it["reserved"]) == (31, 0)
        )
        assert (used["used"], used["reserved"], used["remaining"]) == (31, 0, 69)

        # T8: what a role may not, and how often a token may ask.
        assert customer.ask("GET", "/v1/users").json()["code"] == "auth.permission_missing"
        answers = (customer.ask("GET", "/v1/license") for _ in range(200))
        limited = next((answer for answer in answers if answer.status_code == 429), None)
        assert limited is not None, "twenty in a second at most, and a hundred in a minute"
        assert "Retry-After" in limited.headers
        assert limited.headers["RateLimit-Policy"]

        # T1: the signing key is changed under way; who has a token notices nothing.
        run(environment, "key", "rotate", "signing")
        assert owner.ask("GET", "/v1/users").status_code == 200

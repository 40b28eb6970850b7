"""One person's whole stay, and then a search for them: logs, tables, a dump, an audit export, a backup hold nothing of them in clear."""

from __future__ import annotations

import hmac
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from eventstore.embedded.binaries import bin_directory
from tests.support.processes import Managed, holdbook, surroundings

EMAIL, NAME = "zenobia.quillfeather@whimsy.example", "Zenobia Quillfeather"
PASSWORD, NEW_PASSWORD = "ostrich-harmonica-71", "gherkin-velodrome-28"
DEVICE, FINGERPRINT = "Zenobias-purple-laptop", "fp-zenobia-5c9d1e77"
PHONE = "+44 7700 900461"
ADDRESS, AGENT = "198.51.100.213", "marmalade-agent/9.9"
TELEGRAM_ID, TELEGRAM_NAME, TELEGRAM_USER = 5_550_123_987, "Zeno Telegrammed", "zenoquill"
BOT_TOKEN = "7123456789:AAHq_zenobias_bot_token_0123456789"
EVIDENCE = "ticked the box next to the parrot"
INSTALLATION = "install-of-zenobia-0001"

PERSONAL = (
    EMAIL, "zenobia.quillfeather", "Zenobia", "Quillfeather", PASSWORD, NEW_PASSWORD, DEVICE, FINGERPRINT, PHONE, "7700 900461", ADDRESS,
    AGENT, str(TELEGRAM_ID), TELEGRAM_NAME, TELEGRAM_USER, BOT_TOKEN, "zenobias_bot_token", EVIDENCE, INSTALLATION,
)  # fmt: skip
"""Everything that could lead to her, each in a form nothing else has."""


@dataclass
class World:
    """A running Holdbook behind a proxy that is trusted, all of whose words are kept."""

    dsn: str
    tenant: str
    key: str
    environment: dict[str, str]
    process: Managed
    http: httpx.Client

    def ask(self, method: str, path: str, body: Any = None, *, token: str | None = None, **headers: str) -> httpx.Response:
        given = {"Authorization": f"Bearer {token or self.key}", "Idempotency-Key": uuid4().hex, **headers}
        return self.http.request(method, path, json=body, headers=given)

    def done(self, method: str, path: str, body: Any = None, *, token: str | None = None, **headers: str) -> Any:
        answer = self.ask(method, path, body, token=token, **headers)
        assert answer.status_code in (200, 202), f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json()


@pytest.fixture
def world(database_dsn: str, tmp_path: Path) -> Iterator[World]:
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    environment = surroundings(
        database_dsn,
        HOLDBOOK_PORT="0",
        HOLDBOOK_LOG_LEVEL="debug",
        HOLDBOOK_LOG_JSON="true",
        HOLDBOOK_TRUSTED_PROXIES="127.0.0.0/8",
        HOLDBOOK_AUDIT_KEY=pem,
    )
    process = Managed(tmp_path / "log", environment, "up")
    process.ensure()
    try:
        process.await_said("Holdbook serves http://", 120)
        found = re.search(r"http://127\.0\.0\.1:\d+", process.said())
        assert found is not None
        made = holdbook("tenant", "create", "Acme", environment=environment)
        tenant = re.search(r"[0-9a-f]{8}-[0-9a-f-]{27}", made.stdout + made.stderr)
        assert tenant is not None, made.stdout + made.stderr
        key = holdbook("key", "issue", tenant.group(), environment=environment).stdout.strip()
        headers = {"X-Forwarded-For": ADDRESS, "User-Agent": AGENT, "Holdbook-Tenant": tenant.group()}
        with httpx.Client(base_url=found.group(), timeout=120, trust_env=False, headers=headers) as http:
            yield World(database_dsn, tenant.group(), key, environment, process, http)
    finally:
        process.end()


def stay(world: World) -> tuple[str, str, list[str]]:
    """Everything somebody does, and gets wrong: the person's id, the last token, and the secrets that were handed out."""
    invited = world.done("POST", "/v1/invitations", {"email": EMAIL, "name": NAME, "role": "member"})
    device = {"device_fingerprint": FINGERPRINT, "device_name": DEVICE}
    accepted = world.http.post("/v1/auth/accept", json={"invitation_token": invited["invitation_token"], "password": PASSWORD, **device})
    assert accepted.status_code == 200, accepted.text
    for wrong in ("not-" + PASSWORD, PASSWORD + "-not"):
        assert world.http.post("/v1/auth/login", json={"email": EMAIL, "password": wrong, **device}).status_code == 401
    assert world.http.post("/v1/auth/login", json={"email": EMAIL, "password": [PASSWORD], "x": NAME}).status_code == 422
    assert world.http.post("/v1/auth/login", content=f'{{"email": "{EMAIL}", broken').status_code == 400
    login = world.http.post("/v1/auth/login", json={"email": EMAIL, "password": PASSWORD, **device})
    assert login.status_code == 200, login.text
    refresh_token, token = login.headers["Holdbook-Refresh-Token"], login.json()["token"]
    person = login.json()["user"]["user_id"]
    refreshed = world.http.post("/v1/auth/refresh", json={"refresh_token": refresh_token, "device_fingerprint": FINGERPRINT})
    assert refreshed.status_code == 200, refreshed.text
    token = refreshed.json()["token"]
    world.done("PUT", "/v1/me", {"name": NAME + " II"}, token=token)
    world.done("PUT", "/v1/privacy/me/consents/marketing", {"version": "1", "evidence": EVIDENCE}, token=token)
    world.done("POST", "/v1/senders", {"sender_id": "sender-1", "owner": person, "label": PHONE})
    world.done("PUT", f"/v1/quotas/letters/{person}/limits", {"limits": [{"limit_id": "m", "amount": 5}]})
    world.done("POST", "/v1/usage/consume", {"meter": "letters", "subject": person, "amount": 1}, token=token)
    world.ask("POST", "/v1/usage/consume", {"meter": "letters", "subject": person, "amount": 100}, token=token)
    event = {"event_id": str(uuid4()), "name": "app.started", "at": "2026-11-21T05:45:00Z"}
    world.done("POST", "/v1/telemetry", {"installation_id": INSTALLATION, "events": [event]}, token=token)
    world.done("PUT", "/v1/tenant/telegram", {"bot_token": BOT_TOKEN, "bot_username": "acme_bot"})
    changed = world.ask("POST", "/v1/auth/password", {"old": PASSWORD, "new": NEW_PASSWORD}, token=token)
    assert changed.status_code == 200, changed.text
    again = world.http.post("/v1/auth/login", json={"email": EMAIL, "password": NEW_PASSWORD, **device})
    assert again.status_code == 200, again.text
    secrets = [invited["invitation_token"], refresh_token, token, again.json()["token"], again.headers["Holdbook-Refresh-Token"], world.key]
    return person, again.json()["token"], secrets


def telegrams(world: World) -> str:
    """Somebody comes by Telegram, as it signs people in; the person's id."""
    settings = world.done("GET", "/v1/tenant")
    wanted = {name: settings[name] for name in ("name", "zone", "locale", "currency")}
    world.done("PUT", "/v1/tenant", {**wanted, "registration": "open"})
    first, last = TELEGRAM_NAME.split()
    fields = {
        "id": str(TELEGRAM_ID), "first_name": first, "last_name": last, "username": TELEGRAM_USER, "auth_date": str(int(time.time())),
    }  # fmt: skip
    lines = "\n".join(f"{name}={fields[name]}" for name in sorted(fields))
    proof = hmac.digest(sha256(BOT_TOKEN.encode()).digest(), lines.encode(), "sha256").hex()
    body = {**fields, "id": TELEGRAM_ID, "auth_date": int(fields["auth_date"]), "hash": proof, "device_fingerprint": FINGERPRINT}
    answer = world.http.post("/v1/auth/telegram", json=body)
    assert answer.status_code == 200, answer.text
    person: str = answer.json()["user"]["user_id"]
    return person


def found_in(place: str, text: str, wanted: tuple[str, ...] | list[str]) -> list[str]:
    folded = text.casefold()
    return [f"{each} in {place}" for each in wanted if each.casefold() in folded]


def in_tables(dsn: str, wanted: tuple[str, ...] | list[str]) -> list[str]:
    """Every table that there is, whatever it is for."""
    found = []
    with psycopg.connect(dsn) as conn:
        tables = [row[0] for row in conn.execute("select tablename from pg_tables where schemaname = 'public' order by 1")]
        assert len(tables) > 20
        for table in tables:
            for (row,) in conn.execute(f'select t::text from "{table}" t'):
                found += found_in(table, row, wanted)
    return found


def in_files(directory: Path, wanted: tuple[str, ...] | list[str]) -> list[str]:
    found = []
    for file in directory.rglob("*"):
        if file.is_file():
            read = subprocess.run(["zstd", "-dc", file], capture_output=True, check=False).stdout if file.suffix == ".zst" else b""
            found += found_in(file.name, (file.read_bytes() + read).decode("latin-1"), wanted)
    return found


def test_nobody_is_found_who_must_not_be(world: World, tmp_path: Path) -> None:
    person, token, secrets = stay(world)
    by_telegram = telegrams(world)
    export = world.http.get("/v1/privacy/me/export", headers={"Authorization": f"Bearer {token}"})
    assert not [each for each in (EMAIL, NAME, DEVICE, EVIDENCE, PHONE, ADDRESS) if each not in export.text], "what is her own she gets"
    audit = world.http.get("/v1/audit/export", headers={"Authorization": f"Bearer {world.key}"})
    assert audit.status_code == 200
    shown = world.ask("GET", "/v1/audit?limit=200").text
    backup = holdbook("backup", str(tmp_path / "backup"), environment=world.environment)
    assert backup.returncode == 0, backup.stderr
    wanted = [*PERSONAL, *secrets]

    found = found_in("logs", world.process.said(), wanted) + in_tables(world.dsn, wanted) + found_in("audit export", audit.text, wanted)
    found += in_files(tmp_path / "backup", wanted)
    dump = bin_directory() / "pg_dump"
    if dump.exists():
        found += found_in("dump", subprocess.run([dump, world.dsn], capture_output=True, text=True, check=True).stdout, wanted)
    # Whoever may read the audit may read from where commands came; of the rest, nothing.
    found += found_in("audit", shown, [each for each in wanted if each not in (ADDRESS, AGENT)])

    assert found == []
    assert '"level": "debug"' in world.process.said() or '"level":"debug"' in world.process.said(), "the logs say all they can"
    erased_leaves_nothing(world, person, by_telegram)


def erased_leaves_nothing(world: World, *people: str) -> None:
    """Erasure, and then the same questions to whoever may ask everything."""
    for person in people:
        world.done("POST", f"/v1/privacy/{person}/erase", {"confirm": True})
    login = world.http.post("/v1/auth/login", json={"email": EMAIL, "password": NEW_PASSWORD, "device_fingerprint": FINGERPRINT})
    assert login.status_code == 401

    deadline, left = time.monotonic() + 120, ["?"]
    while left and time.monotonic() < deadline:
        answers = [world.ask("GET", f"/v1/privacy/{person}/export").text for person in people]
        answers += [world.ask("GET", path).text for path in ("/v1/users", "/v1/senders", "/v1/audit?limit=200", "/v1/telemetry/summary")]
        answers += [world.ask("GET", f"/v1/users/{person}/devices").text for person in people]
        personal = [each for each in PERSONAL if each not in (ADDRESS, AGENT)]  # also of the key that just asked
        left = [each for answer in answers for each in found_in(answer[:80], answer, personal)]
        time.sleep(0.2)
    assert left == []
    assert found_in("exports", "".join(world.ask("GET", f"/v1/privacy/{person}/export").text for person in people), [ADDRESS, AGENT]) == []
    proof = holdbook("verify", environment=world.environment)
    assert proof.returncode == 0, proof.stdout + proof.stderr

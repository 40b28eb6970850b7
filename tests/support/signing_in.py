"""What the tests of signing in share: people with passwords, tries, and the failures of hours in no time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx

from api import passwords
from domain.identity.signins import SIGNIN, RecordFailure, SignIn, signin_stream, wait_seconds
from eventstore.requests import Item, Request
from tests.api.conftest import Site
from tests.support import people

PASSWORD = "correct horse battery"
WRONG = "staple battery horse"
FINGERPRINT = "a fingerprint of a desk"
_HASHES: dict[str, str] = {}


@dataclass(frozen=True)
class Somebody:
    """An active person who has a password."""

    tenant_id: UUID
    user_id: UUID
    email: str


async def somebody(
    site: Site, tenant_id: UUID | None = None, role: str = "member", password: str | None = PASSWORD, name: str = "Ada Lovelace"
) -> Somebody:
    """A new one; the hash of a password is made once for all tests, for it costs on purpose."""
    if password is not None and password not in _HASHES:
        _HASHES[password] = await passwords.hash(password)
    tenant_id = tenant_id or site.account.tenant_id
    hashed = None if password is None else _HASHES[password]
    return Somebody(tenant_id, *await people.create(site.store, tenant_id, role, name=name, hashed=hashed))


async def login(
    site: Site, email: str, password: str = PASSWORD, *, tenant_id: UUID | None = None, fingerprint: str | None = FINGERPRINT, **more: Any
) -> httpx.Response:
    """One try."""
    body = {"email": email, "password": password, **more}
    if fingerprint is not None:
        body["device_fingerprint"] = fingerprint
    headers = {"Holdbook-Tenant": str(tenant_id or site.account.tenant_id)}
    return await site.client.post("/v1/auth/login", json=body, headers=headers)


async def fail_before(site: Site, who: Somebody, failures: int, ago: timedelta = timedelta(0)) -> None:
    """Have so many passwords been wrong in a row, each as soon as it was looked at, and the last one some time ago."""
    at = datetime.now(UTC) - ago
    moments = [at]
    for count in range(failures - 1, 0, -1):
        moments.insert(0, moments[0] - timedelta(seconds=wait_seconds(count)))
    for moment in moments:
        item = Item(SIGNIN, signin_stream(who.user_id), RecordFailure())
        await site.store.submit(Request(who.tenant_id, uuid4(), (item,), b"", occurred_at=moment))


async def standing(site: Site, who: Somebody) -> SignIn:
    found: SignIn = (await site.store.state(SIGNIN, who.tenant_id, signin_stream(who.user_id))).state
    return found


@contextmanager
def verifications() -> Iterator[list[bool]]:
    """Each verification that is made meanwhile, and whether it was against somebody's hash."""
    seen: list[bool] = []
    hashing, real = passwords.SHARED, passwords.SHARED.compare

    def compare(normalised: str, hashed: str | None) -> passwords.Verdict:
        seen.append(hashed is not None)
        return real(normalised, hashed)

    hashing.compare = compare  # type: ignore[method-assign]  # taken back below
    try:
        yield seen
    finally:
        hashing.compare = real  # type: ignore[method-assign]  # as it was


def bearer(answer: httpx.Response) -> dict[str, str]:
    """The headers of a request by whoever got this answer."""
    assert answer.status_code == 200, answer.text
    return {"Authorization": f"Bearer {answer.json()['token']}"}

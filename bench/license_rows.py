"""What a client asks all day: the license of whoever is signed in, while somebody uses it."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any
from uuid import UUID, uuid4

from api import sessions
from api.devices import bind_item
from api.edge import Edge
from api.people import Profile, create_items, login_of_email, seal_profile
from api.routes.licenses import SetLicense
from api.settings import Settings
from bench import site
from bench.http_rows import complaint, loading
from bench.load import Asked, Loaded
from bench.rows import Measured, Row, rows
from bench.server import LEAN_NOTHING, MASTER_KEY, running
from bench.stage import Helper, Stage
from domain.catalog import DECIDERS
from eventstore.master import LocalMasterKeys
from eventstore.requests import Request
from eventstore.store import Store

LICENSE = "/v1/license"
_PLAN = {
    "plan": "pro",
    "devices": 3,
    "limits": {
        meter: {
            "zone": "Europe/Moscow",
            "limits": [
                {"limit_id": "monthly", "amount": 1_000_000, "window": {"kind": "month"}},
                {"limit_id": "burst", "amount": 1_000, "window": {"kind": "rolling", "seconds": 60}},
            ],
        }
        for meter in ("tokens", "messages")
    },
}


@rows(Row(f"p95 of a lean route without effect, {site.CONNECTIONS} connections", "p95 of the license (3 x as long at most)", 1 / 3))
async def license_read(stage: Stage) -> Sequence[Measured]:
    with stage.database() as dsn:
        place = await site.found(dsn)
        tokens = await _signed_in(dsn, place.tenant_id, site.CONNECTIONS)
        asked = Asked(LICENSE, (), "", method="GET", bearers=tokens)
        with running(dsn, "up") as port, Helper() as helper:
            license_, nothing = await stage.in_turns(loading(helper, port, asked), loading(helper, port, place.single(LEAN_NOTHING)))
    ours, theirs = _p95(nothing), _p95(license_)
    return [Measured(ours["median"] / theirs["median"], {"ours": ours, "theirs": theirs}, complaint(license_, nothing))]


def _p95(found: Sequence[Loaded]) -> dict[str, Any]:
    return {"median": round(median(one.p95_ms for one in found), 2), "p50": round(median(one.p50_ms for one in found), 2), "unit": " ms"}


async def _signed_in(dsn: str, tenant_id: UUID, people: int) -> tuple[str, ...]:
    """Tokens of so many people, each with a plan and a device."""
    store = await Store.open(dsn, DECIDERS, master=LocalMasterKeys(MASTER_KEY))
    try:
        nobody: Any = None
        edge = Edge(store, nobody, Settings(database_url=dsn))
        return tuple([await _person(edge, tenant_id, number) for number in range(people)])
    finally:
        await store.drain()


async def _person(edge: Edge, tenant_id: UUID, number: int) -> str:
    user_id, store = uuid4(), edge.store
    email = f"person-{number}@example.com"
    profile = await seal_profile(store.sealing, tenant_id, user_id, Profile(email))
    created = create_items(tenant_id, user_id, "member", profile, await login_of_email(store.sealing, tenant_id, email))
    licensed = SetLicense.model_validate({**_PLAN, "user_id": user_id.hex}).items(tenant_id, uuid4())
    await store.submit(Request(tenant_id, uuid4(), (*created, *licensed), b"", actor="operator:bench"))
    bind, digest = await bind_item(edge, tenant_id, user_id, f"bench-fingerprint-{number}", "Laptop")
    signed_in = await sessions.start(edge, tenant_id, user_id, device=digest, extra=(bind,))
    assert signed_in.token is not None
    return signed_in.token

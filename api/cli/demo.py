"""``holdbook demo``: a whole Holdbook on a throw-away directory, put to work over HTTP, and shown."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import httpx
import typer
from rich.table import Table

from api import server
from api.auth import new_key
from api.cli.common import Database, database, operate, out, prepare, settings, store_at, told
from api.settings import Settings
from domain.identity.permissions import KEY_PERMISSIONS
from domain.identity.service_accounts import SERVICE_ACCOUNT, IssueKey, service_account_stream
from domain.identity.tenants import TENANT, CreateTenant, tenant_stream
from eventstore.requests import Item

METER = "messages"
LIMITS = {
    "zone": "Europe/Moscow",
    "limits": [
        {"limit_id": "monthly", "amount": 100, "window": {"kind": "month"}},
        {"limit_id": "burst", "amount": 60, "window": {"kind": "rolling", "seconds": 3600}},
    ],
}


def demo(
    once: Annotated[bool, typer.Option("--once", help="End after one round instead of serving on.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free one.")] = 0,
) -> None:
    """Show what Holdbook does: start everything on a throw-away directory, run a short workload over HTTP, then serve on."""
    with told(), _thrown_away() as directory:
        # A database that somebody set for real work is not what a demonstration writes to.
        chosen = settings(data=directory, port=port, host="127.0.0.1", log_level="warning", partitions=8)
        chosen = chosen.model_copy(update={"database_url": None})
        typer.echo("Starting PostgreSQL on a throw-away directory ...")
        with database(chosen) as found:
            prepare(found.dsn, chosen)
            server.run(lambda: _show(found, chosen, once))


@contextmanager
def _thrown_away() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="holdbook-demo-"))
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        directory.chmod(0o711)  # PostgreSQL's own user has to pass through
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


async def _show(found: Database, chosen: Settings, once: bool) -> None:
    stop = server.asked_to_stop()
    key = await make_key(found.dsn, chosen)
    async with server.process(found.dsn, chosen, follow=True, serve=True) as url:
        assert url is not None
        async with _client(url, key) as client:
            await _workload(client)
        _tell(url, key)
        if not once:
            out.print("\nServing until Ctrl-C.")
            await stop.wait()


async def make_key(dsn: str, chosen: Settings) -> str:
    """A tenant with one key that may do everything."""
    tenant_id, account_id = uuid4(), uuid4()
    key = new_key(tenant_id, account_id)
    async with store_at(dsn, chosen) as store:
        made = CreateTenant(tenant_id=tenant_id, name="Demo", zone="Europe/Moscow")
        await operate(store, tenant_id, Item(TENANT, tenant_stream(tenant_id), made))
        issued = IssueKey(key_id=key.key_id, secret_hash=key.secret_hash, scopes=tuple(KEY_PERMISSIONS), name="demo")
        await operate(store, tenant_id, Item(SERVICE_ACCOUNT, service_account_stream(account_id), issued))
    return key.text


@asynccontextmanager
async def _client(url: str, key: str) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=30, trust_env=False) as client:
        yield client


class _Story:
    """Sends requests and keeps what is shown of each."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self.table = Table("what", "request", "answer", "", "ms", title="What happened")

    async def tell(self, what: str, method: str, path: str, body: dict[str, Any] | None = None, key: str | None = None) -> httpx.Response:
        """Send one request and remember it."""
        began = time.perf_counter()
        answer = await self._client.request(method, path, json=body, headers={"Idempotency-Key": key} if key else {})
        spent = (time.perf_counter() - began) * 1000
        replayed = " (replayed)" if "Idempotent-Replayed" in answer.headers else ""
        colour = "green" if answer.is_success else "yellow"
        short = path.split("?", maxsplit=1)[0].removeprefix("/v1/")
        self.table.add_row(what, f"{method} {short}", f"[{colour}]{answer.status_code}{replayed}", _gist(answer.json()), f"{spent:.1f}")
        return answer


def _gist(body: dict[str, Any]) -> str:
    if "code" in body:
        details = body.get("details", {})
        return " ".join([body["code"], *(f"{name}={details[name]}" for name in ("requested", "remaining", "status") if name in details)])
    if "results" in body:
        return f"{len(body['results'])} results"
    names = ("status", "granted", "used", "freed", "reserved", "limits", "remaining", "open_reservations")
    return " ".join(f"{name}={body[name]}" for name in names if isinstance(body.get(name), int | str))


async def _workload(client: httpx.AsyncClient) -> None:
    story = _Story(client)
    tell = story.tell
    for subject in ("default", "alice", "bob"):
        await tell(f"limits for {subject}", "PUT", f"/v1/quotas/{METER}/{subject}/limits", LIMITS, key=f"limits-{subject}")
    body = {"messages": 40, "correlation_id": "broadcast-1"}
    first = await tell("reserve before the work", "POST", "/v1/usage/reserve", body)
    await tell("the same again: one outcome", "POST", "/v1/usage/reserve", body)
    await tell("same key, other body", "POST", "/v1/usage/reserve", {**body, "messages": 41})
    await tell("more than is left", "POST", "/v1/usage/reserve", {"messages": 30, "correlation_id": "broadcast-2"})
    held = first.json()["reservation_id"]
    await tell("37 of 40 were used", "POST", "/v1/usage/commit", {"reservation_id": held, "used": 37})
    second = await tell("reserve again", "POST", "/v1/usage/reserve", {"messages": 20, "correlation_id": "broadcast-3"})
    await tell("it failed: roll back", "POST", "/v1/usage/rollback", {"reservation_id": second.json()["reservation_id"]})
    short = {"subject": "alice", "meter": METER, "amount": 10, "ttl_seconds": 1, "correlation_id": "short"}
    third = await tell("hold for one second", "POST", "/v1/usage/reserve", short)
    await asyncio.sleep(1.2)
    late = {"reservation_id": third.json()["reservation_id"], "used": 10}
    await tell("commit too late", "POST", "/v1/usage/commit", late)
    both = [{"op": "consume", "subject": name, "meter": METER, "amount": 5} for name in ("alice", "bob")]
    await tell("both or none", "POST", "/v1/batches", {"atomic": True, "correlation_id": "batch-1", "commands": both})
    many = [{"op": "consume", "subject": "bob", "meter": METER, "amount": 1} for _ in range(100)]
    last = await tell("100 at once, each for itself", "POST", "/v1/batches", {"correlation_id": "batch-2", "commands": many})
    position = last.headers["Holdbook-Position"]
    for subject in ("default", "alice", "bob"):
        await tell(f"how {subject} stands", "GET", f"/v1/usage?subject={subject}&meter={METER}&min_position={position}")
    out.print(story.table)


def _tell(url: str, key: str) -> None:
    out.print(f"\nAPI        {url}\nOpenAPI    {url}/openapi.json\nMetrics    {url}/metrics\nReadiness  {url}/readyz\n", highlight=False)
    out.print("Try it:\n")
    for line in (
        f"export HOLDBOOK={url} KEY={key}",
        """curl -s $HOLDBOOK/v1/usage/reserve -H "Authorization: Bearer $KEY" -d '{"messages": 5, "correlation_id": "mine-1"}'""",
        """curl -s "$HOLDBOOK/v1/usage" -H "Authorization: Bearer $KEY\"""",
    ):
        typer.echo(line)

"""Whatever fits the OpenAPI document, and much that does not: no 5xx."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings

from api import server
from api.app import openapi_document
from api.cli.common import prepare
from api.cli.demo import make_key
from api.settings import Settings

schema = schemathesis.openapi.from_dict(openapi_document())


@pytest.fixture(scope="module")
def running(postgres_dsn: str) -> Iterator[tuple[str, str]]:
    """A server in a thread of its own: schemathesis drives it by blocking requests."""
    from tests.conftest import administer, with_database

    name = f"holdbook_fuzz_{secrets.token_hex(4)}"  # other runs may share the server
    administer(postgres_dsn, f"create database {name}")
    dsn = with_database(postgres_dsn, name)
    chosen = Settings(port=0, partitions=4, rate_address_per_minute=0, log_level="error")
    prepare(dsn, chosen)
    told: list[tuple[str, str]] = []
    ready, loop_of = threading.Event(), []

    async def main() -> None:
        stop = asyncio.Event()
        loop_of.append((asyncio.get_running_loop(), stop))
        key = await make_key(dsn, chosen)
        async with server.process(dsn, chosen, follow=True, serve=True) as url:
            told.append((str(url), key))
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    assert ready.wait(120)
    yield told[0]
    loop, stop = loop_of[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join(120)
    administer(postgres_dsn, f"drop database {name} with (force)")


@schema.parametrize()
# The server is a thread of this process, and its pools and followers draw from the generator that is being watched.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies:hypothesis.errors.HypothesisDeprecationWarning")
@settings(
    max_examples=25, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck), database=None,
)  # fmt: skip
def test_nothing_is_the_servers_fault(case: schemathesis.Case[Any], running: tuple[str, str]) -> None:
    url, key = running

    answer = case.call(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=120)

    # Only one 503 is a right answer here: nobody ever writes the positions that are made up.
    behind = answer.status_code == 503 and answer.json()["code"] == "projection.behind"
    assert answer.status_code < 500 or behind, answer.text

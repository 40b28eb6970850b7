"""A second process that writes to the same store: these functions are called in a helper process."""

from __future__ import annotations

import asyncio
import time
from uuid import UUID

import uvloop

from api.server import collect_less_often
from bench.traffic import Driven, Traffic, hot, round_robin
from domain.quota import QUOTA
from eventstore.store import Store


def hot_rate(dsn: str, tenant_id: UUID, callers: int, starts: float, seconds: float) -> Driven:
    """Callers on the tenant's one hot account from the given moment on; errors are counted, not raised."""

    async def main() -> Driven:
        store = await Store.open(dsn, [QUOTA])
        try:
            traffic = Traffic(store, tenant_id, 1)
            await traffic.drive(hot, callers=callers, seconds=(starts - time.time()) / 2, tolerant=True)
            await asyncio.sleep(starts - time.time())
            return await traffic.drive(hot, callers=callers, seconds=seconds, tolerant=True)
        finally:
            await store.drain()

    collect_less_often()
    return uvloop.run(main())


def fill(dsn: str, tenant_id: UUID, accounts: int, callers: int, commands: int) -> int:
    """Write so many commands on the tenant's accounts; returns how many it were."""

    async def main() -> int:
        store = await Store.open(dsn, [QUOTA])
        try:
            traffic = Traffic(store, tenant_id, accounts)
            return (await traffic.drive(round_robin(accounts, callers), callers=callers, commands=commands)).commands
        finally:
            await store.drain()

    collect_less_often()
    return uvloop.run(main())

"""What a store costs with which nobody does anything."""

import asyncio
import re
import time

import psycopg

from projections.consumer import Consumer
from projections.follower import HEADS, Follower, Pace
from projections.quotas import Quotas
from projections.tenants import Tenants
from tests.projections.conftest import CODEC, LIMITS, Ledger, administer, until
from tests.support.counting import Counting

WINDOW_SECONDS = 6.0
STATEMENTS_A_SECOND = 4
"""One look at all ends each second; every three seconds the roster, the checkpoints and the leases. Some room for the server's own."""


async def test_an_idle_store_is_asked_a_few_short_things_a_second(ledger: Ledger) -> None:
    await ledger.set_limits("anna", *LIMITS[:1])
    assert ledger.store.partitions == 64
    await ledger.store.drain()  # what the writer did is counted when its sessions end
    consumers: list[Consumer] = [Quotas(CODEC), Tenants(CODEC), *(Counting(f"counting-{number}") for number in range(4))]
    follower = Follower(ledger.dsn, range(64), consumers, None, Pace())
    task = asyncio.create_task(follower.run())
    await until(lambda: follower.health().ok and not any(follower.lag().values()))
    await asyncio.sleep(2)  # until it has become slow

    before = committed(ledger)
    began, worked = time.monotonic(), time.process_time()
    await asyncio.sleep(WINDOW_SECONDS)
    follower.stop()
    await task  # its sessions end, and with that the server counts what they did
    seconds, spent = time.monotonic() - began, time.process_time() - worked
    await until(lambda: committed(ledger) > before)
    statements = committed(ledger) - before

    assert statements <= STATEMENTS_A_SECOND * seconds + 60, f"{statements} in {seconds:.1f} s"
    assert spent < 0.10 * seconds, f"{spent / seconds:.1%} of a processor"


def committed(ledger: Ledger) -> int:
    """Transactions so far, those of sessions that have not told the server yet not counted."""
    ((count,),) = administer(ledger, "select xact_commit from pg_stat_database where datname = current_database()")
    return int(count)


def test_the_ends_of_all_partitions_are_one_probe_of_the_index_each(database_dsn: str) -> None:
    rows = """
        insert into event (partition, position, tenant_id, stream, version, command_id, ordinal, type, recorded_at, payload, salt, hash)
        select p, n, gen_random_uuid(), p || '-' || n, 1, gen_random_uuid(), 0, 'till.taken', now(), '{}', '', ''
        from generate_series(0, 63) p, generate_series(1, 200) n"""
    with psycopg.connect(database_dsn, autocommit=True) as conn:
        conn.execute(rows)
        conn.execute("vacuum analyze event")
        conn.execute("set role holdbook_follower")
        lines = [line for (line,) in conn.execute("explain (analyze) " + HEADS, (list(range(64)),)).fetchall()]
        plan = "\n".join(lines)

    assert re.search(r"Index Only Scan Backward using event_pkey on event e .*rows=1(\.00)? loops=64", plan), plan
    assert "Seq Scan on event" not in plan

"""What HTTP adds, and what batches save: a server in one process, its load in another."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from statistics import median
from typing import Any

from bench import site
from bench.load import Asked, Loaded, load
from bench.rows import Measured, Row, rows
from bench.server import NOTHING, running
from bench.stage import Helper, Stage
from bench.store_rows import rates, ratio

RESERVE, BATCH = "/v1/usage/reserve", "/v1/batches"


def loading(helper: Helper, port: int, asked: Asked) -> Callable[[float], Awaitable[Loaded]]:
    """The side that asks this as fast as answers come."""

    async def side(seconds: float) -> Loaded:
        return await helper.call(load, port, asked, site.CONNECTIONS, seconds)

    return side


def complaint(*sides: Sequence[Loaded]) -> str | None:
    """What the first bad answer said, if there was one."""
    return next((f"a bad answer: {loaded.complaint[:500]}" for side in sides for loaded in side if loaded.bad), None)


def latencies(found: Sequence[Loaded]) -> dict[str, Any]:
    """A detail entry for latencies."""
    return {"median": round(median(one.p99_ms for one in found), 2), "p50": round(median(one.p50_ms for one in found), 2), "unit": " ms"}


@rows(
    Row(f"HTTP reserve, {site.CONNECTIONS} connections", "a route without effect", 0.6),
    Row("p99 of a route without effect", "p99 of HTTP reserve (3 x as long at most)", 1 / 3),
)
async def http_reserve(stage: Stage) -> Sequence[Measured]:
    with stage.database() as dsn:
        place = await site.found(dsn)
        with running(dsn, "serve") as port, Helper() as helper:
            reserve, nothing = await stage.in_turns(
                loading(helper, port, place.single(RESERVE)), loading(helper, port, place.single(NOTHING))
            )
    broken = complaint(reserve, nothing)
    by_rate = ratio([one.rate for one in reserve], [one.rate for one in nothing])
    ours, theirs = latencies(nothing), latencies(reserve)
    return [
        Measured(by_rate.ratio, by_rate.detail, broken),
        Measured(ours["median"] / theirs["median"], {"ours": ours, "theirs": theirs}, broken),
    ]


@rows(Row("commands/s by HTTP, atomic batches of 100", "single requests", 5.0))
async def http_batches(stage: Stage) -> Sequence[Measured]:
    with stage.database() as dsn:
        place = await site.found(dsn)
        with running(dsn, "serve") as port, Helper() as helper:
            atomic, each, singles = await stage.in_turns(
                loading(helper, port, place.batch(BATCH, "reserve", size=100, atomic=True)),
                loading(helper, port, place.batch(BATCH, "reserve", size=100, atomic=False)),
                loading(helper, port, place.single(RESERVE)),
            )
    measured = ratio([one.rate for one in atomic], [one.rate for one in singles])
    detail = {**measured.detail, "each_for_itself": rates([one.rate for one in each])}
    return [Measured(measured.ratio, detail, complaint(atomic, each, singles))]

"""How the rate depends on where the traffic goes and on how much of it comes in one request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from uuid import uuid4

import uvloop
from rich.table import Table

from bench.stage import Stage
from bench.store_rows import opened
from bench.traffic import Pick, Traffic, hot, uniform, zipf

BATCHES = (1, 50)
CALLERS = {1: 1_000, 50: 100}
"""Callers by size of batch."""


@dataclass(frozen=True, slots=True)
class Point:
    """Commands a second of one kind of traffic at one size of batch."""

    traffic: str
    batch: int
    rate: float


def measure(stage: Stage) -> list[Point]:
    """All points, in turns as everything else."""
    return uvloop.run(_measure(stage))


async def _measure(stage: Stage) -> list[Point]:
    kinds: dict[str, tuple[Pick, int]] = {
        "uniform": (uniform, max(CALLERS.values())),
        f"Zipf 0.99 of {stage.scale.accounts:,}": (zipf(stage.scale.accounts), stage.scale.accounts),
        "one hot account": (hot, 1),
    }
    points: list[Point] = []
    with stage.database() as dsn:
        async with opened(dsn) as store:
            for kind, (pick, accounts) in kinds.items():
                traffic = Traffic(store, uuid4(), accounts)
                await traffic.configure()
                for batch in BATCHES:

                    async def side(seconds: float, traffic: Traffic = traffic, pick: Pick = pick, batch: int = batch) -> float:
                        driven = await traffic.drive(pick, callers=CALLERS[batch], seconds=seconds, batch=batch)
                        return driven.rate

                    [rates] = await stage.in_turns(side)
                    points.append(Point(kind, batch, median(rates)))
    return points


def table(points: Sequence[Point]) -> Table:
    """Kinds of traffic down, sizes of batch across."""
    made = Table(title="Commands a second, one process")
    made.add_column("traffic")
    for batch in BATCHES:
        made.add_column(f"batches of {batch}, {CALLERS[batch]:,} callers", justify="right")
    for kind in dict.fromkeys(point.traffic for point in points):
        made.add_row(kind, *(f"{point.rate:,.0f}" for point in points if point.traffic == kind))
    return made

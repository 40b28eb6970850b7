"""What the door has read is used for a second, counted from before it was read, and nobody waits for what is being read anew."""

from __future__ import annotations

import asyncio

import pytest

from api.fresh import FRESH_SECONDS, REFRESH_AFTER_SECONDS, Fresh

LATER = 0.001


class World:
    """Something that changes, a clock that stands still, and reads that wait to be let go on."""

    def __init__(self) -> None:
        self.now, self.value, self.reads = 1_000.0, "first", 0
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.fresh = Fresh[str](clock=lambda: self.now)

    async def read(self) -> tuple[str, bool]:
        self.reads, value = self.reads + 1, self.value
        await self.go_on.wait()
        return value, True

    async def get(self) -> str:
        return await asyncio.wait_for(self.fresh.get("place", self.read), 60)

    def ask(self) -> asyncio.Task[str]:
        return asyncio.create_task(self.get())


async def turns() -> None:
    """Let every task come as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_within_the_second_it_is_read_again_behind_whoever_asks() -> None:
    world = World()
    assert await world.get() == "first"
    world.value = "second"

    world.now += REFRESH_AFTER_SECONDS
    assert await world.get() == "first"
    await turns()
    assert world.reads == 1

    world.now += LATER
    world.go_on.clear()
    assert await world.get() == "first"
    await turns()
    assert world.reads == 2
    world.go_on.set()
    await turns()
    assert await world.get() == "second"
    assert world.reads == 2


async def test_behind_the_second_whoever_asks_waits() -> None:
    world = World()
    assert await world.get() == "first"
    world.value = "second"

    world.now += FRESH_SECONDS + LATER

    assert await world.get() == "second"


@pytest.mark.parametrize("reading", ["for the first time", "anew"])
async def test_what_was_read_too_long_ago_is_not_used_although_it_comes_only_now(reading: str) -> None:
    world = World()
    if reading == "anew":
        await world.get()
        world.now += FRESH_SECONDS + LATER
    world.go_on.clear()
    early = world.ask()
    await turns()
    world.value = "second"

    world.now += FRESH_SECONDS + LATER
    late = world.ask()
    await turns()
    world.go_on.set()

    assert await early == "first"
    assert await late == "second"


async def test_who_asks_at_the_same_time_shares_one_read() -> None:
    world = World()
    world.go_on.clear()
    asked = [world.ask() for _ in range(5)]
    await turns()
    world.go_on.set()

    assert await asyncio.gather(*asked) == ["first"] * 5
    assert world.reads == 1

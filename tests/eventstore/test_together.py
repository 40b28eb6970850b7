"""Reads that are made together: one round trip for many, nobody's answer older than their question, nobody's failure another's."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import pytest

from eventstore.together import AT_MOST, AT_ONCE, Together

Reads = list[tuple[str, list[int]]]
WHOSE: ContextVar[str] = ContextVar("whose", default="nobody's")


class Source:
    """Answers each key with how often anything was read before; holds every read until it is let go."""

    def __init__(self) -> None:
        self.reads: Reads = []
        self.seen: list[str] = []
        self.gate = asyncio.Event()
        self.failure: Exception | None = None
        self.unreadable: dict[int, Exception] = {}

    async def read(self, group: str, keys: Sequence[int]) -> Mapping[int, int | Exception]:
        number = len(self.reads)
        self.reads.append((group, list(keys)))
        self.seen.append(WHOSE.get())
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        return {key: self.unreadable.get(key, number) for key in keys}


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def asking(together: Together[str, int, int], group: str, *keys: int) -> list[asyncio.Task[int]]:
    return [asyncio.create_task(together.get(group, key)) for key in keys]


async def test_who_asks_while_a_read_is_under_way_is_served_by_the_next_with_all_the_others() -> None:
    source = Source()
    together = Together(source.read)
    first = asking(together, "a", 1)
    await settled()
    later = asking(together, "a", 1, 2, 3, 2)
    await settled()
    assert source.reads == [("a", [1])]

    source.gate.set()

    assert await asyncio.gather(*first, *later) == [0, 1, 1, 1, 1]
    assert source.reads == [("a", [1]), ("a", [1, 2, 3])]


async def test_after_a_silence_it_reads_again() -> None:
    source = Source()
    source.gate.set()
    together = Together(source.read)

    assert [await together.get("a", 1), await together.get("a", 1)] == [0, 1]


async def test_a_read_has_no_more_keys_than_it_may() -> None:
    source = Source()
    source.gate.set()
    together = Together(source.read)

    await asyncio.gather(*asking(together, "a", *range(AT_MOST + 1)))

    assert [len(keys) for _, keys in source.reads] == [AT_MOST, 1]


async def test_groups_are_read_apart_and_no_more_at_once_than_may() -> None:
    source = Source()
    together = Together(source.read)
    asked = [task for group in "abcd" for task in asking(together, group, 1)]
    await settled()
    assert [group for group, _ in source.reads] == list("abcd")[:AT_ONCE]

    source.gate.set()
    await asyncio.gather(*asked)

    assert sorted(source.reads) == [(group, [1]) for group in "abcd"]


async def test_who_waits_for_a_turn_is_read_with_those_who_came_meanwhile() -> None:
    source = Source()
    together = Together(source.read)
    asked = [task for group in "abc" for task in asking(together, group, 1)]
    await settled()
    asked += asking(together, "c", 2)
    await settled()

    source.gate.set()
    await asyncio.gather(*asked)

    assert ("c", [1, 2]) in source.reads


async def test_a_failure_is_theirs_who_asked_and_the_next_read_is_made() -> None:
    source = Source()
    together = Together(source.read)
    source.failure = OSError("no such luck")
    asked = asking(together, "a", 1, 2)
    await settled()
    source.gate.set()

    for task in asked:
        with pytest.raises(OSError, match="no such luck"):
            await task

    source.failure = None
    assert await together.get("a", 1) == 1


async def test_what_cannot_be_read_of_one_keeps_nothing_from_the_others() -> None:
    source = Source()
    source.gate.set()
    source.unreadable[2] = ValueError("two")
    together = Together(source.read)

    one, two, three = asking(together, "a", 1, 2, 3)

    assert [await one, await three] == [0, 0]
    with pytest.raises(ValueError, match="two"):
        await two


async def test_one_who_goes_away_takes_nothing_from_the_others() -> None:
    source = Source()
    together = Together(source.read)
    gone, stays = asking(together, "a", 1, 1)
    await settled()
    gone.cancel()
    await settled()
    source.gate.set()

    assert await stays == 0
    assert gone.cancelled()


async def test_a_failure_after_all_have_gone_is_nobodys_news() -> None:
    told: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    source = Source()
    together = Together(source.read)
    source.failure = OSError("no such luck")
    (gone,) = asking(together, "a", 1)
    await settled()
    gone.cancel()
    await settled()
    source.gate.set()
    await settled()
    source.failure = None  # whose traceback holds all that it went through, as the task's does
    del gone
    gc.collect()

    assert told == []


async def test_it_reads_under_nobodys_name() -> None:
    source = Source()
    source.gate.set()
    together = Together(source.read)
    WHOSE.set("somebody's")

    await together.get("a", 1)

    assert source.seen == ["nobody's"]


async def test_when_the_process_ends_nobody_is_left_waiting() -> None:
    source = Source()
    together = Together(source.read)
    asked = asking(together, "a", 1)
    await settled()
    asked += asking(together, "a", 2)
    await settled()
    (serving,) = [task for task in asyncio.all_tasks() if task not in asked and task is not asyncio.current_task()]

    serving.cancel()
    done, waiting = await asyncio.wait(asked, timeout=60)

    assert not waiting
    assert all(task.cancelled() for task in done)


@pytest.mark.parametrize("failure", [None, OSError("no such luck")])
async def test_nothing_is_kept_of_what_was_answered(failure: Exception | None) -> None:
    source = Source()
    source.gate.set()
    source.failure = failure
    together = Together(source.read)
    await asyncio.gather(*asking(together, "a", 1, 2), return_exceptions=True)
    await settled()

    assert (together._waiting, together._running) == ({}, {})

"""Forgetting what is older than the stream is meant to keep, but never a partition's last message: the publisher goes on from that.

JetStream's own limit by age knows nothing of last messages: a partition at rest would lose its, and would be published again from its
first event.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from adapters.nats.bus import Bus
from adapters.nats.names import PREFIX, partition_subjects
from adapters.nats.stream import info


async def forget_before(bus: Bus, partitions: Iterable[int], moment: datetime) -> None:
    """Remove what was stored before a moment. May be done by any number of publishers at once."""
    start = await _first_since(bus, moment)
    for partition in partitions:
        last = await bus.last(partition)
        if last is not None and start > 0:
            wanted = {"filter": partition_subjects(partition), "seq": min(start, last.sequence)}  # all before this number
            await bus.api(f"STREAM.PURGE.{bus.stream}", wanted)


async def _first_since(bus: Bus, moment: datetime) -> int:
    """The number of the first message stored at the moment or later, by bisection."""
    state = (await info(bus))["state"]
    low, high = state["first_seq"], state["last_seq"] + 1
    while low < high:
        middle = (low + high) // 2
        found = await bus.message({"seq": middle, "next_by_subj": f"{PREFIX}.>"})
        if found is None or found.stored_at >= moment:
            high = middle
        else:
            low = found.sequence + 1
    return int(low)

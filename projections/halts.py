"""Why a consumer does not go on: in full for operators, and what strangers may read of it."""

from __future__ import annotations

import re
from typing import NamedTuple

from projections.consumer import Recorded

_POISON = re.compile(r"Position (\d+) \([^()]*\): (\w+)")
_FIXED = (("The log is of epoch ", "epoch"), ("The log ends at ", "lost tail"), ("Position ", "gap"))
_NAME = re.compile(r"\w+")


class Halt(NamedTuple):
    """A consumer that does not go on with a partition. ``recorded`` ones wait for an operator, others are retried.

    ``reason`` may hold what an event holds and is for operators' eyes; ``error`` is one word, or two, that say nothing of it.
    """

    consumer: str
    generation: int
    partition: int
    position: int
    reason: str
    recorded: bool

    @property
    def error(self) -> str:
        """The exception's class, or ``epoch``, ``lost tail`` or ``gap``."""
        return named(self.reason)


def told(error: BaseException) -> str:
    """An exception on one line of bounded length."""
    return f"{type(error).__name__}: {error}"[:1_000]


def poison(row: Recorded, error: BaseException) -> str:
    """The event cannot be applied."""
    return f"Position {row.position} ({row.type} of {row.stream}): {told(error)}"


def poisoned_at(reason: str) -> int | None:
    """The position of the event that cannot be applied; None for other reasons."""
    found = _POISON.match(reason)
    return int(found[1]) if found else None


def other_epoch(log: int, built: int) -> str:
    """The log has another epoch than what was applied."""
    return f"The log is of epoch {log}, this was built on epoch {built}, and what was applied last is gone: rebuild or restart."


def lost_tail(head: int) -> str:
    """The log ends before what was applied."""
    return f"The log ends at {head}, before what was applied: it lost its tail. Rebuild or restart."


def gap(partition: int, position: int) -> str:
    """A position is missing."""
    return f"Position {position} of partition {partition} is missing: the log is corrupt."


def named(reason: str) -> str:
    """What a reason comes to, without anything that an event holds."""
    found = _POISON.match(reason)
    if found:
        return found[2]
    for beginning, name in _FIXED:
        if reason.startswith(beginning):
            return name
    word = _NAME.match(reason)
    return word[0] if word else "unknown"

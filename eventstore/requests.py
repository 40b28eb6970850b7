"""What a writer is asked and what it answers, its bounds, and what it counts."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from domain.kernel.decider import Command, Decider


class Item(NamedTuple):
    """One command on one stream."""

    decider: Decider[Any]
    stream: str
    command: Command


@dataclass(slots=True, eq=False)
class Request:
    """One command, or an atomic batch of commands, of one tenant, under one command id.

    ``fingerprint`` is a digest of the body under a tenant's key; the same command id with another fingerprint is refused.
    ``occurred_at`` replaces the writer's time as the commands' ``at`` (operators' imports only). ``size`` is the body's size in
    bytes, for the bounds of queue and batch.
    """

    tenant_id: UUID
    command_id: UUID
    items: tuple[Item, ...]
    fingerprint: bytes
    actor: str | None = None
    cause: UUID | None = None
    trace: str | None = None
    occurred_at: datetime | None = None
    size: int = 256


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request. ``reply`` is JSON; of an atomic batch ``{"results": [...]}``; of a refusal what was refused and why."""

    reply: bytes
    refused: bool
    replayed: bool
    epoch: int
    position: int


@dataclass(slots=True, kw_only=True)
class Options:
    """Bounds of a writer. Sizes are in bytes, times in seconds."""

    queue_commands: int = 20_000
    queue_bytes: int = 64 * 2**20
    batch_commands: int = 1_000
    batch_bytes: int = 8 * 2**20
    decide_seconds: float = 0.5
    cached_streams: int = 50_000
    catch_up_locked: int = 1_000
    catch_up_jump: int = 20_000
    snapshot_every: int = 1_000
    retry_seconds: float = 8.0


BATCH_BOUNDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000)
COMMIT_BOUNDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Upper bounds, inclusive, of what :class:`Stats` sorts batches into: commands, and seconds."""


@dataclass(slots=True)
class Stats:
    """What a writer did since it started. Kept as plain numbers, because the write path pays for each of them.

    ``commit_seconds`` is the time from asking for the lock to the commit's answer. The two lists count batches by size and by that
    time, one place for each bound and one for what is larger.
    """

    commands: int = 0
    events: int = 0
    batches: int = 0
    refused: int = 0
    replayed: int = 0
    caught_up: int = 0
    in_doubt: int = 0
    snapshots: int = 0
    lost_tails: int = 0
    commit_seconds: float = 0.0
    by_size: list[int] = field(default_factory=lambda: [0] * (len(BATCH_BOUNDS) + 1))
    by_seconds: list[int] = field(default_factory=lambda: [0] * (len(COMMIT_BOUNDS) + 1))

    def committed(self, commands: int, seconds: float) -> None:
        """One batch came to its end."""
        self.batches += 1
        self.commit_seconds += seconds
        self.by_size[bisect_left(BATCH_BOUNDS, commands)] += 1
        self.by_seconds[bisect_left(COMMIT_BOUNDS, seconds)] += 1

    def add(self, other: Stats) -> None:
        """Count in what another writer did."""
        for each in fields(self):
            mine, theirs = getattr(self, each.name), getattr(other, each.name)
            summed = [a + b for a, b in zip(mine, theirs, strict=True)] if isinstance(mine, list) else mine + theirs
            setattr(self, each.name, summed)

"""What publisher and listeners agree on: subjects, headers, and the place of a message in the log."""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

PREFIX = "holdbook.events"
STREAM = "HOLDBOOK"
"""The stream's name unless set otherwise."""

EPOCH, POSITION, HASH = "Holdbook-Epoch", "Holdbook-Position", "Holdbook-Hash"
"""Headers of every message: its place, and the log's hash (hexadecimal) at this position."""

EPOCH_TYPE = "log.epoch"
"""Type of the notice that a new epoch begins. It is no event; its position is the last one that still stands."""

STORE_KEY, PARTITIONS_KEY = "holdbook-store", "holdbook-partitions"
"""In the stream's metadata: which store it is the log of, and how many partitions that has."""


class Place(NamedTuple):
    """Where a message stands in its partition. Places of one partition are ordered, and never given twice."""

    epoch: int
    position: int


def event_subject(partition: int, tenant_id: UUID | str, type_: str) -> str:
    """The subject of an event. The dots of its type separate tokens, so that ``quota.>`` can be asked for."""
    return f"{PREFIX}.{partition}.{tenant_id}.{type_}"


def epoch_subject(partition: int | str) -> str:
    """The subject of the notices that a new epoch begins: a token shorter than any event's."""
    return f"{PREFIX}.{partition}.epoch"


def partition_subjects(partition: int) -> str:
    """Everything of one partition, events and notices."""
    return f"{PREFIX}.{partition}.>"

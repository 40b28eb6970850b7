"""The stream that holds the log: made when it is missing, and refused when it cannot keep our promises."""

from __future__ import annotations

from typing import Any, NamedTuple

from adapters.nats.bus import NO_STREAM, Bus, BusRefused, WrongStream
from adapters.nats.names import PARTITIONS_KEY, PREFIX, STORE_KEY

OLDEST_SERVER = (2, 12)
"""The first with atomic batches."""
_ALREADY_THERE = 10058


class Wanted(NamedTuple):
    """How the stream must be. ``store`` tells one store from another; ``duplicates_seconds`` is JetStream's duplicate window, which
    nothing of ours depends on."""

    store: str
    partitions: int
    replicas: int = 1
    duplicates_seconds: float = 10.0


async def ensure(bus: Bus, wanted: Wanted) -> None:
    """Make the stream or bring it up to date. Raises :class:`WrongStream` when this server or this stream will not do."""
    version = bus.client.connected_server_version
    if (version.major, version.minor) < OLDEST_SERVER:
        raise WrongStream(f"nats-server is {version.major}.{version.minor}; 2.12 or newer is needed, for atomic batches.")
    found = await _found(bus)
    if found is None:
        try:
            found = (await bus.api(f"STREAM.CREATE.{bus.stream}", _config(bus.stream, wanted)))["config"]
        except BusRefused as refused:
            # Another publisher was first, perhaps with other settings.
            if refused.code != _ALREADY_THERE or (found := await _found(bus)) is None:
                raise
    _refuse_another_store(bus.stream, found, wanted)
    changed = {"allow_atomic": True, "allow_direct": True, "num_replicas": wanted.replicas}
    if any(found.get(name) != value for name, value in changed.items()):
        found = (await bus.api(f"STREAM.UPDATE.{bus.stream}", {**found, **changed}))["config"]
    if not found.get("allow_atomic"):
        raise WrongStream(f"The stream {bus.stream} cannot take atomic batches on this server.")


async def info(bus: Bus) -> dict[str, Any]:
    """The stream's configuration and state. Raises :class:`WrongStream` when there is none."""
    try:
        return await bus.api(f"STREAM.INFO.{bus.stream}")
    except BusRefused as refused:
        if refused.code == NO_STREAM:
            raise WrongStream(f"There is no stream {bus.stream}; the publisher makes it when it first runs.") from refused
        raise


async def _found(bus: Bus) -> dict[str, Any] | None:
    try:
        config: dict[str, Any] = (await bus.api(f"STREAM.INFO.{bus.stream}"))["config"]
    except BusRefused as refused:
        if refused.code == NO_STREAM:
            return None
        raise
    return config


def _config(name: str, wanted: Wanted) -> dict[str, Any]:
    return {
        "name": name,
        "subjects": [f"{PREFIX}.>"],
        "storage": "file",
        "retention": "limits",
        "discard": "new",  # a full stream makes the publisher wait; it never forgets what somebody may not have read
        "num_replicas": wanted.replicas,
        "duplicate_window": round(wanted.duplicates_seconds * 1e9),
        "allow_atomic": True,
        "allow_direct": True,
        "metadata": {STORE_KEY: wanted.store, PARTITIONS_KEY: str(wanted.partitions)},
    }


def _refuse_another_store(name: str, found: dict[str, Any], wanted: Wanted) -> None:
    metadata = found.get("metadata") or {}
    if metadata.get(STORE_KEY) != wanted.store:
        raise WrongStream(f"The stream {name} holds the log of another store; choose another name, or delete it.")

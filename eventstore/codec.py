"""Events as text: explicit names, schema versions, pure upcasters.

An event of schema version 1 is stored under its name (``quota.reserved``), a later one with the version behind it
(``quota.reserved.v2``). Stored payloads are never rewritten: a payload of an older version is raised step by step by
the aggregate's upcasters when it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from domain.kernel.decider import Decider, Event, Refused
from eventstore.errors import UnknownEventType

Upcast = Callable[[dict[str, Any]], dict[str, Any]]


def stored_type(name: str, version: int) -> str:
    """The text of the log's ``type`` column for an event name and schema version."""
    return name if version == 1 else f"{name}.v{version}"


def _raising(steps: list[Upcast], cls: type[Event]) -> Callable[[str], Event]:
    def decode(payload: str) -> Event:
        value = msgspec.json.decode(payload)
        for step in steps:
            value = step(value)
        return msgspec.convert(value, cls)

    return decode


class Codec:
    """Encodes and decodes every event of the given aggregates; knows which aggregate a stream belongs to."""

    def __init__(self, deciders: Iterable[Decider[Any]]) -> None:
        self.deciders: dict[str, Decider[Any]] = {}
        self._encode = msgspec.json.Encoder().encode
        self._types: dict[type[Event], str] = {}
        self._decoders: dict[str, Callable[[str], Event]] = {}
        self._register(Refused, {})
        for decider in deciders:
            if decider.category in self.deciders:
                raise ValueError(f"two aggregates have the category {decider.category}")
            self.deciders[decider.category] = decider
            for cls in decider.events:
                self._register(cls, dict(decider.upcasts))

    def _register(self, cls: type[Event], upcasts: dict[tuple[str, int], Upcast]) -> None:
        name, current = cls.event_name, cls.event_version
        stored = stored_type(name, current)
        if stored in self._decoders:
            raise ValueError(f"two event classes are named {stored}")
        self._types[cls] = stored
        self._decoders[stored] = msgspec.json.Decoder(cls).decode
        steps: list[Upcast] = []
        for version in range(current - 1, 0, -1):
            steps = [upcasts[name, version], *steps]  # a missing upcaster is a KeyError at start, not at read
            self._decoders[stored_type(name, version)] = _raising(steps, cls)

    @property
    def stored_types(self) -> list[str]:
        """Every type text this program can read, older versions included."""
        return sorted(self._decoders)

    def encode(self, event: Event) -> tuple[str, str]:
        """The stored type and the exact JSON text of an event."""
        return self._types[type(event)], self._encode(event).decode()

    def decode(self, stored: str, payload: str) -> Event:
        """The event of a stored type and payload, in its current schema version."""
        decoder = self._decoders.get(stored)
        if decoder is None:
            raise UnknownEventType(stored)
        return decoder(payload)

    def decider_of(self, stream: str) -> Decider[Any] | None:
        """The aggregate whose category begins the stream's name; None for streams that hold no aggregate."""
        return self.deciders.get(stream[: stream.find("-")] if "-" in stream else stream)

    def freeze(self, decider: Decider[Any], state: Any) -> str:
        """A state as JSON text."""
        return self._encode(decider.freeze(state)).decode()

    def thaw(self, decider: Decider[Any], text: str) -> Any:
        """The state that :meth:`freeze` wrote."""
        return decider.thaw(msgspec.json.decode(text, type=decider.frozen_type))

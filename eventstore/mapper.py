"""Our codec as a mapper of the ``eventsourcing`` library: stable names for topics, upcasts, msgspec inside.

With :class:`eventstore.recorder.PartitionRecorder` it lets a library notification log, event store or projection read our
events. Our events do not know their stream, so what the library gets is a :class:`StreamEvent` around one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import msgspec
from eventsourcing.domain import DomainEventProtocol
from eventsourcing.persistence import Mapper, MapperDeserialisationError, StoredEvent, Transcoder

from domain.kernel.decider import Event
from eventstore.codec import Codec


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """An event and its place in its stream, named as the library names them. Versions begin at 1."""

    originator_id: str
    originator_version: int
    event: Event


class _Json(Transcoder):
    """What the library's constructor asks for. The codec does the work, because only it knows the classes."""

    def encode(self, obj: object) -> bytes:
        return msgspec.json.encode(obj)

    def decode(self, data: bytes) -> object:
        return msgspec.json.decode(data)


class HoldbookMapper(Mapper[str]):
    """Maps between :class:`StreamEvent` and stored events, by the names under which our log keeps them."""

    def __init__(self, codec: Codec) -> None:
        super().__init__(_Json())
        self.codec = codec

    def to_stored_event(self, domain_event: DomainEventProtocol[str]) -> StoredEvent:
        """The stored form of a :class:`StreamEvent`, in the current schema version.

        Raises TypeError for anything else, ValueError for a version below 1, which every fold of the stream would pass over.
        """
        if not isinstance(domain_event, StreamEvent):
            raise TypeError(f"expected a StreamEvent, not {type(domain_event).__name__}")
        if domain_event.originator_version < 1:
            raise ValueError(f"the versions of a stream begin at 1, not {domain_event.originator_version}")
        topic, payload = self.codec.encode(domain_event.event)
        return StoredEvent(domain_event.originator_id, domain_event.originator_version, topic, payload.encode())

    def to_domain_event(self, stored_event: StoredEvent) -> DomainEventProtocol[str]:
        """The :class:`StreamEvent` of a stored event of any schema version ever shipped.

        Raises the library's MapperDeserialisationError; its cause is UnknownEventType where a newer program wrote the event.
        """
        try:
            event = self.codec.decode(stored_event.topic, stored_event.state.decode())
        except Exception as error:  # an upcaster may fail in any way
            place = f"version {stored_event.originator_version} of {stored_event.originator_id}"
            raise MapperDeserialisationError(f"cannot read {stored_event.topic}, {place}: {error}") from error
        return cast("DomainEventProtocol[str]", StreamEvent(str(stored_event.originator_id), stored_event.originator_version, event))

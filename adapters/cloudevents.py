"""An event of the log as a CloudEvent 1.0 in JSON, for everyone outside: bus and webhooks alike.

The payload's text goes in exactly as the log has it, so that what was hashed is what is read. Besides the attributes of the
specification an event carries its place: ``partition``, ``epoch`` and ``sequence`` (the position, as a string), ``partitionkey`` (the
tenant) and ``traceparent`` where the trace is known. Extension names hold lower-case letters and digits only.

Source: CloudEvents 1.0.2, JSON format; extensions Partitioning, Sequence and Distributed Tracing.
"""

from __future__ import annotations

from datetime import UTC, datetime
from json.encoder import encode_basestring
from typing import Any
from uuid import UUID

CONTENT_TYPE = "application/cloudevents+json"
"""Of one event."""

_text: Any = encode_basestring  # the standard library's own, in C; its types are not declared


def event_id(command_id: UUID, ordinal: int) -> str:
    """The identity of an event everywhere outside: unique and stable for ever."""
    return f"{command_id}:{ordinal}"


def cloud_event(
    source: str,
    tenant_id: UUID,
    partition: int,
    epoch: int,
    position: int,
    command_id: UUID,
    ordinal: int,
    type_: str,
    stream: str,
    recorded_at: datetime,
    payload_text: str | None,
    trace: str | None = None,
) -> bytes:
    """One event as JSON in UTF-8. ``payload_text`` is JSON and embedded as it stands; None leaves ``data`` out."""
    moment = recorded_at.astimezone(UTC).isoformat(timespec="microseconds")[:-6] + "Z"
    known_trace = "" if trace is None else f',"traceparent":{_text(trace)}'
    data = "" if payload_text is None else f',"datacontenttype":"application/json","data":{payload_text}'
    return (
        f'{{"specversion":"1.0","id":"{command_id}:{ordinal}","source":{_text(source)},"type":{_text(type_)},"subject":{_text(stream)},'
        f'"time":"{moment}","partitionkey":"{tenant_id}","sequence":"{position}","partition":{partition},"epoch":{epoch}'
        f"{known_trace}{data}}}"
    ).encode()

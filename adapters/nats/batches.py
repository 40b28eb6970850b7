"""Appending messages of one partition to the stream: all or none, and only behind the message that was thought to be its last.

This compare-and-set is what makes any number of publishers safe, after any pause: whoever thought of another end changes nothing.
JetStream checks it when the batch is committed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from nats.aio.client import Client
from nats.nuid import NUID

from adapters.nats.bus import Bus, BusRefused, BusUnavailable
from adapters.nats.names import EPOCH, HASH, POSITION, Place, partition_subjects

HEADER_BYTES = 1_000
"""More than the headers of any message take."""
_EXPECTED, _EXPECTED_SUBJECT = "Nats-Expected-Last-Subject-Sequence", "Nats-Expected-Last-Subject-Sequence-Subject"
_BATCH, _NUMBER, _COMMIT, _ID = "Nats-Batch-Id", "Nats-Batch-Sequence", "Nats-Batch-Commit", "Nats-Msg-Id"
_TOO_LARGE = 10199
_UNDONE = {10071, 10164, 10158, 10176, 10201, 10210}
"""Another last message; a message id in process or seen before; an incomplete batch; too many batches under way. Nothing was stored."""
_SECONDS = 10.0
"""JetStream forgets a batch that was begun and not committed so long ago."""
_nuid = NUID()


class Outrun(Exception):
    """The partition's last message is another one than was thought, or the batch came to nothing. Nothing of it is in the stream."""


class BatchTooLarge(Exception):
    """The server takes fewer messages in one batch. Nothing was stored."""


class Message(NamedTuple):
    """What is published. ``id`` is JetStream's message id: an economy only, see the module."""

    subject: str
    id: str
    place: Place
    hash: bytes
    body: bytes


async def append(bus: Bus, partition: int, behind: int, messages: Sequence[Message]) -> int:
    """Append the messages right behind the partition's message of number ``behind`` (0 when it has none); the last one's number.

    Raises :class:`Outrun` or :class:`BatchTooLarge` when nothing was stored, :class:`BusUnavailable` when that is in doubt.
    """
    batch = _nuid.next().decode()
    try:
        answer = await bus.within(_send(bus, batch, partition, behind, messages), _SECONDS)
    except BusRefused as refused:
        if refused.code == _TOO_LARGE:
            raise BatchTooLarge from refused
        if refused.code in _UNDONE:
            raise Outrun(str(refused)) from refused
        raise
    if answer.get("batch") != batch or answer.get("count") != len(messages):
        raise BusUnavailable("the answer is to something else")
    return int(answer["seq"])


async def _send(bus: Bus, batch: str, partition: int, behind: int, messages: Sequence[Message]) -> dict[str, Any]:
    count = len(messages)
    for number, message in enumerate(messages, 1):
        headers = _headers(batch, number, message)
        if number == 1:
            headers[_EXPECTED], headers[_EXPECTED_SUBJECT] = str(behind), partition_subjects(partition)
        if number == count:
            headers[_COMMIT] = "1"
            return await bus.request(message.subject, message.body, headers)
        await bus.client.publish(message.subject, message.body, headers=headers)
    raise AssertionError("a batch has messages")


def fits(client: Client, message: Message) -> bool:
    """Whether the server takes a message of this size."""
    return len(message.body) + HEADER_BYTES <= client.max_payload


def _headers(batch: str, number: int, message: Message) -> dict[str, str]:
    return {
        _BATCH: batch,
        _NUMBER: str(number),
        _ID: message.id,
        EPOCH: str(message.place.epoch),
        POSITION: str(message.place.position),
        HASH: message.hash.hex(),
        "Content-Type": "application/cloudevents+json",
    }

"""After a failover lost the log's end: where what was published and what the log holds part ways."""

from __future__ import annotations

from adapters.nats.bus import Bus, Stored, WrongStream
from adapters.nats.names import Place
from adapters.nats.reading import Connection, hashes
from eventstore.rows import GENESIS

FIRST_STEP = 64


async def still_standing(bus: Bus, conn: Connection, partition: int, last: int) -> tuple[int, bytes]:
    """The last position that was published and is still in the log, with its hash; (0, GENESIS) when nothing is.

    ``last`` is the number of the partition's last message.

    Equal hashes mean equal logs up to there, because each hash covers all before it. What failovers lose is short, so this looks
    back in growing steps until it meets a message that stands, and then at each message from there on: what an earlier
    failover undid may lie between. Raises :class:`WrongStream` when the stream no longer keeps the messages this would need.
    """
    step = FIRST_STEP
    while True:
        start = max(1, last - step)
        messages = await _between(bus, partition, start, last)
        held = await hashes(conn, partition, [message.place.position for message in messages])
        held[0] = GENESIS
        standing = [message for message in messages if held.get(message.place.position) == message.hash]
        if standing:
            return standing[-1].place.position, standing[-1].hash
        if start == 1:
            if messages[0].place <= Place(messages[0].place.epoch, 1):
                return 0, GENESIS
            raise WrongStream(f"Partition {partition}: the log parted from the stream before the oldest message that the stream keeps.")
        step *= 8


async def _between(bus: Bus, partition: int, start: int, end: int) -> list[Stored]:
    found: list[Stored] = []
    while start <= end and (message := await bus.first_from(partition, start)) is not None:
        found.append(message)
        start = message.sequence + 1
    return found

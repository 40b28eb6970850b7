"""Messages of the stream in its order from a number on, through a consumer that lives as long as this does.

Nothing is acknowledged and nothing kept at the server. Silence, a lost consumer, a skipped message: all end with
:class:`BusUnavailable`, and whoever listens begins anew at its places.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import NamedTuple

from nats.aio.msg import Msg

from adapters.nats.bus import Bus, BusRefused, BusUnavailable

HEARTBEAT_SECONDS = 1.0
SILENCE_SECONDS = 3.5
EXPIRES_SECONDS = 30
_UNUSED_SECONDS = 60
"""How long the server keeps a consumer that nobody asks any more."""
_MOST_BYTES = 16 * 2**20
"""Asked for at once, or two messages of the greatest size."""


class Pulled(NamedTuple):
    """A message as it came."""

    subject: str
    headers: Mapping[str, str]
    body: bytes


async def pull(bus: Bus, filters: Sequence[str], start: int, ahead: int, stopping: asyncio.Event) -> AsyncGenerator[Pulled, None]:
    """All messages from number ``start`` on, then those that come, until ``stopping``. Holds at most about ``ahead`` of them."""
    name = await _consumer(bus, filters, start)
    inbox = bus.client.new_inbox()
    arrived: asyncio.Queue[Msg] = asyncio.Queue()
    subscription = await bus.within(bus.client.subscribe(inbox, cb=arrived.put))
    wish = {
        "batch": ahead,
        "max_bytes": max(_MOST_BYTES, 2 * bus.client.max_payload),
        "expires": int(EXPIRES_SECONDS * 1e9),
        "idle_heartbeat": int(HEARTBEAT_SECONDS * 1e9),
    }
    ask = json.dumps(wish).encode()
    try:
        number, wanted = 0, 0
        while not stopping.is_set():
            if wanted <= 0:
                await bus.within(bus.client.publish(f"$JS.API.CONSUMER.MSG.NEXT.{bus.stream}.{name}", ask, reply=inbox))
                wanted = ahead
            message = await _next(bus, arrived, stopping)
            if message is None:
                return
            headers = message.headers or {}
            status, description = headers.get("Status"), str(headers.get("Description"))
            if status is None:
                number += 1
                wanted -= 1
                if message.metadata.sequence.consumer != number:
                    raise BusUnavailable("a message was skipped on the way")
                yield Pulled(message.subject, headers, message.data)
            elif status == "408" or description == "Message Size Exceeds MaxBytes":
                wanted = 0
            elif status != "100" and description != "Batch Completed":
                raise BusUnavailable(f"the consumer is gone: {status} {description}")
    finally:
        with contextlib.suppress(BusUnavailable, BusRefused):
            await bus.within(subscription.unsubscribe())
            await bus.api(f"CONSUMER.DELETE.{bus.stream}.{name}")


async def _consumer(bus: Bus, filters: Sequence[str], start: int) -> str:
    name = f"holdbook-{secrets.token_hex(8)}"
    config = {
        "name": name,
        "deliver_policy": "by_start_sequence",
        "opt_start_seq": start,
        "ack_policy": "none",
        "mem_storage": True,
        "num_replicas": 1,
        "inactive_threshold": int(_UNUSED_SECONDS * 1e9),
        "filter_subjects": list(filters),
    }
    await bus.api(f"CONSUMER.CREATE.{bus.stream}.{name}", {"stream_name": bus.stream, "config": config, "action": "create"})
    return name


async def _next(bus: Bus, arrived: asyncio.Queue[Msg], stopping: asyncio.Event) -> Msg | None:
    """The next message or status; None when it is time to stop."""
    if not arrived.empty():
        return arrived.get_nowait()
    stop = asyncio.ensure_future(stopping.wait())
    get = asyncio.ensure_future(arrived.get())
    try:
        # The server sends heartbeats while it has nothing else: longer silence means that it, or the consumer, is gone.
        await asyncio.wait((get, stop, bus.closed), timeout=SILENCE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if get.done():
            return get.result()
        if stop.done():
            return None
        raise BusUnavailable("the connection broke" if bus.closed.done() else "the server fell silent")
    finally:
        stop.cancel()
        get.cancel()

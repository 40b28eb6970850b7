"""A connection to NATS, and the few requests to JetStream that the others are made of.

The connection is never repaired: when it breaks, everything that was under way is in doubt, and whoever uses it connects anew and looks
at the stream. Messages are asked for from the stream's leader, since a replica may not have the newest yet.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import random
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.errors import NoServersError

from adapters.nats.names import EPOCH, HASH, POSITION, Place, partition_subjects

REQUEST_SECONDS = 5.0
_WATCH_SECONDS = 0.25
NO_MESSAGE, NO_STREAM = 10037, 10059
T = TypeVar("T")


class BusUnavailable(Exception):
    """NATS cannot be reached, or does not answer in time. What was asked may have happened."""


class BusRefused(Exception):
    """JetStream refused a request."""

    def __init__(self, error: Mapping[str, Any]) -> None:
        self.code = int(error.get("err_code", 0))
        super().__init__(f"{error.get('description', 'refused')} ({self.code})")


class WrongStream(Exception):
    """The stream cannot be used as it is; the message says why and what helps."""


class Stored(NamedTuple):
    """A message of the stream; ``sequence`` is its number there."""

    sequence: int
    subject: str
    place: Place
    hash: bytes
    stored_at: datetime


class Bus:
    """One stream over one connection."""

    def __init__(self, client: Client, stream: str, closed: asyncio.Future[None]) -> None:
        self.client, self.stream = client, stream
        self.closed = closed

    def check(self) -> None:
        """Raises :class:`BusUnavailable` when the connection has broken."""
        if self.closed.done():
            raise BusUnavailable("the connection broke")

    async def within(self, work: Coroutine[Any, Any, T], seconds: float = REQUEST_SECONDS) -> T:
        """The result, unless the connection breaks or the time is over first. Raises :class:`BusUnavailable`."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait((task, self.closed), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise BusUnavailable("the connection broke" if self.closed.done() else "no answer in time")
            return task.result()
        except (NatsError, OSError, TimeoutError) as error:
            raise BusUnavailable(told(error)) from error
        finally:
            task.cancel()

    async def request(self, subject: str, body: bytes, headers: dict[str, str] | None = None) -> dict[str, Any]:
        """The answer as JSON. Raises :class:`BusUnavailable`, or :class:`BusRefused` when the answer is an error."""
        message = await self.within(self.client.request(subject, body, timeout=REQUEST_SECONDS, headers=headers))
        answer: dict[str, Any] = json.loads(message.data)
        if "error" in answer:
            raise BusRefused(answer["error"])
        return answer

    async def api(self, subject: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """A request to JetStream itself."""
        return await self.request(f"$JS.API.{subject}", json.dumps(body or {}).encode())

    async def last(self, partition: int) -> Stored | None:
        """A partition's last message; None when there is none."""
        return await self.message({"last_by_subj": partition_subjects(partition)})

    async def first_from(self, partition: int, sequence: int) -> Stored | None:
        """A partition's first message at or behind a number of the stream."""
        return await self.message({"seq": sequence, "next_by_subj": partition_subjects(partition)})

    async def message(self, wanted: Mapping[str, Any]) -> Stored | None:
        """The message that JetStream finds for this; None when there is none."""
        try:
            answer = await self.api(f"STREAM.MSG.GET.{self.stream}", wanted)
        except BusRefused as refused:
            if refused.code == NO_MESSAGE:
                return None
            raise
        found = answer["message"]
        headers = _headers(base64.b64decode(found.get("hdrs", "")))
        stored_at = datetime.fromisoformat(f"{found['time'][:19]}+00:00")  # to the second, which is enough and free of nanoseconds
        return Stored(found["seq"], found["subject"], place_of(headers), bytes.fromhex(headers.get(HASH, "")), stored_at)


def place_of(headers: Mapping[str, str]) -> Place:
    """The place a message's headers tell. Raises :class:`WrongStream` when they do not."""
    try:
        return Place(int(headers[EPOCH]), int(headers[POSITION]))
    except (KeyError, ValueError) as error:
        raise WrongStream("The stream holds messages that Holdbook did not publish.") from error


def told(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def _headers(raw: bytes) -> dict[str, str]:
    lines = (line.partition(":") for line in raw.decode().split("\r\n")[1:])
    return {name: value.strip() for name, _, value in lines if name}


@asynccontextmanager
async def connected(urls: str | Sequence[str], stream: str, name: str) -> AsyncIterator[Bus]:
    """A connection to one of the servers, several separated by commas. Raises :class:`BusUnavailable`."""
    closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    client = await _connect([url.strip() for url in urls.split(",")] if isinstance(urls, str) else list(urls), name, closed)
    watching = asyncio.create_task(_watch(client, closed))
    try:
        yield Bus(client, stream, closed)
    finally:
        watching.cancel()
        await _close(client)


async def _watch(client: Client, closed: asyncio.Future[None]) -> None:
    """nats-py forgets to tell of a connection that breaks while it writes."""
    while not closed.done():
        await asyncio.sleep(_WATCH_SECONDS)
        if client.is_closed and not closed.done():
            closed.set_result(None)


async def _close(client: Client) -> None:
    with contextlib.suppress(NatsError, OSError, TimeoutError):
        await asyncio.wait_for(client.close(), 2)
    # A connection that broke while nats-py wrote to it leaves tasks behind: some go on for ever, one ends in an exception that nobody
    # asks for, and both would be complained about whenever the garbage collector meets them.
    for subscription in list(client._subs.values()):
        subscription._stop_processing()
    for task in (client._reading_task, client._flusher_task, client._ping_interval_task):
        if task is not None:
            task.add_done_callback(_ask_for_exception)


def _ask_for_exception(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()


async def _connect(urls: list[str], name: str, closed: asyncio.Future[None]) -> Client:
    reasons: list[str] = ["no address given"]

    async def told_closed() -> None:
        if not closed.done():
            closed.set_result(None)

    async def failed(error: Exception) -> None:
        """Once connected nothing is made of it: whoever waits for an answer hears of it."""
        reasons[:] = [told(error)]

    for url in random.sample(urls, len(urls)):
        client = Client()
        try:
            await client.connect(
                url,
                name=name,
                allow_reconnect=False,
                max_reconnect_attempts=1,  # of a first attempt too: by default it goes on for two minutes
                reconnect_time_wait=0,
                connect_timeout=2,
                ping_interval=5,
                max_outstanding_pings=2,
                error_cb=failed,
                closed_cb=told_closed,
            )
            return client
        except NoServersError:
            pass
        except (NatsError, OSError, TimeoutError) as error:
            reasons[:] = [told(error)]
        await _close(client)
    raise BusUnavailable(reasons[0])

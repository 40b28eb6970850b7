"""Delivers what was queued for webhooks: one message at a time to each endpoint, again and again for three days."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import NAMESPACE_URL, UUID, uuid5

import structlog
from prometheus_client.core import CounterMetricFamily, Metric

from adapters.cloudevents import CONTENT_TYPE, cloud_event, event_id
from adapters.webhooks import retrying, signing
from adapters.webhooks.addresses import Addresses
from adapters.webhooks.sending import Answer, Sender
from api.settings import Settings
from domain.webhooks import WEBHOOKS, DisableEndpoint, Endpoint, EndpointNotFound, Endpoints, Reason, webhooks_stream
from eventstore.requests import Item, Request
from eventstore.rows import PRUNED
from eventstore.store import Store
from projections.tasks import Later, Task
from projections.webhook_deliveries import Deliveries, Due, Event, Note, Place
from projections.webhooks import NAME

log = structlog.get_logger(__name__)

ACTOR = "process:webhooks"
_COMMANDS = uuid5(NAMESPACE_URL, "holdbook:webhooks")
_GONE = 410
_LOOK_AGAIN = timedelta(minutes=5)
"""How often the lane of a disabled endpoint is looked at; being enabled wakes it before."""
_BUSY = timedelta(seconds=0.5)
_REMEMBERED_SECONDS = 10.0
"""However sure it looks: the follower that would tell of a change may have stopped."""


class Delivering:
    """The handler of the webhooks' tasks.

    A message is taken as delivered only when that is on disk. A process that dies between the answer and the note sends the message again,
    under the same id: at least once. The bounds keep slow receivers, or all receivers of one tenant, from taking every turn.
    """

    consumer = NAME

    def __init__(
        self, store: Store, deliveries: Deliveries, sender: Sender, source: str, *, at_once: int = 32, at_once_of_a_tenant: int = 6
    ) -> None:
        self._store, self._deliveries, self._sender, self._source = store, deliveries, sender, source
        self._at_once, self._of_a_tenant = at_once, at_once_of_a_tenant
        self._sending: Counter[UUID] = Counter()
        self._known: dict[UUID, tuple[float, int, Endpoint]] = {}
        self.attempts: Counter[str] = Counter()
        self.disabled = 0

    async def __call__(self, task: Task, now: datetime) -> Later | None:
        """See :class:`projections.tasks.Handler`."""
        place = Place(task.partition, UUID(task.lane), task.number)
        due = await self._deliveries.read(place)
        if due is None or due.state in ("delivered", "dropped"):
            return None  # the tenant was deleted; or it was done, and whoever did it died before the task was removed
        if due.state == "failed":
            await self._disable(place, task, due, due.last_status, due.revision)
            return None
        endpoint = await self._endpoint(task.tenant_id, place.endpoint_id, due.changed_at)
        event = _meant(due, task.tenant_id)
        if endpoint is None or event is None:
            await self._deliveries.note(place, Note("dropped", due.attempts, due.last_status, None, now, None, None))
            return None
        if endpoint.disabled is not None:
            return Later(now + _LOOK_AGAIN, "The webhook is disabled.")
        if self._sending.total() >= self._at_once or self._sending[task.tenant_id] >= self._of_a_tenant:
            return Later(now + _BUSY, "Others have their turn.")
        answer = await self._send(endpoint, due, event, now, place.partition)
        return await self._settle(place, task, due, endpoint, answer, now)

    def retry_at(self, task: Task, now: datetime, error: Exception) -> datetime | None:
        """Whatever went wrong here is no fault of the receiver: try again soon, then less often, for ever."""
        return now + timedelta(seconds=min(600.0, 2.0 * 2 ** min(task.attempts, 10)))

    def collect(self) -> Iterator[Metric]:
        """How attempts ended, and how many endpoints were given up."""
        told = CounterMetricFamily("holdbook_webhook_attempts", "Attempts to deliver a message, by how they ended.", labels=("outcome",))
        for outcome, count in sorted(self.attempts.items()):
            told.add_metric((outcome,), count)
        yield told
        yield CounterMetricFamily("holdbook_webhook_given_up", "Endpoints disabled because they failed.", value=self.disabled)

    async def _endpoint(self, tenant_id: UUID, endpoint_id: UUID, changed_at: int | None) -> Endpoint | None:
        """The endpoint as it is, or was when it last changed. That it is missing or disabled is never taken from memory."""
        read_at, position, known = self._known.get(endpoint_id, (0.0, None, None))
        if known is not None and position == changed_at and time.monotonic() - read_at < _REMEMBERED_SECONDS:
            return known
        state: Endpoints = (await self._store.state(WEBHOOKS, tenant_id, webhooks_stream(tenant_id))).state
        found = state.find(endpoint_id)
        if found is not None and found.disabled is None and changed_at is not None:
            if len(self._known) >= 10_000:
                self._known.clear()
            self._known[endpoint_id] = time.monotonic(), changed_at, found
        return found

    async def _send(self, endpoint: Endpoint, due: Due, event: Event, now: datetime, partition: int) -> Answer:
        key = await self._store.tenant_key(event.tenant_id)
        secrets = [signing.secret(key, endpoint.endpoint_id, number) for number in endpoint.signing(now)]
        body = cloud_event(
            self._source, event.tenant_id, partition, due.epoch, event.position, event.command_id, event.ordinal, event.type,
            event.stream, event.recorded_at, event.payload, event.trace,
        )  # fmt: skip
        headers = {"Content-Type": CONTENT_TYPE, **signing.headers(due.message_id, now, body, secrets)}
        if event.trace is not None:
            headers["traceparent"] = event.trace
        self._sending[event.tenant_id] += 1
        try:
            answer = await self._sender.send(endpoint.url, headers, body, now)
        finally:
            self._sending[event.tenant_id] -= 1
            if not self._sending[event.tenant_id]:
                del self._sending[event.tenant_id]
        self.attempts[answer.trouble or "delivered"] += 1
        return answer

    async def _settle(self, place: Place, task: Task, due: Due, endpoint: Endpoint, answer: Answer, now: datetime) -> Later | None:
        attempts, status, trouble = due.attempts + 1, answer.status, answer.trouble
        if trouble is None:
            await self._deliveries.note(place, Note("delivered", attempts, status, None, now, None, endpoint.revision))
            return None
        again = None if answer.gone else retrying.next_attempt(attempts, now, due.message_id, answer.retry_after)
        if again is not None:
            await self._deliveries.note(place, Note("waiting", attempts, status, trouble, now, again, endpoint.revision))
            return Later(again, f"The receiver did not take it: {trouble}.")
        # First the note, then the command: whoever runs this task again finds the note and sends the command again, under the same id.
        await self._deliveries.note(place, Note("failed", attempts, status, trouble, now, None, endpoint.revision))
        await self._disable(place, task, due, status, endpoint.revision)
        return None

    async def _disable(self, place: Place, task: Task, due: Due, status: int | None, revision: int | None) -> None:
        """Record that the endpoint is given up; exactly once for this delivery, whoever finds out and how often."""
        reason: Reason = "gone" if status == _GONE else "failing"
        command = DisableEndpoint(endpoint_id=place.endpoint_id, reason=reason, revision=revision)
        command_id = uuid5(_COMMANDS, f"{task.tenant_id.hex}|{place.endpoint_id.hex}|{place.number}|disable")
        item = Item(WEBHOOKS, webhooks_stream(task.tenant_id), command)
        cause, trace = (due.event.command_id, due.event.trace) if due.event is not None else (None, None)
        self._known.pop(place.endpoint_id, None)
        try:
            outcome = await self._store.submit(Request(task.tenant_id, command_id, (item,), b"", actor=ACTOR, cause=cause, trace=trace))
        except EndpointNotFound:
            return
        if outcome.replayed:
            return
        self.disabled += 1
        log.warning("webhook.given_up", webhook_id=place.endpoint_id.hex, tenant_id=task.tenant_id.hex, reason=reason)


def _meant(due: Due, tenant_id: UUID) -> Event | None:
    """The event, unless the log lost it and has another one there, or it was removed with its tenant."""
    event = due.event
    if event is None or event.type == PRUNED or event.tenant_id != tenant_id:
        return None
    return event if event_id(event.command_id, event.ordinal) == due.message_id else None


class Outgoing:
    """What a process runs for outgoing webhooks: the handler of the tasks, and a service that once an hour forgets what ended long ago."""

    every_seconds = 3600.0

    def __init__(self, deliveries: Deliveries, handler: Delivering, partitions: int, keep: timedelta) -> None:
        self.handler = handler
        self._deliveries, self._partitions, self._keep = deliveries, partitions, keep
        self._stopping = asyncio.Event()

    def collect(self) -> Iterator[Metric]:
        """See :class:`api.metrics.Collects`."""
        return self.handler.collect()

    def stop(self) -> None:
        """See :class:`api.services.Service`."""
        self._stopping.set()

    async def run(self) -> None:
        """See :class:`api.services.Service`."""
        while not self._stopping.is_set():
            try:
                await self.forget(datetime.now(UTC) - self._keep)
            except Exception as error:  # nobody awaits this task before the process ends
                log.warning("webhooks.not_forgotten", reason=type(error).__name__)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), self.every_seconds)

    async def forget(self, before: datetime, at_most: int = 1_000) -> None:
        """One short statement after the other, until nothing is left that ended before."""
        for partition in range(self._partitions):
            while await self._deliveries.forget(partition, before, at_most) >= at_most:
                if self._stopping.is_set():
                    return

    async def close(self) -> None:
        """Close the connections; nothing is sent any more."""
        await self._deliveries.close()


async def open_outgoing(dsn: str, store: Store, settings: Settings) -> Outgoing:
    """What the settings say about webhooks, put together."""
    addresses = Addresses(allow_private=settings.webhook_allow_private, allow_http=settings.webhook_allow_http)
    deliveries = await Deliveries.open(dsn)
    handler = Delivering(store, deliveries, Sender(addresses), settings.webhook_source)
    return Outgoing(deliveries, handler, store.partitions, timedelta(days=settings.webhook_keep_days))

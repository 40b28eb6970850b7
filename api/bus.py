"""Publishing the log, as the settings want it."""

from __future__ import annotations

from api.services import Service
from api.settings import Settings
from eventstore.store import Store


def publishers(dsn: str, store: Store, settings: Settings) -> list[Service]:
    """The publisher, when there is a NATS to publish to. Any number of processes may have one."""
    if settings.nats_url is None:
        return []
    from adapters.nats.publishing import Options, Publisher

    options = Options(url=settings.nats_url, stream=settings.nats_stream, source=settings.nats_source, replicas=settings.nats_replicas)
    return [Publisher(dsn, range(store.partitions), options, store.subscribe())]

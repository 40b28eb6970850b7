"""A store with a log, and servers to publish it to."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.nats import Servers
from tests.support.nats_worlds import BusWorld


@pytest.fixture
async def world(database_dsn: str) -> AsyncIterator[BusWorld]:
    made = BusWorld(database_dsn)
    yield made
    await made.close()


@pytest.fixture
def servers(home: Path) -> Iterator[Servers]:
    """One nats-server that runs."""
    made = Servers(home / "nats")
    made.start()
    yield made
    made.end()


@pytest.fixture
def cluster(home: Path) -> Iterator[Servers]:
    """Three that form a cluster."""
    made = Servers(home / "nats", 3)
    made.start()
    yield made
    made.end()

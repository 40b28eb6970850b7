"""The door of a running server, by a clock that a test moves: what it read is used for a second, and no machine is too slow for that."""

from __future__ import annotations

import pytest

from api.auth import Authenticator
from api.fresh import FRESH_SECONDS
from tests.api.conftest import Site
from tests.support.people import edge_of


class DoorClock:
    """A monotonic clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now

    def pass_a_second(self) -> None:
        """From now on nothing is used any more that was read before."""
        self.now += FRESH_SECONDS + 0.001


def door_by_a_clock(site: Site, monkeypatch: pytest.MonkeyPatch) -> DoorClock:
    """Give the server another door, which has read nothing yet."""
    clock, edge = DoorClock(), edge_of(site)
    monkeypatch.setattr(edge, "authenticator", Authenticator(site.store, edge.tokens, clock=clock))
    return clock

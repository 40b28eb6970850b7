"""Wrong passwords for names that are nobody's, counted in memory by the rule that holds for those that are somebody's.

If only a person's name were slowed down and locked, the slowing down would tell that there is such a person. What is counted here ends
with the process and is this process's alone, and the name that was tried longest ago gives way to new ones.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from datetime import datetime
from hashlib import blake2b
from uuid import UUID

from domain.identity.signins import SIGNIN, RecordFailure, SignIn

REMEMBERED = 20_000


class Guesses:
    """Failures by tenant and name; of a name only a digest is kept, under a key that nobody knows."""

    def __init__(self, *, remembered: int = REMEMBERED) -> None:
        self._key, self._remembered = os.urandom(32), remembered
        self._failed: OrderedDict[bytes, SignIn] = OrderedDict()

    def __len__(self) -> int:
        return len(self._failed)

    def standing(self, tenant_id: UUID, name: str) -> SignIn:
        """What is known of that name."""
        return self._failed.get(self._place(tenant_id, name), SignIn())

    def fail(self, tenant_id: UUID, name: str, at: datetime) -> None:
        """Count one more, unless the name must wait: that is refused as the domain refuses it, and raises what it raises."""
        place = self._place(tenant_id, name)
        state = self._failed.get(place, SignIn())
        for event in SIGNIN.decide(RecordFailure(at=at), state):
            state = SIGNIN.evolve(state, event)
        self._failed[place] = state
        self._failed.move_to_end(place)
        while len(self._failed) > self._remembered:
            self._failed.popitem(last=False)

    def _place(self, tenant_id: UUID, name: str) -> bytes:
        return blake2b(tenant_id.bytes + name.strip().casefold().encode(), key=self._key, digest_size=16).digest()

"""A quota's state without what only deciding needs: which reservations ended, and when open ones expire.

No row of the read model depends on either, and keeping both current costs a quarter of what evolve takes (measured: 4.3 us for
an event with them, 3.3 us without).
"""

from __future__ import annotations

from typing import Any

from domain.kernel.persistent import Heap, Map
from domain.quota import Quota, State


class _KeepsNothing(Map[Any, Any]):
    """A mapping that stays empty."""

    __slots__ = ()

    def set(self, key: Any, value: Any) -> _KeepsNothing:
        """Unchanged."""
        return self


class _ExpectsNothing(Heap[Any]):
    """A heap that stays empty."""

    __slots__ = ()

    def push(self, item: Any) -> _ExpectsNothing:
        """Unchanged."""
        return self


_NOTHING, _NEVER = _KeepsNothing(), _ExpectsNothing()


def bare(state: State) -> State:
    """The state as it is folded here: evolve gives the same limits, grants and open reservations with and without the rest."""
    if not isinstance(state, Quota):
        return state
    return Quota(state.terms, state.limits, state.grants, state.open, _NEVER, _NOTHING, _NOTHING, state.used, state.reserved)

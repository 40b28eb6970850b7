"""How long things are measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Sides are measured in turns, ``rounds`` times for ``seconds`` each, after one turn of ``warm_seconds`` that does not
    count."""

    rounds: int
    seconds: float
    warm_seconds: float
    callers: int = 1_000
    accounts: int = 10_000
    """Accounts that skewed traffic goes to."""
    lead_seconds: float = 1.0
    """From a call to the start that several processes share: enough to open a store, load a stream and warm up."""
    filled: int = 2_000_000
    """Events in the store that is not empty."""
    view_seconds: float = 20.0
    view_commands: int = 1_000
    """Commands a second that arrive while the view is watched."""
    beside_seconds: float = 16.0
    """How long a snapshot is held open, and how long dumps are made."""
    rebuilt: int = 1_000_000
    """Events that a read model is built anew from."""


FULL = Scale(rounds=5, seconds=2.0, warm_seconds=1.0)
QUICK = Scale(rounds=3, seconds=0.8, warm_seconds=0.4, filled=200_000, view_seconds=5.0, beside_seconds=4.0, rebuilt=100_000)
TINY = Scale(
    rounds=1,
    seconds=0.05,
    warm_seconds=0.0,
    lead_seconds=0.3,
    callers=40,
    accounts=100,
    filled=400,
    view_seconds=0.3,
    view_commands=50,
    beside_seconds=0.1,
    rebuilt=400,
)
"""For the suite: everything runs, and no figure means anything."""

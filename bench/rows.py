"""The rows of the benchmark's table. A row is a ratio with a target, so that it means the same on any machine.

A new row is a :class:`Row` over a function in one of the modules that :func:`registered` names. One function may measure several
rows at once, and then answers one :class:`Measured` for each, in their order.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from typing import Any

from bench.scale import Scale
from bench.stage import Stage


@dataclass(frozen=True, slots=True)
class Row:
    """What is measured, what it is divided by, and the ratio it must reach. ``what`` may name fields of the scale."""

    what: str
    against: str
    target: float

    def name(self, scale: Scale) -> str:
        """The row's name at this scale."""
        return self.what.format_map(asdict(scale))


@dataclass(frozen=True, slots=True)
class Measured:
    """A ratio; bigger is better. ``broken`` says what went wrong although the ratio may be fine."""

    ratio: float
    detail: Mapping[str, Any] = field(default_factory=dict)
    broken: str | None = None


Measure = Callable[[Stage], Awaitable[Sequence[Measured]]]


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that one function measures."""

    rows: tuple[Row, ...]
    measure: Measure


_GROUPS: list[Group] = []
_MODULES = (
    "bench.store_rows",
    "bench.history_rows",
    "bench.http_rows",
    "bench.view_rows",
    "bench.beside_rows",
    "bench.nats_rows",
    "bench.audit_rows",
    "bench.rebuild_rows",
    "bench.license_rows",
)


def rows(*rows: Row) -> Callable[[Measure], Measure]:
    """Register a function under the rows it measures."""

    def register(measure: Measure) -> Measure:
        _GROUPS.append(Group(rows, measure))
        return measure

    return register


def registered() -> Sequence[Group]:
    """Every group, in the order of the modules and of the functions in them."""
    for module in _MODULES:
        import_module(module)
    return tuple(_GROUPS)

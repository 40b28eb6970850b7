"""The tables of the quota read model, and a quota's state as their rows.

A quota is one row with its state as JSON. What may be many is kept in rows of its own and changed one by one: open reservations,
and the seconds of rolling limits. So a batch costs what it changed, not what there is. Reservations that ended are not kept,
since nothing that is asked here depends on them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import msgspec
from sqlalchemy import JSON, BigInteger, Column, DateTime, Index, Integer, MetaData, Numeric, Table, Text, Uuid

from domain.quota import QUOTA, FrozenQuota, Open, Quota, State
from domain.quota.credits import CreditUse
from domain.quota.limits import FrozenTally, RollingTally
from projections.reading import Model

MODEL = Model("quotas", shape=1)

FIELDS = "reservation_id, amount, booked, reserved_at, expires_at, counted::text"
"""Columns of a reservation, for :func:`opened_of`."""
OF_STREAMS = "where partition = %s and stream = any(%b::text[])"


def names(generation: int) -> tuple[str, str, str]:
    """The tables of one generation: quotas, open reservations, seconds of rolling limits."""
    return f"quota_{generation}", f"quota_reservation_{generation}", f"quota_second_{generation}"


def seconds_of(generation: int) -> str:
    """The query for all seconds of some streams, for :func:`by_incarnation`."""
    return f"select stream, born, second, used, reserved from {names(generation)[2]} {OF_STREAMS} order by stream, born, second"


def define(metadata: MetaData, generation: int) -> None:
    """The tables of one generation."""
    Table(
        f"quota_{generation}",
        metadata,
        Column("partition", Integer, primary_key=True),
        Column("stream", Text(collation="C"), primary_key=True),
        Column("tenant_id", Uuid, nullable=False),
        Column("subject", Text(collation="C"), nullable=False),
        Column("meter", Text(collation="C"), nullable=False),
        Column("version", BigInteger, nullable=False),
        Column("position", BigInteger, nullable=False, comment="the last event in it"),
        Column("open", Integer, nullable=False, comment="how many reservations are open"),
        Column("state", JSON, nullable=False),
        Index(f"quota_{generation}_by_name", "partition", "tenant_id", "meter", "subject"),
        info={"readers": True},
    )
    Table(
        f"quota_reservation_{generation}",
        metadata,
        Column("partition", Integer, primary_key=True),
        Column("stream", Text(collation="C"), primary_key=True),
        Column("reservation_id", Text(collation="C"), primary_key=True),
        Column("tenant_id", Uuid, nullable=False),
        Column("amount", BigInteger, nullable=False),
        Column("booked", Numeric, nullable=False),
        Column("reserved_at", DateTime(timezone=True), nullable=False),
        Column("expires_at", DateTime(timezone=True), nullable=False),
        Column("counted", JSON, nullable=False, comment="in which windows, and from which credits"),
        Index(f"quota_reservation_{generation}_due", "partition", "expires_at"),
        info={"readers": True},
    )
    Table(
        f"quota_second_{generation}",
        metadata,
        Column("partition", Integer, primary_key=True),
        Column("stream", Text(collation="C"), primary_key=True),
        Column("born", Integer, primary_key=True, comment="which incarnation of a limit"),
        Column("second", BigInteger, primary_key=True, autoincrement=False),
        Column("tenant_id", Uuid, nullable=False),
        Column("used", Numeric, nullable=False),
        Column("reserved", Numeric, nullable=False),
        info={"readers": True},
    )


Count = tuple[int, int, int]
"""(second, used, reserved)"""
Counted = tuple[tuple[tuple[int, int, int], ...], tuple[CreditUse, ...]]

encode = msgspec.json.Encoder().encode
decode_state = msgspec.json.Decoder(FrozenQuota).decode
_decode_counted = msgspec.json.Decoder(Counted).decode


def summary(state: Quota) -> FrozenQuota:
    """The state without what is kept in rows of its own."""
    terms = state.terms
    limits = tuple(
        [
            FrozenTally(tally.born, tally.limit, tally.latest, (), tally.crossed) if isinstance(tally, RollingTally) else tally.freeze()
            for tally in state.limits
        ]
    )
    return FrozenQuota(
        terms.subject, terms.meter, terms.zone, terms.overdraft, terms.max_open, terms.next_born, limits, state.grants,
        used=state.used, reserved=state.reserved,
    )  # fmt: skip


def whole(frozen: FrozenQuota, opened: Iterable[tuple[str, Open]], counts: dict[int, list[Count]]) -> State:
    """The state again; ``counts`` are the seconds of rolling limits by incarnation."""
    limits = tuple([replace(tally, counts=tuple(counts[tally.born])) if tally.born in counts else tally for tally in frozen.limits])
    return QUOTA.thaw(replace(frozen, open=tuple(opened), limits=limits))


def opened_of(row: Sequence[Any]) -> tuple[str, Open]:
    """(reservation_id, amount, booked, reserved_at, expires_at, counted) as stored."""
    parts, uses = _decode_counted(row[5])
    return row[0], Open(row[1], int(row[2]), row[3], row[4], parts, uses)


def grouped(pairs: Iterable[tuple[str, tuple[str, Open]]]) -> dict[str, list[tuple[str, Open]]]:
    groups: dict[str, list[tuple[str, Open]]] = {}
    for stream, pair in pairs:
        groups.setdefault(stream, []).append(pair)
    return groups


def by_incarnation(rows: Iterable[Sequence[Any]]) -> dict[str, dict[int, list[Count]]]:
    """(stream, born, second, used, reserved) as stored, by stream and incarnation."""
    counts: dict[str, dict[int, list[Count]]] = {}
    for stream, born, second, used, reserved in rows:
        counts.setdefault(stream, {}).setdefault(born, []).append((second, int(used), int(reserved)))
    return counts


def columns(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]

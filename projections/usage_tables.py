"""The tables of usage by day."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Date, Index, Integer, MetaData, Numeric, Table, Text, Uuid

from projections.reading import Model

MODEL = Model("usage", shape=1)

AMOUNTS = ("used", "adjusted", "reserved", "released")
COUNTS = ("reservations", "commits", "rollbacks", "expiries", "consumptions", "refusals")
SUMS = AMOUNTS + COUNTS
"""The columns that are added up."""


def define(metadata: MetaData, generation: int) -> None:
    """The tables of one generation."""
    Table(
        f"usage_day_{generation}",
        metadata,
        Column("partition", Integer, primary_key=True),
        Column("tenant_id", Uuid, primary_key=True),
        Column("day", Date, primary_key=True),
        Column("meter", Text(collation="C"), primary_key=True),
        Column("subject", Text(collation="C"), primary_key=True),
        *(Column(name, Numeric, nullable=False) for name in AMOUNTS),
        *(Column(name, BigInteger, nullable=False) for name in COUNTS),
        Index(f"usage_day_{generation}_by_subject", "partition", "tenant_id", "subject", "day", "meter"),
        info={"readers": True},
    )
    Table(
        f"usage_stream_{generation}",
        metadata,
        Column("partition", Integer, primary_key=True),
        Column("tenant_id", Uuid, primary_key=True),
        Column("stream", Text(collation="C"), primary_key=True),
        Column("meter", Text(collation="C"), nullable=False),
        Column("subject", Text(collation="C"), nullable=False),
        comment="whose a quota's stream is: most events do not say it",
        info={"readers": True},
    )
    Table(
        f"usage_zone_{generation}",
        metadata,
        Column("partition", Integer, primary_key=True),
        Column("tenant_id", Uuid, primary_key=True),
        Column("zone", Text, nullable=False),
        info={"readers": True},
    )

"""The table of the license read model: the states of the streams that a person's license is made of, side by side.

They are the license, the person's devices, and every quota whose subject is the person's id. Their rows lie together under the person's
key, so one read by it finds them all, and an event changes the row of its own stream alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from sqlalchemy import JSON, BigInteger, Column, Index, Integer, MetaData, Table, Text, Uuid

from domain.identity.devices import DEVICES
from domain.identity.licenses import LICENSE
from domain.kernel.decider import Decider
from domain.quota import QUOTA
from projections.reading import Model

MODEL = Model("licenses", shape=1)

PARTS: dict[str, Decider[Any]] = {decider.category: decider for decider in (LICENSE, DEVICES, QUOTA)}


class Person(NamedTuple):
    """Whose row it is."""

    tenant_id: UUID
    user_id: UUID


def table_of(generation: int) -> str:
    """The table of one generation."""
    return f"license_{generation}"


def define(metadata: MetaData, generation: int) -> None:
    """The tables of one generation."""
    Table(
        table_of(generation),
        metadata,
        Column("partition", Integer, primary_key=True),
        Column("tenant_id", Uuid, primary_key=True),
        Column("user_id", Uuid, primary_key=True),
        Column("stream", Text(collation="C"), primary_key=True),
        Column("version", BigInteger, nullable=False, comment="of the stream's last event in it"),
        Column("state", JSON, nullable=False, comment="as in a snapshot"),
        Index(f"license_{generation}_by_stream", "partition", "stream"),
        info={"readers": True},
    )


encode = msgspec.json.Encoder().encode
_decoders = {category: msgspec.json.Decoder(decider.frozen_type).decode for category, decider in PARTS.items()}


def category_of(stream: str) -> str:
    """What kind of stream it is."""
    return stream.partition("-")[0]


def thawed(stream: str, text: str) -> Any:
    """The state that a row holds."""
    category = category_of(stream)
    return PARTS[category].thaw(_decoders[category](text))


def frozen(stream: str, state: Any) -> str:
    """The state as a row holds it."""
    return encode(PARTS[category_of(stream)].freeze(state)).decode()

"""Every version of every event ever shipped stays readable: `tests/golden/events.json` only ever grows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from domain.catalog import DECIDERS
from eventstore.codec import Codec
from eventstore.errors import UnknownEventType

GOLDEN = Path(__file__).parent.parent / "golden" / "events.json"
CODEC = Codec(DECIDERS)
EXAMPLES: list[dict[str, Any]] = json.loads(GOLDEN.read_text(encoding="utf-8"))


def test_every_type_this_program_reads_has_an_example() -> None:
    missing = set(CODEC.stored_types) - {example["type"] for example in EXAMPLES}

    assert not missing, f"add one example line for each to {GOLDEN.name}"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: str(example["type"]))
def test_a_stored_example_is_read_and_means_what_it_meant(example: dict[str, Any]) -> None:
    event = CODEC.decode(example["type"], json.dumps(example["payload"]))
    stored, payload = CODEC.encode(event)

    if stored == example["type"]:
        assert json.loads(payload) == example["payload"]
    else:  # an older version: it was raised to the present one, which reads back as the same event
        assert CODEC.decode(stored, payload) == event


def test_an_unknown_type_and_a_broken_payload_are_refused() -> None:
    with pytest.raises(UnknownEventType):
        CODEC.decode("quota.reserved.v99", "{}")
    with pytest.raises(msgspec.ValidationError):
        CODEC.decode("quota.reserved", "{}")

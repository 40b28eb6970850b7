"""An event outside: what CloudEvents 1.0 asks for, and the payload exactly as the log has it."""

import json
import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest

from adapters.cloudevents import cloud_event, event_id

TENANT = UUID("7e7a7e57-0000-4000-8000-000000000001")
COMMAND = UUID("00000000-0000-4000-8000-00000000000a")
AT = datetime(2026, 3, 29, 1, 30, 0, 5, tzinfo=UTC)


def made(**changed: Any) -> bytes:
    given: dict[str, Any] = {
        "source": "holdbook",
        "tenant_id": TENANT,
        "partition": 7,
        "epoch": 2,
        "position": 41,
        "command_id": COMMAND,
        "ordinal": 1,
        "type_": "quota.reserved",
        "stream": "quota-1",
        "recorded_at": AT,
        "payload_text": '{"amount":1}',
        **changed,
    }
    return cloud_event(**given)


def test_every_attribute_is_there_and_nothing_else() -> None:
    assert json.loads(made()) == {
        "specversion": "1.0",
        "id": f"{COMMAND}:1",
        "source": "holdbook",
        "type": "quota.reserved",
        "subject": "quota-1",
        "time": "2026-03-29T01:30:00.000005Z",
        "datacontenttype": "application/json",
        "data": {"amount": 1},
        "partitionkey": str(TENANT),
        "sequence": "41",
        "partition": 7,
        "epoch": 2,
    }
    assert event_id(COMMAND, 1) == f"{COMMAND}:1"


def test_names_are_lower_case_letters_and_digits() -> None:
    assert all(re.fullmatch("[a-z0-9]{1,20}", name) for name in json.loads(made(trace="00-1-2-01")))


def test_the_trace_is_told_where_it_is_known() -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    assert json.loads(made(trace=trace))["traceparent"] == trace
    assert "traceparent" not in json.loads(made(trace=None))


@pytest.mark.parametrize("payload", ['{"b": 1,  "a":2.50}', '{"n":12345678901234567890123}', '{"text":"\\u00e9é\\""}', "null"])
def test_the_payload_is_embedded_as_it_stands(payload: str) -> None:
    assert f',"data":{payload}}}'.encode() in made(payload_text=payload)


def test_what_is_pruned_has_no_data() -> None:
    told = json.loads(made(payload_text=None, type_="log.pruned"))
    assert "data" not in told
    assert "datacontenttype" not in told
    assert told["sequence"] == "41"


def test_the_time_is_in_utc_wherever_it_comes_from() -> None:
    moment = AT.astimezone(timezone(timedelta(hours=5, minutes=45)))
    assert json.loads(made(recorded_at=moment))["time"] == "2026-03-29T01:30:00.000005Z"


@pytest.mark.parametrize("text", ['a"b', "a\\b", "line\nline", "\x00\x1f", "имя", "\u2028", '","admin":"'])
def test_text_cannot_break_out_of_its_place(text: str) -> None:
    told = json.loads(made(stream=text, source=text, type_=text))
    assert (told["subject"], told["source"], told["type"]) == (text, text, text)
    assert "admin" not in told

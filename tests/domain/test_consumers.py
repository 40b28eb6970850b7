"""Skipping an event: given events, when a command, then events or a refusal."""

from datetime import UTC, datetime
from uuid import UUID

import pytest

from domain.consumers import CONSUMER, EventSkipped, SkipEvent, Skips, consumer_stream, skip_command_id
from domain.kernel.decider import Event, Rejected

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def skip(consumer: str = "quotas", version: int = 1, partition: int = 3, position: int = 13, reason: str = "a test") -> SkipEvent:
    return SkipEvent(consumer=consumer, version=version, partition=partition, position=position, reason=reason, at=NOW)


def skipped(version: int = 1, position: int = 13) -> EventSkipped:
    return EventSkipped("quotas", version, 3, position, "a test", NOW)


def then(given: list[EventSkipped], when: SkipEvent) -> list[Event] | str:
    state = CONSUMER.initial
    for event in given:
        state = CONSUMER.evolve(state, event)
    try:
        return list(CONSUMER.decide(when, state))
    except Rejected as refusal:
        return f"{refusal.code} {refusal.field_name}"


@pytest.mark.parametrize(
    ("given", "when", "expected"),
    [
        ([], skip(), [skipped()]),
        ([skipped()], skip(), []),
        ([skipped()], skip(reason="another one"), []),
        ([skipped()], skip(position=14), [skipped(position=14)]),
        ([skipped()], skip(version=2), [skipped(version=2)]),
        ([], skip(version=0), [skipped(version=0)]),
        ([], skip(consumer="Quotas!"), "consumer.skip_invalid consumer"),
        ([], skip(version=-1), "consumer.skip_invalid version"),
        ([], skip(partition=-1), "consumer.skip_invalid partition"),
        ([], skip(position=0), "consumer.skip_invalid position"),
        ([], skip(reason="  "), "consumer.skip_invalid reason"),
        ([], skip(reason="x" * 501), "consumer.skip_invalid reason"),
    ],
)
def test_an_event_is_skipped_once_for_each_version_of_the_fold(given: list[EventSkipped], when: SkipEvent, expected: object) -> None:
    assert then(given, when) == expected


def test_the_same_skip_has_the_same_id_whoever_asks_for_it() -> None:
    ids = {skip_command_id(*place) for place in (("a", 1, 2, 3), ("b", 1, 2, 3), ("a", 0, 2, 3), ("a", 1, 3, 3), ("a", 1, 2, 4))}

    assert len(ids) == 5
    assert skip_command_id("a", 1, 2, 3) in ids
    assert consumer_stream(UUID(int=1), "a") != consumer_stream(UUID(int=2), "a") != consumer_stream(UUID(int=2), "b")


def test_a_state_survives_its_snapshot() -> None:
    state = Skips(((1, 13), (2, 14)))

    assert CONSUMER.thaw(CONSUMER.freeze(state)) == state

"""A tenant's Telegram bot: given events, when a command, then events or a refusal."""

from datetime import UTC, datetime

import pytest

from domain.identity.telegram_bots import (
    TELEGRAM_BOT,
    NoTelegramBot,
    RemoveTelegramBot,
    SetTelegramBot,
    TelegramBot,
    TelegramBotRemoved,
    TelegramBotSet,
)
from domain.kernel.decider import Command, Event, Rejected

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SET = TelegramBotSet("hbs1.first", "acme_bot", NOW)


@pytest.mark.parametrize(
    ("given", "when", "expected"),
    [
        ([], SetTelegramBot(token="hbs1.first", username="acme_bot"), [SET]),
        ([SET], SetTelegramBot(token="hbs1.next", username="acme_bot"), [TelegramBotSet("hbs1.next", "acme_bot", NOW)]),
        ([], SetTelegramBot(token="", username="acme_bot"), "telegram.bot_invalid token"),
        ([], SetTelegramBot(token="x" * 1_001, username="acme_bot"), "telegram.bot_invalid token"),
        ([], SetTelegramBot(token="hbs1.first", username="@acme_bot"), "telegram.bot_invalid username"),
        ([], SetTelegramBot(token="hbs1.first", username="abc"), "telegram.bot_invalid username"),
        ([], RemoveTelegramBot(), []),
        ([SET], RemoveTelegramBot(), [TelegramBotRemoved(NOW)]),
        ([SET, TelegramBotRemoved(NOW)], RemoveTelegramBot(), []),
    ],
)
def test_bots(given: list[Event], when: Command, expected: list[Event] | str) -> None:
    state = TELEGRAM_BOT.initial
    for event in given:
        state = TELEGRAM_BOT.evolve(state, event)
    when.at = NOW
    try:
        got: list[Event] | str = list(TELEGRAM_BOT.decide(when, state))
    except Rejected as refusal:
        got = f"{refusal.code} {refusal.field_name}"

    assert got == expected


def test_states_come_back_from_snapshots_and_replies_tell_no_token() -> None:
    for state in (NoTelegramBot(), TelegramBot("hbs1.first", "acme_bot")):
        assert TELEGRAM_BOT.thaw(TELEGRAM_BOT.freeze(state)) == state
    command = SetTelegramBot(token="hbs1.first", username="acme_bot")
    assert TELEGRAM_BOT.reply(command, NoTelegramBot(), TelegramBot("hbs1.first", "acme_bot"), []) == {"bot_username": "acme_bot"}

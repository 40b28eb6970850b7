"""The Telegram bot of a tenant: whose proofs of who somebody is the tenant's people sign in with.

The bot's token proves them, so it is a secret: it comes here sealed. The name under which Telegram knows the bot is public.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, assert_never
from uuid import UUID

from domain.kernel.decider import Command, Decider, Event, Rejected, event

__all__ = ["TELEGRAM_BOT", "NoTelegramBot", "RemoveTelegramBot", "SetTelegramBot", "TelegramBot", "telegram_bot_stream"]

_USERNAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{3,31}")
MAX_SEALED = 1_000


def telegram_bot_stream(tenant_id: UUID) -> str:
    """The stream of a tenant's bot."""
    return f"telegrambot-{tenant_id.hex}"


# Events. Stored for ever: never rename or remove a class or a field; a change of shape is a new version and an upcast.


@event("telegram_bot.set")
@dataclass(frozen=True, slots=True)
class TelegramBotSet(Event):
    """People sign in through this bot from now on; ``token`` is sealed."""

    token: str
    username: str
    at: datetime


@event("telegram_bot.removed")
@dataclass(frozen=True, slots=True)
class TelegramBotRemoved(Event):
    """Nobody signs in through Telegram any more."""

    at: datetime


# Commands


@dataclass(slots=True, kw_only=True)
class SetTelegramBot(Command):
    """``token`` is sealed; ``username`` without the at sign."""

    token: str
    username: str


@dataclass(slots=True, kw_only=True)
class RemoveTelegramBot(Command):
    """End signing in through Telegram."""


TelegramBotCommand = SetTelegramBot | RemoveTelegramBot
TelegramBotEvent = TelegramBotSet | TelegramBotRemoved


# State


@dataclass(frozen=True, slots=True)
class NoTelegramBot:
    """The tenant has none."""


@dataclass(frozen=True, slots=True)
class TelegramBot:
    token: str
    username: str


TelegramBotState = NoTelegramBot | TelegramBot


# Decide


class InvalidTelegramBot(Rejected):
    """A field of the bot makes no sense."""

    code: ClassVar[str] = "telegram.bot_invalid"
    frozen: ClassVar[bool] = False
    status: ClassVar[str] = "invalid"


class TelegramBotNotFound(Rejected):
    """The tenant has no Telegram bot."""

    code: ClassVar[str] = "telegram.bot_not_found"
    frozen: ClassVar[bool] = False
    status: ClassVar[str] = "not_found"


def decide_bot(command: TelegramBotCommand, state: TelegramBotState) -> Sequence[Event]:
    """The only checks are those of the command's shape."""
    match command:
        case SetTelegramBot():
            if not 1 <= len(command.token) <= MAX_SEALED:
                raise InvalidTelegramBot("token")
            if not _USERNAME.fullmatch(command.username):
                raise InvalidTelegramBot("username")
            return [TelegramBotSet(command.token, command.username, command.at)]
        case RemoveTelegramBot():
            return [TelegramBotRemoved(command.at)] if isinstance(state, TelegramBot) else ()
        case _:
            assert_never(command)


# Evolve


def evolve_bot(state: TelegramBotState, event: TelegramBotEvent) -> TelegramBotState:
    """Never refuses."""
    match event:
        case TelegramBotSet():
            return TelegramBot(event.token, event.username)
        case TelegramBotRemoved():
            return NoTelegramBot()
        case _:
            assert_never(event)


# Reply


def reply_bot(command: TelegramBotCommand, before: TelegramBotState, after: TelegramBotState, events: Sequence[Event]) -> Mapping[str, Any]:
    match command:
        case SetTelegramBot():
            return {"bot_username": command.username}
        case RemoveTelegramBot():
            return {"status": "removed"}
        case _:
            assert_never(command)


# Freeze and thaw


@dataclass(frozen=True, slots=True)
class FrozenBot:
    """A bot for a snapshot; one without a token is none."""

    token: str | None = None
    username: str = ""


def freeze_bot(state: TelegramBotState) -> FrozenBot:
    match state:
        case NoTelegramBot():
            return FrozenBot()
        case TelegramBot():
            return FrozenBot(state.token, state.username)
        case _:
            assert_never(state)


def thaw_bot(frozen: FrozenBot) -> TelegramBotState:
    return NoTelegramBot() if frozen.token is None else TelegramBot(frozen.token, frozen.username)


TELEGRAM_BOT: Decider[TelegramBotState] = Decider(
    category="telegrambot",
    commands=(SetTelegramBot, RemoveTelegramBot),
    events=(TelegramBotSet, TelegramBotRemoved),
    initial=NoTelegramBot(),
    decide=decide_bot,
    evolve=evolve_bot,
    reply=reply_bot,
    frozen_type=FrozenBot,
    freeze=freeze_bot,
    thaw=thaw_bot,
    refusals=(InvalidTelegramBot, TelegramBotNotFound),
)

"""The Telegram bot that a tenant's people sign in through."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal
from uuid import UUID

import msgspec
from fastapi import APIRouter, Request
from pydantic import Field, PrivateAttr
from starlette.responses import Response

from api import telegram
from api.bodies import Body, CommandBody
from api.edge import ask, run
from api.openapi import command, query
from domain.identity.telegram_bots import (
    TELEGRAM_BOT,
    RemoveTelegramBot,
    SetTelegramBot,
    TelegramBot,
    TelegramBotNotFound,
    telegram_bot_stream,
)
from eventstore.requests import Item
from eventstore.sealing import Sealing

router = APIRouter(tags=["tenant"])


class SetTelegramBotBody(CommandBody):
    """The bot through which people sign in, replacing any other."""

    operation: ClassVar[str] = "set_telegram_bot"
    permission: ClassVar[str] = "tenant:admin"
    secret_fields: ClassVar[frozenset[str]] = frozenset({"bot_token"})

    bot_token: Annotated[
        str, Field(pattern=r"^[0-9]{1,20}:[A-Za-z0-9_\-]{20,100}$", repr=False, description="As BotFather gave it. Kept sealed.")
    ]
    bot_username: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{3,31}$", description="Without the at sign.")]

    _sealed: str = PrivateAttr("")

    async def seal(self, sealing: Sealing, tenant_id: UUID, command_id: UUID) -> None:
        self._sealed = await sealing.seal(tenant_id, tenant_id, telegram.TOKEN_PURPOSE, self.bot_token)

    def item(self, tenant_id: UUID, command_id: UUID, index: int) -> Item:
        return Item(TELEGRAM_BOT, telegram_bot_stream(tenant_id), SetTelegramBot(token=self._sealed, username=self.bot_username))


class RemoveTelegramBotBody(CommandBody):
    """Nobody signs in through Telegram any more."""

    operation: ClassVar[str] = "remove_telegram_bot"
    permission: ClassVar[str] = "tenant:admin"

    def item(self, tenant_id: UUID, command_id: UUID, index: int) -> Item:
        return Item(TELEGRAM_BOT, telegram_bot_stream(tenant_id), RemoveTelegramBot())


# Answers


class TelegramBotShown(Body):
    """The bot's token is shown to nobody."""

    bot_username: str


class TelegramBotRemoved(Body):
    """There is none now."""

    status: Literal["removed"]


_BOT = {"bot_token": "110201543:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw", "bot_username": "acme_bot", "correlation_id": "console-7"}


@router.put(
    "/v1/tenant/telegram",
    **command(
        SetTelegramBotBody,
        TelegramBotShown,
        "set_telegram_bot",
        body={"bot": _BOT},
        answer={"bot_username": "acme_bot"},
        refusals=(),
        missing="telegram.bot_not_found",
    ),
)
async def set_telegram_bot(request: Request) -> Response:
    """Let people sign in through a Telegram bot. Its token is kept sealed."""
    return await run(request, SetTelegramBotBody)


@router.get(
    "/v1/tenant/telegram",
    **query(
        TelegramBotShown,
        "get_telegram_bot",
        permission="tenant:read",
        answer={"bot_username": "acme_bot"},
        missing="telegram.bot_not_found",
    ),
)
async def get_telegram_bot(request: Request) -> Response:
    """The bot through which people sign in."""
    asked = await ask(request, "tenant:read")
    tenant_id = asked.principal.tenant_id
    bot = (await asked.edge.store.state(TELEGRAM_BOT, tenant_id, telegram_bot_stream(tenant_id))).state
    if not isinstance(bot, TelegramBot):
        raise TelegramBotNotFound()
    return Response(msgspec.json.encode({"bot_username": bot.username}), media_type="application/json")


@router.delete(
    "/v1/tenant/telegram",
    **command(
        RemoveTelegramBotBody,
        TelegramBotRemoved,
        "remove_telegram_bot",
        body={"body": {"correlation_id": "console-9"}},
        answer={"status": "removed"},
        refusals=(),
        missing="telegram.bot_not_found",
    ),
)
async def remove_telegram_bot(request: Request) -> Response:
    """End signing in through Telegram. Whoever is signed in stays so."""
    return await run(request, RemoveTelegramBotBody)

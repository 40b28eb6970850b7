"""Signing in, by e-mail and password and by Telegram.

What somebody sends here to prove who they are is in no log, no error and no fingerprint. These addresses take no idempotency key: a
sign-in that was not answered is made again and starts another session, and a proof that can be used once says so.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from adapters.telegram import login as proofs
from api import signing_in, telegram
from api.edge import edge_of
from api.passwords import Password
from api.public import DEVICE, PASSWORD, SIGNED_IN, body_of, public
from api.signing_in import SignedInAnswer, Wanted

router = APIRouter(tags=["auth"])

Email = Annotated[str, Field(min_length=3, max_length=254, examples=["ada@example.com"])]
_Given = Annotated[str, Field(max_length=512)]


# Bodies


class LoginBody(Wanted):
    """E-mail address and password. A session of the kind `token` names the device it is on."""

    email: Email
    password: Password


class TelegramBody(Wanted):
    """The fields of Telegram's Login Widget, as they came; those that did not come are left out."""

    id: Annotated[int, Field(ge=1, le=2**52)]
    first_name: _Given | None = None
    last_name: _Given | None = None
    username: _Given | None = None
    photo_url: _Given | None = None
    auth_date: Annotated[int, Field(ge=1, le=2**40)]
    hash: _Given

    def fields_of_proof(self) -> dict[str, str]:
        """What Telegram signed, as text, and its hash."""
        own = set(TelegramBody.model_fields) - set(Wanted.model_fields)
        return {name: str(value) for name, value in self.model_dump(include=own, exclude_unset=True, exclude_none=True).items()}


class TelegramAppBody(Wanted):
    """A Mini App's init data."""

    init_data: Annotated[
        str, Field(min_length=1, max_length=proofs.MAX_BYTES, repr=False, description="`Telegram.WebApp.initData` as it is.")
    ]


@router.post(
    "/v1/auth/login",
    **public(LoginBody, SignedInAnswer, "login", {"email": "ada@example.com", "password": PASSWORD, **DEVICE}, SIGNED_IN),
)
async def login(request: Request) -> Response:
    """Sign in with e-mail address and password. The refresh token stands in the header `Holdbook-Refresh-Token`."""
    body = await body_of(request, LoginBody)
    return await signing_in.by_password(request, body.email, body.password, body)


@router.post(
    "/v1/auth/telegram",
    **public(
        TelegramBody,
        SignedInAnswer,
        "login_by_telegram",
        {"id": 279058397, "first_name": "Ada", "username": "ada", "auth_date": 1795241400, "hash": "c501b7" + "0" * 58, **DEVICE},
        SIGNED_IN,
        "auth.proof_used",
    ),
)
async def login_by_telegram(request: Request) -> Response:
    """Sign in with what Telegram's Login Widget gave. Whoever is new becomes a member where the tenant's registration is open."""
    body = await body_of(request, TelegramBody)
    age = edge_of(request).settings.telegram_max_age_seconds
    return await telegram.by_proof(request, lambda token, now: proofs.check_widget(body.fields_of_proof(), token, now, age), body)


@router.post(
    "/v1/auth/telegram-app",
    **public(
        TelegramAppBody,
        SignedInAnswer,
        "login_by_telegram_app",
        {"init_data": "user=%7B%22id%22%3A279058397%7D&auth_date=1795241400&hash=c501b7", **DEVICE},
        SIGNED_IN,
        "auth.proof_used",
    ),
)
async def login_by_telegram_app(request: Request) -> Response:
    """Sign in with the init data of a Telegram Mini App. Whoever is new becomes a member where the tenant's registration is open."""
    body = await body_of(request, TelegramAppBody)
    age = edge_of(request).settings.telegram_max_age_seconds
    return await telegram.by_proof(request, lambda token, now: proofs.check_init_data(body.init_data, token, now, age), body)

"""Signing in by Telegram: a proof becomes a person, and a proof that was used starts nothing more.

One proof starts one session: its id is made of the tenant and the proof's hash. So whoever got no answer may send the same again from the
same device for a few seconds, which is `StartSession`'s rule; everything later, or from elsewhere, is somebody who got hold of it.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from uuid import UUID, uuid4, uuid5

from fastapi import Request
from starlette.responses import Response

from adapters.telegram.login import Person, ProofRefused
from api import people
from api.edge import Edge, edge_of
from api.problems import Problem
from api.signing_in import Wanted, let_in, living_tenant, refuse, standing_and_user, success
from api.tenancy import tenant_of
from domain.identity.logins import LOGIN, Login, LoginState, LoginTaken, login_stream
from domain.identity.sessions import SESSION, NoSession, SessionExists, SessionState, session_stream
from domain.identity.signins import SignIn, SignInChanged
from domain.identity.telegram_bots import TELEGRAM_BOT, TelegramBot, TelegramBotState, telegram_bot_stream
from domain.identity.tenants import Tenant
from domain.identity.users import Active
from eventstore.requests import Item

TOKEN_PURPOSE = "telegram.bot_token"  # noqa: S105  # what it is sealed for
_TRIES = 3

Check = Callable[[str, datetime], Person]
"""From the bot's token and the moment to the person who is proved; raises `ProofRefused`."""


async def by_proof(request: Request, check: Check, wanted: Wanted) -> Response:
    """Let in the person whom Telegram's proof names; make them a member where anybody may join."""
    edge, tenant_id = edge_of(request), await tenant_of(request)
    tenant = await living_tenant(edge, tenant_id)
    if tenant is None:
        raise refuse(request, None, "telegram", "tenant")
    token = await _bot_token(edge, tenant_id)
    if token is None:
        raise refuse(request, tenant_id, "telegram", "no_bot")
    try:
        person = check(token, datetime.now(UTC))
    except ProofRefused as refused:
        raise refuse(request, tenant_id, "telegram", refused.reason) from None
    digest = await edge.store.sealing.digest(tenant_id, "login.telegram", str(person.telegram_id))
    session_id = uuid5(tenant_id, f"telegram|{person.hash}")
    used = await _used(edge, tenant_id, session_id)
    for _ in range(_TRIES):
        user_id, items = await _known_or_new(request, tenant, person, digest, used=used)
        try:
            response = await let_in(request, tenant_id, user_id, wanted, items, session_id)
        except SignInChanged:
            continue  # every session was ended at once: look again
        except Problem as problem:
            if problem.code != LoginTaken.code:
                raise
            continue  # the same person came twice at once, and is known now
        except SessionExists:
            raise _spent(request, tenant_id, digest) from None
        edge.metrics.signed_in("telegram", "success")
        return response
    raise Problem("store.overloaded")


async def _bot_token(edge: Edge, tenant_id: UUID) -> str | None:
    bot: TelegramBotState = (await edge.store.state(TELEGRAM_BOT, tenant_id, telegram_bot_stream(tenant_id))).state
    if not isinstance(bot, TelegramBot):
        return None
    return await edge.store.sealing.open(tenant_id, tenant_id, TOKEN_PURPOSE, bot.token)


async def _used(edge: Edge, tenant_id: UUID, session_id: UUID) -> bool:
    """Whether the proof started its session before. Then nothing but that session may come of it."""
    state: SessionState = (await edge.store.state(SESSION, tenant_id, session_stream(session_id))).state
    return not isinstance(state, NoSession)


async def _known_or_new(request: Request, tenant: Tenant, person: Person, digest: str, *, used: bool) -> tuple[UUID, tuple[Item, ...]]:
    """Whose login it is, and what is to happen with the start of the session. Refuses who may not sign in."""
    edge, tenant_id = edge_of(request), tenant.tenant_id
    login: LoginState = (await edge.store.state(LOGIN, tenant_id, login_stream(digest))).state
    if isinstance(login, Login):
        standing, user = await standing_and_user(edge, tenant_id, login.user_id)
        if not isinstance(user, Active):
            raise refuse(request, tenant_id, "telegram", "inactive", digest)
        # A repetition records nothing, or a proof could fill the log for as long as it is repeated.
        return login.user_id, () if used else (success(login.user_id, "telegram", standing),)
    if used:
        raise _spent(request, tenant_id, digest)  # of one who was erased since
    if tenant.registration != "open":
        raise refuse(request, tenant_id, "telegram", "unknown", digest)
    user_id = uuid4()
    clear = people.Profile(name=person.name, telegram={"id": person.telegram_id, "username": person.username})
    profile = await people.seal_profile(edge.store.sealing, tenant_id, user_id, clear)
    return user_id, (*people.create_items(tenant_id, user_id, "member", profile, digest), success(user_id, "telegram", SignIn()))


def _spent(request: Request, tenant_id: UUID, digest: str) -> Problem:
    refuse(request, tenant_id, "telegram", "used", digest)
    return Problem("auth.proof_used")

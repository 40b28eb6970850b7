"""Refreshing a session: the next token of its family, or the end of it."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID, uuid4

import msgspec
from starlette.responses import Response
from starlette.types import Scope

from api import sessions
from api.devices import fingerprint_digest
from api.problems import Problem, invalid
from domain.identity.sessions import GRACE_SECONDS, SESSION, Ended, NoSession, RefreshSession, Session, SessionState, session_stream
from eventstore.origins import with_origin
from eventstore.requests import Item
from eventstore.requests import Request as StoreRequest

if TYPE_CHECKING:
    from api.edge import Edge

REMEMBERED = 20_000

_ENDINGS = {"reuse": "auth.refresh_reused", "device": "auth.device_mismatch"}


class Rotations:
    """When this process saw a session's number become live, by a clock that never goes back.

    The log's time stands still while the database's clock, set back, catches up; a token that was followed by another
    would all the while be one whose answer may have been lost.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: OrderedDict[tuple[UUID, int], float] = OrderedDict()

    def saw(self, session_id: UUID, number: int) -> None:
        """The number is live."""
        self._seen.setdefault((session_id, number), self._clock())
        while len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)

    def long_ago(self, session_id: UUID, number: int) -> bool:
        """Whether the number after this one became live before the grace that it has."""
        seen = self._seen.get((session_id, number + 1))
        return seen is not None and self._clock() - seen >= GRACE_SECONDS


class _Reply(msgspec.Struct):
    session_id: UUID
    user_id: UUID
    status: Literal["active", "ended"]
    reason: str = ""
    number: int = 0
    until: datetime | None = None


async def refresh(edge: Edge, scope: Scope, headers: dict[bytes, bytes], text: str, fingerprint: str | None) -> Response:
    """The answer of a sign-in once more, with new tokens.

    Raises the problems ``auth.refresh_invalid``, ``auth.refresh_reused``, ``auth.device_mismatch``, ``auth.session_ended`` and what
    keeps the person out in any case.
    """
    token = sessions.read_refresh_token(text)
    if token is None:
        raise Problem("auth.refresh_invalid")
    tenant_id, session_id = token.tenant_id, token.session_id
    state: SessionState = (await edge.store.state(SESSION, tenant_id, session_stream(session_id))).state
    # First whether there is such a session: a secret would be made for every tenant that somebody makes up.
    if isinstance(state, NoSession) or not await sessions.is_genuine(edge.store.sealing, token):
        raise Problem("auth.refresh_invalid")
    if isinstance(state, Ended):
        raise Problem("auth.session_ended")
    device = await _device(edge, tenant_id, state, fingerprint)
    await _refuse_outcasts(edge, tenant_id, state)
    late = edge.rotations.long_ago(session_id, token.number)
    item = Item(SESSION, session_stream(session_id), RefreshSession(number=token.number, device=device, late=late))
    actor = with_origin(f"user:{state.user_id.hex}", await edge.origin(scope, headers, tenant_id, state.user_id))
    outcome = await edge.store.submit(StoreRequest(tenant_id, uuid4(), (item,), b"", actor=actor))
    reply = msgspec.json.decode(outcome.reply, type=_Reply)
    if reply.status == "ended":
        raise Problem(_ENDINGS.get(reply.reason, "auth.session_ended"))
    edge.rotations.saw(session_id, reply.number)
    return await sessions.signed_in_response(
        edge, await sessions.signed_in(edge, tenant_id, reply, "token", outcome.position, outcome.epoch)
    )  # fmt: skip


async def _device(edge: Edge, tenant_id: UUID, state: Session, fingerprint: str | None) -> str | None:
    """What the session's device is compared with. A session without one is for any device."""
    if state.device is None:
        return None
    if fingerprint is None:
        error: dict[str, Any] = {"type": "missing", "loc": ("device_fingerprint",), "msg": "Field required"}
        raise invalid([error])
    return await fingerprint_digest(edge.store.sealing, tenant_id, state.user_id, fingerprint)


async def _refuse_outcasts(edge: Edge, tenant_id: UUID, state: Session) -> None:
    """What the door says of the session holds here too; that the session itself ended is decided under the lock."""
    standing = await edge.authenticator.standing(tenant_id, state.user_id, state.session_id, genuine=True)
    problem = standing.problem(datetime.now(UTC))
    if problem is not None:
        raise Problem(problem)

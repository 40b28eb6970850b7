"""Sender accounts: which there are, what became of their messages, and whether each may send now."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal
from uuid import UUID

import msgspec
from fastapi import APIRouter, Path, Query, Request
from pydantic import ConfigDict, Field, PrivateAttr, model_validator
from pydantic_core import PydanticCustomError
from starlette.responses import Response

from api import paging
from api.bodies import MAX_AMOUNT, Body, CommandBody, Identity, Moment, Subject
from api.edge import Asked, ask, run
from api.openapi import command, query
from api.problems import Problem
from domain import sender_account as domain
from domain.privacy.people import person_of
from domain.sender_account import SENDER, NoSender, SenderNotFound, sender_stream
from eventstore.requests import Item
from eventstore.sealing import Erased, Sealing

if TYPE_CHECKING:
    from api.auth import Principal
    from eventstore.store import Store

router = APIRouter(tags=["senders"])

READ, WRITE, OTHERS = "senders:read", "senders:write", "senders:others"
LABEL = "sender.label"
"""The purpose under which labels are sealed, with the key of the owner."""
DEFAULT_OWNER = "default"

Label = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]
SenderPath = Annotated[str, Path(pattern=r"^[A-Za-z0-9_.\-]{1,64}$", description="The client's own name of the sender account.")]
_encode = msgspec.json.Encoder().encode


def only_owner(principal: Principal) -> str | None:
    """The one owner whose sender accounts this one may see and use; None when it may all of the tenant's."""
    if principal.user_id is None or OTHERS in principal.permissions:
        return None
    return principal.user_id.hex


class _Command(CommandBody):
    permission: ClassVar[str] = WRITE
    path_fields: ClassVar[tuple[str, ...]] = ("sender_id",)

    sender_id: Identity

    _only_of: str | None = PrivateAttr(None)

    def asked_by(self, principal: Principal) -> None:
        """Those of others do not exist for a person who may act for their own alone."""
        self._only_of = only_owner(principal)

    def _item(self, tenant_id: UUID, wanted: Any) -> Item:
        return Item(SENDER, sender_stream(tenant_id, self.sender_id), wanted)


class _Settings(CommandBody):
    label: Annotated[
        Label | None, Field(description="For people: a telephone number, an @name. Sealed with the owner's key; in no event in clear.")
    ] = None
    max_consecutive_errors: Annotated[
        int, Field(ge=1, le=domain.MAX_ERRORS, description="So many errors in a row exclude the sender (flood.max_consecutive_errors).")
    ] = domain.DEFAULT_MAX_ERRORS
    cooldown_seconds: Annotated[
        int, Field(ge=1, le=domain.MAX_COOLDOWN_SECONDS, description="How long the first cooldown lasts (flood.cooldown_sec).")
    ] = domain.DEFAULT_COOLDOWN_SECONDS
    cooldown_cap_seconds: Annotated[
        int, Field(ge=1, le=domain.MAX_COOLDOWN_SECONDS, description="How long a cooldown may grow, unless the messenger names more.")
    ] = domain.DEFAULT_CAP_SECONDS

    _sealed: str = PrivateAttr("")

    @model_validator(mode="after")
    def cap_above_first(self) -> _Settings:
        """A cap below the first length would be the length of all."""
        if self.cooldown_cap_seconds < self.cooldown_seconds:
            raise PydanticCustomError("cap", "The cap is at least cooldown_seconds.", {"field": "cooldown_cap_seconds"})
        return self

    async def _seal(self, sealing: Sealing, tenant_id: UUID, owner: str) -> None:
        if self.label is None:
            return
        try:
            self._sealed = await sealing.seal(tenant_id, person_of(tenant_id, owner), LABEL, self.label)
        except Erased:
            raise Problem("privacy.erased") from None

    def _settings(self) -> dict[str, Any]:
        return {
            "label": self._sealed,
            "max_consecutive_errors": self.max_consecutive_errors,
            "cooldown_seconds": self.cooldown_seconds,
            "cooldown_cap_seconds": self.cooldown_cap_seconds,
        }


class RegisterSender(_Settings):
    """Make a sender account known; it begins active."""

    operation: ClassVar[str] = "register_sender"
    permission: ClassVar[str] = WRITE

    sender_id: Annotated[Identity, Field(description="The client's own name of it. Kept for ever: no telephone number, no person's name.")]
    owner: Annotated[Subject | None, Field(description="Whose it is. Without it: the person who asks, or `default` for an API key.")] = None

    _owner: str = PrivateAttr(DEFAULT_OWNER)

    def asked_by(self, principal: Principal) -> None:
        """A person registers their own, unless their role may do it for others."""
        only = only_owner(principal)
        if only is not None and self.owner not in (None, only):
            raise Problem("auth.not_yours", errors=[{"field": "owner", "message": "This is not your own."}])
        self._owner = self.owner or (DEFAULT_OWNER if principal.user_id is None else principal.user_id.hex)

    async def seal(self, sealing: Sealing, tenant_id: UUID, command_id: UUID) -> None:  # as in the base class, here and below
        await self._seal(sealing, tenant_id, self._owner)

    def person(self, tenant_id: UUID, command_id: UUID) -> UUID | None:
        return None if self.label is None else person_of(tenant_id, self._owner)

    def item(self, tenant_id: UUID, command_id: UUID, index: int) -> Item:
        wanted = domain.RegisterSender(sender_id=self.sender_id, owner=self._owner, **self._settings())
        return Item(SENDER, sender_stream(tenant_id, self.sender_id), wanted)


class ChangeSender(_Settings, _Command):
    """Replace label and settings; what is not given is the default again."""

    operation: ClassVar[str] = "change_sender"

    _owner: str | None = PrivateAttr(None)
    _before: str = PrivateAttr("")

    async def look(self, store: Store, principal: Principal) -> None:
        """Whose key seals the label. An owner never changes; without one the command is refused when it is decided."""
        tenant_id = principal.tenant_id
        state = (await store.state(SENDER, tenant_id, sender_stream(tenant_id, self.sender_id))).state
        if not isinstance(state, NoSender):
            self._owner, self._before = state.account.owner, state.account.label

    async def seal(self, sealing: Sealing, tenant_id: UUID, command_id: UUID) -> None:
        if self._owner is None or self._only_of not in (None, self._owner):
            return
        person_id = person_of(tenant_id, self._owner)
        if self.label is not None and self._before and await sealing.open(tenant_id, person_id, LABEL, self._before) == self.label:
            self._sealed = self._before  # or the same label would be a change, sealed anew as it would be
        else:
            await self._seal(sealing, tenant_id, self._owner)

    def person(self, tenant_id: UUID, command_id: UUID) -> UUID | None:
        if self.label is None or self._owner is None or self._only_of not in (None, self._owner):
            return None
        return person_of(tenant_id, self._owner)

    def item(self, tenant_id: UUID, command_id: UUID, index: int) -> Item:
        return self._item(tenant_id, domain.ChangeSender(sender_id=self.sender_id, only_of=self._only_of, **self._settings()))


class ReportSignal(_Command):
    """Say what became of a message, or what @SpamBot answered."""

    operation: ClassVar[str] = "report_signal"

    signal: Literal["sent", "timeout", "peer_flood", "flood_wait", "probe"]
    seconds: Annotated[
        int | None, Field(ge=1, le=domain.MAX_WAIT_SECONDS, description="Of flood_wait: how long the messenger wants nothing.")
    ] = None
    free: Annotated[bool | None, Field(description="Of probe: whether the account is free of limits.")] = None
    limited_until: Annotated[Moment | None, Field(description="Of a probe that is not free: when the limit ends, if it was told.")] = None

    @model_validator(mode="after")
    def whole(self) -> ReportSignal:
        """Each signal has its fields, and no others."""
        wanted = {"flood_wait": "seconds", "probe": "free"}.get(self.signal)
        for name in ("seconds", "free"):
            if (getattr(self, name) is not None) != (name == wanted):
                raise PydanticCustomError(
                    "signal", "Give seconds with flood_wait, free with probe, and neither otherwise.", {"field": name}
                )
        if self.limited_until is not None and self.free is not False:
            raise PydanticCustomError("signal", "Only a probe that is not free has it.", {"field": "limited_until"})
        return self

    def item(self, tenant_id: UUID, command_id: UUID, index: int) -> Item:
        return self._item(tenant_id, domain.ReportSignal(sender_id=self.sender_id, only_of=self._only_of, signal=self._told()))

    def _told(self) -> domain.Signal:
        match self.signal:
            case "sent":
                return domain.Sent()
            case "timeout":
                return domain.Timeout()
            case "peer_flood":
                return domain.PeerFlood()
            case "flood_wait":
                assert self.seconds is not None
                return domain.FloodWait(self.seconds)
            case "probe":
                return domain.Probe(bool(self.free), self.limited_until)


class ExcludeSender(_Command):
    """Have it send nothing until it is restored."""

    operation: ClassVar[str] = "exclude_sender"

    def item(self, tenant_id: UUID, command_id: UUID, index: int) -> Item:
        return self._item(tenant_id, domain.ExcludeSender(sender_id=self.sender_id, only_of=self._only_of))


class RestoreSender(_Command):
    """Bring it back after an exclusion, with no errors; a flood wait of before is still waited for."""

    operation: ClassVar[str] = "restore_sender"

    def item(self, tenant_id: UUID, command_id: UUID, index: int) -> Item:
        return self._item(tenant_id, domain.RestoreSender(sender_id=self.sender_id, only_of=self._only_of))


# Answers


class SenderState(Body):
    """How the sender stands. `until` is when a cooldown ends; `reason` is why it must not send."""

    sender_id: str
    state: Literal["active", "cooldown", "excluded"]
    errors: Annotated[int, Field(description="Errors in a row.")]
    reason: Literal["peer_flood", "flood_wait", "limited", "asked", "errors"] | None = None
    until: str | None = None


@dataclass(frozen=True, slots=True)
class Sender:
    """A sender account. `label` is null when it has none, or when the person it was of is erased."""

    sender_id: str
    owner: str
    label: str | None
    state: Literal["active", "cooldown", "excluded"]
    errors: int
    reason: str | None
    until: datetime | None
    max_consecutive_errors: int
    cooldown_seconds: int
    cooldown_cap_seconds: int


@dataclass(frozen=True, slots=True)
class SenderList:
    """One page."""

    senders: tuple[Sender, ...]


_AT = datetime(2026, 11, 21, 5, 45, tzinfo=UTC)
_EXAMPLE: Any = msgspec.to_builtins(Sender("sender-1", "customer-1", "@acme_news", "cooldown", 1, "flood_wait", _AT, 5, 300, 86_400))
_STATE = {name: _EXAMPLE[name] for name in ("sender_id", "state", "errors", "reason", "until")}
_ACTIVE = {**_STATE, "state": "active", "errors": 0, "reason": None, "until": None}
_KEY = {"correlation_id": "console-51"}
_MISSING = "sender.not_found"


class _SendersQuery(Body):
    # Query values are text, so they cannot be strict.
    model_config = ConfigDict(extra="forbid", strict=False)

    owner: Annotated[Subject | None, Field(description="Only those of this owner.")] = None
    state: Annotated[Literal["active", "cooldown", "excluded"] | None, Field(description="Only those that stand so now.")] = None
    cursor: paging.Cursor = None
    limit: Annotated[int, Field(ge=1, le=200)] = 50
    min_position: Annotated[int | None, Field(ge=0, le=MAX_AMOUNT, description="Wait until the read model has come so far.")] = None


@router.post(
    "/v1/senders",
    **command(
        RegisterSender,
        SenderState,
        "register_sender",
        body={"sender": {"sender_id": "sender-1", "owner": "customer-1", "label": "@acme_news", "cooldown_seconds": 300, **_KEY}},
        answer=_ACTIVE,
        refusals=("sender.exists", "privacy.erased"),
        missing=_MISSING,
    ),
)
async def register_sender(request: Request) -> Response:
    """Make a sender account known; it begins active."""
    return await run(request, RegisterSender)


@router.get("/v1/senders", **query(SenderList, "list_senders", permission=READ, answer={"senders": [_EXAMPLE]}, found=False))
async def list_senders(request: Request, asked_for: Annotated[_SendersQuery, Query()]) -> Response:
    """Sender accounts by id, a person's own unless their role may see all. The Link header leads to the next page."""
    asked = await ask(request, READ)
    tenant_id, now = asked.principal.tenant_id, datetime.now(UTC)
    only = only_owner(asked.principal)
    if only is not None and asked_for.owner not in (None, only):
        raise Problem("auth.not_yours", errors=[{"field": "owner", "message": "This is not your own."}])
    place = paging.place(asked_for.cursor, 1)
    found = await asked.edge.readers.senders.list(
        tenant_id,
        now,
        owner=only or asked_for.owner,
        state=asked_for.state,
        after=None if place is None else place[0],
        limit=asked_for.limit,
        min_position=asked_for.min_position,
    )
    labelled = [row for row in found if row.label]
    sealed = [(person_of(tenant_id, row.owner), LABEL, row.label) for row in labelled]
    labels = dict(zip((row.sender_id for row in labelled), await asked.edge.store.sealing.open_all(tenant_id, sealed), strict=True))
    senders = [Sender(**{**asdict(row), "label": labels.get(row.sender_id)}) for row in found]
    return paging.page(request, {"senders": senders}, (found[-1].sender_id,) if len(found) == asked_for.limit else None)


@router.get("/v1/senders/{sender_id}", **query(Sender, "get_sender", permission=READ, answer=_EXAMPLE, missing=_MISSING))
async def get_sender(request: Request, sender_id: SenderPath) -> Response:
    """One sender account, from the log itself: what was reported a moment ago is in it."""
    return Response(_encode(await _shown(await ask(request, READ), sender_id)), media_type="application/json")


async def _shown(asked: Asked, sender_id: str) -> Sender:
    tenant_id, store, only = asked.principal.tenant_id, asked.edge.store, only_owner(asked.principal)
    state = (await store.state(SENDER, tenant_id, sender_stream(tenant_id, sender_id))).state
    if isinstance(state, NoSender) or only not in (None, state.account.owner):
        raise SenderNotFound(sender_id=sender_id)
    now: Any = domain.settled(state, datetime.now(UTC))
    account: domain.Account = now.account
    label = None
    if account.label:
        label = await store.sealing.open(tenant_id, person_of(tenant_id, account.owner), LABEL, account.label)
    settings = account.max_consecutive_errors, account.cooldown_seconds, account.cooldown_cap_seconds
    told = domain.situation(now)
    return Sender(sender_id, account.owner, label, told["state"], told["errors"], told["reason"], told["until"], *settings)


@router.put(
    "/v1/senders/{sender_id}",
    **command(
        ChangeSender,
        SenderState,
        "change_sender",
        body={"sender": {"label": "@acme_news", "max_consecutive_errors": 3, "cooldown_seconds": 600, **_KEY}},
        answer=_STATE,
        refusals=("privacy.erased",),
        missing=_MISSING,
    ),
)
async def change_sender(request: Request, sender_id: SenderPath) -> Response:
    """Replace label and settings; what is not given is the default again. A cooldown under way keeps its end."""
    return await run(request, ChangeSender, {"sender_id": sender_id})


@router.post(
    "/v1/senders/{sender_id}/signals",
    **command(
        ReportSignal,
        SenderState,
        "report_signal",
        body={
            "flood wait": {"signal": "flood_wait", "seconds": 77, "correlation_id": "message-9"},
            "peer flood": {"signal": "peer_flood", "correlation_id": "message-10"},
            "@SpamBot": {"signal": "probe", "free": False, "limited_until": "2026-11-23T05:45:00Z", "correlation_id": "probe-3"},
        },
        answer=_STATE,
        refusals=("idempotency.key_reused",),
        missing=_MISSING,
    ),
)
async def report_signal(request: Request, sender_id: SenderPath) -> Response:
    """Say what became of a message, or what @SpamBot answered. A signal under the same key counts once."""
    return await run(request, ReportSignal, {"sender_id": sender_id})


@router.post(
    "/v1/senders/{sender_id}/exclude",
    **command(
        ExcludeSender,
        SenderState,
        "exclude_sender",
        body={"sender": _KEY},
        answer={**_STATE, "state": "excluded", "reason": "asked", "until": None},
        refusals=(),
        missing=_MISSING,
    ),
)
async def exclude_sender(request: Request, sender_id: SenderPath) -> Response:
    """Have it send nothing until it is restored."""
    return await run(request, ExcludeSender, {"sender_id": sender_id})


@router.post(
    "/v1/senders/{sender_id}/restore",
    **command(RestoreSender, SenderState, "restore_sender", body={"sender": _KEY}, answer=_ACTIVE, refusals=(), missing=_MISSING),
)
async def restore_sender(request: Request, sender_id: SenderPath) -> Response:
    """Bring it back after an exclusion, with no errors. A flood wait of before is still waited for; a cooldown is not ended by this."""
    return await run(request, RestoreSender, {"sender_id": sender_id})

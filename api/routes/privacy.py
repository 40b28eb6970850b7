"""Personal data at people's request: consents and their history, export of everything about somebody, erasure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal
from uuid import UUID

import msgspec
from fastapi import APIRouter, Path, Query, Request
from pydantic import ConfigDict, Field
from starlette.responses import Response, StreamingResponse

from api import openapi, paging
from api.bodies import Body, CommandBody, Subject
from api.edge import respond
from api.openapi import command, query
from api.outside import SLASH
from api.people import require_grant, user_state
from api.privacy import erasing, html
from api.privacy.asking import PERMISSION, ask_about
from api.privacy.exporting import EVIDENCE, About, as_json
from api.privacy.taking import take
from domain.identity.users import Active, Invited, Suspended
from domain.privacy import consents
from domain.privacy.consents import CONSENTS, ConsentGiven, GiveConsent, WithdrawConsent, consents_stream
from domain.privacy.people import person_of
from eventstore import histories
from eventstore.requests import Item
from eventstore.sealing import Sealing

router = APIRouter(tags=["privacy"])

_NO_REFUSALS: tuple[str, ...] = ()
_MISSING = "route.not_found"

SubjectPath = Annotated[
    str, Path(min_length=1, max_length=128, description="A person's id, `me`, or a bot's own name for its user; percent-encoded.")
]
PurposePath = Annotated[str, Path(pattern=consents.PURPOSE)]


class _AboutSomebody(CommandBody):
    permission: ClassVar[str] = PERMISSION
    path_fields: ClassVar[tuple[str, ...]] = ("subject",)

    subject: Subject


class GiveConsentCommand(_AboutSomebody):
    """Record that somebody agreed to a purpose, in this version of its text."""

    operation: ClassVar[str] = "give_consent"
    path_fields: ClassVar[tuple[str, ...]] = ("subject", "purpose")

    purpose: Annotated[str, Field(pattern=consents.PURPOSE)]
    version: Annotated[str, Field(pattern=consents.VERSION, description="Of the text that was agreed to. Another one replaces it.")]
    evidence: Annotated[str | None, Field(max_length=4_000, description="What supports it, kept sealed: the message, the form.")] = None

    async def seal(self, sealing: Sealing, tenant_id: UUID, command_id: UUID) -> None:  # as in the base class, here and below
        if self.evidence is not None:
            self.evidence = await sealing.seal(tenant_id, person_of(tenant_id, self.subject), EVIDENCE, self.evidence)

    def person(self, tenant_id: UUID, command_id: UUID) -> UUID | None:
        return None if self.evidence is None else person_of(tenant_id, self.subject)

    def item(self, tenant_id: UUID, command_id: UUID, index: int) -> Item:
        person_id = person_of(tenant_id, self.subject)
        wanted = GiveConsent(person_id=person_id, purpose=self.purpose, version=self.version, evidence=self.evidence)
        return Item(CONSENTS, consents_stream(tenant_id, person_id), wanted)


class WithdrawConsentCommand(_AboutSomebody):
    """Record that somebody withdrew a consent."""

    operation: ClassVar[str] = "withdraw_consent"
    path_fields: ClassVar[tuple[str, ...]] = ("subject", "purpose")

    purpose: Annotated[str, Field(pattern=consents.PURPOSE)]

    def item(self, tenant_id: UUID, command_id: UUID, index: int) -> Item:
        person_id = person_of(tenant_id, self.subject)
        return Item(CONSENTS, consents_stream(tenant_id, person_id), WithdrawConsent(person_id=person_id, purpose=self.purpose))


class ErasePersonCommand(_AboutSomebody):
    """Make everything personal about somebody unreadable, for ever."""

    operation: ClassVar[str] = "erase_person"

    confirm: Annotated[Literal[True], Field(description="It cannot be undone.")]


# Answers


class ConsentAnswer(Body):
    """Whether a consent stands."""

    purpose: str
    status: Literal["given", "withdrawn"]
    version: str | None = None
    given_at: str | None = None


class Erasure(Body):
    """Everything personal about them is unreadable."""

    person_id: str
    status: Literal["erased"]


@dataclass(frozen=True, slots=True)
class StandingConsent:
    """A consent that stands."""

    purpose: str
    version: str
    given_at: datetime


@dataclass(frozen=True, slots=True)
class ConsentEntry:
    """What happened to a consent. `evidence` is gone when its person was erased."""

    number: int
    purpose: str
    status: Literal["given", "withdrawn"]
    version: str
    at: datetime
    evidence: str | None = None


@dataclass(frozen=True, slots=True)
class ConsentList:
    """Those that stand, and one page of what happened, the oldest first."""

    consents: tuple[StandingConsent, ...]
    history: tuple[ConsentEntry, ...]


_AT = datetime(2026, 11, 21, 5, 45, tzinfo=UTC)
_GIVEN = {"purpose": "marketing", "status": "given", "version": "2026-03", "given_at": _AT.isoformat()}
_WITHDRAWN = {"purpose": "marketing", "status": "withdrawn"}
_LIST = msgspec.to_builtins(
    ConsentList(
        (StandingConsent("processing", "2026-03", _AT),),
        (ConsentEntry(1, "processing", "given", "2026-03", _AT), ConsentEntry(2, "marketing", "given", "2026-03", _AT, "/start yes")),
    )
)
_KEY = {"correlation_id": "tg-17-consent"}


def _told(model: type[CommandBody], reply: type[Body], answer: Any, *refusals: str, body: Any) -> dict[str, Any]:
    examples = {"command": body}
    return command(model, reply, model.operation, body=examples, answer=answer, refusals=("privacy.erased", *refusals), missing=_MISSING)


def _named(subject: str) -> str:
    return subject.replace(SLASH, "/")


@router.put(
    "/v1/privacy/{subject}/consents/{purpose}",
    **_told(GiveConsentCommand, ConsentAnswer, _GIVEN, "consent.too_many_purposes", body={"version": "2026-03", "evidence": "yes", **_KEY}),
)
async def give_consent(request: Request, subject: SubjectPath, purpose: PurposePath) -> Response:
    """Record a consent. For oneself (`me`), `self:manage` is enough."""
    asked, whose = await ask_about(request, _named(subject))
    outcome, _ = await take(request, asked, GiveConsentCommand, {"subject": whose.subject, "purpose": purpose})
    return respond(asked.edge, outcome)


@router.delete("/v1/privacy/{subject}/consents/{purpose}", **_told(WithdrawConsentCommand, ConsentAnswer, _WITHDRAWN, body=_KEY))
async def withdraw_consent(request: Request, subject: SubjectPath, purpose: PurposePath) -> Response:
    """Record that a consent was withdrawn. For oneself (`me`), `self:manage` is enough."""
    asked, whose = await ask_about(request, _named(subject))
    outcome, _ = await take(request, asked, WithdrawConsentCommand, {"subject": whose.subject, "purpose": purpose})
    return respond(asked.edge, outcome)


class _HistoryQuery(Body):
    # Query values are text, so they cannot be strict.
    model_config = ConfigDict(extra="forbid", strict=False)

    cursor: paging.Cursor = None
    limit: Annotated[int, Field(ge=1, le=200)] = 50


@router.get("/v1/privacy/{subject}/consents", **query(ConsentList, "list_consents", permission=PERMISSION, answer=_LIST, found=False))
async def list_consents(request: Request, subject: SubjectPath, asked_for: Annotated[_HistoryQuery, Query()]) -> Response:
    """Which consents stand, and all that were ever given and withdrawn. For oneself (`me`), `self:manage` is enough."""
    asked, whose = await ask_about(request, _named(subject))
    store, tenant_id = asked.edge.store, asked.principal.tenant_id
    stream = consents_stream(tenant_id, whose.person_id)
    standing: consents.Consents = (await store.state(CONSENTS, tenant_id, stream)).state
    rows = await histories.page(store, tenant_id, stream, _after(asked_for.cursor), asked_for.limit)
    history = []
    for row in rows:
        event: Any = store.codec.decode(row.type, row.payload)
        given = isinstance(event, ConsentGiven)
        sealed = event.evidence if given else None
        evidence = None if sealed is None else await store.sealing.open(tenant_id, whose.person_id, EVIDENCE, sealed)
        history.append(ConsentEntry(row.version, event.purpose, "given" if given else "withdrawn", event.version, event.at, evidence))
    stand = tuple(StandingConsent(each.purpose, each.version, each.given_at) for each in standing.standing)
    last = (str(rows[-1].version),) if len(rows) == asked_for.limit else None
    return paging.page(request, msgspec.to_builtins(ConsentList(stand, tuple(history))), last)


def _after(cursor: str | None) -> int:
    place = paging.place(cursor, 1)
    if place is None:
        return 0
    if not (place[0].isascii() and place[0].isdigit() and len(place[0]) <= 18):
        raise paging.not_a_cursor()
    return int(place[0])


@router.post(
    "/v1/privacy/{subject}/erase",
    **_told(ErasePersonCommand, Erasure, {"person_id": "0f" * 16, "status": "erased"}, "tenant.last_owner", body={"confirm": True, **_KEY}),
)
async def erase_person(request: Request, subject: SubjectPath) -> Response:
    """Erase somebody: what is personal cannot be read any more, sessions end, consents are withdrawn.

    For oneself (`me`), `self:manage` is enough; of others, those whose role one may give. A tenant keeps its last owner. Quotas keep
    their numbers, under an id that means nobody any more.
    """
    asked, whose = await ask_about(request, _named(subject))
    store, tenant_id = asked.edge.store, asked.principal.tenant_id

    user = await user_state(store, tenant_id, whose.person_id)
    if not whose.own and isinstance(user, Invited | Active | Suspended):
        require_grant(asked.principal, user.role)

    async def items(_body: ErasePersonCommand, _command_id: UUID) -> tuple[Item, ...]:
        return await erasing.items(store, tenant_id, whose.person_id, user)

    outcome, of_many = await take(request, asked, ErasePersonCommand, {"subject": whose.subject}, items)
    if not outcome.refused:
        # Also of a replay: the process may have died between the record and this.
        await erasing.complete(store, tenant_id, whose.person_id)
    return respond(asked.edge, outcome, of_many=of_many)


_EXPORT = {
    "description": "Everything that is kept about them. A document that does not end was interrupted: ask again.",
    "content": {
        "application/json": {"schema": {"type": "object"}, "example": {"format": "holdbook-person-export", "version": 1, "events": []}},
        "text/html": {"schema": {"type": "string"}},
    },
}


@router.get(
    "/v1/privacy/{subject}/export",
    operation_id="export_person",
    response_class=StreamingResponse,
    responses={200: _EXPORT, **openapi.problems(401, 403, 404, 422, 503)},
    openapi_extra=openapi.needs(PERMISSION),
)
async def export_person(request: Request, subject: SubjectPath) -> Response:
    """Everything about somebody, with what is sealed opened: as JSON, or as a page for people with `Accept: text/html`.

    For oneself (`me`), `self:manage` is enough.
    """
    asked, whose = await ask_about(request, _named(subject))
    about = About(asked.edge.store, asked.edge.readers, asked.principal.tenant_id, whose, datetime.now(UTC))
    headers = {"Cache-Control": "no-store", "Vary": "Accept", "X-Content-Type-Options": "nosniff"}
    if _wants_html(asked.headers.get(b"accept", b"").decode("latin-1")):
        headers["Content-Security-Policy"] = html.CSP + html.HEADERS_ONLY
        return StreamingResponse(html.as_html(about), headers=headers, media_type="text/html; charset=utf-8")
    return StreamingResponse(as_json(about), headers=headers, media_type="application/json")


def _wants_html(accept: str) -> bool:
    """Whether a page is named before JSON is: what clients want most stands first, and programs mostly say nothing."""
    kinds = [part.split(";")[0].strip().lower() for part in accept.split(",")]
    wanted = [kind for kind in kinds if kind in ("text/html", "application/xhtml+xml", "application/json")]
    return bool(wanted) and wanted[0] != "application/json"

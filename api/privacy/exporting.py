"""Everything about one person, opened: what is known of them now, and every event of their streams in order.

Each part of the program that keeps something about people contributes here, in one table: what it shows of now, which streams are about the
person, and for which purposes it seals. The events are read and written page by page, so a long past needs no more memory than a
short one. Secrets stay secret also here: a password's hash is nothing one could take elsewhere.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from uuid import UUID

import msgspec

from api.devices import NAME_PURPOSE
from api.people import PROFILE, login_of_email
from api.privacy.asking import Whose
from domain.identity.devices import DEVICES, devices_stream
from domain.identity.licenses import LICENSE, license_stream
from domain.identity.sessions import SESSION, Session
from domain.identity.signins import SIGNIN, signin_stream
from domain.identity.users import USER, Active, Invited, Suspended, status, user_stream
from domain.privacy.consents import CONSENTS, consents_stream
from domain.privacy.people import PERSON, ErasedPerson, person_stream
from domain.quota import quota_stream
from eventstore import histories
from eventstore.sealing import PREFIX, SealBroken
from eventstore.store import Store

if TYPE_CHECKING:
    from api.edge import Readers

EVIDENCE, LABEL, ORIGIN = "consent.evidence", "sender.label", "origin"
SEALED = "[sealed]"
"""Stands for a sealed text that is not opened: a secret, or of a person who was erased."""

_PAGE = 200
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class About:
    """The person, and where what is known of them is found."""

    store: Store
    readers: Readers
    tenant_id: UUID
    whose: Whose
    at: datetime

    @property
    def person_id(self) -> UUID:
        """Whose key seals."""
        return self.whose.person_id

    async def opened(self, sealed: str | None, purpose: str) -> str | None:
        """What was sealed; None when the person was erased."""
        return None if not sealed else await self.store.sealing.open(self.tenant_id, self.person_id, purpose, sealed)


class Contributor(NamedTuple):
    """A part of the export. ``gather`` is small and of now; ``streams`` are those whose events are the person's."""

    name: str
    title: str
    gather: Callable[[About], Awaitable[Any]]
    streams: Callable[[About], Awaitable[Sequence[str]]]
    purposes: tuple[str, ...] = ()


async def _profile(about: About) -> Any:
    state = (await about.store.state(USER, about.tenant_id, user_stream(about.person_id))).state
    if not isinstance(state, Invited | Active | Suspended):
        return {"status": status(state)}
    clear = await about.opened(state.profile, PROFILE)
    profile = {} if clear is None else msgspec.json.decode(clear)
    digests = (state.login,) if isinstance(state, Invited) else state.logins
    email, telegram = profile.get("email"), (profile.get("telegram") or {}).get("id")
    kinds = {await login_of_email(about.store.sealing, about.tenant_id, email): "email"} if email else {}
    if telegram is not None:
        kinds[await about.store.sealing.digest(about.tenant_id, "login.telegram", str(telegram))] = "telegram"
    signs_in_with = [kinds.get(digest, "other") for digest in digests]
    return {"status": status(state), "role": state.role, **profile, "signs_in_with": signs_in_with}


async def _signing_in(about: About) -> Any:
    return (await about.store.state(SIGNIN, about.tenant_id, signin_stream(about.person_id))).state


async def _devices(about: About) -> Any:
    bound = (await about.store.state(DEVICES, about.tenant_id, devices_stream(about.person_id))).state.bound
    return [{"device_id": each.device_id, "name": await about.opened(each.name, NAME_PURPOSE), "bound_at": each.bound_at} for each in bound]


async def _license(about: About) -> Any:
    return LICENSE.freeze((await about.store.state(LICENSE, about.tenant_id, license_stream(about.person_id))).state)


async def _sessions(about: About) -> Any:
    places = [(SESSION, stream) for stream in await _of_kind("session-")(about)]
    states = [cached.state for cached in await about.store.states(about.tenant_id, places)]
    return [
        {"session_id": each.session_id, "kind": each.kind, "started_at": each.started_at, "ends_at": each.until}
        for each in states
        if isinstance(each, Session) and each.alive(about.at)
    ]


async def _consents(about: About) -> Any:
    return (await about.store.state(CONSENTS, about.tenant_id, consents_stream(about.tenant_id, about.person_id))).state.standing


async def _quotas(about: About) -> Any:
    found: list[Any] = []
    while True:
        after = (found[-1].meter, found[-1].subject) if found else None
        page = await about.readers.quotas.list(about.tenant_id, about.at, None, after, _PAGE, subject=about.whose.subject)
        found += page
        if len(page) < _PAGE:
            return found


async def _quota_streams(about: About) -> Sequence[str]:
    return [quota_stream(about.tenant_id, each.subject, each.meter) for each in await _quotas(about)]


async def _senders(about: About) -> Any:
    found: list[Any] = []
    while True:
        after = found[-1].sender_id if found else None
        page = await about.readers.senders.list(about.tenant_id, about.at, owner=about.whose.subject, after=after, limit=_PAGE)
        found += page
        if len(page) < _PAGE:
            break
    return [{**msgspec.to_builtins(each), "label": await about.opened(each.label, LABEL)} for each in found]


async def _origins(about: About) -> Any:
    shown = []
    for each in await histories.origins_of(about.store, about.tenant_id, about.person_id):
        clear = await about.opened(each.sealed, ORIGIN)
        if clear is not None:
            address, agent = msgspec.json.decode(clear)
            shown.append({"address": address, "program": agent, "first_at": each.first_at, "last_at": each.last_at})
    return shown


async def _erasure(about: About) -> Any:
    state = (await about.store.state(PERSON, about.tenant_id, person_stream(about.tenant_id, about.person_id))).state
    return {"erased_at": state.at} if isinstance(state, ErasedPerson) else {}


def _named(stream: Callable[[UUID], str]) -> Callable[[About], Awaitable[Sequence[str]]]:
    async def streams(about: About) -> Sequence[str]:
        return (stream(about.person_id),)

    return streams


def _of_tenant(stream: Callable[[UUID, UUID], str]) -> Callable[[About], Awaitable[Sequence[str]]]:
    async def streams(about: About) -> Sequence[str]:
        return (stream(about.tenant_id, about.person_id),)

    return streams


def _of_kind(prefix: str) -> Callable[[About], Awaitable[Sequence[str]]]:
    async def streams(about: About) -> Sequence[str]:
        found = await about.readers.footprints.streams(about.tenant_id, about.person_id)
        return [stream for stream in found if stream.startswith(prefix)]

    return streams


async def _no_streams(about: About) -> Sequence[str]:
    return ()


CONTRIBUTORS: tuple[Contributor, ...] = (
    Contributor("profile", "Profile", _profile, _named(user_stream), (PROFILE,)),
    Contributor("consents", "Consents", _consents, _of_tenant(consents_stream), (EVIDENCE,)),
    Contributor("devices", "Devices", _devices, _named(devices_stream), (NAME_PURPOSE,)),
    Contributor("sessions", "Sessions", _sessions, _of_kind("session-")),
    Contributor("signing_in", "Signing in", _signing_in, _named(signin_stream)),
    Contributor("license", "License", _license, _named(license_stream)),
    Contributor("quotas", "Quotas and use", _quotas, _quota_streams),
    Contributor("sender_accounts", "Sender accounts", _senders, _of_kind("sender-"), (LABEL,)),
    Contributor("origins", "Where commands came from", _origins, _no_streams),
    Contributor("erasure", "Erasure", _erasure, _of_tenant(person_stream)),
)
"""Everything that keeps something about people. A new part is added here, and to nothing else that exports."""


class Told(NamedTuple):
    """An event of the export; ``payload`` is opened."""

    part: str
    stream: str
    version: int
    type: str
    at: datetime
    payload: Any


async def sections(about: About) -> AsyncIterator[tuple[Contributor, Any]]:
    """What is known now, part by part, as plain data."""
    for each in CONTRIBUTORS:
        yield each, msgspec.to_builtins(await each.gather(about))


async def events(about: About) -> AsyncIterator[Told]:
    """Every event of the person's streams, stream by stream, each in its order."""
    for each in CONTRIBUTORS:
        for stream in await each.streams(about):
            async for past in histories.pages(about.store, about.tenant_id, stream):
                payload = await _clear(about, msgspec.json.decode(past.payload))
                yield Told(each.name, stream, past.version, past.type, past.recorded_at.astimezone(UTC), payload)


_PURPOSES = tuple(purpose for each in CONTRIBUTORS for purpose in each.purposes)


async def _clear(about: About, value: Any) -> Any:
    match value:
        case str() if value.startswith(PREFIX):
            return await _open(about, value)
        case dict():
            return {name: await _clear(about, each) for name, each in value.items()}
        case list():
            return [await _clear(about, each) for each in value]
        case _:
            return value


async def _open(about: About, sealed: str) -> Any:
    """For whichever purpose it was sealed: trying one costs microseconds, and no table of fields can fall behind the events."""
    for purpose in _PURPOSES:
        try:
            clear = await about.store.sealing.open(about.tenant_id, about.person_id, purpose, sealed)
        except SealBroken:
            continue
        if clear is None:
            return SEALED
        return msgspec.json.decode(clear) if purpose == PROFILE else clear
    return SEALED


FORMAT = "holdbook-person-export"
_encode = msgspec.json.Encoder().encode


async def as_json(about: About) -> AsyncIterator[bytes]:
    """The export as one JSON document. One that was interrupted does not end, and is none."""
    head = {"format": FORMAT, "version": 1, "subject": about.whose.subject, "person_id": about.person_id.hex, "made_at": about.at}
    yield _encode(head)[:-1] + b',"now":{'
    comma = b""
    async for contributor, content in sections(about):
        yield comma + _encode(contributor.name) + b":" + _encode(content)
        comma = b","
    yield b'},"events":['
    comma = b"\n"
    async for told in events(about):
        yield comma + _encode(told._asdict())
        comma = b",\n"
    yield b"]}\n"

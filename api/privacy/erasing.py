"""Erasure: one atomic batch that says so everywhere, then the person's key is destroyed.

The record comes first. A key destroyed without one would leave sealed texts that nobody can explain; a record without the destruction is
completed by :func:`completing`, which reacts to it in every worker until it is done. Both may run any number of times.

Quotas are left as they are: their subject is an id that leads to nobody any more, and their numbers are the tenant's books.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

import msgspec

from domain.identity.devices import DEVICES, UnbindAll, devices_stream
from domain.identity.licenses import LICENSE, NoLicense, RevokedLicense, RevokeLicense, license_stream
from domain.identity.logins import LOGIN, Login, ReleaseLogin, login_stream
from domain.identity.signins import SIGNIN, SignOutEverywhere, signin_stream
from domain.identity.tenants import TENANT, RemoveOwner, tenant_stream
from domain.identity.users import USER, Active, ErasedUser, EraseUser, Invited, NoUser, Suspended, UserState, user_stream
from domain.kernel.decider import Decider
from domain.kernel.process import Effect, Happened, Named, Tools
from domain.privacy.consents import CONSENTS, WithdrawAllConsents, consents_stream
from domain.privacy.people import PERSON, RecordErasure, SubjectErased, person_stream
from eventstore import histories, origins
from eventstore.requests import Item, Request
from eventstore.store import Store, partition_of

EFFECT = "erasure"
ACTOR = "process:erasure"
_LEFT = uuid5(NAMESPACE_URL, "holdbook:erasure")


async def items(store: Store, tenant_id: UUID, person_id: UUID, user: UserState) -> tuple[Item, ...]:
    """All that is to be recorded at once, of a person whose state as a user is this. The last one's reply is the erasure's.

    Refused as a whole when the person is the tenant's last owner.
    """
    return (
        *await _as_user(store, tenant_id, user),
        Item(CONSENTS, consents_stream(tenant_id, person_id), WithdrawAllConsents(person_id=person_id)),
        Item(PERSON, person_stream(tenant_id, person_id), RecordErasure(person_id=person_id)),
    )


async def _as_user(store: Store, tenant_id: UUID, user: UserState) -> tuple[Item, ...]:
    if isinstance(user, NoUser | ErasedUser):
        return ()
    user_id = user.user_id
    licensed = (await store.state(LICENSE, tenant_id, license_stream(user_id))).state
    return (
        # Also of one who is no owner now: they may be one when this is decided.
        Item(TENANT, tenant_stream(tenant_id), RemoveOwner(user_id=user_id)),
        *(Item(LOGIN, login_stream(login), ReleaseLogin(user_id=user_id)) for login in logins_of(user)),
        Item(SIGNIN, signin_stream(user_id), SignOutEverywhere()),
        Item(DEVICES, devices_stream(user_id), UnbindAll()),
        *([] if isinstance(licensed, NoLicense | RevokedLicense) else [Item(LICENSE, license_stream(user_id), RevokeLicense())]),
        Item(USER, user_stream(user_id), EraseUser()),
    )


def logins_of(user: Invited | Active | Suspended) -> tuple[str, ...]:
    """The digests of what somebody signs in with."""
    return (user.login,) if isinstance(user, Invited) else user.logins


async def complete(store: Store, tenant_id: UUID, person_id: UUID) -> None:
    """What an erasure that is recorded asks for: as often as you like.

    The key goes first. What came between the looking and the recording, a device bound or a login added at that moment, goes last.
    """
    await store.sealing.shred(tenant_id, person_id)
    if store.pool is not None:
        async with store.pool.connection() as conn:
            await origins.forget(conn, partition_of(tenant_id, store.partitions), tenant_id, person_id)
    left = await _left(store, tenant_id, person_id)
    if left:
        # The id says what the log looked like: whoever does the same at the same time does it once.
        seen = "|".join(f"{item.stream}:{version}" for item, version in left)
        command_id = uuid5(_LEFT, f"{tenant_id.hex}|{seen}")
        await store.submit(Request(tenant_id, command_id, tuple(item for item, _ in left), b"", actor=ACTOR))


async def _left(store: Store, tenant_id: UUID, person_id: UUID) -> list[tuple[Item, int]]:
    """What an erased user still has, and the versions of those streams."""
    user = (await store.state(USER, tenant_id, user_stream(person_id))).state
    if not isinstance(user, ErasedUser):
        return []
    digests = sorted(await _logins_ever(store, tenant_id, person_id))
    places: list[tuple[Decider[Any], str]] = [(LOGIN, login_stream(digest)) for digest in digests]
    bound, *claimed = await store.states(tenant_id, [(DEVICES, devices_stream(person_id)), *places])
    left = [
        (Item(LOGIN, stream, ReleaseLogin(user_id=person_id)), found.version)
        for (_, stream), found in zip(places, claimed, strict=True)
        if isinstance(found.state, Login) and found.state.user_id == person_id
    ]
    if bound.state.bound:
        left.append((Item(DEVICES, devices_stream(person_id), UnbindAll()), bound.version))
    return left


async def _logins_ever(store: Store, tenant_id: UUID, user_id: UUID) -> set[str]:
    """Every login that the log says was ever given to the user."""
    found = set()
    async for past in histories.pages(store, tenant_id, user_stream(user_id)):
        login = msgspec.json.decode(past.payload).get("login")
        if login is not None:
            found.add(login)
    return found


def completing(store: Store) -> Effect:
    """The effect that completes what died between the record and the destruction, from the log's beginning on."""

    async def perform(happened: Happened, tools: Tools) -> Sequence[Named]:
        assert isinstance(happened.event, SubjectErased)
        await complete(store, happened.tenant_id, happened.event.person_id)
        return ()

    return Effect(EFFECT, (SubjectErased,), perform, from_start=True)

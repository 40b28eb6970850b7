"""Keys of tenants and of people, and what is sealed with them.

A sealed text is ``hbs1.`` and in base64url a nonce of 12 bytes, ciphertext and tag: AES-256-GCM (NIST SP 800-38D) under a key that is
derived from the person's. Tenant, person and purpose are authenticated with it, so that a sealed text cannot be moved. Erasing a person
is destroying their key: what was sealed stays where it is, in the log, in backups, in read models, and says nothing any more.

A person's key is used for a second after it was read, in every process. A tenant's is kept for longer: it is never destroyed while
the tenant is there.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from eventstore.errors import StoreError
from eventstore.keyring import Keys, MemoryKeys

FRESH_SECONDS = 1.0
"""For so long a person's key is used after it was read."""
REMEMBERED = 10_000
"""Keys of people, and as many of tenants."""

PREFIX = "hbs1."
_NONCE_BYTES, _TAG_BYTES = 12, 16
Result = TypeVar("Result")


class Erased(Exception):
    """The person was erased: their key was destroyed and is never made anew."""


class SealBroken(StoreError):
    """A sealed text was changed, or was sealed for something else."""


class _Person(NamedTuple):
    read_at: float
    key: bytes | None
    cipher: AESGCM | None


class Sealing:
    """Seals and opens personal data; derives secrets. ``clock`` is monotonic, in seconds."""

    def __init__(self, keys: Keys | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._keys, self._clock = keys or MemoryKeys(), clock
        self._tenants: OrderedDict[UUID, bytes] = OrderedDict()
        self._people: OrderedDict[tuple[UUID, UUID], _Person] = OrderedDict()
        self._reading: dict[UUID, asyncio.Task[bytes]] = {}
        self._waiting: dict[tuple[UUID, bool], dict[UUID, asyncio.Future[_Person | None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._shredded = 0

    async def seal(self, tenant_id: UUID, person_id: UUID, purpose: str, clear: str) -> str:
        """AES-256-GCM under the person's key, which is made when there is none yet. Raises `Erased`."""
        cipher = (await self._known(tenant_id, person_id)).cipher
        if cipher is None:
            raise Erased
        nonce = os.urandom(_NONCE_BYTES)
        sealed = nonce + cipher.encrypt(nonce, clear.encode(), _bound_to(tenant_id, person_id, purpose))
        return PREFIX + base64.urlsafe_b64encode(sealed).decode().rstrip("=")

    async def open(self, tenant_id: UUID, person_id: UUID, purpose: str, sealed: str) -> str | None:
        """What was sealed for that person and purpose; None when the person was erased. Raises `SealBroken`."""
        person = await self._person(tenant_id, person_id, make=False)
        if person is None or person.cipher is None:
            return None
        data = _bytes_of(sealed)
        try:
            return person.cipher.decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], _bound_to(tenant_id, person_id, purpose)).decode()
        except InvalidTag:
            raise SealBroken from None

    async def open_all(self, tenant_id: UUID, sealed: Sequence[tuple[UUID, str, str]]) -> list[str | None]:
        """Many texts at once, as (person, purpose, sealed): keys that are not at hand are read together. See :meth:`open`."""
        return list(await asyncio.gather(*(self.open(tenant_id, person_id, purpose, text) for person_id, purpose, text in sealed)))

    async def secret(self, tenant_id: UUID, purpose: str) -> bytes:
        """32 bytes, always the same for a tenant and purpose; tokens are made of them."""
        return _derived(await self.tenant_key(tenant_id), "secret", purpose)

    async def person_secret(self, tenant_id: UUID, person_id: UUID, purpose: str) -> bytes:
        """As :meth:`secret`, of the person's key. Raises `Erased`."""
        key = (await self._known(tenant_id, person_id)).key
        if key is None:
            raise Erased
        return _derived(key, "secret", purpose)

    async def digest(self, tenant_id: UUID, purpose: str, text: str) -> str:
        """Under which something personal is found without being kept: 32 hex digits, keyed, the same for equal texts of a tenant."""
        key = _derived(await self.tenant_key(tenant_id), "digest", purpose)
        return hmac.digest(key, text.encode(), "sha256").hex()[:32]

    async def shred(self, tenant_id: UUID, person_id: UUID) -> bool:
        """Destroy the person's key for ever, also when there was none yet; whether it was there until now.

        This process stops using it at once, every other one within `FRESH_SECONDS`. May be repeated.
        """
        there = await self._keys.shred(tenant_id, person_id)
        self._shredded += 1  # what is being read now may be older
        self._people.pop((tenant_id, person_id), None)
        return there

    async def tenant_key(self, tenant_id: UUID) -> bytes:
        """The tenant's own key, 32 bytes; made when first asked for. Not for new uses: derive a :meth:`secret`."""
        key = self._tenants.get(tenant_id)
        if key is None:
            task = self._reading.get(tenant_id)
            if task is None:
                task = self._reading[tenant_id] = asyncio.create_task(self._read_tenant(tenant_id))
                task.add_done_callback(_seen)
            key = await asyncio.shield(task)
        return key

    async def _read_tenant(self, tenant_id: UUID) -> bytes:
        try:
            key = self._tenants[tenant_id] = await self._keys.tenant(tenant_id)
        finally:
            del self._reading[tenant_id]
        while len(self._tenants) > REMEMBERED:
            self._tenants.popitem(last=False)
        return key

    async def _known(self, tenant_id: UUID, person_id: UUID) -> _Person:
        person = await self._person(tenant_id, person_id, make=True)
        assert person is not None, "a key that is made is there, or is known to be destroyed"
        return person

    async def _person(self, tenant_id: UUID, person_id: UUID, *, make: bool) -> _Person | None:
        """A key read a moment ago, or one of the next reading, which all who ask meanwhile share."""
        known = self._people.get((tenant_id, person_id))
        if known is not None and self._clock() - known.read_at <= FRESH_SECONDS:
            return known
        waiting = self._waiting.get((tenant_id, make))
        if waiting is None:
            waiting = self._waiting[tenant_id, make] = {}
            self._spawn(self._read_people(tenant_id, make=make))
        answer = waiting.get(person_id)
        if answer is None:
            answer = waiting[person_id] = asyncio.get_running_loop().create_future()
            answer.add_done_callback(_seen)
        return await asyncio.shield(answer)

    async def _read_people(self, tenant_id: UUID, *, make: bool) -> None:
        await asyncio.sleep(0)  # those who ask in this turn of the loop come along
        waiting, read_at, shredded = self._waiting.pop((tenant_id, make)), self._clock(), self._shredded
        try:
            found = await self._keys.people(tenant_id, waiting, make=make)
        except BaseException as error:
            for answer in waiting.values():
                answer.set_exception(error if isinstance(error, Exception) else asyncio.CancelledError())
            if not isinstance(error, Exception):
                raise
            return
        for person_id, answer in waiting.items():
            person = _of_key(read_at, found[person_id]) if person_id in found else None
            if person is not None and shredded == self._shredded:
                self._people[tenant_id, person_id] = person
                self._people.move_to_end((tenant_id, person_id))
            answer.set_result(person)
        self._forget()

    def _forget(self) -> None:
        """Drop what is too old, and what is too much; the oldest come first."""
        oldest = self._clock() - FRESH_SECONDS
        while self._people and (len(self._people) > REMEMBERED or next(iter(self._people.values())).read_at < oldest):
            self._people.popitem(last=False)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _seen(done: asyncio.Future[Any]) -> None:
    """A reading that failed is told to those who wait for it, and to nobody else."""
    if not done.cancelled():
        done.exception()


def _of_key(read_at: float, key: bytes | None) -> _Person:
    return _Person(read_at, key, None if key is None else AESGCM(_derived(key, "seal", "")))


def _derived(key: bytes, use: str, purpose: str) -> bytes:
    """A key for one use and purpose. No JSON begins like this, and no text that a webhook's secret is made of, which use the key itself."""
    return hmac.digest(key, f"holdbook.{use}\x00{purpose}".encode(), "sha256")


def _bound_to(tenant_id: UUID, person_id: UUID, purpose: str) -> bytes:
    parts = (tenant_id.bytes, person_id.bytes, purpose.encode())
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def _bytes_of(sealed: str) -> bytes:
    encoded = sealed.removeprefix(PREFIX)
    try:
        data = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise SealBroken from None
    canonical = base64.urlsafe_b64encode(data).decode().rstrip("=")
    if not sealed.startswith(PREFIX) or canonical != encoded or len(data) < _NONCE_BYTES + _TAG_BYTES:
        raise SealBroken
    return data

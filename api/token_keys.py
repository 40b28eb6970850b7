"""Where the keys of access tokens come from: the database, a file of one's own, or memory. RSA, 2048 bits or more.

A key's id is its thumbprint (RFC 7638), so whoever knows the public half can tell the id, and a client may pin it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, Protocol

import structlog
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey, RSAPublicNumbers, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from api.settings import PREFIX, Settings
from eventstore.errors import StoreError
from eventstore.signing_keys import NewSigningKey, SigningKeys
from eventstore.store import Store

BITS = 2048
LEAST_BITS = 2048
KEYS_FILE = f"{PREFIX}TOKEN_KEYS_FILE"
_PEM = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----", re.DOTALL)

log = structlog.get_logger(__name__)


class BadTokenKeys(StoreError):
    """HOLDBOOK_TOKEN_KEYS holds one or more RSA private keys of 2048 bits or more, as PEM without a password."""


class TokenKey(NamedTuple):
    """A key as of one reading. Times are in seconds since 1970; None is for ever."""

    kid: str
    public: RSAPublicKey
    private: RSAPrivateKey | None
    signs_from: float = 0.0
    verifies_until: float | None = None


class KeySource(Protocol):
    """What knows the keys."""

    async def read(self) -> tuple[TokenKey, ...]:
        """All keys; the last of those whose time to sign has come and that have a private half signs."""
        ...


class MemoryTokenKeys:
    """One key that ends with the process."""

    def __init__(self) -> None:
        self._keys: tuple[TokenKey, ...] = ()

    async def read(self) -> tuple[TokenKey, ...]:
        """See :class:`KeySource`."""
        if not self._keys:
            self._keys = (of_private(await asyncio.to_thread(fresh_key)),)
        return self._keys


class GivenTokenKeys:
    """Keys from the settings. The first signs, all verify. A file is read again when it changes; one that cannot be used is told
    in the log, and the keys stay what they were."""

    def __init__(self, pem: str, file: Path | None = None) -> None:
        self._keys, self._file, self._seen = keys_of_pem(pem), file, None if file is None else _look(file)

    async def read(self) -> tuple[TokenKey, ...]:
        """See :class:`KeySource`."""
        if self._file is not None:
            try:
                seen = await asyncio.to_thread(_look, self._file)
                if seen != self._seen:
                    self._keys, self._seen = keys_of_pem(await asyncio.to_thread(self._file.read_text, "ascii")), seen
                    log.info("token keys read again", kids=[key.kid for key in self._keys])
            except (OSError, ValueError, BadTokenKeys) as error:
                log.warning("token keys not read again", error=type(error).__name__)
        return self._keys


class DatabaseTokenKeys:
    """Keys of the installation, made when there is none yet."""

    def __init__(self, table: SigningKeys) -> None:
        self._table = table
        self._privates: dict[str, RSAPrivateKey] = {}

    async def read(self) -> tuple[TokenKey, ...]:
        """See :class:`KeySource`."""
        rows = await self._table.read()
        if not any(row.private is not None and row.signs_until is None for row in rows):
            await self._table.make_first(await asyncio.to_thread(fresh_for_table))
            rows = await self._table.read()
        keys = []
        for row in rows:
            private = None
            if row.private is not None:
                private = self._privates.get(row.kid) or private_of_pem(row.private)
                self._privates[row.kid] = private  # taking a key apart costs milliseconds
            public = public_of_jwk(json.loads(row.public))
            keys.append(TokenKey(row.kid, public, private, row.signs_from.timestamp(), _seconds(row.verifies_until)))
        self._privates = {key.kid: key.private for key in keys if key.private is not None}
        return tuple(keys)


def source_of(store: Store, settings: Settings) -> KeySource:
    """Where this deployment has its keys. Raises `BadTokenKeys`."""
    if settings.token_keys is not None:
        file = os.environ.get(KEYS_FILE)
        return GivenTokenKeys(settings.token_keys, None if file is None else Path(file))
    return MemoryTokenKeys() if store.pool is None else DatabaseTokenKeys(SigningKeys(store.pool, store.master))


def fresh_key() -> RSAPrivateKey:
    """A new key. Takes a tenth of a second and more: not for the event loop."""
    return generate_private_key(65537, BITS)


def fresh_for_table() -> NewSigningKey:
    """A new key as the table keeps it."""
    key = fresh_key()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    jwk = jwk_of(key.public_key())
    return NewSigningKey(jwk["kid"], json.dumps(jwk), pem)


def of_private(key: RSAPrivateKey) -> TokenKey:
    """A key that signs from now on and for ever."""
    return TokenKey(jwk_of(key.public_key())["kid"], key.public_key(), key)


def keys_of_pem(text: str) -> tuple[TokenKey, ...]:
    """Keys one behind the other. Their order is turned round, because the first is to sign. Raises `BadTokenKeys`."""
    found = [of_private(private_of_pem(pem.encode())) for pem in _PEM.findall(text)]
    if not found or len({key.kid for key in found}) < len(found):
        raise BadTokenKeys
    return tuple(reversed(found))


def private_of_pem(pem: bytes) -> RSAPrivateKey:
    """Raises `BadTokenKeys`."""
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError):
        raise BadTokenKeys from None
    if not isinstance(key, RSAPrivateKey) or key.key_size < LEAST_BITS:
        raise BadTokenKeys
    return key


def jwk_of(key: RSAPublicKey) -> dict[str, str]:
    """The public half as a JSON Web Key (RFC 7517)."""
    numbers = key.public_numbers()
    needed = {"e": _base64(numbers.e), "kty": "RSA", "n": _base64(numbers.n)}
    thumbprint = sha256(json.dumps(needed, separators=(",", ":"), sort_keys=True).encode()).digest()
    return {**needed, "kid": base64.urlsafe_b64encode(thumbprint).decode().rstrip("="), "alg": "RS256", "use": "sig"}


def public_of_jwk(jwk: dict[str, str]) -> RSAPublicKey:
    """The other way round."""
    return RSAPublicNumbers(_number(jwk["e"]), _number(jwk["n"])).public_key()


def _base64(number: int) -> str:
    return base64.urlsafe_b64encode(number.to_bytes((number.bit_length() + 7) // 8, "big")).decode().rstrip("=")


def _number(text: str) -> int:
    return int.from_bytes(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), "big")


def _look(file: Path) -> tuple[int, int, int]:
    found = file.stat()
    return found.st_mtime_ns, found.st_size, found.st_ino


def _seconds(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()

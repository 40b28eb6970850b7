"""The master key, which wraps the keys that are stored: those of tenants, of people, and of tokens.

Nothing else is ever encrypted with it, so that changing it means wrapping a few short rows anew and never an event. A key management
service can stand behind the port; what is shipped keeps the key in the process.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import secrets
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from eventstore.errors import StoreError

ENVIRONMENT = "HOLDBOOK_MASTER_KEY"
_ID = re.compile(r"[A-Za-z0-9_.\-]{1,64}")
_NONCE_BYTES = 12


class NoMasterKey(StoreError):
    """This process has no master key; set HOLDBOOK_MASTER_KEY_FILE (`holdbook key make-master` prints a fresh key)."""


class BadMasterKey(StoreError):
    """A master key is one or more lines `id:base64 of 32 bytes`, the ids of 1 to 64 letters, digits, `_`, `.` and `-`, each once."""


class WrongMasterKey(StoreError):
    """The master key of this process is not the one that wrapped what is stored."""


class UnknownMasterKey(WrongMasterKey):
    """The master key of this process has no line of this id."""


class MasterKeys(Protocol):
    """What wraps keys. ``context`` says what the key is of; wrapped bytes can be unwrapped with the same context only."""

    @property
    def current(self) -> str:
        """The id of the key that wraps at present."""
        ...

    async def wrap(self, key: bytes, context: bytes) -> tuple[str, bytes]:
        """The id of the key that wrapped, and the wrapped bytes."""
        ...

    async def unwrap(self, master_id: str, wrapped: bytes, context: bytes) -> bytes:
        """The key. Raises `UnknownMasterKey`, and `WrongMasterKey` when another key has the id."""
        ...


class LocalMasterKeys:
    """AES-256-GCM with keys that the process was given. The first wraps, all unwrap. Shows no key: not by ``repr`` either."""

    def __init__(self, text: str) -> None:
        found: dict[str, AESGCM] = {}
        for line in text.split("\n"):
            if not line.strip():
                continue
            name, _, encoded = line.strip().partition(":")
            if _ID.fullmatch(name) is None or name in found:
                raise BadMasterKey
            try:
                key = base64.b64decode(encoded, validate=True)
            except (binascii.Error, ValueError):
                raise BadMasterKey from None
            if len(key) != 32:
                raise BadMasterKey
            found[name] = AESGCM(key)
        if not found:
            raise BadMasterKey
        self._keys, self._current = found, next(iter(found))

    @property
    def current(self) -> str:
        """The first line's id."""
        return self._current

    async def wrap(self, key: bytes, context: bytes) -> tuple[str, bytes]:
        """See :class:`MasterKeys`. A nonce of 12 bytes, then ciphertext and tag."""
        nonce = os.urandom(_NONCE_BYTES)
        return self._current, nonce + self._keys[self._current].encrypt(nonce, key, context)

    async def unwrap(self, master_id: str, wrapped: bytes, context: bytes) -> bytes:
        """See :class:`MasterKeys`."""
        cipher = self._keys.get(master_id)
        if cipher is None:
            raise UnknownMasterKey(master_id)
        try:
            return cipher.decrypt(wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], context)
        except (InvalidTag, ValueError):
            raise WrongMasterKey(f"Its line {master_id} is another key.") from None


def new_master_key() -> str:
    """A fresh line; its id is random, because nothing may ever have two keys under one id."""
    return f"{secrets.token_hex(4)}:{base64.b64encode(os.urandom(32)).decode()}"


def of_environment() -> LocalMasterKeys | None:
    """The key of ``HOLDBOOK_MASTER_KEY`` or of the file that ``HOLDBOOK_MASTER_KEY_FILE`` names; None when neither is set."""
    text = os.environ.get(ENVIRONMENT)
    if text is None and (path := os.environ.get(f"{ENVIRONMENT}_FILE")) is not None:
        text = Path(path).read_text(encoding="ascii")
    return None if text is None else LocalMasterKeys(text)

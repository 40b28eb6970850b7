"""The key that an audit export's heads are signed with: Ed25519 (RFC 8032), the private half as PKCS #8 in PEM."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat, load_pem_private_key

from eventstore.errors import StoreError


class BadKey(StoreError):
    """This is not an Ed25519 key in the form that is wanted."""


class SigningKey:
    """A private key. Never shown: not by ``repr`` either."""

    def __init__(self, pem: str) -> None:
        try:
            key = load_pem_private_key(pem.encode(), password=None)
        except (ValueError, TypeError) as error:
            raise BadKey("A private key is PKCS #8 in PEM, without a password.") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise BadKey("A private key is PKCS #8 in PEM, without a password.")
        self._key = key
        self.public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        """The public half, 32 bytes."""

    def sign(self, text: bytes) -> bytes:
        """64 bytes."""
        return self._key.sign(text)


def genuine(public: bytes, signature: bytes, text: bytes) -> bool:
    """Whether the signature was made over this text with the private half of the key."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, text)
    except (InvalidSignature, ValueError):
        return False
    return True


def public_key(text: str) -> bytes:
    """A public key from the 64 hex digits it is told in. Raises `BadKey`."""
    try:
        found = bytes.fromhex(text.strip())
    except ValueError:
        found = b""
    if len(found) != 32:
        raise BadKey("A public key is 64 hex digits.")
    return found


def make_key(path: Path) -> bool:
    """Put a new private key there, readable by its owner alone; False when a key was there before, also when another
    process was first by a moment. Never leaves half a key."""
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(fresh, path)
    except FileExistsError:
        return False
    finally:
        fresh.unlink()
    return True

"""The key that this installation signs its audit exports with."""

from __future__ import annotations

from api.settings import Settings
from eventstore.embedded import data_directory
from eventstore.signing import SigningKey, make_key

KEY_FILE = "audit.key"
"""In the data directory."""


def signing_key(chosen: Settings) -> SigningKey | None:
    """The key of the settings, or with the embedded database the one in its directory, made when it is first asked for.

    None where a database of one's own is used and no key is set. Raises `BadKey`.
    """
    if chosen.audit_key is not None:
        return SigningKey(chosen.audit_key)
    if chosen.database_url is not None:
        return None
    path = data_directory(chosen.data) / KEY_FILE
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        make_key(path)
    return SigningKey(path.read_text(encoding="ascii"))

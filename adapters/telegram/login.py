"""Proofs by Telegram of who somebody is: the Login Widget's fields and a Mini App's init data.

Both are checked as Telegram documents it (core.telegram.org/widgets/login#checking-authorization and
core.telegram.org/bots/webapps#validating-data-received-via-the-mini-app): HMAC-SHA256 over all received fields but ``hash``, as lines
``key=value`` in alphabetical order, with a secret made of the bot's token. The two secrets differ, so a proof of one kind is none of the
other. The newer field ``signature`` of init data is one of the received fields, and covered like them.

Pure functions: the moment is given in, and what is wrong with a proof is for operators' counters, not for whoever sent it.
"""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any
from urllib.parse import parse_qsl

MAX_BYTES = 8_192
MAX_FIELDS = 40
FUTURE_SECONDS = 60
"""How far Telegram's clock may be ahead of ours."""

_HASH = re.compile(r"[0-9a-f]{64}")
_KEY = re.compile(r"[a-z_]{1,64}")
_NUMBER = re.compile(r"[1-9][0-9]{0,15}")
_NAME_CHARACTERS = 200


class ProofRefused(Exception):
    """The data proves nothing. ``reason`` is one word: shape, hash, age or future."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Person:
    """Who it is, as Telegram knows them, and the hash that proves it, which no two proofs share."""

    telegram_id: int
    name: str
    username: str | None
    hash: str


def check_widget(fields: Mapping[str, str], bot_token: str, now: datetime, max_age_seconds: int) -> Person:
    """The person that the Login Widget's fields prove. ``fields`` are all that were received, ``hash`` included, as text.

    Raises `ProofRefused`.
    """
    given = _checked(fields, sha256(bot_token.encode()).digest(), now, max_age_seconds)
    return _person(given, fields.get("id"), fields)


def check_init_data(text: str, bot_token: str, now: datetime, max_age_seconds: int) -> Person:
    """The person that a Mini App's init data proves; ``text`` as ``Telegram.WebApp.initData`` gives it. Raises `ProofRefused`."""
    if len(text.encode()) > MAX_BYTES:
        raise ProofRefused("shape")
    try:
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=MAX_FIELDS)
    except ValueError:
        raise ProofRefused("shape") from None
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ProofRefused("shape")  # which of the two was meant is not guessed
    given = _checked(fields, hmac.digest(b"WebAppData", bot_token.encode(), "sha256"), now, max_age_seconds)
    user = _user(fields.get("user"))
    number = user.get("id")
    return _person(given, str(number) if type(number) is int else None, user)


def _checked(fields: Mapping[str, str], secret: bytes, now: datetime, max_age_seconds: int) -> str:
    """The proof's hash, when it is one, made neither too long ago nor in the future."""
    given = fields.get("hash", "")
    size = sum(len(name.encode("utf-8", "replace")) + len(value.encode("utf-8", "replace")) for name, value in fields.items())
    if len(fields) > MAX_FIELDS or size > MAX_BYTES or not _HASH.fullmatch(given):
        raise ProofRefused("shape")
    # Two sets of fields could read the same if a line end stood in one of them.
    if not all(_KEY.fullmatch(name) and "\n" not in value for name, value in fields.items()):
        raise ProofRefused("shape")
    lines = "\n".join(f"{name}={fields[name]}" for name in sorted(fields) if name != "hash")
    try:
        computed = hmac.digest(secret, lines.encode(), "sha256").hex()
    except UnicodeEncodeError:
        raise ProofRefused("shape") from None
    if not hmac.compare_digest(computed, given):
        raise ProofRefused("hash")
    if not _NUMBER.fullmatch(fields.get("auth_date", "")):
        raise ProofRefused("shape")
    age = now.timestamp() - int(fields["auth_date"])
    if age > max_age_seconds:
        raise ProofRefused("age")
    if age < -FUTURE_SECONDS:
        raise ProofRefused("future")
    return given


def _user(text: str | None) -> Mapping[str, Any]:
    try:
        found = json.loads(text or "")
    except (ValueError, RecursionError):
        raise ProofRefused("shape") from None
    if not isinstance(found, dict):
        raise ProofRefused("shape")
    return found


def _person(given: str, number: str | None, fields: Mapping[str, Any]) -> Person:
    if number is None or not _NUMBER.fullmatch(number):
        raise ProofRefused("shape")
    parts = [fields.get(name) for name in ("first_name", "last_name")]
    name = " ".join(part for part in parts if isinstance(part, str) and part).strip()[:_NAME_CHARACTERS]
    username = fields.get("username")
    return Person(int(number), name, username[:_NAME_CHARACTERS] if isinstance(username, str) and username else None, given)

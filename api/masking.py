"""Log lines without personal data and secrets.

Nothing of the kind is meant to be logged; this is the net under that. It covers what has a shape of its own: e-mail addresses, phone
numbers, IP addresses, keys and tokens of ours, JWTs, bots' tokens, sealed texts, passwords in addresses and in ``name=value``. A name or
a word has no shape: those are kept out by never logging bodies and parameters, and by leaving out what a database says of the values it
refused. Ids (UUIDs, 32 hex digits), moments, positions and numbers stay as they are, and so do this machine's own addresses.
"""

from __future__ import annotations

import ipaddress
import logging
import re
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

__all__ = ["mask", "processor"]

_LONGEST = 20_000
_DEEPEST = 20

_NAMES = (
    "password|passwd|pwd|secret|token|refresh_token|access_token|api_key|apikey|authorization|cookie|set-cookie|x-csrf-token|csrf|"
    "private_key|master_key|init_data|device_fingerprint|bot_token|invitation_token|reset_token"
)
_SECRET_NAME = re.compile(rf"(?:{_NAMES})", re.IGNORECASE)

_ACTOR = re.compile(r"[0-9a-f]{32}@[0-9a-f]{16}")
"""An actor with the id of where it came from: neither says who it is."""


def _unless_actor(found: re.Match[str]) -> str:
    return found[0] if _ACTOR.fullmatch(found[0]) else "[e-mail]"


def _unless_own(found: re.Match[str]) -> str:
    try:
        address = ipaddress.ip_address(found[0])
    except ValueError:  # a time, a version
        return found[0]
    return found[0] if address.is_loopback or address.is_unspecified else "[address]"


_VALUE = r"(?:\"[^\"]*\"|'[^']*'|[^\s,;&'\"})\]]+)"
_PART = r"[^\s@<>()\[\]{},;:\"'=|\\/]"
_RULES: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), "[private key]"),
    # What PostgreSQL and SQLAlchemy say of values.
    (re.compile(r"\b(DETAIL|CONTEXT):[^\n]*"), r"\1: [left out]"),
    (re.compile(r"\[(parameters|SQL): .*?(?:\](?=\n|\Z)|\Z)", re.DOTALL), r"[\1 left out]"),  # to the end, where it was cut off
    (re.compile(r"\b(invalid input (?:syntax|value) for [^:\n]{1,80}: )[^\n]*"), r"\1[left out]"),
    (re.compile(r"\bhb([a-z])_[A-Za-z0-9_\-]{16,}"), r"hb\1_[key]"),
    (re.compile(r"\bhbs1\.[A-Za-z0-9_\-=]+"), "hbs1.[sealed]"),
    (re.compile(r"\beyJ[A-Za-z0-9_\-]{5,}\.[A-Za-z0-9_\-]*(?:\.[A-Za-z0-9_\-]*)?"), "[jwt]"),
    (re.compile(r"\$argon2[a-z]{1,2}\$[^\s'\"]+"), "[password hash]"),
    (re.compile(r"(?<![0-9A-Za-z])(?:bot)?\d{6,12}:[A-Za-z0-9_\-]{30,}"), "[bot token]"),
    (re.compile(r"\b(Bearer|Basic)\s+(?!\[)[A-Za-z0-9+/=_.~\-]{6,}", re.IGNORECASE), r"\1 [credential]"),
    (re.compile(r"(?<=://)[^\s/@:'\"]{0,200}:[^\s@'\"]{1,500}(?=@)"), "[credentials]"),
    (re.compile(rf"\b((?:{_NAMES})['\"]?\s{{0,3}}[=:]\s{{0,3}})(?!\[){_VALUE}", re.IGNORECASE), r"\1[secret]"),
    (re.compile(rf"{_PART}{{1,64}}(?:@|%40){_PART}{{0,64}}[^\W\d_]{_PART}{{0,190}}"), _unless_actor),
    (re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\d)"), _unless_own),
    (re.compile(r"(?<![\w:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?:(?<=:)\d{1,3}(?:\.\d{1,3}){3})?(?![\w:])"), _unless_own),
    (re.compile(r"(?<![\w+\-.:/])\+\d[\d ()\-.]{6,20}\d(?!\w)"), "[phone]"),
    (re.compile(r"(?<![\w+\-.:/])(?:[78][ \-]?)?\(?\d{3}\)?[ \-]\d{3}[ \-]?\d{2}[ \-]?\d{2}(?![\w\-.:])"), "[phone]"),
    (re.compile(r"(?<![\w+\-.:/])[78]9\d{9}(?![\w\-.:])"), "[phone]"),
)  # fmt: skip
"""In this order: what is longer and more certain comes first, so that no part of it is left for the others. Repetitions are bounded, so
that a long text costs no more than its length."""


def mask(text: str) -> str:
    """The text without what looks like personal data or a secret."""
    if len(text) > _LONGEST:
        text = text[:_LONGEST] + "..."
    for pattern, instead in _RULES:
        text = pattern.sub(instead, text)
    return text


def masked(value: Any, depth: int = 0) -> Any:
    """A value of a log line, masked however deep: texts, and the keys of mappings as well; numbers stay."""
    match value:
        case bool() | int() | float() | None:
            return value
        case str():
            return mask(value)
        case bytes():
            return mask(value.decode("utf-8", "replace"))
        case _ if depth >= _DEEPEST:
            return "..."
        case Mapping():
            return {_name(name): "[secret]" if _secret(name, each) else masked(each, depth + 1) for name, each in value.items()}
        case list() | tuple() | set() | frozenset():
            return [masked(each, depth + 1) for each in value]
        case _:
            return mask(str(value))


def _name(name: Any) -> Any:
    return mask(name) if isinstance(name, str) else name


def _secret(name: Any, value: Any) -> bool:
    return isinstance(name, str) and isinstance(value, str | bytes) and _SECRET_NAME.fullmatch(name) is not None


_OWN = frozenset({"level", "timestamp", "_record", "_from_structlog"})
"""Made by the pipeline itself."""


def processor(logger: logging.Logger | None, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """For structlog, behind what turns exceptions into data and in front of what renders."""
    for name in list(event):
        if name not in _OWN:
            value = event[name]
            event[name] = "[secret]" if _secret(name, value) else masked(value)
    return event


def rendered(logger: logging.Logger | None, method: str, line: str) -> str:
    """For structlog, behind a renderer that writes exceptions itself."""
    return mask(line)

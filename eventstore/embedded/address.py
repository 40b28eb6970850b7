"""The server's address, and how to show one without its password."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote

SUPERUSER: Final = "holdbook"
DATABASE: Final = "holdbook"
PORT: Final = 5432  # part of the socket's file name; nothing listens on TCP


def address(password: str, sockets: str, database: str = DATABASE) -> str:
    """For connecting through the socket in the directory ``sockets``."""
    return f"postgresql://{SUPERUSER}:{quote(password, safe='')}@/{database}?host={quote(sockets, safe='')}&port={PORT}"


def redact(dsn: str) -> str:
    """The same address with ``***`` for the password, fit for logs. Takes URLs and ``key=value`` strings."""
    without_userinfo = re.sub(r"(?<=://)([^:/?#]*):[^/?#]*@", r"\1:***@", dsn)
    return re.sub(r"(?i)\b(password\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s&]+)", r"\1***", without_userinfo)

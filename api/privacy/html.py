"""The export as one page for people: no script, nothing from elsewhere, everything escaped, fit for paper."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from html import escape
from typing import Any

from api.privacy.exporting import About, events, sections

_STYLE = """
:root{color-scheme:light dark;--line:#8884;--soft:#8882}
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin:0 0 .25rem}h2{font-size:1.1rem;margin:2rem 0 .5rem;border-bottom:1px solid var(--line)}
p.note,.none{color:#777}table{border-collapse:collapse;width:100%;margin:.25rem 0}
th,td{text-align:left;vertical-align:top;padding:.2rem .6rem .2rem 0;overflow-wrap:anywhere}
th{font-weight:600;width:12rem;color:#777}td>table{margin:0}
.item{border:1px solid var(--line);border-radius:.4rem;padding:.3rem .7rem;margin:.4rem 0}
.event{border-top:1px solid var(--soft);padding:.35rem 0;break-inside:avoid}.event b{margin-right:.6rem}
.event small{color:#777;overflow-wrap:anywhere}
@media(max-width:40rem){table,tbody,tr,th,td{display:block;width:auto}td{padding-bottom:.5rem}}
@media print{body{max-width:none;margin:0;font-size:11px}.item{break-inside:avoid}}
"""
_DIGEST = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
CSP = f"default-src 'none'; style-src 'sha256-{_DIGEST}'; base-uri 'none'; form-action 'none'"
"""Nothing is loaded and nothing runs, but the page's own style."""
HEADERS_ONLY = "; frame-ancestors 'none'"
"""What a page cannot say of itself."""


_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z")


def _words(name: str) -> str:
    return escape(name.replace("_", " ").capitalize())


def _value(value: Any) -> Iterator[str]:
    if isinstance(value, tuple):
        value = list(value)
    match value:
        case _ if value is None or value in ("", [], {}):
            yield '<span class="none">none</span>'
        case bool():
            yield "yes" if value else "no"
        case dict():
            yield "<table>"
            for name, each in value.items():
                yield f'<tr><th scope="row">{_words(str(name))}</th><td>'
                yield from _value(each)
                yield "</td></tr>"
            yield "</table>"
        case list() if not any(isinstance(each, dict | list | tuple) for each in value):
            yield ", ".join(escape(str(each)) for each in value)
        case list():
            for each in value:
                yield '<div class="item">'
                yield from _value(each)
                yield "</div>"
        case str() if _MOMENT.fullmatch(value):
            yield f"{datetime.fromisoformat(value):%Y-%m-%d %H:%M:%S} UTC"
        case _:
            yield escape(str(value))


async def as_html(about: About) -> AsyncIterator[bytes]:
    """The page, piece by piece. One that was interrupted has no last line."""
    yield (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f'<meta http-equiv="Content-Security-Policy" content="{CSP}"><meta name="referrer" content="no-referrer">'
        f"<title>Personal data</title><style>{_STYLE}</style></head><body><h1>Personal data</h1>"
        f'<p class="note">Everything that is kept about <b>{escape(about.whose.subject)}</b>, as of {about.at:%Y-%m-%d %H:%M:%S} UTC.</p>'
    ).encode()
    async for contributor, content in sections(about):
        yield f"<h2>{escape(contributor.title)}</h2>{''.join(_value(content))}".encode()
    yield b"<h2>Everything that was recorded</h2>"
    several = False
    async for told in events(about):
        several = True
        shown = "".join(_value(told.payload))
        yield (
            f'<div class="event"><b>{escape(told.type)}</b><small>{told.at:%Y-%m-%d %H:%M:%S} UTC &middot; '
            f"{escape(told.stream)} &middot; {told.version}</small>{shown}</div>"
        ).encode()
    yield (b"" if several else b'<p class="none">none</p>') + b'<p class="note">End of the export.</p></body></html>\n'

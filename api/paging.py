"""Pages: where one begins, and the Link header that leads to the next."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import urlencode

import msgspec
from fastapi import Request
from pydantic import Field
from starlette.responses import Response

from api.problems import Problem, invalid

Cursor = Annotated[str | None, Field(max_length=1000, description="From the Link header of the page before.")]

_encode = msgspec.json.Encoder().encode


def place(cursor: str | None, parts: int) -> Any:
    """Where a page begins, as many texts from the cursor made by :func:`page`; None for the first page."""
    if cursor is None:
        return None
    try:
        found = msgspec.json.decode(urlsafe_b64decode(cursor.encode() + b"=="), type=list[str])
    except (ValueError, msgspec.DecodeError):
        found = []
    if len(found) != parts or any("\x00" in part for part in found):
        raise not_a_cursor()
    return tuple(found)


def not_a_cursor() -> Problem:
    """What to say of a cursor that leads nowhere."""
    return invalid([{"type": "cursor", "loc": ("cursor",), "msg": "This is not a cursor"}])


def page(request: Request, content: Mapping[str, Any], last: tuple[str, ...] | None) -> Response:
    """One page; ``last`` is the place of its last entry when more may follow."""
    headers = {}
    if last is not None:
        cursor = urlsafe_b64encode(msgspec.json.encode(last)).decode().rstrip("=")
        parameters = {**{name: value for name, value in request.query_params.items() if name != "cursor"}, "cursor": cursor}
        path = request.scope.get("raw_path", b"").split(b"?")[0].decode("latin-1")
        headers["Link"] = f'<{path}?{urlencode(parameters)}>; rel="next"'
    return Response(_encode(content), headers=headers, media_type="application/json")

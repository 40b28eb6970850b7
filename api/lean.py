"""Routes whose function takes the request as it comes."""

from __future__ import annotations

from typing import Any

from fastapi.routing import APIRoute
from starlette.routing import request_response


class LeanRoute(APIRoute):
    """Documented by FastAPI, but called by :class:`api.outside.Outside` without middleware, dependencies and exit stacks.

    Commands check, read and parse for themselves, and their answers are bytes already; what lies in between cost them a
    third of a request. The path has no parameters, and the function none but the request.
    """

    def __init__(self, path: str, endpoint: Any, **options: Any) -> None:
        assert "{" not in path
        super().__init__(path, endpoint, **options)
        self.app = request_response(endpoint)

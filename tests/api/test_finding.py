"""A request reaches the route that the router itself would choose, without asking all of them."""

from __future__ import annotations

import re
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from api.app import create_app
from api.finding import Finding
from api.settings import Settings
from eventstore.store import Store


async def _nobody() -> Any:
    raise AssertionError("nothing is read here")


async def asked(app: Any, method: str, path: str) -> tuple[int, str]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "root_path": "", "headers": [], "query_string": b""}
    await app(scope, _nobody, send)
    return sent[0]["status"], b"".join(each.get("body", b"") for each in sent[1:]).decode()


def _telling(name: str, path: str, *methods: str) -> Route:
    async def tell(request: Request) -> Response:
        return PlainTextResponse(" ".join([name, *request.path_params.values()]))

    return Route(path, tell, methods=list(methods))


ROUTES = [
    _telling("list", "/v1/things", "GET"),
    _telling("add", "/v1/things", "POST"),
    _telling("best", "/v1/things/best", "GET"),
    _telling("one", "/v1/things/{name}", "GET"),
    _telling("end", "/v1/things/{name}/end", "POST"),
    _telling("home", "/", "GET"),
    _telling("any", "/{first}/anything", "GET"),
]


@pytest.mark.parametrize("path", ["/v1/things", "/v1/things/best", "/v1/things/x", "/v1/things/x/end", "/", "/x/anything"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_it_answers_as_the_router_would(method: str, path: str) -> None:
    router = Router(routes=ROUTES, redirect_slashes=False)

    assert await asked(Finding(router), method, path) == await asked(router, method, path)


@pytest.mark.parametrize("path", ["/v1", "/v1/thing", "/v1/things/", "/v1/things/x/y", "/v2/things", "", "things"])
async def test_what_is_nowhere_is_left_to_the_router(path: str) -> None:
    router = Router(routes=ROUTES, redirect_slashes=False)

    assert await asked(Finding(router), "GET", path) == await asked(router, "GET", path) == (404, "Not Found")


async def test_every_route_of_ours_is_found_without_the_routers_own_search(monkeypatch: pytest.MonkeyPatch) -> None:
    nobody: Any = None
    app = create_app(Store.in_memory(()), nobody, Settings())
    router = app.router
    app.build_middleware_stack()
    assert isinstance(router.middleware_stack, Finding)
    reached: list[Any] = []

    async def search(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise AssertionError("the router searched")

    monkeypatch.setattr(router, "app", search)
    routes = [route for route in router.routes if isinstance(route, Route)]
    for route in routes:

        async def handle(scope: Scope, _receive: Receive, _send: Send) -> None:
            reached.append(scope["route"])

        monkeypatch.setattr(route, "handle", handle)
    find = Finding(router)
    for route in routes:
        path = re.sub(r"{\w+}", "x", route.path)
        for method in route.methods or ():
            await find({"type": "http", "method": method, "path": path, "root_path": ""}, _nobody, _nobody)  # type: ignore[arg-type]

    assert reached == [route for route in routes for _ in route.methods or ()]
    assert len(routes) > 100

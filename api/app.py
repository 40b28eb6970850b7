"""The HTTP application: routes, problems, and what surrounds them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.telemetry import TelemetryConfig
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from api import openapi, problems
from api.edge import Edge, Follower, Readers
from api.finding import Finding
from api.hardening import Hardening
from api.metrics import Metrics
from api.outside import Outside
from api.routes import ROUTERS, health
from api.settings import Settings
from eventstore.store import Store

TELEMETRY: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False}
"""FastAPI's own would look for a provider at every request."""

API_VERSION = "1"
"""Of the interface, as in its addresses; not of the program."""


def create_app(
    store: Store,
    readers: Readers,
    settings: Settings,
    follower: Follower | None = None,
    metrics: Metrics | None = None,
    routers: Iterable[APIRouter] = ROUTERS,
) -> FastAPI:
    """An application on an open store; opening and draining are the caller's."""
    edge = Edge(store, readers, settings, follower, metrics)
    app = _Application(
        title="Holdbook",
        version=API_VERSION,
        openapi_url="/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry=TELEMETRY,
    )
    app.state.edge = edge
    for router in routers:
        app.router.routes.extend(router.routes)  # flat: an included router looks every request up twice more
    for error in (*problems.OUR_OWN, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(error, problems.handle)
    return app


class _Application(FastAPI):
    def build_middleware_stack(self) -> ASGIApp:
        """What Starlette has, and one layer around it."""
        edge: Edge = self.state.edge
        self.router.middleware_stack = Finding(self.router)
        return Outside(
            super().build_middleware_stack(),
            self.routes,
            metrics=edge.metrics,
            at_once=edge.settings.requests_at_once,
            hardening=Hardening(edge.settings),
            knock=edge.knock,
        )

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document."""
        if not self.openapi_schema:
            self.openapi_schema = openapi.document(self)
        return self.openapi_schema


def create_health_app(store: Store, settings: Settings, follower: Follower | None, metrics: Metrics) -> FastAPI:
    """For a process that serves nobody: whether it lives, whether it is ready, and what it counted."""
    nobody: Any = None
    app = create_app(store, nobody, settings, follower, metrics, (health.router,))
    app.router.routes = [route for route in app.router.routes if route in health.router.routes]
    return app


def openapi_document() -> dict[str, Any]:
    """The OpenAPI document, without a store behind it."""
    nobody: Any = None
    return create_app(Store.in_memory(()), nobody, Settings()).openapi()

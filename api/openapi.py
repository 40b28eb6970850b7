"""What the OpenAPI document says of routes whose bodies FastAPI does not parse itself (doing so costs a third of a request)."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, TypeAdapter

from api.bodies import CommandBody
from api.problems import CODES, MEDIA_TYPE, PREFIX
from domain.identity.permissions import KEY_PERMISSIONS, PERMISSIONS

_REF = "#/components/schemas/{model}"
_models: dict[str, type[Any]] = {}
_without: dict[str, tuple[str, tuple[str, ...]]] = {}

_SUMMARY = "Holdbook keeps quotas in an event-sourced ledger: reserve before the work, commit or roll back after it."
KEY_HEADER: Mapping[str, Any] = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "Same key and same body: the first answer again. Same key, other body: 422. Takes precedence over correlation_id.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
}
_HEADERS: Mapping[str, Any] = {
    "Holdbook-Position": {"description": "The log's position after this command, for min_position.", "schema": {"type": "integer"}},
    "Holdbook-Epoch": {"description": "Changes when the log lost acknowledged events.", "schema": {"type": "integer"}},
    "Idempotent-Replayed": {"description": "true when the answer was given before.", "schema": {"type": "string", "enum": ["true"]}},
}
_COMMON = (400, 401, 403, 413, 422, 429, 503)
_NOT_OF_A_ROUTE = ("connection.", "projection.behind")


def problem(status: int, *codes: str) -> dict[str, Any]:
    """A problem response; each code is an example: those named, or without any all that have the status."""
    known = codes or [code for code, (known_status, _) in CODES.items() if known_status == status and not code.startswith(_NOT_OF_A_ROUTE)]
    examples = {
        code: {"value": {"type": PREFIX + code, "title": CODES.get(code, (0, code))[1], "status": status, "code": code}} for code in known
    }
    return {
        "description": "; ".join(examples),
        "content": {MEDIA_TYPE: {"schema": {"$ref": _REF.format(model="Problem")}, "examples": examples}},
    }


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Problem responses by status."""
    return {status: problem(status) for status in statuses}


def success(reply: type[Any], example: Any, *, command: bool) -> dict[str, Any]:
    """The answer when all went well."""
    _models[reply.__name__] = reply
    told: dict[str, Any] = {
        "description": "Done." if command else "Found.",
        "content": {"application/json": {"schema": {"$ref": _REF.format(model=reply.__name__)}, "example": example}},
    }
    if command:
        told["headers"] = _HEADERS
    return told


def command(
    model: type[BaseModel],
    reply: type[BaseModel],
    operation_id: str,
    *,
    body: Mapping[str, Any],
    answer: Any,
    refusals: tuple[str, ...] = ("quota.exceeded",),
    missing: str = "quota.not_found",
) -> dict[str, Any]:
    """Arguments of a route that takes a command: ``body`` are named examples, ``answer`` is one of a success."""
    name = model.__name__
    _models[name] = model
    path_fields = model.path_fields if issubclass(model, CommandBody) else ()
    if path_fields:
        name = f"{name}InPath"
        _without[name] = (model.__name__, path_fields)
    responses = {
        200: success(reply, answer, command=True),
        404: problem(404, missing),
        409: problem(409, *refusals),
        **problems(*_COMMON),
    }
    schema = {"$ref": _REF.format(model=name)}
    examples = {title: {"value": value} for title, value in body.items()}
    return {
        "operation_id": operation_id,
        "responses": responses,
        "openapi_extra": {
            **needs(model.permission if issubclass(model, CommandBody) else None),
            "requestBody": {"required": bool(body), "content": {"application/json": {"schema": schema, "examples": examples}}},
            "parameters": [KEY_HEADER],
        },
    }


def query(
    reply: type[Any], operation_id: str, *, answer: Any, permission: str, found: bool = True, missing: str = "quota.not_found"
) -> dict[str, Any]:
    """Arguments of a route that answers a question; ``permission`` is the one that the route asks for."""
    responses = {200: success(reply, answer, command=False), **problems(401, 403, 422, 429, 503)}
    if found:
        responses[404] = problem(404, missing)
    return {"operation_id": operation_id, "responses": responses, "openapi_extra": needs(permission)}


PERMISSION = "x-permission"
"""Under which name an operation tells the permission it needs; one without is for whoever has a credential, or for everybody."""


_SCHEMES: Mapping[str, Any] = {
    "key": {"type": "http", "scheme": "bearer", "description": "An API key of a service account: `hbk_...`."},
    "token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": "A person's access token, from signing in."},
    "browser": {
        "type": "apiKey",
        "in": "cookie",
        "name": "__Host-holdbook",
        "description": "A browser session; `X-CSRF-Token` with writes.",
    },
}

PUBLIC: Mapping[str, Any] = {"security": []}
"""What an operation for people without a credential has among its ``openapi_extra``."""


def needs(permission: str | None) -> dict[str, Any]:
    """What an operation that asks for a permission has among its ``openapi_extra``."""
    return {} if permission is None else {PERMISSION: permission}


def document(app: FastAPI) -> dict[str, Any]:
    """The whole OpenAPI 3.1 document."""
    told = get_openapi(title="Holdbook", version=app.version, summary=_SUMMARY, routes=app.routes)
    adapters = [(name, "validation", TypeAdapter(model)) for name, model in _models.items()]
    _, definitions = TypeAdapter.json_schemas(adapters, ref_template=_REF)  # type: ignore[arg-type]  # "validation" is a str here
    components = told.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas.update(definitions["$defs"])
    for name, (whole, fields) in _without.items():
        part = schemas[name] = deepcopy(schemas[whole])
        for field in fields:
            part["properties"].pop(field)
        part["required"] = [field for field in part.get("required", ()) if field not in fields]
        part["title"] = name
    schemas["Problem"] = _PROBLEM
    components["securitySchemes"] = _SCHEMES
    for path, methods in told["paths"].items():
        for method in methods.values():
            for status in [status for status, answer in method["responses"].items() if _is_fastapis_own(answer)]:
                method["responses"][status] = problem(int(status))
            if path.startswith("/v1/"):
                permission = method.get(PERMISSION)
                method.setdefault("security", [{name: []} for name in _SCHEMES if name != "key" or permission in (None, *KEY_PERMISSIONS)])
            if permission := method.get(PERMISSION):
                needed = f"Needs the permission `{permission}`: {PERMISSIONS[permission][:1].lower()}{PERMISSIONS[permission][1:]}"
                method["description"] = f"{method.get('description', '')}\n\n{needed}"
            _share(method["responses"], components.setdefault("responses", {}))
    return told


def _share(responses: dict[str, Any], shared: dict[str, Any]) -> None:
    """Problems that any operation may answer with stand in the document once."""
    for status, answer in responses.items():
        if status[0] in "45" and answer == problem(int(status)):
            shared[f"Problem{status}"] = answer
            responses[status] = {"$ref": f"#/components/responses/Problem{status}"}


def _is_fastapis_own(answer: Mapping[str, Any]) -> bool:
    return "HTTPValidationError" in str(answer)


_PROBLEM: dict[str, Any] = {
    "title": "Problem",
    "description": "RFC 9457 problem details.",
    "type": "object",
    "required": ["type", "title", "status", "code"],
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "code": {"type": "string", "description": "The last part of the type; stable."},
        "index": {"type": "integer", "description": "Which command of an atomic batch was refused."},
        "details": {"type": "object", "description": "What the rule saw."},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["field", "message"],
                "properties": {"field": {"type": "string", "description": "Dotted path."}, "message": {"type": "string"}},
            },
        },
        "permission": {"type": "string", "description": "The permission that is missing."},
        "limit_bytes": {"type": "integer"},
        "policy": {"type": "string", "description": "Which limit on the number of requests says no."},
        "retry_after": {"type": "integer", "description": "Seconds until there is room again."},
    },
}

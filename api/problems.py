"""Errors as RFC 9457 problem details. ``type`` is ``urn:holdbook:problem:<code>``, and codes are stable."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import psycopg
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from psycopg_pool import PoolTimeout, TooManyRequests
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from api.tracing import SERVING
from domain.kernel.decider import Rejected
from eventstore.deciding import refusal_reply
from eventstore.errors import Draining, KeyReused, Overloaded, StoreError, UnknownEventType
from eventstore.sealing import Erased
from projections.consumer import ProjectionBehind

PREFIX = "urn:holdbook:problem:"
MEDIA_TYPE = "application/problem+json"
RETRY_SECONDS = 1

CODES: Mapping[str, tuple[int, str]] = {
    "request.malformed": (400, "The body is not JSON."),
    "request.invalid": (422, "The request has fields that cannot be accepted."),
    "request.too_large": (413, "The body is larger than this server accepts."),
    "idempotency.key_required": (400, "Send an Idempotency-Key header, or a correlation_id in the body."),
    "idempotency.key_invalid": (400, "An idempotency key is 1 to 255 printable ASCII characters."),
    "idempotency.key_reused": (422, "The same idempotency key was used before with another body."),
    "auth.required": (401, "Send an API key or an access token: Authorization: Bearer ..."),
    "auth.key_invalid": (401, "The API key is not known, was revoked or has expired."),
    "auth.token_invalid": (401, "The access token is not valid here."),
    "auth.token_expired": (401, "The access token has expired; refresh it."),
    "auth.session_ended": (401, "The session has ended; sign in again."),
    "auth.refresh_invalid": (401, "This is no refresh token of ours."),
    "auth.refresh_reused": (401, "This refresh token was used before. The session has ended, because one of those who have it stole it."),
    "auth.device_mismatch": (401, "This session belongs to another device. It has ended, because the refresh token may be stolen."),
    "auth.user_suspended": (403, "This person is suspended; the administrators of the tenant know why."),
    "auth.csrf": (403, "Another site may have made the browser send this. Send the header X-CSRF-Token, from /v1/auth/csrf."),
    "auth.permission_missing": (403, "This key or person may not do this."),
    "auth.tenant_required": (400, "Name the tenant by its id: Holdbook-Tenant: <id>."),
    "auth.sign_in_refused": (401, "Nobody can sign in with this, or not now."),
    "auth.slow_down": (429, "Several sign-ins failed; try again after the seconds that Retry-After says."),
    "auth.proof_used": (401, "This proof was used to sign in before; get a new one."),
    "auth.token_not_good": (401, "This invitation or reset is not known, was used or has expired."),
    "auth.password_wrong": (403, "The old password is not this person's."),
    "auth.tenant_suspended": (403, "The tenant is suspended; the operators of this platform know why."),
    "users.role_not_yours": (403, "This role is not for you to give, to take away or to act on."),
    "auth.not_yours": (403, "A person with this role acts for themselves alone: the subject is another one."),
    "rate.limited": (429, "Too many requests; send it again after the seconds that Retry-After says."),
    "connection.headers_too_large": (431, "The request has more header lines, or larger ones, than this server accepts."),
    "connection.url_too_long": (414, "The address is longer than this server accepts."),
    "connection.too_slow": (408, "The request did not come to its end in time."),
    "connection.too_many": (503, "Too many connections are open; connect again shortly."),
    "connection.malformed": (400, "This is no HTTP request."),
    "route.not_found": (404, "There is nothing at this address."),
    "route.method_not_allowed": (405, "This address does not know this method."),
    "projection.behind": (503, "The read model has not reached the asked position yet; ask again."),
    "store.unavailable": (503, "The store cannot be reached or did not confirm; send the request again with the same key."),
    "store.overloaded": (503, "Too many commands are waiting; send the request again shortly with the same key."),
    "store.draining": (503, "This process is shutting down; send the request again with the same key."),
    "store.unknown_event_type": (503, "A newer version of the program wrote here; send the request again with the same key."),
    "privacy.erased": (409, "This person was erased; nothing personal can be kept about them any more."),
    "privacy.not_a_person": (404, "This subject is nobody whose personal data could be asked for."),
    "audit.no_key": (501, "This server has no key to sign an export with; its operators set HOLDBOOK_AUDIT_KEY_FILE."),
    "internal": (500, "Something went wrong here; the request may be sent again with the same key."),
}
"""Every problem that is not a rule's refusal: code to status and title. Refusals are listed with the domain's deciders."""

UNREACHABLE = (psycopg.OperationalError, PoolTimeout, TooManyRequests, OSError)
"""What is raised when the database does not answer; TimeoutError is an OSError."""

_RETRYABLE: Mapping[type[StoreError], str] = {
    Overloaded: "store.overloaded",
    Draining: "store.draining",
    UnknownEventType: "store.unknown_event_type",
}
_STATUS_OF_KIND = {"conflict": 409, "not_found": 404, "invalid": 422}


class Problem(Exception):
    """An answer that is not a success. ``members`` are added to the body as they are."""

    def __init__(
        self,
        code: str,
        *,
        status: int | None = None,
        title: str | None = None,
        headers: Mapping[str, str] | None = None,
        **members: Any,
    ) -> None:
        super().__init__(code)
        known_status, known_title = CODES.get(code, (500, code))
        self.code, self.status, self.title = code, status or known_status, title or known_title
        self.headers = dict(headers or {})
        if self.status == 503:
            self.headers.setdefault("Retry-After", str(RETRY_SECONDS))
        self.members = {name: value for name, value in members.items() if value is not None}

    def body(self) -> dict[str, Any]:
        """The problem document."""
        return {"type": PREFIX + self.code, "title": self.title, "status": self.status, "code": self.code, **self.members}

    def response(self) -> Response:
        """The document as an answer."""
        return Response(msgspec.json.encode(self.body()), self.status, self.headers, MEDIA_TYPE)


def of_refusal(told: Mapping[str, Any]) -> Problem:
    """A rule's refusal, from what the store keeps of it."""
    members = {name: told[name] for name in ("index", "details") if name in told}
    if (field := told.get("field")) is not None:
        members["errors"] = [{"field": field, "message": told["message"]}]
    problem = Problem(told["code"], status=_STATUS_OF_KIND[told["kind"]], title=told["message"], **members)
    if (retry_at := members.get("details", {}).get("retry_at")) is not None:
        # The document is kept for ever and says when; how long that is from now on is another number each time it is asked.
        problem.headers["Retry-After"] = str(_seconds_until(retry_at))
    return problem


def _seconds_until(moment: datetime | str) -> int:
    """From now on, rounded up; 0 when it is over. What comes from the log is a text."""
    at = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
    return max(0, math.ceil((at - datetime.now(UTC)).total_seconds()))


def of_error(error: Exception) -> Problem:
    """Whatever was raised, as a problem; what is not known says nothing about itself."""
    match error:
        case Problem():
            return error
        case Rejected():
            return of_refusal(refusal_reply(error))
        case Erased():
            return Problem("privacy.erased")
        case KeyReused():
            return Problem("idempotency.key_reused")
        case StoreError() if error.retryable:
            return Problem(_RETRYABLE.get(type(error), "store.unavailable"))
        case ProjectionBehind():
            return Problem("projection.behind")
        case _ if isinstance(error, UNREACHABLE):
            return Problem("store.unavailable")
        case ClientDisconnect():
            return Problem("request.malformed")  # nobody is there to read it
        case RequestValidationError():
            return invalid(error.errors())
        case HTTPException(status_code=404):
            return Problem("route.not_found")
        case HTTPException(status_code=405):
            return Problem("route.method_not_allowed", headers=error.headers)
        case HTTPException():
            return Problem(f"http.{error.status_code}", status=error.status_code, title=error.detail, headers=error.headers)
        case _:
            return Problem("internal")


def invalid(errors: Sequence[ErrorDetails | Mapping[str, Any]], tags: frozenset[str] = frozenset()) -> Problem:
    """A validation failure. Names fields and says what is wrong; values are never repeated, for they may be secrets."""
    if any(error["type"] == "json_invalid" for error in errors):
        return Problem("request.malformed")
    return Problem("request.invalid", errors=[{"field": _field(error, tags), "message": _message(error)} for error in errors[:100]])


def _field(error: Mapping[str, Any], tags: frozenset[str]) -> str:
    named = (error.get("ctx") or {}).get("field")
    loc = error["loc"]
    if loc and loc[0] in ("query", "path", "header", "body"):
        loc = loc[1:]
    # A union's tag follows the index of its item; people look for the field.
    parts = [str(part) for i, part in enumerate(loc) if not (part in tags and i and isinstance(loc[i - 1], int))]
    return ".".join([*parts, named] if named else parts)


def _message(error: Mapping[str, Any]) -> str:
    if error["type"] == "extra_forbidden":
        return "This field is not known."
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{message}." if message[-1:].isalnum() else message


OUR_OWN: tuple[type[Exception], ...] = (Problem, Rejected, Erased, StoreError, ProjectionBehind, ClientDisconnect, *UNREACHABLE)
"""What has an answer of its own; everything else is a bug."""


async def handle(request: Request, error: Exception) -> Response:
    """For whatever a route raises."""
    problem = of_error(error)
    serving = SERVING.get()
    if problem.status == 500 and serving is not None:
        problem.members["instance"] = serving.instance
    return problem.response()

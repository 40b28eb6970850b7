"""API keys: issue, list, rotate and revoke them. A key's text is derived from the tenant's secret, so that no event has to hold it."""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal
from uuid import UUID, uuid5

import msgspec
from fastapi import APIRouter, Path, Query, Request
from pydantic import AfterValidator, ConfigDict, Field, PrivateAttr
from starlette.responses import Response

from api import paging
from api.bodies import MAX_AMOUNT, Body, CommandBody, Moment
from api.edge import ask, run
from api.openapi import command, query
from domain.identity import service_accounts as domain
from domain.identity.permissions import KEY_PERMISSIONS
from domain.identity.service_accounts import SERVICE_ACCOUNT, service_account_stream
from eventstore.requests import Item
from eventstore.sealing import Sealing

if TYPE_CHECKING:
    from api.auth import Principal
    from projections.keys import KeyRow

router = APIRouter(tags=["keys"])

PERMISSION = "keys:admin"
SECRET = "api-key"  # noqa: S105  # the purpose, not the secret
_ID = r"^[0-9a-f]{32}_[0-9a-f]{8}$"
_ID_MEANS = "The account's and the key's own part of the key's text, as the list shows it."
KeyPath = Annotated[str, Path(pattern=_ID, description=_ID_MEANS)]
_decode = msgspec.json.decode
_encode = msgspec.json.Encoder().encode


def secret_of(secret: bytes, account_id: UUID, key_id: str) -> str:
    """The secret part of a key: the same for whoever sends the same request again, and known to nobody without the tenant's secret."""
    return urlsafe_b64encode(hmac.digest(secret, f"{account_id.hex}|{key_id}".encode(), "sha256")).decode().rstrip("=")


def _known_once(scopes: list[str]) -> list[str]:
    if len(set(scopes)) != len(scopes):
        raise ValueError("A scope is named twice.")
    if not set(scopes) <= set(KEY_PERMISSIONS):
        raise ValueError("A scope is not known, or is not for keys.")
    return scopes


class _Making(CommandBody):
    """A command that makes a key. Which one follows from the command's id, so the same request makes the same."""

    permission: ClassVar[str] = PERMISSION

    expires_at: Annotated[Moment | None, Field(description="When it ends.")] = None

    _account_id: UUID = PrivateAttr(UUID(int=0))
    _key_id: str = PrivateAttr("")
    _text: str = PrivateAttr("")
    _secret_hash: str = PrivateAttr("")

    async def _make(self, sealing: Sealing, tenant_id: UUID, command_id: UUID, account_id: UUID) -> None:
        self._account_id, self._key_id = account_id, uuid5(command_id, "key").hex[:8]
        secret = secret_of(await sealing.secret(tenant_id, SECRET), account_id, self._key_id)
        self._secret_hash = sha256(secret.encode()).hexdigest()
        self._text = f"hbk_{tenant_id.hex}_{account_id.hex}_{self._key_id}_{secret}"

    def shown(self, told: dict[str, Any]) -> dict[str, Any]:
        """The reply that is kept, with what is not: the text, and the id as addresses have it."""
        account = self._account_id.hex
        more = {"old_key_id": f"{account}_{told['old_key_id']}"} if "old_key_id" in told else {}
        return {**told, **more, "account_id": account, "key_id": f"{account}_{self._key_id}", "key": self._text}


class IssueKey(_Making):
    """Issue an API key, of a new service account or of one that is there."""

    operation: ClassVar[str] = "issue_key"

    name: Annotated[
        str,
        Field(
            min_length=1,
            max_length=domain.MAX_NAME,
            pattern=r"^[^\x00-\x1f\x7f-\x9f]+$",
            description="A label, kept for ever: not a person's name. Need not be unique.",
        ),
    ]
    scopes: Annotated[
        list[str],
        Field(min_length=1, max_length=len(KEY_PERMISSIONS), description="What it may do; nothing that you may not do yourself."),
        AfterValidator(_known_once),
    ]
    account_id: Annotated[str | None, Field(pattern=r"^[0-9a-f]{32}$", description="A service account; a new one when not given.")] = None

    def asked_by(self, principal: Principal) -> None:  # as in the base class, here and below
        for scope in self.scopes:
            principal.require(scope)

    async def seal(self, sealing: Sealing, tenant_id: UUID, command_id: UUID) -> None:
        account_id = uuid5(command_id, "account") if self.account_id is None else UUID(self.account_id)
        await self._make(sealing, tenant_id, command_id, account_id)

    def item(self, tenant_id: UUID, command_id: UUID, index: int) -> Item:
        wanted = domain.IssueKey(
            key_id=self._key_id,
            secret_hash=self._secret_hash,
            scopes=tuple(self.scopes),
            name=self.name,
            expires_at=self.expires_at,
            begins=self.account_id is None,
        )
        return Item(SERVICE_ACCOUNT, service_account_stream(self._account_id), wanted)


class RotateKey(_Making):
    """Issue a key with the same name and scopes in a key's place; the old one goes on for a while."""

    operation: ClassVar[str] = "rotate_key"
    path_fields: ClassVar[tuple[str, ...]] = ("key_id",)

    key_id: Annotated[str, Field(pattern=_ID)]
    overlap_seconds: Annotated[
        int, Field(ge=0, le=domain.MAX_OVERLAP_SECONDS, description="How long the old one goes on; 0 ends it at once.")
    ] = domain.OVERLAP_SECONDS

    _may_give: frozenset[str] = PrivateAttr(frozenset())

    def asked_by(self, principal: Principal) -> None:
        self._may_give = principal.permissions

    async def seal(self, sealing: Sealing, tenant_id: UUID, command_id: UUID) -> None:
        await self._make(sealing, tenant_id, command_id, UUID(self.key_id[:32]))

    def item(self, tenant_id: UUID, command_id: UUID, index: int) -> Item:
        wanted = domain.RotateKey(
            key_id=self.key_id[33:],
            new_key_id=self._key_id,
            secret_hash=self._secret_hash,
            overlap_seconds=self.overlap_seconds,
            expires_at=self.expires_at,
            may_give=self._may_give,
        )
        return Item(SERVICE_ACCOUNT, service_account_stream(self._account_id), wanted)


class RevokeKey(CommandBody):
    """End a key."""

    operation: ClassVar[str] = "revoke_key"
    permission: ClassVar[str] = PERMISSION
    path_fields: ClassVar[tuple[str, ...]] = ("key_id",)

    key_id: Annotated[str, Field(pattern=_ID)]

    def item(self, tenant_id: UUID, command_id: UUID, index: int) -> Item:
        return Item(SERVICE_ACCOUNT, service_account_stream(UUID(self.key_id[:32])), domain.RevokeKey(key_id=self.key_id[33:]))

    def default_key(self) -> str | None:
        return self.key_id


# Answers


class IssuedKey(Body):
    """A new key. `key` is its text, for the Authorization header; the same request with the same idempotency key shows it again."""

    key_id: str
    account_id: str
    key: str
    name: str
    scopes: list[str]
    expires_at: str | None = None


class RotatedKey(IssuedKey):
    """A new key in the place of an old one, which ends at `old_expires_at`."""

    old_key_id: str
    old_expires_at: str


class KeyEnded(Body):
    """No process accepts it from the next second on."""

    key_id: str
    status: Literal["revoked"]


@dataclass(frozen=True, slots=True)
class Key:
    """A key. `last_used_at` is up to a minute old, and null when it was not used since that is counted."""

    key_id: str
    account_id: str
    name: str
    scopes: list[str]
    issued_at: datetime
    expires_at: datetime | None = None
    last_used_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class KeyList:
    """One page."""

    keys: tuple[Key, ...]


_AT = datetime(2026, 11, 21, 5, 45, tzinfo=UTC)
_ACCOUNT = "6f1c8f0e2b7a4c5d9e3f1a2b3c4d5e6f"
_EXAMPLE: Any = msgspec.to_builtins(
    Key(f"{_ACCOUNT}_0a1b2c3d", _ACCOUNT, "bot", ["usage:read", "usage:write"], _AT, None, _AT + timedelta(hours=3))
)
_ISSUED = {name: _EXAMPLE[name] for name in ("key_id", "account_id", "name", "scopes", "expires_at")} | {
    "key": f"hbk_7e2a91b064c34f0d8c550d5b2f7c11a3_{_ACCOUNT}_0a1b2c3d_" + "A" * 43
}
_ROTATED = {**_ISSUED, "old_key_id": f"{_ACCOUNT}_4e5f6a7b", "old_expires_at": "2026-11-22T05:45:00Z"}
_KEY = {"correlation_id": "console-61"}


class _KeysQuery(Body):
    # Query values are text, so they cannot be strict.
    model_config = ConfigDict(extra="forbid", strict=False)

    cursor: paging.Cursor = None
    limit: Annotated[int, Field(ge=1, le=200)] = 50
    min_position: Annotated[int | None, Field(ge=0, le=MAX_AMOUNT, description="Wait until the read model has come so far.")] = None


async def _run(request: Request, model: type[_Making], path: dict[str, str] | None = None) -> Response:
    """Take the command, and add to its answer what no event and no reply that is kept may hold."""
    made: list[_Making] = []
    answer = await run(request, model, path, made.append)
    if answer.status_code != 200:
        return answer
    headers = {name: value for name, value in answer.headers.items() if name not in ("content-length", "content-type")}
    headers["Cache-Control"] = "no-store"
    return Response(_encode(made[0].shown(_decode(bytes(answer.body)))), 200, headers, "application/json")


@router.post(
    "/v1/keys",
    **command(
        IssueKey,
        IssuedKey,
        "issue_key",
        body={"key": {"name": "bot", "scopes": ["usage:read", "usage:write"], **_KEY}},
        answer=_ISSUED,
        refusals=("service.too_many_keys", "service.key_exists"),
        missing="service.account_not_found",
    ),
)
async def issue_key(request: Request) -> Response:
    """Issue an API key and show its text. One may give only what one may do oneself."""
    return await _run(request, IssueKey)


@router.get("/v1/keys", **query(KeyList, "list_keys", permission=PERMISSION, answer={"keys": [_EXAMPLE]}, found=False))
async def list_keys(request: Request, asked_for: Annotated[_KeysQuery, Query()]) -> Response:
    """The keys that were not revoked, by service account. The Link header leads to the next page."""
    asked = await ask(request, PERMISSION)
    place = paging.place(asked_for.cursor, 2)
    found = await asked.edge.readers.keys.list(asked.principal.tenant_id, _after(place), asked_for.limit, asked_for.min_position)
    last = (found[-1].account_id.hex, found[-1].key_id) if len(found) == asked_for.limit else None
    return paging.page(request, {"keys": [_key(row) for row in found]}, last)


def _after(place: tuple[str, str] | None) -> tuple[UUID, str] | None:
    if place is None:
        return None
    try:
        return UUID(place[0]), place[1]
    except ValueError:
        raise paging.not_a_cursor() from None


def _key(row: KeyRow) -> Key:
    account = row.account_id.hex
    return Key(f"{account}_{row.key_id}", account, row.name, row.scopes, row.issued_at, row.expires_at, row.last_used_at)


@router.post(
    "/v1/keys/{key_id}/rotate",
    **command(
        RotateKey,
        RotatedKey,
        "rotate_key",
        body={"key": {"overlap_seconds": 3_600, **_KEY}},
        answer=_ROTATED,
        refusals=("service.key_expired", "service.scopes_not_yours", "service.too_many_keys"),
        missing="service.key_not_found",
    ),
)
async def rotate_key(request: Request, key_id: KeyPath) -> Response:
    """Issue a key with the same name and scopes and show its text; the old one ends after the overlap.

    Without `expires_at` the new one lasts as long as the old one was to.
    """
    return await _run(request, RotateKey, {"key_id": key_id})


@router.delete(
    "/v1/keys/{key_id}",
    **command(
        RevokeKey,
        KeyEnded,
        "revoke_key",
        body={},
        answer={"key_id": _EXAMPLE["key_id"], "status": "revoked"},
        refusals=(),
        missing="service.key_not_found",
    ),
)
async def revoke_key(request: Request, key_id: KeyPath) -> Response:
    """End a key; within one second no process accepts it. Without an idempotency key, its id is the key."""
    answer = await run(request, RevokeKey, {"key_id": key_id})
    if answer.status_code != 200:
        return answer
    headers = {name: value for name, value in answer.headers.items() if name not in ("content-length", "content-type")}
    return Response(_encode({"key_id": key_id, "status": "revoked"}), 200, headers, "application/json")

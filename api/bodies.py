"""What request bodies are made of: strict, with unknown fields refused, each error naming its field."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar
from uuid import UUID

import msgspec
from fastapi import Request
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from api.idempotency import KEY_PATTERN
from api.problems import Problem, invalid
from eventstore.requests import Item
from eventstore.sealing import Sealing

if TYPE_CHECKING:
    from api.auth import Principal
    from eventstore.store import Store

MAX_AMOUNT = 2**63 - 1


def _in_utc(moment: datetime) -> datetime:
    if not 1970 <= moment.year <= 9998:
        raise ValueError("Years go from 1970 to 9998.")
    return moment.astimezone(UTC)


Amount = Annotated[int, Field(ge=1, le=MAX_AMOUNT)]
AmountOrZero = Annotated[int, Field(ge=0, le=MAX_AMOUNT)]
Subject = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]
Meter = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_.\-]{0,62}$")]
Identity = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\-]{1,64}$")]
ReservationId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_\-]{40}$")]
TtlSeconds = Annotated[int, Field(ge=1, le=30 * 86400)]
Moment = Annotated[AwareDatetime, AfterValidator(_in_utc)]
"""With an offset; from here on in UTC."""


class Body(BaseModel):
    """Part of a request body."""

    model_config = ConfigDict(extra="forbid", strict=True)


class CommandBody(Body):
    """A command as a client writes it: alone to its own address, or in a batch under the name ``operation``."""

    operation: ClassVar[str]
    permission: ClassVar[str]
    path_fields: ClassVar[tuple[str, ...]] = ()
    """Fields that a single request has in its path; in a batch they stand in the item."""
    secret_fields: ClassVar[frozenset[str]] = frozenset()
    """Fields that no fingerprint is made of: a password must not be found out by trying."""

    correlation_id: Annotated[str | None, Field(pattern=KEY_PATTERN, description="The idempotency key, when no header brings one.")] = None

    def item(self, tenant_id: UUID, command_id: UUID, index: int) -> Item:
        """The command on its stream; ``index`` is the item's place in an atomic batch."""
        raise NotImplementedError

    def asked_by(self, principal: Principal) -> None:
        """Fit it to who asks, before anything else is made of it: fill in what is theirs, or refuse by a `Problem`."""

    async def look(self, store: Store, principal: Principal) -> None:
        """Read what the command must be made of, or refuse by a `Problem`. What is read may change until the command is decided."""

    def items(self, tenant_id: UUID, command_id: UUID, index: int = 0) -> tuple[Item, ...]:
        """All that is to happen at once for the command. Of several, the last one's reply is the command's."""
        return (self.item(tenant_id, command_id, index),)

    async def seal(self, sealing: Sealing, tenant_id: UUID, command_id: UUID) -> None:
        """Seal what is personal or secret, before :meth:`items` is asked."""

    def person(self, tenant_id: UUID, command_id: UUID) -> UUID | None:
        """Whose personal data the body holds. Its fingerprint is then made with a key that ends when the person is erased."""
        return None

    def default_key(self) -> str | None:
        """The idempotency key of a command that can only be meant once."""
        return None


Model = TypeVar("Model", bound=Body)


def parse(model: type[Model], raw: bytes, tags: frozenset[str] = frozenset()) -> Model:
    """The body as the model, or a problem that names the fields."""
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        raise invalid(error.errors(include_url=False, include_input=False), tags) from None


def with_path(raw: bytes, path: dict[str, str]) -> bytes:
    """The body with the fields of its path; one that brings them itself is refused."""
    try:
        body: Any = msgspec.json.decode(raw or b"{}")
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Problem("request.malformed") from None
    if not isinstance(body, dict):
        raise invalid([{"type": "object", "loc": (), "msg": "The body must be an object"}])
    if twice := [name for name in path if name in body]:
        raise invalid([{"type": "extra_forbidden", "loc": (name,), "msg": ""} for name in twice])
    return msgspec.json.encode({**body, **path})


async def read(request: Request, headers: dict[bytes, bytes], limit_bytes: int) -> bytes:
    """The whole body; 413 as soon as it is known to be too large."""
    declared = headers.get(b"content-length")
    if declared is not None:
        if not declared.isdigit() or int(declared) > limit_bytes:
            raise Problem("request.too_large", limit_bytes=limit_bytes)
        return await request.body()
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit_bytes:
            raise Problem("request.too_large", limit_bytes=limit_bytes)
        chunks.append(chunk)
    return b"".join(chunks)

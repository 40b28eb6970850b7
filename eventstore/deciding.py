"""A batch under the lock: each command decided in order on working states, its events made into rows of the log.

Nothing here is published. States are persistent values, so a command that fails, or the third item of an atomic batch,
leaves the working states as they were.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime
from hashlib import sha256
from typing import Any
from uuid import UUID

import msgspec

from domain.identity.tenants import TENANT, TenantIsDeleted
from domain.kernel.decider import Event, Refused, Rejected
from eventstore.codec import Codec
from eventstore.errors import CorruptLog, KeyReused, StoreError
from eventstore.log import Known
from eventstore.requests import Outcome, Request
from eventstore.rows import Row, leaf_hash, microseconds
from eventstore.states import Cached, States

_encode = msgspec.json.Encoder().encode
REFUSED = Refused.event_name
_FOREIGN = -1
"""The version a stream of another tenant has for this one: it does not exist, and nothing can be appended to it."""


def refusal_reply(rejected: Rejected) -> dict[str, Any]:
    """What the caller is told about a refusal, and what is kept for its key."""
    told: dict[str, Any] = {"code": rejected.code, "message": rejected.message, "kind": rejected.status}
    if rejected.field_name is not None:
        told["field"] = rejected.field_name
    if rejected.index is not None:
        told["index"] = rejected.index
    if rejected.details:
        told["details"] = dict(rejected.details)
    return told


class Work:
    """What would be appended, and what would be published if that commits."""

    def __init__(self, partition: int, codec: Codec, states: States, known: Mapping[UUID, Known], epoch: int, at: datetime) -> None:
        self._partition, self._codec, self._states, self._known = partition, codec, states, known
        self._at, self._at_us = at, microseconds(at)
        self.epoch, self.position, self.digest = epoch, states.position, states.digest
        self.rows: list[Row] = []
        self.states: dict[str, Cached] = {}
        self._living: set[UUID] = set()
        """Tenants that were looked at, since the last command on any tenant, and not deleted."""

    def take(self, request: Request) -> Outcome | Exception:
        """Decide one request. What it raises is its answer and nobody else's: one bad command fails alone."""
        if request.tenant_id not in self._living and self._deleted(request):
            return TenantIsDeleted()  # also to a key of the past: what was answered then is pruned, or will be
        before = self._known.get(request.command_id)
        if before is not None:
            return self._replay(request, before)
        try:
            return self._decide(request)
        except Rejected as rejected:
            return self._refuse(request, rejected) if rejected.frozen else rejected
        except StoreError as error:
            return error
        except Exception as error:
            error.add_note(f"while deciding {type(request.items[0].command).__name__} on {request.items[0].stream}")
            return error

    def _deleted(self, request: Request) -> bool:
        """Whether the request is of a deleted tenant, and more than the tenant's own aggregate must answer it."""
        if not self._states.deleted(request.tenant_id, self.states):
            self._living.add(request.tenant_id)
            return False
        return any(item.decider is not TENANT for item in request.items)

    def _replay(self, request: Request, before: Known) -> Outcome | Exception:
        if before.tenant_id != request.tenant_id or before.fingerprint != request.fingerprint:
            return KeyReused()
        # Where its last event is was not kept; who reads the log to its present end has read that too.
        return Outcome((before.reply or "null").encode(), before.type == REFUSED, True, self.epoch, self.position)

    def _decide(self, request: Request) -> Outcome:
        if len(request.items) == 1:
            states, decided, reply = self._single(request)
        else:
            states, decided, reply = self._atomic(request)
        if decided:
            self._record(request, decided, reply.decode())
            self.states.update(states)
        return Outcome(reply, False, False, self.epoch, self.position)

    def _single(self, request: Request) -> tuple[dict[str, Cached], list[tuple[str, int, Event]], bytes]:
        states: dict[str, Cached] = {}
        decided: list[tuple[str, int, Event]] = []
        return states, decided, _encode(self._item(request, 0, states, decided))

    def _atomic(self, request: Request) -> tuple[dict[str, Cached], list[tuple[str, int, Event]], bytes]:
        states: dict[str, Cached] = {}
        decided: list[tuple[str, int, Event]] = []
        replies: list[Mapping[str, Any]] = []
        for index in range(len(request.items)):
            try:
                replies.append(self._item(request, index, states, decided))
            except Rejected as rejected:
                rejected.index = index
                raise
        return states, decided, _encode({"results": replies})

    def _item(self, request: Request, index: int, states: dict[str, Cached], decided: list[tuple[str, int, Event]]) -> Mapping[str, Any]:
        decider, stream, command = request.items[index]
        if decider is TENANT:
            self._living.clear()
        tenant_id = request.tenant_id
        found = states.get(stream) or self.states.get(stream) or self._states.get(stream, tenant_id)
        if found is None or (found.version and found.tenant_id != tenant_id):
            found = Cached(tenant_id, _FOREIGN, decider.initial)
        command.at = self._at if request.occurred_at is None else request.occurred_at
        before = state = found.state
        events = decider.decide(command, before)
        if events:
            version = found.version
            if version == _FOREIGN:
                raise CorruptLog(f"Stream {stream} belongs to another tenant.")
            for event in events:
                version += 1
                state = decider.evolve(state, event)
                decided.append((stream, version, event))
            states[stream] = Cached(tenant_id, version, state)
        return decider.reply(command, before, state, events)

    def _refuse(self, request: Request, rejected: Rejected) -> Outcome:
        item = request.items[rejected.index or 0]
        refused = Refused(code=rejected.code, command=type(item.command).__name__, stream=item.stream, index=rejected.index)
        reply = _encode(refusal_reply(rejected))
        self._record(request, [(f"refused-{request.command_id.hex}", 1, refused)], reply.decode())
        return Outcome(reply, True, False, self.epoch, self.position)

    def _record(self, request: Request, decided: list[tuple[str, int, Event]], reply: str) -> None:
        encoded = [(stream, version, *self._codec.encode(event)) for stream, version, event in decided]
        salts = os.urandom(16 * len(encoded))
        told: str | None = reply
        fingerprint: bytes | None = request.fingerprint
        before = len(self.rows), self.position, self.digest
        try:
            for ordinal, (stream, version, type_, payload) in enumerate(encoded):
                self._append(request, stream, version, ordinal, type_, payload, told, fingerprint, salts[16 * ordinal : 16 * ordinal + 16])
                told = fingerprint = None  # only the first event of a command carries them
        except BaseException:
            count, self.position, self.digest = before
            del self.rows[count:]  # or half a command would be recorded
            raise

    def _append(
        self,
        request: Request,
        stream: str,
        version: int,
        ordinal: int,
        type_: str,
        payload: str,
        reply: str | None,
        fingerprint: bytes | None,
        salt: bytes,
    ) -> None:
        position = self.position + 1
        tenant_id, command_id, cause, actor, trace = request.tenant_id, request.command_id, request.cause, request.actor, request.trace
        leaf = leaf_hash(
            self._partition, position, tenant_id, stream, version, command_id, ordinal, type_, self._at_us,
            cause, actor, trace, payload, reply, fingerprint, salt,
        )  # fmt: skip  # the columns in their order
        digest = sha256(self.digest + leaf).digest()
        self.rows.append(
            Row(
                position, tenant_id, stream, version, command_id, ordinal, type_, self._at,
                cause, actor, trace, payload, reply, fingerprint, salt, digest,
            )
        )  # fmt: skip  # as above
        self.position, self.digest = position, digest

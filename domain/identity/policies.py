"""Policies of a tenant: rates, which say how often a subject may do something.

A rate allows ``amount`` takes in any ``seconds`` in a row, seen from the last one backwards. What is taken is counted by a quota with a
rolling window, not here; people whose role is exempt take without being counted. A rate that is changed keeps what was counted, unless its
seconds change: then the count begins anew.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, assert_never
from uuid import UUID

from domain.identity.permissions import ROLES
from domain.kernel.decider import Command, Decider, Event, Rejected, event

__all__ = ["POLICIES", "Policies", "RateNotFound", "RatePolicy", "RemoveRatePolicy", "SetRatePolicy", "policies_stream"]

NAME = re.compile(r"[a-z][a-z0-9_.\-]{0,40}")
"""A rate's name; the meter that counts it is ``rate.`` and the name."""
MAX_AMOUNT = 100_000
"""Takes in a window are counted by the second and kept as long as it lasts; a rate is for people and bots, not for traffic."""
MAX_SECONDS = 86_400
MAX_RATES = 50


def policies_stream(tenant_id: UUID) -> str:
    """The stream of a tenant's policies."""
    return f"policies-{tenant_id.hex}"


# Events. Stored for ever: never rename or remove a class or a field; a change of shape is a new version and an upcast.


@event("policy.rate_set")
@dataclass(frozen=True, slots=True)
class RateSet(Event):
    """A rate is from now on so many takes in so many seconds; people with these roles are exempt."""

    name: str
    amount: int
    seconds: int
    exempt_roles: tuple[str, ...]
    at: datetime


@event("policy.rate_removed")
@dataclass(frozen=True, slots=True)
class RateRemoved(Event):
    """There is no such rate any more."""

    name: str
    at: datetime


# Commands


@dataclass(slots=True, kw_only=True)
class SetRatePolicy(Command):
    name: str
    amount: int
    seconds: int
    exempt_roles: tuple[str, ...] = ()


@dataclass(slots=True, kw_only=True)
class RemoveRatePolicy(Command):
    name: str


PoliciesCommand = SetRatePolicy | RemoveRatePolicy
PoliciesEvent = RateSet | RateRemoved


# State


@dataclass(frozen=True, slots=True)
class RatePolicy:
    """At most ``amount`` takes in any ``seconds``."""

    name: str
    amount: int
    seconds: int
    exempt_roles: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Policies:
    """The rates in force, by name."""

    rates: tuple[RatePolicy, ...] = ()

    def rate(self, name: str) -> RatePolicy | None:
        """The rate with this name."""
        return next((rate for rate in self.rates if rate.name == name), None)


# Decide


class InvalidPolicy(Rejected):
    """A field of the policy makes no sense."""

    code: ClassVar[str] = "policy.invalid"
    frozen: ClassVar[bool] = False
    status: ClassVar[str] = "invalid"


class TooManyRates(Rejected):
    """The tenant has as many rates as it may have; remove one first."""

    code: ClassVar[str] = "policy.too_many_rates"


class RateNotFound(Rejected):
    """The tenant has no rate with this name."""

    code: ClassVar[str] = "policy.rate_not_found"
    frozen: ClassVar[bool] = False
    status: ClassVar[str] = "not_found"


def decide_policies(command: PoliciesCommand, state: Policies) -> Sequence[Event]:
    """The checks come in this order: shape of the command, existence, number of rates."""
    match command:
        case SetRatePolicy():
            return _set(command, state)
        case RemoveRatePolicy():
            return _remove(command, state)
        case _:
            assert_never(command)


def _set(command: SetRatePolicy, state: Policies) -> Sequence[Event]:
    _check(command)
    known, wanted = state.rate(command.name), _rate(command)
    if known == wanted:
        return ()
    if known is None and len(state.rates) >= MAX_RATES:
        raise TooManyRates(max_rates=MAX_RATES)
    return [RateSet(wanted.name, wanted.amount, wanted.seconds, wanted.exempt_roles, command.at)]


def _check(command: SetRatePolicy) -> None:
    if not NAME.fullmatch(command.name):
        raise InvalidPolicy("name")
    if not 1 <= command.amount <= MAX_AMOUNT:
        raise InvalidPolicy("amount")
    if not 1 <= command.seconds <= MAX_SECONDS:
        raise InvalidPolicy("seconds")
    if not set(command.exempt_roles) <= set(ROLES):
        raise InvalidPolicy("exempt_roles")


def _rate(source: SetRatePolicy | RateSet) -> RatePolicy:
    """Roles in one order, so that the same ones are the same policy."""
    return RatePolicy(source.name, source.amount, source.seconds, tuple(sorted(set(source.exempt_roles))))


def _remove(command: RemoveRatePolicy, state: Policies) -> Sequence[Event]:
    if state.rate(command.name) is None:
        raise RateNotFound(name=command.name)
    return [RateRemoved(command.name, command.at)]


# Evolve


def evolve_policies(state: Policies, event: PoliciesEvent) -> Policies:
    """Never refuses."""
    others = tuple(rate for rate in state.rates if rate.name != event.name)
    match event:
        case RateSet():
            return Policies(tuple(sorted((*others, _rate(event)), key=lambda rate: rate.name)))
        case RateRemoved():
            return Policies(others)
        case _:
            assert_never(event)


# Reply


def reply_policies(command: PoliciesCommand, before: Policies, after: Policies, events: Sequence[Event]) -> Mapping[str, Any]:
    match command:
        case SetRatePolicy():
            rate = after.rate(command.name)
            assert rate is not None
            return {"name": rate.name, "amount": rate.amount, "seconds": rate.seconds, "exempt_roles": rate.exempt_roles}
        case RemoveRatePolicy():
            return {"name": command.name, "status": "removed"}
        case _:
            assert_never(command)


# Freeze and thaw


def _same(state: Policies) -> Policies:
    return state


POLICIES: Decider[Policies] = Decider(
    category="policies",
    commands=(SetRatePolicy, RemoveRatePolicy),
    events=(RateSet, RateRemoved),
    initial=Policies(),
    decide=decide_policies,
    evolve=evolve_policies,
    reply=reply_policies,
    frozen_type=Policies,
    freeze=_same,
    thaw=_same,
    refusals=(InvalidPolicy, TooManyRates, RateNotFound),
)

"""Sender accounts: accounts of a messenger that send, and whether one may send now.

A sender is `Active`, in `Cooldown` until a moment, or `Excluded`. What its program reports of its messages moves it:

- A flood (``PeerFlood``, ``FloodWait``) and a limit told by a probe (@SpamBot's answer) begin a cooldown. Its length is the sender's
  ``cooldown_seconds``, doubled with each cooldown since the sender last proved itself, at most ``cooldown_cap_seconds``; a
  ``FloodWait`` never ends before the seconds it named, and a limit never before the moment it named, unless a probe says otherwise.
- During a cooldown a flood or a limit may make it longer, never shorter: the answers to many messages under way are one flood, so they
  neither double anything nor count as errors. A probe that says the sender is free ends it early, though no ``FloodWait`` before its
  seconds.
- Floods and timeouts while it is active are errors; a message that was sent ends their count. At ``max_consecutive_errors`` the sender is
  excluded: so many attempts failed in a row, cooldowns between them, that waiting has not helped, and a person must look.
- A message sent after the sender worked for as long as its last backoff lasted proves it: the next cooldown begins with the first length.
- An excluded sender stays so, whatever is reported, until somebody restores it; a ``FloodWait`` of before is then still waited for.

A cooldown that is over is over at its moment, whether or not the deadline's command has come: who decides looks at the time first.

Sender ids are the client's own opaque names, kept for ever: no telephone numbers, no names of persons. The label is sealed text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, ClassVar, Literal, assert_never
from uuid import UUID, uuid5

from domain.kernel.deadlines import Done, Due
from domain.kernel.decider import Command, Decider, Event, Rejected, event

__all__ = [
    "SENDER", "Account", "Active", "ChangeSender", "CheckSender", "Cooldown", "EndCooldown", "ExcludeSender", "Excluded", "FloodWait",
    "NoSender", "PeerFlood", "Probe", "RegisterSender", "ReportSignal", "RestoreSender", "Sent", "Timeout", "sender_stream", "settled",
]  # fmt: skip

DEFAULT_MAX_ERRORS = 5
DEFAULT_COOLDOWN_SECONDS = 300
DEFAULT_CAP_SECONDS = 24 * 3600
MAX_ERRORS = 1_000
MAX_COOLDOWN_SECONDS = 30 * 86_400
MAX_WAIT_SECONDS = 366 * 86_400
MAX_LIMIT = timedelta(days=3_660)
"""How far from now a limit may end that a probe was told of."""

COOLDOWN = "cooldown"
"""The deadline's name."""

Why = Literal["peer_flood", "flood_wait", "limited"]


@lru_cache(maxsize=65_536)
def sender_stream(tenant_id: UUID, sender_id: str) -> str:
    """The stream of a tenant's sender account."""
    return "sender-" + uuid5(tenant_id, f"sender\x00{sender_id}").hex


# Events. Stored for ever: never rename or remove a class or a field; a change of shape is a new version and an upcast.


@event("sender.registered")
@dataclass(frozen=True, slots=True)
class Registered(Event):
    """A sender account began, active. ``label`` is sealed text, or empty."""

    sender_id: str
    owner: str
    label: str
    max_consecutive_errors: int
    cooldown_seconds: int
    cooldown_cap_seconds: int
    at: datetime


@event("sender.changed")
@dataclass(frozen=True, slots=True)
class Changed(Event):
    """A sender has another label or other settings; a cooldown under way keeps its end."""

    sender_id: str
    label: str
    max_consecutive_errors: int
    cooldown_seconds: int
    cooldown_cap_seconds: int
    at: datetime


@event("sender.failed")
@dataclass(frozen=True, slots=True)
class Failed(Event):
    """A message timed out; ``errors`` came in a row by now."""

    sender_id: str
    errors: int
    at: datetime


@event("sender.recovered")
@dataclass(frozen=True, slots=True)
class Recovered(Event):
    """A message was sent: no errors in a row any more, and the next cooldown is the one of number ``step``."""

    sender_id: str
    step: int
    at: datetime


@event("sender.cooldown_started")
@dataclass(frozen=True, slots=True)
class CooldownStarted(Event):
    """The sender must not send before ``until``; its backoff was doubled ``step`` times. ``not_before`` is what no probe can shorten."""

    sender_id: str
    reason: Why
    until: datetime
    not_before: datetime | None
    step: int
    errors: int
    at: datetime


@event("sender.cooldown_moved")
@dataclass(frozen=True, slots=True)
class CooldownMoved(Event):
    """The cooldown under way ends at another moment."""

    sender_id: str
    reason: Why
    until: datetime
    not_before: datetime | None
    at: datetime


@event("sender.cooldown_ended")
@dataclass(frozen=True, slots=True)
class CooldownEnded(Event):
    """The sender has been active again since ``ended_at``: its time was ``over``, or a probe said that it is ``free``."""

    sender_id: str
    reason: Literal["over", "free"]
    ended_at: datetime
    at: datetime


@event("sender.excluded")
@dataclass(frozen=True, slots=True)
class SenderWasExcluded(Event):
    """The sender must not send until somebody restores it: somebody ``asked``, or too many ``errors`` came in a row."""

    sender_id: str
    reason: Literal["asked", "errors"]
    errors: int
    not_before: datetime | None
    at: datetime


@event("sender.restored")
@dataclass(frozen=True, slots=True)
class Restored(Event):
    """The sender is no longer excluded, and begins anew: no errors, and the first length of cooldowns."""

    sender_id: str
    at: datetime


# Signals


@dataclass(frozen=True, slots=True)
class Sent:
    """A message was sent."""


@dataclass(frozen=True, slots=True)
class Timeout:
    """A message got no answer in time."""


@dataclass(frozen=True, slots=True)
class PeerFlood:
    """The messenger says that the account writes to too many strangers."""


@dataclass(frozen=True, slots=True)
class FloodWait:
    """The messenger wants nothing from the account for so many seconds."""

    seconds: int


@dataclass(frozen=True, slots=True)
class Probe:
    """What @SpamBot answered: ``free`` of limits, or limited, until a moment if it named one."""

    free: bool
    limited_until: datetime | None = None


Signal = Sent | Timeout | PeerFlood | FloodWait | Probe


# Commands


@dataclass(slots=True, kw_only=True)
class _OfSender(Command):
    sender_id: str
    only_of: str | None = None
    """Whoever asks may act for senders of this owner alone; those of others do not exist for them."""


@dataclass(slots=True, kw_only=True)
class RegisterSender(Command):
    sender_id: str
    owner: str
    label: str = ""
    max_consecutive_errors: int = DEFAULT_MAX_ERRORS
    cooldown_seconds: int = DEFAULT_COOLDOWN_SECONDS
    cooldown_cap_seconds: int = DEFAULT_CAP_SECONDS


@dataclass(slots=True, kw_only=True)
class ChangeSender(_OfSender):
    """Replaces them all, so what is not given is the default again."""

    label: str = ""
    max_consecutive_errors: int = DEFAULT_MAX_ERRORS
    cooldown_seconds: int = DEFAULT_COOLDOWN_SECONDS
    cooldown_cap_seconds: int = DEFAULT_CAP_SECONDS


@dataclass(slots=True, kw_only=True)
class ReportSignal(_OfSender):
    signal: Signal


@dataclass(slots=True, kw_only=True)
class ExcludeSender(_OfSender):
    """`ManualExclude`."""


@dataclass(slots=True, kw_only=True)
class RestoreSender(_OfSender):
    """Nothing happens to a sender that is not excluded: no cooldown ends by this."""


@dataclass(slots=True, kw_only=True)
class CheckSender(_OfSender):
    """Refuses unless the sender may send now; records nothing. Stands before a reservation in one atomic request."""


@dataclass(slots=True, kw_only=True)
class EndCooldown(Command):
    """The deadline came."""


SenderCommand = RegisterSender | ChangeSender | ReportSignal | ExcludeSender | RestoreSender | CheckSender | EndCooldown
SenderEvent = (
    Registered | Changed | Failed | Recovered | CooldownStarted | CooldownMoved | CooldownEnded | SenderWasExcluded | Restored
)  # fmt: skip


# State


@dataclass(frozen=True, slots=True)
class Account:
    """What does not depend on the situation."""

    sender_id: str
    owner: str
    label: str
    max_consecutive_errors: int
    cooldown_seconds: int
    cooldown_cap_seconds: int

    def backoff(self, step: int) -> timedelta:
        """How long a cooldown lasts after so many others."""
        return timedelta(seconds=min(self.cooldown_seconds << min(step, 40), self.cooldown_cap_seconds))


@dataclass(frozen=True, slots=True)
class NoSender:
    """There is no such sender."""


@dataclass(frozen=True, slots=True)
class Active:
    """``step`` cooldowns came since it last proved itself, which it does by a message sent at or after ``proves_at``."""

    account: Account
    errors: int = 0
    step: int = 0
    proves_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Cooldown:
    """Its backoff was doubled ``step`` times; ``not_before`` is when the last `FloodWait` is over."""

    account: Account
    errors: int
    step: int
    reason: Why
    until: datetime
    not_before: datetime | None = None


@dataclass(frozen=True, slots=True)
class Excluded:
    """``not_before`` is when a `FloodWait` is over that came before, whoever restores it."""

    account: Account
    errors: int
    reason: Literal["asked", "errors"]
    not_before: datetime | None = None


Known = Active | Cooldown | Excluded
SenderState = NoSender | Known


# Decide


class InvalidSender(Rejected):
    """A field of the command makes no sense."""

    code: ClassVar[str] = "sender.invalid"
    frozen: ClassVar[bool] = False
    status: ClassVar[str] = "invalid"


class SenderNotFound(Rejected):
    """There is no such sender account, or it is somebody else's."""

    code: ClassVar[str] = "sender.not_found"
    frozen: ClassVar[bool] = False
    status: ClassVar[str] = "not_found"


class SenderExists(Rejected):
    """A sender account has this id already."""

    code: ClassVar[str] = "sender.exists"


class SenderCoolingDown(Rejected):
    """The sender account is in a cooldown and may send again at `retry_at`. Ask again then, under a new key."""

    code: ClassVar[str] = "sender.cooling_down"


class SenderExcluded(Rejected):
    """The sender account is excluded until somebody restores it."""

    code: ClassVar[str] = "sender.excluded"


def decide_sender(command: SenderCommand, state: SenderState) -> Sequence[SenderEvent]:
    """The checks come in this order: shape of the command, existence, owner, a cooldown that is over, the command's own rule."""
    match command:
        case RegisterSender():
            return _register(command, state)
        case EndCooldown():
            return _over(state, command.at)
        case CheckSender():
            return _check(command, _own(command, state))
        case ChangeSender():
            _check_settings(command)
        case ReportSignal() | ExcludeSender() | RestoreSender():
            pass
        case _:
            assert_never(command)
    found = _own(command, state)
    before = _over(found, command.at)
    if before:
        found = _known(evolve_sender(found, before[0]))
    return [*before, *_act(command, found)]


def _act(command: ChangeSender | ReportSignal | ExcludeSender | RestoreSender, state: Known) -> Sequence[SenderEvent]:
    match command:
        case ChangeSender():
            return _change(command, state.account)
        case ReportSignal():
            return _signal(command.signal, state, command.at)
        case ExcludeSender():
            return _exclude(state, command.at)
        case RestoreSender():
            return _restore(state, command.at)
        case _:
            assert_never(command)


def _known(state: SenderState) -> Known:
    assert not isinstance(state, NoSender)
    return state


def _own(command: _OfSender, state: SenderState) -> Known:
    if isinstance(state, NoSender) or command.only_of not in (None, state.account.owner):
        raise SenderNotFound(sender_id=command.sender_id)
    return state


def _over(state: SenderState, at: datetime) -> Sequence[CooldownEnded]:
    """The end of a cooldown whose time is over."""
    if isinstance(state, Cooldown) and state.until <= at:
        return [CooldownEnded(state.account.sender_id, "over", state.until, at)]
    return ()


def _register(command: RegisterSender, state: SenderState) -> Sequence[SenderEvent]:
    _check_settings(command)
    if not isinstance(state, NoSender):
        raise SenderExists(sender_id=command.sender_id)
    settings = command.max_consecutive_errors, command.cooldown_seconds, command.cooldown_cap_seconds
    return [Registered(command.sender_id, command.owner, command.label, *settings, command.at)]


def _check_settings(command: RegisterSender | ChangeSender) -> None:
    if not 1 <= command.max_consecutive_errors <= MAX_ERRORS:
        raise InvalidSender("max_consecutive_errors")
    if not 1 <= command.cooldown_seconds <= MAX_COOLDOWN_SECONDS:
        raise InvalidSender("cooldown_seconds")
    if not command.cooldown_seconds <= command.cooldown_cap_seconds <= MAX_COOLDOWN_SECONDS:
        raise InvalidSender("cooldown_cap_seconds")


def _change(command: ChangeSender, account: Account) -> Sequence[SenderEvent]:
    settings = command.max_consecutive_errors, command.cooldown_seconds, command.cooldown_cap_seconds
    if Account(account.sender_id, account.owner, command.label, *settings) == account:
        return ()
    return [Changed(account.sender_id, command.label, *settings, command.at)]


def _signal(signal: Signal, state: Known, at: datetime) -> Sequence[SenderEvent]:
    _check_signal(signal, at)
    match state:
        case Active():
            return _while_active(signal, state, at)
        case Cooldown():
            return _while_cooling_down(signal, state, at)
        case Excluded():
            return ()  # late answers of messages that went out before; only a person brings it back
        case _:
            assert_never(state)


def _check_signal(signal: Signal, at: datetime) -> None:
    if isinstance(signal, FloodWait) and not 1 <= signal.seconds <= MAX_WAIT_SECONDS:
        raise InvalidSender("seconds")
    named = signal.limited_until if isinstance(signal, Probe) else None
    if named is not None and (signal == Probe(True, named) or named.utcoffset() is None or named > at + MAX_LIMIT):
        raise InvalidSender("limited_until")


def _while_active(signal: Signal, state: Active, at: datetime) -> Sequence[SenderEvent]:
    match signal:
        case Sent():
            return _sent(state, at)
        case Timeout():
            return _error(state, at, None) or [Failed(state.account.sender_id, state.errors + 1, at)]
        case PeerFlood():
            return _error(state, at, None) or [_cooldown(signal, state, state.errors + 1, at)]
        case FloodWait():
            return _error(state, at, at + timedelta(seconds=signal.seconds)) or [_cooldown(signal, state, state.errors + 1, at)]
        case Probe():
            return () if signal.free else [_cooldown(signal, state, state.errors, at)]
        case _:
            assert_never(signal)


def _sent(state: Active, at: datetime) -> Sequence[SenderEvent]:
    # Most messages are sent by a sender without a past: those leave nothing, or the log would hold each of them twice.
    proven = state.proves_at is not None and at >= state.proves_at
    if state.errors == 0 and not proven:
        return ()
    return [Recovered(state.account.sender_id, 0 if proven else state.step, at)]


def _error(state: Active, at: datetime, not_before: datetime | None) -> Sequence[SenderEvent]:
    """The exclusion, when this error is the last there may be in a row."""
    errors = state.errors + 1
    if errors < state.account.max_consecutive_errors:
        return ()
    return [SenderWasExcluded(state.account.sender_id, "errors", errors, not_before, at)]


def _cooldown(signal: PeerFlood | FloodWait | Probe, state: Active, errors: int, at: datetime) -> CooldownStarted:
    reason, until, not_before = _wait(signal, state.account.backoff(state.step), at)
    return CooldownStarted(state.account.sender_id, reason, until, not_before, state.step, errors, at)


def _wait(signal: PeerFlood | FloodWait | Probe, backoff: timedelta, at: datetime) -> tuple[Why, datetime, datetime | None]:
    """Why and until when a signal asks to wait, and which part of that no probe can shorten."""
    match signal:
        case PeerFlood():
            return "peer_flood", at + backoff, None
        case FloodWait():
            named = at + timedelta(seconds=signal.seconds)
            return "flood_wait", max(named, at + backoff), named
        case Probe():
            return "limited", max(signal.limited_until or at, at + backoff), None
        case _:
            assert_never(signal)


def _while_cooling_down(signal: Signal, state: Cooldown, at: datetime) -> Sequence[SenderEvent]:
    match signal:
        case Sent() | Timeout():
            return ()  # of a message that went out before the cooldown began
        case Probe() if signal.free:
            return _freed(state, at)
        case PeerFlood() | FloodWait() | Probe():
            return _prolonged(signal, state, at)
        case _:
            assert_never(signal)


def _prolonged(signal: PeerFlood | FloodWait | Probe, state: Cooldown, at: datetime) -> Sequence[SenderEvent]:
    reason, until, not_before = _wait(signal, state.account.backoff(state.step), at)
    not_before = max((moment for moment in (not_before, state.not_before) if moment is not None), default=None)
    if until <= state.until:
        reason, until = state.reason, state.until
    if (until, not_before) == (state.until, state.not_before):
        return ()
    return [CooldownMoved(state.account.sender_id, reason, until, not_before, at)]


def _freed(state: Cooldown, at: datetime) -> Sequence[SenderEvent]:
    if state.not_before is None or state.not_before <= at:
        return [CooldownEnded(state.account.sender_id, "free", at, at)]
    if state.not_before == state.until:
        return ()
    return [CooldownMoved(state.account.sender_id, "flood_wait", state.not_before, state.not_before, at)]


def _exclude(state: Known, at: datetime) -> Sequence[SenderEvent]:
    match state:
        case Active():
            return [SenderWasExcluded(state.account.sender_id, "asked", state.errors, None, at)]
        case Cooldown():
            return [SenderWasExcluded(state.account.sender_id, "asked", state.errors, state.not_before, at)]
        case Excluded():
            return ()
        case _:
            assert_never(state)


def _restore(state: Known, at: datetime) -> Sequence[SenderEvent]:
    if not isinstance(state, Excluded):
        return ()
    restored = Restored(state.account.sender_id, at)
    if state.not_before is None or state.not_before <= at:
        return [restored]
    return [restored, CooldownStarted(state.account.sender_id, "flood_wait", state.not_before, state.not_before, 0, 0, at)]


def _check(command: CheckSender, state: Known) -> Sequence[SenderEvent]:
    match state:
        case Cooldown() if command.at < state.until:
            raise SenderCoolingDown(sender_id=command.sender_id, reason=state.reason, retry_at=state.until)
        case Excluded():
            raise SenderExcluded(sender_id=command.sender_id, reason=state.reason)
        case Active() | Cooldown():
            return ()
        case _:
            assert_never(state)


# Evolve


def evolve_sender(state: SenderState, event: SenderEvent) -> SenderState:
    """Never refuses."""
    if isinstance(event, Registered):
        settings = event.max_consecutive_errors, event.cooldown_seconds, event.cooldown_cap_seconds
        return Active(Account(event.sender_id, event.owner, event.label, *settings))
    return _evolved(_known(state), event)


def _evolved(
    state: Known,
    event: Changed | Failed | Recovered | CooldownStarted | CooldownMoved | CooldownEnded | SenderWasExcluded | Restored,
) -> SenderState:
    account = state.account
    match event:
        case Changed():
            settings = event.max_consecutive_errors, event.cooldown_seconds, event.cooldown_cap_seconds
            return replace(state, account=Account(account.sender_id, account.owner, event.label, *settings))
        case Failed():
            return replace(state, errors=event.errors)
        case Recovered():
            proves_at = state.proves_at if isinstance(state, Active) and event.step else None
            return Active(account, 0, event.step, proves_at)
        case CooldownStarted():
            return Cooldown(account, event.errors, event.step, event.reason, event.until, event.not_before)
        case CooldownMoved():
            step = state.step if isinstance(state, Cooldown) else 0
            return Cooldown(account, state.errors, step, event.reason, event.until, event.not_before)
        case CooldownEnded():
            step = state.step if isinstance(state, Cooldown) else 0
            return Active(account, state.errors, step + 1, event.ended_at + account.backoff(step))
        case SenderWasExcluded():
            return Excluded(account, event.errors, event.reason, event.not_before)
        case Restored():
            return Active(account)
        case _:
            assert_never(event)


def settled(state: SenderState, at: datetime) -> SenderState:
    """The situation as it is at that moment: a cooldown whose time is over has ended."""
    over = _over(state, at)
    return evolve_sender(state, over[0]) if over else state


# Reply


def reply_sender(command: SenderCommand, before: SenderState, after: SenderState, events: Sequence[Event]) -> Mapping[str, Any]:
    now = settled(after, command.at)
    if isinstance(now, NoSender):
        return {}
    return {"sender_id": now.account.sender_id, **situation(now)}


def situation(state: Known) -> Mapping[str, Any]:
    """What everybody who may see the sender is told of it."""
    match state:
        case Active():
            return {"state": "active", "errors": state.errors, "reason": None, "until": None}
        case Cooldown():
            return {"state": "cooldown", "errors": state.errors, "reason": state.reason, "until": state.until}
        case Excluded():
            return {"state": "excluded", "errors": state.errors, "reason": state.reason, "until": None}
        case _:
            assert_never(state)


# Freeze and thaw


@dataclass(frozen=True, slots=True)
class FrozenSender:
    """A sender for a snapshot; none without an account."""

    account: Account | None = None
    situation: Literal["active", "cooldown", "asked", "errors"] = "active"
    errors: int = 0
    step: int = 0
    moment: datetime | None = None
    not_before: datetime | None = None
    reason: Why | None = None


def freeze_sender(state: SenderState) -> FrozenSender:
    match state:
        case NoSender():
            return FrozenSender()
        case Active():
            return FrozenSender(state.account, "active", state.errors, state.step, state.proves_at)
        case Cooldown():
            return FrozenSender(state.account, "cooldown", state.errors, state.step, state.until, state.not_before, state.reason)
        case Excluded():
            return FrozenSender(state.account, state.reason, state.errors, not_before=state.not_before)
        case _:
            assert_never(state)


def thaw_sender(frozen: FrozenSender) -> SenderState:
    if frozen.account is None:
        return NoSender()
    match frozen.situation:
        case "active":
            return Active(frozen.account, frozen.errors, frozen.step, frozen.moment)
        case "cooldown":
            assert frozen.reason is not None
            assert frozen.moment is not None
            return Cooldown(frozen.account, frozen.errors, frozen.step, frozen.reason, frozen.moment, frozen.not_before)
        case "asked" | "errors":
            return Excluded(frozen.account, frozen.errors, frozen.situation, frozen.not_before)
        case _:
            assert_never(frozen.situation)


# Deadlines


def deadlines_of_sender(event: SenderEvent) -> Sequence[Due | Done]:
    """A cooldown ends at its moment."""
    match event:
        case CooldownStarted() | CooldownMoved():
            return [Due(COOLDOWN, event.until)]
        case CooldownEnded() | SenderWasExcluded():
            return [Done(COOLDOWN)]
        case Registered() | Changed() | Failed() | Recovered() | Restored():
            return ()
        case _:
            assert_never(event)


def sender_is_due(name: str, at: datetime) -> Command:
    """See `Decider.when_due`."""
    return EndCooldown()


SENDER: Decider[SenderState] = Decider(
    category="sender",
    commands=(RegisterSender, ChangeSender, ReportSignal, ExcludeSender, RestoreSender, CheckSender, EndCooldown),
    events=(Registered, Changed, Failed, Recovered, CooldownStarted, CooldownMoved, CooldownEnded, SenderWasExcluded, Restored),
    initial=NoSender(),
    decide=decide_sender,
    evolve=evolve_sender,
    reply=reply_sender,
    frozen_type=FrozenSender,
    freeze=freeze_sender,
    thaw=thaw_sender,
    refusals=(InvalidSender, SenderNotFound, SenderExists, SenderCoolingDown, SenderExcluded),
    deadlines=deadlines_of_sender,
    when_due=sender_is_due,
)

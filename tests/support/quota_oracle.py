"""The rules of quotas said a second time, as naively as they can be: a list of all that happened, and sums over that list.

It shares no code with the domain but the commands. It forgets nothing, so it knows neither the 400 windows a limit remembers
nor the 1,000 reservations that ended last, and it takes commands to be well-formed.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Literal
from zoneinfo import ZoneInfo

from domain.quota import (
    Adjust,
    Commit,
    Consume,
    Expire,
    Grant,
    Limit,
    Mode,
    Overdraft,
    Reserve,
    Rollback,
    SetLimits,
    VoidGrant,
    Window,
)

Outcome = tuple[Literal["accepted"], dict[str, Any]] | tuple[Literal["rejected"], str]


class Refused(Exception):
    """Carries the code of the refusal."""


@dataclass
class Standing:
    """A limit from the moment it was set until it is replaced by one with another id or window."""

    number: int
    limit: Limit
    crossed: list[tuple[Any, int]] = field(default_factory=list)


@dataclass
class Use:
    """A reservation, an immediate use or an adjustment, and all that became of it."""

    at: datetime
    amount: int
    counted: dict[int, int]
    booked: int = 0
    status: str = "open"
    deadline: datetime | None = None
    credits: list[tuple[str, int]] = field(default_factory=list)
    last: int = 0

    def used_in(self, number: int) -> int:
        return min(self.booked, self.counted[number]) + max(0, self.booked - self.amount) if self.amount > 0 else self.booked

    def reserved_in(self, number: int) -> int:
        return self.counted[number] - min(self.booked, self.counted[number]) if self.status == "open" else 0

    def left(self) -> int:
        return max(0, self.amount - self.booked)

    def credits_taken(self) -> list[tuple[str, int]]:
        """By grant; what a reservation that has ended did not need was given back."""
        if self.status == "open":
            return self.credits
        needed = max(0, self.booked - (self.amount - sum(amount for _, amount in self.credits)))
        kept = []
        for grant_id, amount in self.credits:
            kept.append((grant_id, min(amount, needed)))
            needed -= min(amount, needed)
        return kept


def second(moment: datetime) -> int:
    return int(moment.replace(microsecond=0).timestamp())


def clipped(year: int, month: int, day: int) -> date:
    """The day of the month, or the last one it has."""
    while True:
        try:
            return date(year, month, day)
        except ValueError:
            day -= 1


def label(window: Window, zone: str, at: datetime) -> Any:
    """What all moments of one calendar window have in common."""
    local = at.astimezone(ZoneInfo(zone))
    today, day, month = local.date(), window.anchor_day or 1, window.anchor_month or 1
    offset = local.utcoffset()
    assert offset is not None
    match window.kind:
        case "lifetime":
            return 0
        case "hour":
            return (second(at) + int(offset.total_seconds()) % 3600) // 3600
        case "day":
            return today
        case "week":
            return (today - timedelta(days=day - 1)).isocalendar()[:2]
        case "month":
            months = today.year * 12 + today.month
            return months if today >= clipped(today.year, today.month, day) else months - 1
        case "year":
            return today.year if today >= clipped(today.year, month, day) else today.year - 1
        case "rolling":
            raise AssertionError("a rolling window has no label")


def rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def window_end(window: Window, zone: str, at: datetime) -> datetime:
    """The first moment of the next calendar window, found by walking there. Only for kinds of at least a day."""
    local, here = at.astimezone(ZoneInfo(zone)), label(window, zone, at)
    day = local.date()
    while True:
        day += timedelta(days=1)
        midnight = datetime.combine(day, time(), ZoneInfo(zone)).astimezone(UTC)
        if label(window, zone, midnight) != here:
            return midnight


class Oracle:
    """One quota. ``apply`` takes a command stamped with ``at`` and says what a right implementation answers."""

    def __init__(self) -> None:
        self.terms: SetLimits | None = None
        self.standing: list[Standing] = []
        self.born = 0
        self.uses: list[Use] = []
        self.reservations: dict[str, Use] = {}
        self.grants: dict[str, Grant] = {}
        self.voided: dict[str, int] = {}
        self.crossed: list[tuple[str, int]] = []
        """(limit_id, percent) of the thresholds which the last accepted command crossed"""

    def apply(self, command: Any) -> Outcome:
        trial = deepcopy(self)
        trial.crossed = []
        try:
            reply = trial.take(command)
        except Refused as refusal:
            return "rejected", str(refusal)
        if getattr(command, "mode", None) is Mode.CHECK_ONLY:
            self.crossed = []
        else:
            self.__dict__ = trial.__dict__
        return "accepted", reply

    def take(self, command: Any) -> dict[str, Any]:
        if isinstance(command, Expire) and self.terms is None:
            return {"expired": 0}
        if self.terms is None and not isinstance(command, Grant | SetLimits):
            raise Refused("quota.not_found")
        expired = [use for use in self.reservations.values() if use.status == "open" and use.deadline and use.deadline <= command.at]
        for use in expired:
            use.status = "expired"
        match command:
            case Reserve() | Consume():
                return self.reserve(command)
            case Commit():
                return self.commit(command)
            case Rollback():
                return self.rollback(command)
            case Expire():
                return {"expired": len(expired), "remaining": self.remaining(command.at)}
            case Grant():
                return self.grant(command)
            case VoidGrant():
                return self.void(command)
            case SetLimits():
                return self.set_limits(command)
            case Adjust():
                return self.adjust(command)
            case _:
                raise AssertionError(command)

    # What is counted

    def latest(self, standing: Standing) -> int:
        """The latest second in which anything arrived that the limit was told of."""
        return max((second(use.at) for use in self.uses if standing.number in use.counted), default=-(2**62))

    def inside(self, standing: Standing, moment: datetime, at: datetime) -> bool:
        """Whether what is of ``moment`` counts in the window of ``at``."""
        assert self.terms is not None
        window = standing.limit.window
        if window.kind == "rolling":
            assert window.seconds is not None
            return max(second(at), self.latest(standing)) - second(moment) < window.seconds
        return bool(label(window, self.terms.zone, moment) == label(window, self.terms.zone, at))

    def room(self, standing: Standing, at: datetime) -> int:
        number = standing.number
        counting = [use for use in self.uses if number in use.counted and self.inside(standing, use.at, at)]
        return standing.limit.amount - sum(use.used_in(number) + use.reserved_in(number) for use in counting)

    def credits_of(self, grant: Grant, at: datetime) -> int:
        """What may be spent of the grant at that moment."""
        assert grant.effective_at is not None
        if grant.grant_id in self.voided or at < grant.effective_at:
            return 0
        before = after = 0
        for use in self.uses:
            taken = sum(amount for grant_id, amount in use.credits_taken() if grant_id == grant.grant_id)
            if grant.expires_at is None or use.at < grant.expires_at:
                before += taken
            else:
                after += taken
        if grant.expires_at is None or at < grant.expires_at:
            return max(0, grant.amount - before - after)
        if grant.rollover_until is None or at >= grant.rollover_until:
            return 0
        return max(0, min(grant.amount - before, grant.rollover_amount) - after)

    def credits(self, at: datetime) -> int:
        return sum(self.credits_of(grant, at) for grant in self.grants.values())

    def remaining(self, at: datetime) -> int | None:
        left = self.credits(at)
        rooms = []
        for standing in self.standing:
            room = self.room(standing, at)
            rooms.append(max(room, 0) + left if standing.limit.overflow and left else room)
        return min(rooms, default=None)

    def allowance(self) -> float:
        assert self.terms is not None
        overdraft: Overdraft = self.terms.overdraft
        return {"none": 0, "bounded": overdraft.amount, "soft": float("inf")}[overdraft.kind]

    # Commands

    def spread(self, amount: int, at: datetime) -> tuple[int, dict[int, int], dict[int, int]]:
        """(what credits pay, units counted by limit, room by limit) if so much were granted."""
        rooms = {standing.number: self.room(standing, at) for standing in self.standing}
        shortfalls = [amount - max(rooms[standing.number], 0) for standing in self.standing if standing.limit.overflow]
        paid = min(max([0, *shortfalls]), amount, self.credits(at))
        return paid, {s.number: amount - paid if s.limit.overflow else amount for s in self.standing}, rooms

    def fits(self, amount: int, at: datetime) -> bool:
        _, counted, rooms = self.spread(amount, at)
        return all(counted[number] == 0 or counted[number] <= rooms[number] + self.allowance() for number in counted)

    def granted(self, command: Reserve | Consume) -> int:
        if command.mode is Mode.ADJUST or self.fits(command.amount, command.at):
            return command.amount
        if command.mode is Mode.BEST_EFFORT:
            fitting, too_much = 0, command.amount
            while too_much - fitting > 1:
                middle = (fitting + too_much) // 2
                fitting, too_much = (middle, too_much) if self.fits(middle, command.at) else (fitting, middle)
            if fitting:
                return fitting
        raise Refused("quota.exceeded")

    def reserve(self, command: Reserve | Consume) -> dict[str, Any]:
        assert self.terms is not None
        at, identity, holding = command.at, command.reservation_id, isinstance(command, Reserve)
        if identity in self.reservations:
            raise Refused("quota.reservation_exists")
        if holding and sum(use.status == "open" for use in self.reservations.values()) >= self.terms.max_open:
            raise Refused("quota.too_many_open")
        granted = self.granted(command)
        paid, counted, rooms = self.spread(granted, at)
        overdrawn = max([0, *(counted[number] - max(rooms[number], 0) for number in counted)])
        use = Use(at, granted, counted, credits=self.draw(paid, at))
        checked = command.mode is Mode.CHECK_ONLY
        reply: dict[str, Any] = {"reservation_id": identity, "status": "checked", "granted": granted, "overdrawn": overdrawn}
        rest: dict[str, Any]
        if checked:
            rest = {"expires_at": None} if holding else {"used": 0, "freed": 0}
            return reply | rest | {"remaining": self.remaining(at)}
        before = {standing.number: self.level(standing, at) for standing in self.standing}
        self.uses.append(use)
        self.reservations[identity] = use
        if isinstance(command, Reserve):
            use.deadline = at + timedelta(seconds=command.ttl_seconds)
            rest = {"status": "reserved", "expires_at": rfc3339(use.deadline)}
        else:
            use.booked, use.last, use.status = granted, granted, "committed"
            rest = {"status": "committed", "used": granted, "freed": 0}
        for standing in self.standing:
            self.tell_crossings(standing, at, at, before[standing.number], counted[standing.number])
        return reply | rest | {"remaining": self.remaining(at)}

    def draw(self, amount: int, at: datetime) -> list[tuple[str, int]]:
        never = datetime.max.replace(tzinfo=UTC)
        numbered = sorted(enumerate(self.grants.values()), key=lambda pair: (pair[1].priority, pair[1].expires_at or never, pair[0]))
        drawn = []
        for _, grant in numbered:
            part = min(amount, self.credits_of(grant, at))
            if part:
                drawn.append((grant.grant_id, part))
            amount -= part
        return drawn

    def level(self, standing: Standing, at: datetime) -> int:
        return standing.limit.amount - self.room(standing, at)

    def tell_crossings(self, standing: Standing, moment: datetime, at: datetime, before: int, added: int) -> None:
        """Thresholds that ``added`` units in the window of ``moment`` crossed, when the command came ``at``."""
        assert self.terms is not None
        limit = standing.limit
        rolling = limit.window.kind == "rolling"
        now = max(second(at), self.latest(standing))
        if rolling and not self.inside(standing, moment, at):
            return
        here = now if rolling else label(limit.window, self.terms.zone, moment)
        for percent in limit.thresholds:
            told = any(
                other == percent and (here - where < (limit.window.seconds or 0) if rolling else where == here)
                for where, other in standing.crossed
            )
            if before * 100 < percent * limit.amount <= (before + added) * 100 and not told:
                standing.crossed.append((here, percent))
                self.crossed.append((limit.limit_id, percent))

    def commit(self, command: Commit) -> dict[str, Any]:
        at, use = command.at, self.reservations.get(command.reservation_id)
        if use is None:
            raise Refused("quota.reservation_not_found")
        if use.status == "expired":
            raise Refused("quota.reservation_expired")
        if use.status != "open":
            if use.status != "committed" or not command.final or use.last != command.used:
                raise Refused("quota.reservation_closed")
            return self.commit_reply(command, use)
        extra = command.used - use.left()
        counting: list[Standing] = []
        if extra > 0:
            # A calendar window is asked for at the moment of the reservation, a rolling one as it stands now.
            counting = [s for s in self.standing if s.number in use.counted and self.inside(s, use.at, self.seen_from(s, use, at))]
            rooms = [self.room(s, self.seen_from(s, use, at)) for s in counting]
            if self.allowance() == 0 or any(room - extra < -self.allowance() for room in rooms):
                raise Refused("quota.commit_exceeds_reserved")
        before = {s.number: self.level(s, self.seen_from(s, use, at)) for s in counting}
        use.booked += command.used
        if command.final:
            use.status, use.last = "committed", command.used
        elif command.ttl_seconds is not None:
            assert use.deadline is not None
            use.deadline = max(use.deadline, at + timedelta(seconds=command.ttl_seconds))
        for standing in counting:
            self.tell_crossings(standing, use.at, at, before[standing.number], extra)
        return self.commit_reply(command, use)

    @staticmethod
    def seen_from(standing: Standing, use: Use, at: datetime) -> datetime:
        return at if standing.limit.window.kind == "rolling" else use.at

    def commit_reply(self, command: Commit, use: Use) -> dict[str, Any]:
        return {
            "reservation_id": command.reservation_id,
            "status": use.status,
            "used": use.booked,
            "freed": 0 if use.status == "open" else use.left(),
            "remaining": self.remaining(command.at),
        }

    def rollback(self, command: Rollback) -> dict[str, Any]:
        use = self.reservations.get(command.reservation_id)
        if use is None:
            raise Refused("quota.reservation_not_found")
        if use.status == "committed":
            raise Refused("quota.reservation_closed")
        if use.status == "open":
            use.status = "rolled_back"
        reply = {"reservation_id": command.reservation_id, "status": use.status, "freed": use.left()}
        return reply | {"remaining": self.remaining(command.at)}

    def grant(self, command: Grant) -> dict[str, Any]:
        if self.terms is None:
            self.terms = SetLimits(subject=command.subject, meter=command.meter)
            self.standing = [Standing(self.born, Limit("prepaid", 0, overflow=True, thresholds=()))]
            self.born += 1
        known = self.grants.get(command.grant_id)
        if known is None:
            if command.expires_at is not None and command.expires_at <= (command.effective_at or command.at):
                raise Refused("quota.invalid")
            self.grants[command.grant_id] = copied = deepcopy(command)
            copied.effective_at = command.effective_at or command.at
        else:
            names = ("amount", "priority", "expires_at", "rollover_amount", "rollover_until")
            same = all(getattr(known, name) == getattr(command, name) for name in names)
            if not same or command.effective_at not in (None, known.effective_at):
                raise Refused("quota.grant_exists")
        return {"grant_id": command.grant_id, "amount": command.amount, "credits_remaining": self.credits(command.at)}

    def void(self, command: VoidGrant) -> dict[str, Any]:
        if command.grant_id not in self.grants:
            raise Refused("quota.grant_not_found")
        if command.grant_id not in self.voided:
            self.voided[command.grant_id] = self.credits_of(self.grants[command.grant_id], command.at)
        freed = self.voided[command.grant_id]
        return {"grant_id": command.grant_id, "freed": freed, "credits_remaining": self.credits(command.at)}

    def set_limits(self, command: SetLimits) -> dict[str, Any]:
        old_zone = None if self.terms is None else self.terms.zone
        standing = []
        for limit in command.limits:
            kept = next((s for s in self.standing if s.limit.limit_id == limit.limit_id and s.limit.window == limit.window), None)
            if kept is not None and (command.zone == old_zone or limit.window.kind in ("lifetime", "rolling")):
                kept.limit = limit
            else:
                kept = Standing(self.born, limit)
                self.born += 1
            standing.append(kept)
        self.terms, self.standing = command, standing
        return {"limits": len(command.limits), "remaining": self.remaining(command.at)}

    def adjust(self, command: Adjust) -> dict[str, Any]:
        before = {standing.number: self.level(standing, command.at) for standing in self.standing}
        numbers = {standing.number: 0 for standing in self.standing}
        self.uses.append(Use(command.at, 0, numbers, booked=command.amount, status="adjusted"))
        for standing in self.standing:
            self.tell_crossings(standing, command.at, command.at, before[standing.number], command.amount)
        used = sum(use.booked for use in self.uses)
        return {"amount": command.amount, "used": used, "remaining": self.remaining(command.at)}

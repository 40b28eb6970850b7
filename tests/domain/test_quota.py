"""Quotas told as given, when, then: what happened, what is asked for, what happens or why not."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
import pytest

from domain.kernel.decider import Rejected
from domain.quota import (
    QUOTA,
    Adjust,
    Adjusted,
    Commit,
    Committed,
    Consume,
    Consumed,
    CreditUse,
    Expire,
    Expired,
    FrozenQuota,
    Grant,
    GrantVoided,
    Limit,
    LimitsSet,
    Mode,
    Overdraft,
    Progressed,
    Quota,
    Reserve,
    Reserved,
    Rollback,
    RolledBack,
    SetLimits,
    State,
    ThresholdCrossed,
    VoidGrant,
    Window,
    quota_stream,
    reservation_id,
    stream_of_reservation,
)
from domain.quota.view import view

NOON = datetime(2026, 1, 30, 12, tzinfo=UTC)
MONTH = Window("month")


def after(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


class Story:
    """A quota and what is done to it, at moments in seconds after noon."""

    def __init__(self, *limits: Limit, overdraft: Overdraft | None = None, max_open: int = 10_000, zone: str = "UTC") -> None:
        self.state: State = QUOTA.initial
        self.events: Sequence[Any] = ()
        self.now = 0.0
        if limits:
            self.does(self.set_limits(*limits, overdraft=overdraft, max_open=max_open, zone=zone))

    @staticmethod
    def set_limits(*limits: Limit, overdraft: Overdraft | None = None, max_open: int = 10_000, zone: str = "UTC") -> SetLimits:
        return SetLimits(subject="anna", meter="letters", limits=limits, overdraft=overdraft or Overdraft(), max_open=max_open, zone=zone)

    def at(self, seconds: float) -> Story:
        self.now = seconds
        return self

    def does(self, command: Any) -> dict[str, Any]:
        command.at = after(self.now)
        before, self.events = self.state, QUOTA.decide(command, self.state)
        for fact in self.events:
            self.state = QUOTA.evolve(self.state, fact)
        return dict(QUOTA.reply(command, before, self.state, self.events))

    def refuses(self, command: Any) -> Rejected:
        frozen = QUOTA.freeze(self.state)
        with pytest.raises(Rejected) as caught:
            self.does(command)
        assert QUOTA.freeze(self.state) == frozen
        return caught.value

    def reserve(self, identity: str, amount: int, **fields: Any) -> Reserve:
        return Reserve(subject="anna", meter="letters", amount=amount, reservation_id=identity, **fields)

    def consume(self, identity: str, amount: int, **fields: Any) -> Consume:
        return Consume(subject="anna", meter="letters", amount=amount, reservation_id=identity, **fields)

    def grant(self, identity: str, amount: int, **fields: Any) -> Grant:
        return Grant(subject="anna", meter="letters", grant_id=identity, amount=amount, **fields)

    def adjust(self, amount: int) -> Adjust:
        return Adjust(subject="anna", meter="letters", amount=amount, reason="correction")

    @property
    def remaining(self) -> int | None:
        assert isinstance(self.state, Quota)
        return view(self.state, after(self.now)).remaining


def limit(amount: int, window: Window = MONTH, limit_id: str = "plan", **fields: Any) -> Limit:
    fields.setdefault("thresholds", ())
    return Limit(limit_id, amount, window, **fields)


# Reserve, commit, roll back


def test_a_reservation_holds_and_its_commit_frees_the_rest() -> None:
    story = Story(limit(100))

    reserved = story.does(story.reserve("r", 30))
    assert story.events == [Reserved("anna", "letters", "r", 30, NOON, after(900))]
    committed = story.does(Commit(reservation_id="r", used=20))

    assert reserved == {
        "reservation_id": "r",
        "status": "reserved",
        "granted": 30,
        "overdrawn": 0,
        "expires_at": "2026-01-30T12:15:00Z",
        "remaining": 70,
    }
    assert story.events == [Committed("r", used=20, total=20, freed=10, at=NOON)]
    assert committed == {"reservation_id": "r", "status": "committed", "used": 20, "freed": 10, "remaining": 80}


def test_what_does_not_fit_is_refused_with_the_limit_and_the_moment_to_retry() -> None:
    story = Story(limit(100, limit_id="month"), limit(10, Window("day"), limit_id="day"))

    refusal = story.refuses(story.reserve("r", 11))

    assert (refusal.code, refusal.status, refusal.frozen) == ("quota.exceeded", "conflict", True)
    assert refusal.details == {"limit_id": "day", "remaining": 10, "requested": 11, "retry_at": "2026-01-31T00:00:00Z"}


def test_a_lifetime_limit_has_no_moment_to_retry() -> None:
    story = Story(limit(1, Window("lifetime")))

    assert story.refuses(story.reserve("r", 2)).details["retry_at"] is None


def test_a_rollback_frees_everything_and_may_be_repeated() -> None:
    story = Story(limit(100))
    story.does(story.reserve("r", 30))

    first = story.does(Rollback(reservation_id="r"))
    assert story.events == [RolledBack("r", total=0, freed=30, at=NOON)]
    second = story.does(Rollback(reservation_id="r"))

    assert first == second == {"reservation_id": "r", "status": "rolled_back", "freed": 30, "remaining": 100}
    assert list(story.events) == []


def test_the_same_commit_again_succeeds_and_another_is_refused() -> None:
    story = Story(limit(100))
    story.does(story.reserve("r", 30))
    first = story.does(Commit(reservation_id="r", used=20))

    assert story.does(Commit(reservation_id="r", used=20)) == first
    assert list(story.events) == []
    assert story.refuses(Commit(reservation_id="r", used=21)).code == "quota.reservation_closed"
    assert story.refuses(Commit(reservation_id="r", used=20, final=False)).code == "quota.reservation_closed"
    assert story.refuses(Rollback(reservation_id="r")).code == "quota.reservation_closed"


def test_commits_in_parts_keep_the_rest_reserved_and_prolong_it() -> None:
    story = Story(limit(100))
    story.does(story.reserve("r", 30, ttl_seconds=60))

    part = story.at(50).does(Commit(reservation_id="r", used=12, final=False, ttl_seconds=60))
    assert story.events == [Progressed("r", 12, after(110), after(50))]
    assert part == {"reservation_id": "r", "status": "open", "used": 12, "freed": 0, "remaining": 70}
    story.at(109).does(Commit(reservation_id="r", used=8, final=False))
    assert story.remaining == 70

    story.at(110).does(Expire())
    assert story.events == [Expired("r", total=20, freed=10, at=after(110))]
    assert story.remaining == 80


def test_a_reservation_is_never_shortened() -> None:
    story = Story(limit(100))
    story.does(story.reserve("r", 30, ttl_seconds=600))

    story.does(Commit(reservation_id="r", used=0, final=False, ttl_seconds=60))

    assert list(story.events) == []


def test_more_than_was_reserved_is_refused_without_an_overdraft() -> None:
    story = Story(limit(100))
    story.does(story.reserve("r", 30))
    story.does(Commit(reservation_id="r", used=25, final=False))

    assert story.refuses(Commit(reservation_id="r", used=6)).code == "quota.commit_exceeds_reserved"


def test_a_bounded_overdraft_lets_a_commit_exceed_until_the_bound() -> None:
    story = Story(limit(30), overdraft=Overdraft("bounded", 5))
    story.does(story.reserve("r", 30))

    assert story.refuses(Commit(reservation_id="r", used=36)).code == "quota.commit_exceeds_reserved"
    assert story.does(Commit(reservation_id="r", used=35))["remaining"] == -5


def test_a_soft_overdraft_has_no_bound_and_says_how_far_it_went() -> None:
    story = Story(limit(30), overdraft=Overdraft("soft"))

    assert story.does(story.reserve("r", 50))["overdrawn"] == 20
    assert story.does(Commit(reservation_id="r", used=70))["remaining"] == -40
    assert story.does(story.consume("c", 1))["overdrawn"] == 1


def test_what_exceeds_the_reservation_in_several_parts_counts_once() -> None:
    story = Story(limit(30), overdraft=Overdraft("soft"))
    story.does(story.reserve("r", 10))

    assert story.does(Commit(reservation_id="r", used=15, final=False))["remaining"] == 15
    assert story.does(Commit(reservation_id="r", used=5))["remaining"] == 10


def test_consuming_is_reserving_and_committing_at_once() -> None:
    story = Story(limit(30))

    reply = story.does(story.consume("c", 10))

    assert story.events == [Consumed("anna", "letters", "c", 10, NOON)]
    assert (reply["status"], reply["used"], reply["remaining"]) == ("committed", 10, 20)
    assert story.does(Commit(reservation_id="c", used=10))["status"] == "committed"


def test_an_id_serves_once() -> None:
    story = Story(limit(30))
    story.does(story.reserve("r", 1))
    assert story.refuses(story.reserve("r", 1)).code == "quota.reservation_exists"
    story.does(Rollback(reservation_id="r"))

    assert story.refuses(story.consume("r", 1)).code == "quota.reservation_exists"


# Modes


def test_best_effort_takes_what_there_is() -> None:
    story = Story(limit(30))

    assert story.does(story.reserve("r", 50, mode=Mode.BEST_EFFORT))["granted"] == 30
    assert story.refuses(story.reserve("s", 50, mode=Mode.BEST_EFFORT)).code == "quota.exceeded"


def test_a_check_answers_and_records_nothing_whether_it_fits_or_not() -> None:
    story = Story(limit(30))
    story.does(story.reserve("due", 5, ttl_seconds=1))

    reply = story.at(2).does(story.reserve("r", 30, mode=Mode.CHECK_ONLY))

    assert (reply["status"], reply["granted"], reply["remaining"], reply["expires_at"]) == ("checked", 30, 30, None)
    assert list(story.events) == []
    assert story.refuses(story.reserve("r", 31, mode=Mode.CHECK_ONLY)).frozen is False
    assert story.does(story.consume("c", 30, mode=Mode.CHECK_ONLY))["used"] == 0
    assert story.refuses(story.reserve("r", 31)).frozen is True


def test_adjusting_does_not_ask_for_room() -> None:
    story = Story(limit(30))

    reply = story.does(story.reserve("r", 50, mode=Mode.ADJUST))

    assert (reply["overdrawn"], reply["remaining"]) == (20, -20)


# Expiry


def test_a_due_reservation_makes_room_for_the_next_which_records_its_end_first() -> None:
    story = Story(limit(30))
    story.does(story.reserve("old", 30, ttl_seconds=10))

    assert story.at(9.999999).refuses(story.reserve("new", 1)).code == "quota.exceeded"
    story.at(10).does(story.reserve("new", 30))

    assert [type(fact) for fact in story.events] == [Expired, Reserved]


def test_expiries_come_soonest_first_and_only_when_due() -> None:
    story = Story(limit(100))
    for identity, ttl in [("c", 30), ("a", 10), ("b", 20), ("d", 40)]:
        story.does(story.reserve(identity, 1, ttl_seconds=ttl))

    assert story.at(30).does(Expire()) == {"expired": 3, "remaining": 99}
    assert [fact.reservation_id for fact in story.events] == ["a", "b", "c"]
    story.does(Expire())
    assert list(story.events) == []


def test_who_comes_too_late_learns_it() -> None:
    story = Story(limit(30))
    story.does(story.reserve("r", 30, ttl_seconds=10))

    assert story.at(10).refuses(Commit(reservation_id="r", used=1)).code == "quota.reservation_expired"
    assert story.does(Rollback(reservation_id="r"))["status"] == "expired"
    assert story.events == [Expired("r", 0, 30, after(10))]
    assert story.does(Rollback(reservation_id="r"))["freed"] == 30
    assert list(story.events) == []


def test_an_import_from_before_does_not_expire_what_was_not_due_then() -> None:
    story = Story(limit(30))
    story.at(100).does(story.reserve("r", 10, ttl_seconds=10))

    story.at(50).does(story.reserve("earlier", 5))
    story.at(105).does(Commit(reservation_id="r", used=10))

    assert story.remaining == 15


def test_ended_reservations_do_not_pile_up_in_the_heap() -> None:
    story = Story(limit(10**9))
    for n in range(500):
        story.does(story.reserve(f"r{n}", 1))
        story.does(Rollback(reservation_id=f"r{n}"))

    assert isinstance(story.state, Quota)
    assert story.state.expiries.size <= 65


def test_too_many_open_reservations_are_refused() -> None:
    story = Story(limit(100), max_open=2)
    story.does(story.reserve("a", 1, ttl_seconds=10))
    story.does(story.reserve("b", 1))

    assert story.refuses(story.reserve("c", 1)).details == {"max_open": 2}
    assert story.does(story.consume("d", 1))["status"] == "committed"
    assert story.at(10).does(story.reserve("c", 1))["status"] == "reserved"


def test_reservations_that_ended_long_ago_are_forgotten() -> None:
    story = Story(limit(10**9))
    for n in range(2_001):
        story.does(story.consume(f"c{n}", 1))

    assert isinstance(story.state, Quota)
    assert len(story.state.closed) + len(story.state.closed_before) <= 2_000
    assert story.refuses(Commit(reservation_id="c0", used=1)).code == "quota.reservation_not_found"
    assert story.does(Commit(reservation_id="c1001", used=1))["status"] == "committed"


# Windows


def test_use_counts_in_the_window_of_the_reservation_although_committed_later() -> None:
    story = Story(limit(30, Window("day")))
    story.does(story.reserve("r", 30, ttl_seconds=86_400))

    story.at(43_200).does(Commit(reservation_id="r", used=30))

    assert story.remaining == 30
    assert story.at(43_199).remaining == 0


def test_anchored_months_start_on_their_last_day_when_too_short() -> None:
    story = Story(limit(30, Window("month", anchor_day=31)), zone="Europe/Moscow")
    story.does(story.consume("c", 30))

    assert story.refuses(story.reserve("r", 1)).details["retry_at"] == "2026-01-30T21:00:00Z"
    assert story.at(32_400).does(story.consume("d", 30))["remaining"] == 0
    assert story.refuses(story.reserve("r", 1)).details["retry_at"] == "2026-02-27T21:00:00Z"


def test_a_rolling_window_forgets_to_the_second() -> None:
    story = Story(limit(10, Window("rolling", seconds=60)))
    story.at(0.9).does(story.consume("a", 6))
    story.at(30).does(story.consume("b", 4))

    assert story.at(59.999999).refuses(story.reserve("c", 1)).details["retry_at"] == "2026-01-30T12:01:00Z"
    assert story.at(60).remaining == 6
    assert story.at(90).remaining == 10


def test_a_rolling_window_does_not_run_backwards() -> None:
    story = Story(limit(10, Window("rolling", seconds=60)))
    story.at(100).does(story.consume("now", 1))

    assert story.at(41).does(story.consume("inside", 2))["remaining"] == 7
    assert story.at(40).does(story.consume("outside", 3))["remaining"] == 7
    assert story.at(101).remaining == 9


def test_a_check_of_the_future_leaves_a_rolling_window_as_it_is() -> None:
    story = Story(limit(10, Window("rolling", seconds=60)))
    story.does(story.consume("full", 10))

    assert story.at(100).does(story.reserve("r", 10, mode=Mode.CHECK_ONLY))["granted"] == 10
    assert story.at(30).refuses(story.reserve("r", 1)).code == "quota.exceeded"


def test_a_second_in_which_nothing_counts_any_more_is_not_waited_for() -> None:
    story = Story(limit(10, Window("rolling", seconds=60)))
    story.does(story.reserve("first", 3))
    story.at(10).does(story.reserve("second", 7))
    story.does(Rollback(reservation_id="first"))

    assert story.refuses(story.reserve("r", 4)).details["retry_at"] == "2026-01-30T12:01:10Z"


def test_a_commit_sees_a_rolling_window_as_it_stands_now() -> None:
    story = Story(limit(10, Window("rolling", seconds=60)), overdraft=Overdraft("bounded", 1))
    story.does(story.consume("full", 5))
    story.at(30).does(story.reserve("r", 5))

    assert story.at(59).refuses(Commit(reservation_id="r", used=7)).code == "quota.commit_exceeds_reserved"
    assert story.at(60).does(Commit(reservation_id="r", used=7))["remaining"] == 3


def test_a_window_that_gave_way_to_400_newer_ones_takes_no_more() -> None:
    story = Story(limit(10, Window("hour")))
    for hour in range(401):
        story.at(hour * 3600).does(story.consume(f"c{hour}", 1))

    refusal = story.at(0).refuses(story.reserve("r", 1))
    assert (refusal.code, refusal.frozen) == ("quota.too_old", True)
    assert story.refuses(story.adjust(1)).code == "quota.too_old"
    assert story.at(3600).does(story.reserve("r", 1))["remaining"] == 8
    frozen = QUOTA.freeze(story.state)
    assert len(frozen.limits[0].counts) == 400
    assert QUOTA.freeze(QUOTA.thaw(frozen)) == frozen


def test_a_limit_keeps_its_counters_while_its_window_is_the_same() -> None:
    story = Story(limit(30, limit_id="m"), limit(30, Window("lifetime"), limit_id="l"))
    story.does(story.consume("c", 20))

    assert story.does(story.set_limits(limit(50, limit_id="m")))["remaining"] == 30
    assert story.does(story.set_limits(limit(50, limit_id="m"), limit(9, Window("lifetime"), limit_id="l")))["remaining"] == 9
    assert story.does(story.set_limits(limit(50, limit_id="m"), zone="Europe/Moscow"))["remaining"] == 50


def test_what_is_freed_was_counted_there() -> None:
    story = Story(limit(30))
    story.does(story.reserve("r", 20))
    story.does(story.set_limits(limit(30, Window("day"))))
    assert story.remaining == 30

    story.does(Rollback(reservation_id="r"))

    assert story.remaining == 30


def test_the_same_limits_again_change_nothing() -> None:
    story = Story(limit(30))

    assert story.does(story.set_limits(limit(30))) == {"limits": 1, "remaining": 30}
    assert list(story.events) == []


def test_without_limits_use_is_only_measured() -> None:
    story = Story()
    story.does(SetLimits(subject="anna", meter="letters"))

    assert story.events == [LimitsSet("anna", "letters", "UTC", (), Overdraft(), 10_000, NOON)]
    assert story.does(story.consume("c", 2**63 - 1))["remaining"] is None
    assert story.does(story.adjust(2**63 - 1))["used"] == 2**64 - 2


def test_an_adjustment_may_make_used_negative() -> None:
    story = Story(limit(30))

    assert story.does(story.adjust(-5)) == {"amount": -5, "used": -5, "remaining": 35}
    assert story.events == [Adjusted("anna", "letters", -5, "correction", NOON)]


# Thresholds


def test_a_threshold_is_told_once_in_each_window() -> None:
    story = Story(limit(10, thresholds=(50, 80, 100)))

    story.does(story.reserve("a", 8))
    assert [fact.percent for fact in story.events if isinstance(fact, ThresholdCrossed)] == [50, 80]
    story.does(Rollback(reservation_id="a"))
    story.does(story.reserve("b", 10))
    assert [fact.percent for fact in story.events if isinstance(fact, ThresholdCrossed)] == [100]
    story.at(3 * 86_400).does(story.reserve("c", 5))

    start = datetime(2026, 2, 1, tzinfo=UTC)
    assert story.events[-1] == ThresholdCrossed("anna", "letters", "plan", 50, 10, start, after(3 * 86_400))


def test_a_rolling_threshold_is_armed_again_when_the_crossing_has_left() -> None:
    story = Story(limit(10, Window("rolling", seconds=60), thresholds=(50,)))
    told = []
    for second in (0, 30, 59, 60, 90, 119, 120):
        story.at(second).does(story.consume(f"c{second}", 5))
        told += [second for fact in story.events if isinstance(fact, ThresholdCrossed)]
        story.does(story.adjust(-5))

    assert told == [0, 60, 120]


# Credits


def test_a_grant_alone_makes_a_prepaid_quota() -> None:
    story = Story()

    assert story.does(story.grant("g", 10)) == {"grant_id": "g", "amount": 10, "credits_remaining": 10}
    assert story.does(story.reserve("r", 10))["remaining"] == 0
    assert story.events[-1].credits == (CreditUse("g", 10),)
    assert story.refuses(story.reserve("s", 1)).code == "quota.exceeded"
    assert story.does(Commit(reservation_id="r", used=4))["remaining"] == 6


def test_credits_pay_only_what_does_not_fit_and_count_in_the_other_limits() -> None:
    story = Story(limit(10, limit_id="free", overflow=True), limit(15, Window("day"), limit_id="pace"))
    story.does(story.grant("g", 100))

    story.does(story.reserve("r", 14))

    assert story.events[-1].credits == (CreditUse("g", 4),)
    assert isinstance(story.state, Quota)
    seen = view(story.state, NOON)
    assert [(one.limit_id, one.reserved) for one in seen.limits] == [("free", 10), ("pace", 14)]
    assert seen.credits_remaining == 96
    assert story.refuses(story.reserve("s", 2)).details["limit_id"] == "pace"


def test_credits_are_spent_by_priority_then_expiry_then_age_and_the_last_comes_back_first() -> None:
    story = Story()
    story.does(story.grant("late", 5, priority=1))
    story.does(story.grant("lasting", 5))
    story.does(story.grant("younger", 5))
    story.does(story.grant("expiring", 5, expires_at=after(1_000)))

    story.does(story.reserve("r", 18))
    assert story.events[-1].credits == tuple(CreditUse(*use) for use in [("expiring", 5), ("lasting", 5), ("younger", 5), ("late", 3)])
    story.does(Commit(reservation_id="r", used=7))

    assert isinstance(story.state, Quota)
    left = {grant.grant_id: grant.remaining for grant in view(story.state, NOON).grants}
    assert left == {"expiring": 0, "lasting": 3, "younger": 5, "late": 5}


def test_a_grant_waits_ends_and_rolls_over() -> None:
    story = Story()
    story.does(story.grant("g", 10, effective_at=after(10), expires_at=after(20), rollover_amount=4, rollover_until=after(30)))

    assert [story.at(second).remaining for second in (9, 10, 19, 20, 29, 30)] == [0, 10, 10, 4, 4, 0]


def test_what_comes_back_lands_on_the_side_of_the_expiry_it_was_taken_from() -> None:
    story = Story()
    story.does(story.grant("g", 10, expires_at=after(20), rollover_amount=4, rollover_until=after(300)))
    story.does(story.reserve("before", 8, ttl_seconds=1_000))
    story.at(20).does(story.reserve("past", 2, ttl_seconds=1_000))
    assert story.remaining == 0

    story.does(Rollback(reservation_id="past"))
    assert story.remaining == 2
    story.does(Rollback(reservation_id="before"))
    assert story.remaining == 4


def test_a_credit_is_not_spent_on_both_sides_of_the_expiry_by_imports_out_of_order() -> None:
    story = Story()
    story.does(story.grant("g", 10, expires_at=after(20), rollover_amount=4, rollover_until=after(300)))
    story.at(20).does(story.consume("after", 4))

    assert story.at(10).remaining == 6


def test_the_same_grant_again_changes_nothing_and_another_of_its_name_is_refused() -> None:
    story = Story()
    story.does(story.grant("g", 10, expires_at=after(20)))

    assert story.at(25).does(story.grant("g", 10, expires_at=after(20)))["credits_remaining"] == 0
    assert list(story.events) == []
    refusal = story.refuses(story.grant("g", 11, expires_at=after(20)))
    assert (refusal.code, refusal.frozen) == ("quota.grant_exists", True)


def test_a_voided_grant_is_empty_and_takes_nothing_back() -> None:
    story = Story()
    story.does(story.grant("g", 10))
    story.does(story.reserve("r", 4))

    first = story.does(VoidGrant(grant_id="g"))
    assert story.events == [GrantVoided("g", 6, NOON)]
    assert story.does(VoidGrant(grant_id="g")) == first == {"grant_id": "g", "freed": 6, "credits_remaining": 0}
    assert list(story.events) == []
    assert story.does(Rollback(reservation_id="r"))["remaining"] == 0
    assert story.refuses(VoidGrant(grant_id="other")).status == "not_found"


def test_too_many_grants_are_refused_until_one_has_ended() -> None:
    story = Story()
    for n in range(1_000):
        story.does(story.grant(f"g{n}", 1, expires_at=after(100) if n == 500 else None))

    assert story.refuses(story.grant("one more", 1)).code == "quota.too_many_grants"
    assert story.at(100).does(story.grant("one more", 1))["credits_remaining"] == 1_000


# What is refused before anything else


@pytest.mark.parametrize(
    "command",
    [
        Reserve(subject="anna", meter="letters", amount=1, reservation_id="r"),
        Consume(subject="anna", meter="letters", amount=1, reservation_id="r"),
        Commit(reservation_id="r", used=1),
        Rollback(reservation_id="r"),
        VoidGrant(grant_id="g"),
        Adjust(subject="anna", meter="letters", amount=1, reason="correction"),
    ],
    ids=lambda command: type(command).__name__,
)
def test_without_limits_or_grants_there_is_no_quota(command: Any) -> None:
    refusal = Story().refuses(command)

    assert (refusal.code, refusal.status, refusal.frozen) == ("quota.not_found", "not_found", False)


def test_expiring_what_is_not_there_does_nothing() -> None:
    assert Story().does(Expire()) == {"expired": 0}


@pytest.mark.parametrize(
    ("command", "field"),
    [
        (Reserve(subject="a", meter="m", amount=0, reservation_id="r"), "amount"),
        (Reserve(subject="a", meter="m", amount=2**63, reservation_id="r"), "amount"),
        (Reserve(subject="a", meter="m", amount=1, reservation_id=""), "reservation_id"),
        (Reserve(subject="a", meter="m", amount=1, reservation_id="r", ttl_seconds=0), "ttl_seconds"),
        (Reserve(subject="a", meter="m", amount=1, reservation_id="r", ttl_seconds=30 * 86_400 + 1), "ttl_seconds"),
        (Consume(subject="a", meter="m", amount=-1, reservation_id="r"), "amount"),
        (Commit(reservation_id="r", used=-1), "used"),
        (Commit(reservation_id="r", used=1, final=False, ttl_seconds=0), "ttl_seconds"),
        (Commit(reservation_id="r", used=1, ttl_seconds=60), "ttl_seconds"),
        (Grant(subject="a", meter="m", grant_id="", amount=1), "grant_id"),
        (Grant(subject="a", meter="m", grant_id="g", amount=0), "amount"),
        (Grant(subject="a", meter="m", grant_id="g", amount=1, priority=2**31), "priority"),
        (Grant(subject="a", meter="m", grant_id="g", amount=1, expires_at=NOON), "expires_at"),
        (Grant(subject="a", meter="m", grant_id="g", amount=1, expires_at=NOON.replace(tzinfo=None)), "expires_at"),
        (Grant(subject="a", meter="m", grant_id="g", amount=1, expires_at=after(1), rollover_amount=2), "rollover_amount"),
        (Grant(subject="a", meter="m", grant_id="g", amount=1, expires_at=after(1), rollover_amount=1), "rollover_until"),
        (Grant(subject="a", meter="m", grant_id="g", amount=1, rollover_amount=1, rollover_until=after(1)), "rollover_until"),
        (Adjust(subject="a", meter="m", amount=0, reason="correction"), "amount"),
        (Adjust(subject="a", meter="m", amount=1, reason=""), "reason"),
        (SetLimits(subject="", meter="m"), "subject"),
        (SetLimits(subject="a", meter="m\x00"), "meter"),
        (SetLimits(subject="a", meter="m", zone="Europe/Nowhere"), "zone"),
        (SetLimits(subject="a", meter="m", zone="Europe"), "zone"),
        (SetLimits(subject="a", meter="m", zone="../etc/passwd"), "zone"),
        (SetLimits(subject="a", meter="m", limits=(limit(1), limit(2))), "limits"),
        (SetLimits(subject="a", meter="m", limits=(limit(-1),)), "limits"),
        (SetLimits(subject="a", meter="m", limits=(limit(1, thresholds=(0,)),)), "limits"),
        (SetLimits(subject="a", meter="m", limits=(limit(1, thresholds=(80, 80)),)), "limits"),
        (SetLimits(subject="a", meter="m", limits=(limit(1, Window("day", anchor_day=1)),)), "limits"),
        (SetLimits(subject="a", meter="m", limits=(limit(1, Window("week", anchor_day=8)),)), "limits"),
        (SetLimits(subject="a", meter="m", limits=(limit(1, Window("month", anchor_month=1)),)), "limits"),
        (SetLimits(subject="a", meter="m", limits=(limit(1, Window("rolling")),)), "limits"),
        (SetLimits(subject="a", meter="m", limits=(limit(1, Window("rolling", seconds=86_401)),)), "limits"),
        (SetLimits(subject="a", meter="m", limits=(limit(1, Window("hour", seconds=5)),)), "limits"),
        (SetLimits(subject="a", meter="m", overdraft=Overdraft("bounded")), "overdraft"),
        (SetLimits(subject="a", meter="m", overdraft=Overdraft("soft", 1)), "overdraft"),
        (SetLimits(subject="a", meter="m", max_open=0), "max_open"),
    ],
)
def test_nonsense_is_refused_by_field_and_not_recorded(command: Any, field: str) -> None:
    refusal = Story().refuses(command)

    assert (refusal.code, refusal.field_name, refusal.status, refusal.frozen) == ("quota.invalid", field, "invalid", False)


# Names and snapshots


def test_a_reservation_id_leads_to_its_quota() -> None:
    stream = quota_stream(UUID(int=7), "anna", "letters")
    identity = reservation_id(stream, UUID(int=8))

    assert len(identity) == 40
    assert stream_of_reservation(identity) == stream
    assert len({identity, reservation_id(stream, UUID(int=8), 1), reservation_id(stream, UUID(int=9))}) == 3


@pytest.mark.parametrize("identity", ["", "r", "é" * 40, "=" * 40, "a" * 41, "a" * 40 + "\n"])
def test_a_malformed_reservation_id_leads_nowhere(identity: str) -> None:
    with pytest.raises(Rejected) as caught:
        stream_of_reservation(identity)

    assert (caught.value.code, caught.value.status) == ("quota.reservation_not_found", "not_found")


def test_streams_differ_by_tenant_subject_and_meter() -> None:
    one, two = UUID(int=1), UUID(int=2)
    streams = {quota_stream(*key) for key in [(one, "a", "m"), (two, "a", "m"), (one, "b", "m"), (one, "a", "n"), (one, "m", "a")]}

    assert len(streams) == 5


def test_a_snapshot_survives_json_with_numbers_beyond_64_bits() -> None:
    story = Story(limit(2**63 - 1, Window("lifetime")), limit(10**18, Window("rolling", seconds=60), "pace"), overdraft=Overdraft("soft"))
    for n in range(3):
        story.does(story.consume(f"c{n}", 2**63 - 1))
    frozen = QUOTA.freeze(story.state)

    decoded = msgspec.json.decode(msgspec.json.encode(frozen), type=FrozenQuota)

    assert decoded == frozen
    assert QUOTA.freeze(QUOTA.thaw(decoded)) == frozen
    assert QUOTA.thaw(QUOTA.freeze(QUOTA.initial)) == QUOTA.initial


def test_every_refusal_has_its_own_code_and_a_sentence() -> None:
    codes = [refusal.code for refusal in QUOTA.refusals]

    assert len(set(codes)) == len(codes)
    assert all(code.startswith("quota.") for code in codes)
    assert all(refusal().message.endswith(".") for refusal in QUOTA.refusals)

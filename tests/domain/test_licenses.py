"""Licenses: what they are at a moment, how they end, and what their end holds up."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.identity.licenses import (
    EXPIRY,
    LICENSE,
    CheckLicense,
    ExpireLicense,
    InvalidLicense,
    LicenseChanged,
    LicenseEnded,
    LicenseExpired,
    LicenseNotDue,
    LicenseNotFound,
    LicenseResumed,
    LicenseRevoked,
    LicenseSet,
    LicenseState,
    LicenseSuspended,
    ResumeLicense,
    RevokeLicense,
    SetLicense,
    SuspendLicense,
    licensed_person,
    meters_of,
    status,
    terms_of,
)
from domain.kernel.deadlines import Done, Due
from domain.kernel.decider import Command, Event, Rejected

AT = datetime(2027, 3, 1, tzinfo=UTC)
END = AT + timedelta(days=30)
ONE = timedelta(microseconds=1)
USER = UUID(int=7)

SET = LicenseSet(USER, "pro", END, 3, ("messages", "tokens"), AT)
FOREVER = LicenseSet(USER, "free", None, 1, (), AT)
SUSPENDED, RESUMED, REVOKED, EXPIRED = LicenseSuspended(AT), LicenseResumed(AT), LicenseRevoked(AT), LicenseExpired(END, END)


def wanted(
    plan: str = "pro",
    valid_until: datetime | None = END,
    devices: int = 3,
    meters: tuple[str, ...] = ("tokens", "messages"),
    replaces: tuple[str, ...] | None = None,
    at: datetime = AT,
) -> SetLicense:
    return SetLicense(user_id=USER, plan=plan, valid_until=valid_until, devices=devices, meters=meters, replaces=replaces, at=at)


def given_(*events: Event) -> LicenseState:
    state = LICENSE.initial
    for event in events:
        state = LICENSE.evolve(state, event)
    return state


@pytest.mark.parametrize(
    ("before", "at", "shown"),
    [
        ([], AT, "none"),
        ([SET], AT, "active"),
        ([SET], END - ONE, "active"),
        ([SET], END, "expired"),
        ([SET, SUSPENDED], END - ONE, "suspended"),
        ([SET, SUSPENDED], END, "expired"),
        ([SET, SUSPENDED, RESUMED], AT, "active"),
        ([SET, EXPIRED], AT, "expired"),
        ([SET, REVOKED], AT, "none"),
        ([FOREVER], AT + timedelta(days=36_500), "active"),
        ([SET, REVOKED, FOREVER], AT, "active"),
    ],
)
def test_what_it_is_at_a_moment(before: Sequence[Event], at: datetime, shown: str) -> None:
    assert status(given_(*before), at) == shown


@pytest.mark.parametrize(
    ("before", "command", "events"),
    [
        ([], wanted(), [SET]),
        ([SET], wanted(), []),
        ([SET], wanted(replaces=("messages", "tokens")), []),
        ([SET], wanted("free", None, 1, ()), [FOREVER]),
        ([SET, SUSPENDED], wanted(), [SET]),
        ([SET, EXPIRED], wanted(), [SET]),
        ([SET, REVOKED], wanted(replaces=("tokens", "messages")), [SET]),
        ([SET], SuspendLicense(at=AT), [SUSPENDED]),
        ([SET, SUSPENDED], SuspendLicense(at=AT), []),
        ([SET, SUSPENDED], ResumeLicense(at=AT), [RESUMED]),
        ([SET], ResumeLicense(at=AT), []),
        ([SET], RevokeLicense(at=AT), [REVOKED]),
        ([SET, EXPIRED], RevokeLicense(at=AT), [REVOKED]),
        ([SET, REVOKED], RevokeLicense(at=AT), []),
        ([SET], ExpireLicense(valid_until=END, at=END), [EXPIRED]),
        ([SET, SUSPENDED], ExpireLicense(valid_until=END, at=END), [EXPIRED]),
        ([SET, EXPIRED], ExpireLicense(valid_until=END, at=END), []),
        ([SET, REVOKED], ExpireLicense(valid_until=END, at=END), []),
        ([], CheckLicense(at=AT), []),
        ([SET], CheckLicense(at=END - ONE), []),
    ],
)
def test_what_is_done(before: Sequence[Event], command: Command, events: list[Event]) -> None:
    assert list(LICENSE.decide(command, given_(*before))) == events


@pytest.mark.parametrize(
    ("before", "command", "refusal"),
    [
        ([], wanted(plan=""), InvalidLicense),
        ([], wanted(plan=" pro"), InvalidLicense),
        ([], wanted(valid_until=AT), InvalidLicense),
        ([], wanted(valid_until=END.replace(tzinfo=None)), InvalidLicense),
        ([], wanted(devices=-1), InvalidLicense),
        ([], wanted(meters=("a", "a")), InvalidLicense),
        ([SET], wanted(replaces=()), LicenseChanged),
        ([], wanted(replaces=("tokens",)), LicenseChanged),
        ([], SuspendLicense(at=AT), LicenseNotFound),
        ([SET, REVOKED], SuspendLicense(at=AT), LicenseNotFound),
        ([SET], SuspendLicense(at=END), LicenseEnded),
        ([SET, SUSPENDED], ResumeLicense(at=END), LicenseEnded),
        ([], RevokeLicense(at=AT), LicenseNotFound),
        ([SET], ExpireLicense(valid_until=END, at=END - ONE), LicenseNotDue),
        ([SET], ExpireLicense(valid_until=AT, at=END), LicenseNotDue),
        ([FOREVER], ExpireLicense(valid_until=END, at=END), LicenseNotDue),
        ([SET, SUSPENDED], CheckLicense(at=AT), LicenseEnded),
        ([SET], CheckLicense(at=END), LicenseEnded),
        ([SET, REVOKED], CheckLicense(at=AT), LicenseEnded),
    ],
)
def test_what_is_refused(before: Sequence[Event], command: Command, refusal: type[Rejected]) -> None:
    with pytest.raises(refusal):
        LICENSE.decide(command, given_(*before))


def test_an_expired_license_says_since_when() -> None:
    with pytest.raises(LicenseEnded) as refused:
        LICENSE.decide(CheckLicense(at=END), given_(SET))

    assert refused.value.details == {"status": "expired", "valid_until": END.isoformat()}


@pytest.mark.parametrize(
    ("event", "deadlines"),
    [(SET, [Due(EXPIRY, END)]), (FOREVER, [Done(EXPIRY)]), (REVOKED, [Done(EXPIRY)]), (EXPIRED, [Done(EXPIRY)]), (SUSPENDED, [])],
)
def test_which_deadlines_an_event_sets(event: Event, deadlines: list[Due | Done]) -> None:
    assert list(LICENSE.deadlines(event)) == deadlines


@pytest.mark.parametrize(
    ("subject", "person"),
    [(USER.hex, USER), (str(USER), None), (USER.hex.upper().replace("0", "A"), None), (USER.hex + "\n", None), ("customer-1", None)],
)
def test_whose_a_subject_is(subject: str, person: UUID | None) -> None:
    assert licensed_person(subject) == person


MOMENTS = st.integers(0, 100).map(lambda days: AT + timedelta(days=days))
ENDS = st.none() | MOMENTS
COMMANDS: st.SearchStrategy[Command] = st.one_of(
    st.builds(
        lambda plan, end, meters, at: wanted(plan, end, 1, meters, at=at),
        st.sampled_from(("free", "pro")), ENDS, st.sampled_from(((), ("tokens",), ("a", "b"))), MOMENTS,
    ),
    st.builds(lambda at: SuspendLicense(at=at), MOMENTS),
    st.builds(lambda at: ResumeLicense(at=at), MOMENTS),
    st.builds(lambda at: RevokeLicense(at=at), MOMENTS),
    st.builds(lambda end, at: ExpireLicense(valid_until=end, at=at), MOMENTS, MOMENTS),
)  # fmt: skip


@given(st.lists(COMMANDS, max_size=40))
def test_an_ended_license_holds_again_only_when_somebody_sets_or_resumes_it(commands: list[Command]) -> None:
    commands.sort(key=lambda command: command.at)  # a writer's time never goes back
    state = LICENSE.initial
    due: datetime | None = None
    for command in commands:
        before = status(state, command.at)
        try:
            events = LICENSE.decide(command, state)
        except Rejected:
            continue
        for event in events:
            state = LICENSE.evolve(state, event)
            for deadline in LICENSE.deadlines(event):
                due = deadline.at if isinstance(deadline, Due) else None
        after = status(state, command.at)
        if before != "active" and after == "active":
            assert isinstance(command, SetLicense | ResumeLicense)
        if before == "expired" and after == "active":
            assert isinstance(command, SetLicense)
        terms = terms_of(state)
        waits = terms is not None and terms.valid_until if type(state).__name__ in ("ActiveLicense", "SuspendedLicense") else None
        assert due == waits, "the deadline is the end of the license that has not ended"
        assert LICENSE.thaw(LICENSE.freeze(state)) == state
        assert meters_of(state) == tuple(sorted(meters_of(state)))

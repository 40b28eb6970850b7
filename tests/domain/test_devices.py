"""Devices: who has a place keeps it, who wants one needs a free one, whatever the order of everything."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.identity.devices import (
    DEVICES,
    AllUnbound,
    BindDevice,
    Device,
    DeviceBound,
    DeviceExists,
    DeviceLimitReached,
    DeviceLimitSet,
    DeviceNotFound,
    DeviceRenamed,
    Devices,
    DeviceUnbound,
    InvalidDevice,
    RenameDevice,
    SetDeviceLimit,
    UnbindAll,
    UnbindDevice,
)
from domain.kernel.decider import Command, Event, Rejected

AT = datetime(2027, 3, 1, tzinfo=UTC)


def device(number: int) -> UUID:
    return UUID(int=number)


def fingerprint(number: int) -> str:
    return f"{number:032x}"


def bind(number: int, *, id_: int | None = None, limit: int = 2) -> BindDevice:
    identity = device(number if id_ is None else id_)
    return BindDevice(device_id=identity, fingerprint=fingerprint(number), name=f"sealed-{number}", limit_if_unset=limit, at=AT)


def bound(number: int) -> DeviceBound:
    return DeviceBound(device(number), fingerprint(number), f"sealed-{number}", AT)


def given_(*events: Event) -> Devices:
    state = DEVICES.initial
    for event in events:
        state = DEVICES.evolve(state, event)
    return state


def decide(state: Devices, command: Command) -> list[Event]:
    command.at = AT
    return list(DEVICES.decide(command, state))


@pytest.mark.parametrize(
    ("before", "command", "events"),
    [
        ([], bind(1), [bound(1)]),
        ([bound(1)], bind(2), [bound(1 + 1)]),
        ([bound(1), bound(2)], bind(1, id_=9), []),
        ([DeviceLimitSet(1, AT)], bind(1, limit=0), [bound(1)]),
        ([bound(1), DeviceUnbound(device(1), AT)], bind(1, id_=9), [DeviceBound(device(9), fingerprint(1), "sealed-1", AT)]),
        ([bound(1)], RenameDevice(device_id=device(1), name="other"), [DeviceRenamed(device(1), "other", AT)]),
        ([bound(1)], RenameDevice(device_id=device(1), name="sealed-1"), []),
        ([bound(1)], UnbindDevice(device_id=device(1)), [DeviceUnbound(device(1), AT)]),
        ([bound(1), DeviceUnbound(device(1), AT)], UnbindDevice(device_id=device(1)), []),
        ([bound(1), AllUnbound(AT)], UnbindDevice(device_id=device(1)), []),
        ([bound(1)], UnbindAll(), [AllUnbound(AT)]),
        ([], UnbindAll(), []),
        ([], SetDeviceLimit(limit=0), [DeviceLimitSet(0, AT)]),
        ([DeviceLimitSet(5, AT)], SetDeviceLimit(limit=5), []),
    ],
)
def test_what_is_done(before: Sequence[Event], command: Command, events: list[Event]) -> None:
    assert decide(given_(*before), command) == events


@pytest.mark.parametrize(
    ("before", "command", "refusal"),
    [
        ([bound(1), bound(2)], bind(3), DeviceLimitReached),
        ([DeviceLimitSet(0, AT)], bind(1), DeviceLimitReached),
        ([bound(1), bound(2), DeviceLimitSet(1, AT), DeviceUnbound(device(2), AT)], bind(3), DeviceLimitReached),
        ([bound(1)], bind(2, id_=1), DeviceExists),
        ([bound(1), DeviceUnbound(device(1), AT)], bind(2, id_=1), DeviceExists),
        ([], RenameDevice(device_id=device(1), name="x"), DeviceNotFound),
        ([], UnbindDevice(device_id=device(1)), DeviceNotFound),
        ([], SetDeviceLimit(limit=-1), InvalidDevice),
        ([], SetDeviceLimit(limit=101), InvalidDevice),
        ([], BindDevice(device_id=device(1), fingerprint="my laptop", name="x"), InvalidDevice),
        ([], BindDevice(device_id=device(1), fingerprint=fingerprint(1), name=""), InvalidDevice),
    ],
)
def test_what_is_refused(before: Sequence[Event], command: Command, refusal: type[Rejected]) -> None:
    with pytest.raises(refusal):
        decide(given_(*before), command)


def test_a_refused_device_is_told_of_those_that_are_bound_and_of_the_limit() -> None:
    with pytest.raises(DeviceLimitReached) as refused:
        decide(given_(bound(1), bound(2)), bind(3))

    assert refused.value.details == {"device_ids": [device(1).hex, device(2).hex], "limit": 2}


def test_a_limit_below_what_is_bound_keeps_what_is_bound() -> None:
    state = given_(bound(1), bound(2), DeviceLimitSet(1, AT))

    assert [each.device_id for each in state.bound] == [device(1), device(2)]
    assert decide(state, bind(2, id_=9)) == []


COMMANDS: st.SearchStrategy[Any] = st.one_of(
    st.builds(lambda number, id_: bind(number, id_=id_), st.integers(1, 5), st.integers(1, 40)),
    st.builds(lambda number: UnbindDevice(device_id=device(number)), st.integers(1, 40)),
    st.builds(lambda number: RenameDevice(device_id=device(number), name="new"), st.integers(1, 40)),
    st.builds(lambda limit: SetDeviceLimit(limit=limit), st.integers(0, 4)),
    st.builds(UnbindAll),
)


@given(st.lists(COMMANDS, max_size=60))
def test_whatever_the_order_nobody_new_comes_in_over_the_limit(commands: list[Command]) -> None:
    state = DEVICES.initial
    for command in commands:
        before = state
        try:
            events = decide(state, command)
        except Rejected:
            continue
        for event in events:
            state = DEVICES.evolve(state, event)
        limit = 2 if before.limit is None else before.limit
        ids, fingerprints = [each.device_id for each in state.bound], [each.fingerprint for each in state.bound]
        assert len(set(ids)) == len(ids)
        assert len(set(fingerprints)) == len(fingerprints)
        assert not set(ids) & set(state.unbound)
        if len(state.bound) > len(before.bound):
            assert len(state.bound) == len(before.bound) + 1 <= limit
        if isinstance(command, SetDeviceLimit):
            assert state.bound == before.bound
        assert DEVICES.thaw(DEVICES.freeze(state)) == state
        assert [type(each) for each in state.bound] == [Device] * len(state.bound)

"""Quotas on the store against the naive oracle, over the in-memory twin and over PostgreSQL.

Whatever Hypothesis asks is asked four times: twice at once from two stores on one log, again, and with another body under the
same key. The oracle is told once.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from domain.kernel.decider import Command, Rejected
from domain.quota import (
    QUOTA,
    Adjust,
    Commit,
    Consume,
    Expire,
    Grant,
    Limit,
    Mode,
    Overdraft,
    Quota,
    Reserve,
    Rollback,
    SetLimits,
    VoidGrant,
    Window,
    quota_stream,
)
from eventstore.errors import KeyReused
from eventstore.rows import first_broken
from eventstore.store import Store
from eventstore.writer import Item, Options, Outcome, Request
from tests.support.quota_oracle import Oracle
from tests.support.worlds import MemoryWorld, fingerprint

START = datetime(2026, 10, 24, 21, 30, tzinfo=UTC)
"""The evening before the clocks of Europe go back."""

SUBJECTS = ("ann", "ben", "eve")
METER = "tokens"
LEAVES_NOTHING = {"quota.not_found", "quota.reservation_not_found", "quota.grant_not_found", "quota.invalid"}
STORES = Options(snapshot_every=3, cached_streams=2), Options(snapshot_every=0)

subjects = st.sampled_from(SUBJECTS)
names = st.sampled_from([f"r{n}" for n in range(8)])
numbers = st.integers(0, 8)
amounts = st.integers(1, 30)
modes = st.sampled_from([Mode.NORMAL, Mode.NORMAL, Mode.NORMAL, Mode.BEST_EFFORT, Mode.CHECK_ONLY, Mode.ADJUST])
seconds = st.sampled_from([1, 30, 4_000, 100_000])
windows = st.sampled_from(
    [
        Window("lifetime"),
        Window("day"),
        Window("week"),
        Window("month", anchor_day=25),
        Window("rolling", seconds=20),
        Window("rolling", seconds=86_400),
    ]
)
limits = st.lists(
    st.builds(Limit, st.sampled_from("abc"), st.sampled_from([0, 20, 60, 200]), windows, st.booleans()),
    max_size=3,
    unique_by=lambda limit: limit.limit_id,
).map(tuple)
overdrafts = st.sampled_from([Overdraft(), Overdraft(), Overdraft("bounded", 7), Overdraft("soft")])


@dataclass
class Backend:
    """Two stores on one log, the loop they live in, and how much was asked of them."""

    runner: asyncio.Runner
    renewed: Callable[["Backend"], tuple[Store, Store]]
    """The stores of the next example."""
    injected: bool
    """Whether the moment travels with the request, because the log's clock is the server's."""
    now: datetime = START
    commands: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    tenants: set[UUID] = field(default_factory=set)


class QuotaMachine(RuleBasedStateMachine):
    def __init__(self, backend: Backend) -> None:
        super().__init__()
        self.backend, self.tenant, self.asked = backend, uuid4(), 0
        backend.now = START
        backend.tenants.add(self.tenant)
        self.stores = backend.renewed(backend)
        self.oracles = {name: Oracle() for name in SUBJECTS}
        self.recorded = 0

    def stream(self, subject: str) -> str:
        return quota_stream(self.tenant, subject, METER)

    def run(self, *items: tuple[str, Command], ago: int = 0) -> None:
        """Ask four times and compare each answer with the oracle's."""
        at = self.backend.now - timedelta(seconds=ago)
        replies, code, index, frozen = self.foretell(list(items), at)
        request = Request(
            self.tenant,
            uuid4(),
            tuple(Item(QUOTA, self.stream(subject), deepcopy(command)) for subject, command in items),
            fingerprint("body"),
            occurred_at=at if self.backend.injected or ago else None,
        )
        self.asked += 1

        first, second, again, altered = answers = self.backend.runner.run(self.ask_four_times(request))

        self.backend.commands += 4
        self.backend.kinds["+".join(type(command).__name__ for _, command in items) + (f" {code}" if code else "")] += 1
        recorded = isinstance(altered, KeyReused)
        for answer in answers[:3] if recorded else answers:
            if code is not None and not frozen:
                assert isinstance(answer, Rejected), answer
                assert (answer.code, answer.frozen, answer.index) == (code, False, index)
                continue
            assert isinstance(answer, Outcome), answer
            assert answer.refused == (code is not None), answer
            said = json.loads(answer.reply)
            assert (
                (said["code"], said.get("index")) == (code, index)
                if code
                else said == (replies if len(items) > 1 else replies["results"][0])
            )
        if recorded:
            assert first.reply == second.reply == again.reply
            assert sorted((first.replayed, second.replayed)) == [False, True]
            assert again.replayed
            self.recorded += 1
        acts = any(isinstance(c, Reserve | Consume | Adjust) and getattr(c, "mode", None) is not Mode.CHECK_ONLY for _, c in items)
        assert recorded or not (frozen or (acts and not code)), "it took effect and left no trace"

    def foretell(self, items: list[tuple[str, Command]], at: datetime) -> tuple[dict[str, Any], str | None, int | None, bool]:
        """(replies, code of the refusal, index of the refused item, whether it is remembered); the oracles are told."""
        trial, replies = deepcopy(self.oracles), []
        for number, (subject, command) in enumerate(items):
            command.at = at
            sense = not isinstance(command, Reserve | Consume) or command.amount >= 1
            verdict = trial[subject].apply(command) if sense else ("rejected", "quota.invalid")
            if verdict[0] == "rejected":
                frozen = verdict[1] not in LEAVES_NOTHING and getattr(command, "mode", None) is not Mode.CHECK_ONLY
                return {}, str(verdict[1]), number if len(items) > 1 else None, frozen
            replies.append(verdict[1])
        self.oracles = trial
        return {"results": replies}, None, None, False

    async def ask_four_times(self, request: Request) -> list[Any]:
        one, two = self.stores if self.asked % 3 else (self.stores[0], self.stores[0])
        answers: list[Any] = await asyncio.gather(one.submit(replace(request)), two.submit(replace(request)), return_exceptions=True)
        for store, body in ((self.stores[1], "body"), (self.stores[0], "another body")):
            answers += await asyncio.gather(store.submit(replace(request, fingerprint=fingerprint(body))), return_exceptions=True)
        return answers

    def reserved(self, subject: str, number: int) -> str:
        """The name of a reservation that was made, if any, the newest first; sometimes one that was never made."""
        made = list(self.oracles[subject].reservations)
        return made[-1 - number % len(made)] if made and number < 8 else "never made"

    # What is asked

    @initialize(amount=st.sampled_from([20, 60, 200]))
    def ask_too_early_and_begin(self, amount: int) -> None:
        self.run(("ann", Reserve(subject="ann", meter=METER, amount=1, reservation_id="r0")))
        self.run(*((name, SetLimits(subject=name, meter=METER, limits=(Limit("a", amount),), max_open=2)) for name in SUBJECTS))

    @rule(
        subject=subjects,
        limits=limits,
        overdraft=overdrafts,
        zone=st.sampled_from(["UTC", "Europe/Berlin"]),
        most=st.sampled_from([2, 100]),
    )
    def set_limits(self, subject: str, limits: tuple[Limit, ...], overdraft: Overdraft, zone: str, most: int) -> None:
        self.run((subject, SetLimits(subject=subject, meter=METER, zone=zone, limits=limits, overdraft=overdraft, max_open=most)))

    @rule(subject=subjects, name=names, amount=amounts, mode=modes, ttl=seconds)
    def reserve(self, subject: str, name: str, amount: int, mode: Mode, ttl: int) -> None:
        self.run((subject, Reserve(subject=subject, meter=METER, amount=amount, reservation_id=name, ttl_seconds=ttl, mode=mode)))

    @rule(subject=subjects, amount=amounts, used=st.none() | st.integers(0, 30), wait=st.sampled_from([0, 0, 40]))
    def reserve_and_end(self, subject: str, amount: int, used: int | None, wait: int) -> None:
        name = f"n{self.asked}"
        self.run((subject, Reserve(subject=subject, meter=METER, amount=amount, reservation_id=name, ttl_seconds=30)))
        self.backend.now += timedelta(seconds=wait)
        self.run((subject, Rollback(reservation_id=name) if used is None else Commit(reservation_id=name, used=used)))

    @rule(subject=subjects, name=names, amount=amounts, mode=modes)
    def consume(self, subject: str, name: str, amount: int, mode: Mode) -> None:
        self.run((subject, Consume(subject=subject, meter=METER, amount=amount, reservation_id=name, mode=mode)))

    @rule(subject=subjects, number=numbers, used=st.integers(0, 30))
    def commit(self, subject: str, number: int, used: int) -> None:
        self.run((subject, Commit(reservation_id=self.reserved(subject, number), used=used)))

    @rule(subject=subjects, number=numbers, used=st.integers(0, 8), ttl=st.none() | seconds)
    def commit_a_part(self, subject: str, number: int, used: int, ttl: int | None) -> None:
        self.run((subject, Commit(reservation_id=self.reserved(subject, number), used=used, final=False, ttl_seconds=ttl)))

    @rule(subject=subjects, number=numbers)
    def rollback(self, subject: str, number: int) -> None:
        self.run((subject, Rollback(reservation_id=self.reserved(subject, number))))

    @rule(subject=subjects, amount=st.sampled_from([-20, -3, 2, 9]))
    def adjust(self, subject: str, amount: int) -> None:
        self.run((subject, Adjust(subject=subject, meter=METER, amount=amount, reason="correction")))

    @rule(subject=subjects)
    def expire(self, subject: str) -> None:
        self.run((subject, Expire()))

    @rule(subject=subjects, name=st.sampled_from("gh"), amount=amounts, lasts=st.none() | seconds)
    def grant(self, subject: str, name: str, amount: int, lasts: int | None) -> None:
        ends = None if lasts is None else self.backend.now + timedelta(seconds=lasts)
        self.run((subject, Grant(subject=subject, meter=METER, grant_id=name, amount=amount, expires_at=ends)))

    @rule(subject=subjects, name=st.sampled_from("gh"))
    def void_grant(self, subject: str, name: str) -> None:
        self.run((subject, VoidGrant(grant_id=name)))

    @rule(subject=subjects, name=names)
    def ask_nonsense(self, subject: str, name: str) -> None:
        self.run((subject, Reserve(subject=subject, meter=METER, amount=0, reservation_id=name)))

    @rule(parts=st.lists(st.tuples(subjects, names, amounts), min_size=2, max_size=4), end=st.booleans())
    def atomic_batch(self, parts: list[tuple[str, str, int]], end: bool) -> None:
        items: list[tuple[str, Command]] = []
        for subject, name, amount in parts:
            items.append((subject, Reserve(subject=subject, meter=METER, amount=amount, reservation_id=name)))
            if end:
                items.append((subject, Commit(reservation_id=name, used=amount // 2)))
        self.run(*items)

    @rule(subject=subjects, name=names, amount=amounts, ago=st.sampled_from([5, 90, 100_000]))
    def import_what_happened_before(self, subject: str, name: str, amount: int, ago: int) -> None:
        self.run((subject, Consume(subject=subject, meter=METER, amount=amount, reservation_id=name)), ago=ago)

    @rule(wait=st.sampled_from([0.25, 1.0, 21.0, 3_700.0, 90_000.0, 700_000.0]))
    def time_passes(self, wait: float) -> None:
        self.backend.now += timedelta(seconds=wait)

    # What must hold at the end

    def teardown(self) -> None:
        self.backend.runner.run(self.look_back())

    async def look_back(self) -> None:
        log = self.stores[0].writer(self.tenant).log
        rows = await log.read(0, 10**6)
        assert first_broken(log.partition, rows) is None
        mine = [row for row in rows if row.tenant_id == self.tenant]
        assert sum(row.ordinal == 0 for row in mine) == self.recorded
        terminal = {"quota.committed", "quota.rolled_back", "quota.expired", "quota.consumed"}
        ends = Counter((row.stream, json.loads(row.payload)["reservation_id"]) for row in mine if row.type in terminal)
        assert set(ends.values()) <= {1}, "a reservation ended twice"
        for name, oracle in self.oracles.items():
            folded = [(await store.state(QUOTA, self.tenant, self.stream(name))).state for store in self.stores]
            assert QUOTA.freeze(folded[0]) == QUOTA.freeze(folded[1]), "with snapshots and without"
            state = folded[0]
            assert isinstance(state, Quota)
            assert state.used == sum(use.booked for use in oracle.uses)
            # The oracle has ended what was due at its last accepted command, the log at its last event.
            ended = {key for key, use in oracle.reservations.items() if use.status != "open"}
            assert ended.isdisjoint({key for key, _ in state.open.items()} - self.overdue(state))

    def overdue(self, state: Quota) -> set[str]:
        return {key for key, held in state.open.items() if held.expires_at <= self.backend.now}


def run_machine(backend: Backend, examples: int, steps: int, **more: Any) -> None:
    chosen = settings(max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=list(HealthCheck), **more)
    made: Any = lambda: QuotaMachine(backend)  # noqa: E731  # a factory, where the signature only knows a class
    run_state_machine_as_test(made, settings=chosen)


def in_memory(runner: asyncio.Runner) -> Backend:
    """A new twin for each example."""

    def renewed(backend: Backend) -> tuple[Store, Store]:
        world = MemoryWorld(lambda: backend.now)
        return runner.run(world.open(STORES[0], [QUOTA])), runner.run(world.open(STORES[1], [QUOTA]))

    return Backend(runner, renewed, injected=False)


def assert_volume(backend: Backend, examples: int, commands: int) -> None:
    """A machine that never started, or whose rules hardly ever apply, proves nothing."""
    assert len(backend.tenants) >= examples
    assert backend.commands >= commands, backend.kinds
    codes = ("exceeded", "reservation_exists", "too_many_open", "invalid", "not_found")
    wanted = [f"Reserve quota.{code}" for code in codes]
    wanted += [
        f"Commit quota.{code}" for code in ("reservation_expired", "reservation_closed", "commit_exceeds_reserved", "reservation_not_found")
    ]
    wanted += ["Reserve", "Commit", "Rollback", "Consume", "Adjust", "Expire", "Grant", "VoidGrant", "SetLimits"]
    wanted.append("Rollback quota.reservation_closed")
    assert [kind for kind in wanted if not backend.kinds[kind]] == [], backend.kinds
    batches = Counter({kind: count for kind, count in backend.kinds.items() if "+" in kind})
    assert any(" " in kind for kind in batches), "no batch was refused"
    assert any(" " not in kind for kind in batches), "no batch was accepted"


@pytest.mark.timeout(900)
def test_the_store_in_memory_agrees_with_the_oracle() -> None:
    with asyncio.Runner() as runner:
        backend = in_memory(runner)
        run_machine(backend, 200, 40)
        assert_volume(backend, 200, 15_000)


@pytest.mark.timeout(900)
def test_the_store_on_postgres_agrees_with_the_oracle(database_dsn: str) -> None:
    with asyncio.Runner() as runner:
        one, two = (runner.run(Store.open(database_dsn, [QUOTA], options)) for options in STORES)
        backend = Backend(runner, lambda _: (one, two), injected=True)
        try:
            # The same examples in each run: in so few, something rare is missing now and then. What is new is looked for in memory.
            run_machine(backend, 60, 40, derandomize=True)
            assert_volume(backend, 60, 4_000)
        finally:
            runner.run(one.drain())
            runner.run(two.drain())

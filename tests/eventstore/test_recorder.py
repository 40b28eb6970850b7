"""The library's own recorder tests against our log, and that library and writer understand what the other one wrote."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any
from uuid import UUID, uuid4

import eventsourcing.cryptography
import psycopg
import pytest
from eventsourcing import persistence
from eventsourcing.application import Application, LocalNotificationLog
from eventsourcing.domain import Aggregate
from eventsourcing.domain import event as library_event
from eventsourcing.persistence import EventStore, IntegrityError, MapperDeserialisationError, Notification, StoredEvent, Tracking
from eventsourcing.popo import POPOTrackingRecorder
from eventsourcing.projection import Projection, ProjectionRunner
from hypothesis import given
from hypothesis import strategies as st

from domain.kernel.decider import Decider, Event, event
from eventstore.codec import Codec
from eventstore.errors import CorruptLog, UnknownEventType, UnsafeServer
from eventstore.mapper import HoldbookMapper, StreamEvent
from eventstore.recorder import PartitionRecorder, Pool, open_recorder_pool, to_originator, to_payload, to_state, to_stream
from eventstore.requests import Options
from eventstore.store import partition_of
from tests.support.till import TILL, Open, Opened, Take, Taken
from tests.support.worlds import OTHER, TENANT, PostgresWorld, ask, broken

# The library's test module imports a cipher that needs pycryptodome, for tests of other things than recorders. Its twin on
# the package we have anyway stands in.
sys.modules.setdefault("eventsourcing.cipher", eventsourcing.cryptography)
from eventsourcing.tests import persistence as shipped  # noqa: E402  # after the line above, which it needs

PARTITION = partition_of(TENANT, 64)
MAPPER = HoldbookMapper(Codec([TILL]))


@pytest.fixture
async def world(database_dsn: str) -> AsyncIterator[PostgresWorld]:
    world = PostgresWorld(database_dsn)
    yield world
    await world.close()


@pytest.fixture
def pool(database_dsn: str) -> Iterator[Pool]:
    with open_recorder_pool(database_dsn) as pool:
        yield pool


@pytest.fixture
def recorder(pool: Pool) -> PartitionRecorder:
    return PartitionRecorder(pool, PARTITION, TENANT, actor="library")


def stored(originator_id: UUID | str, version: int, topic: str = "topic", state: bytes = b"{}") -> StoredEvent:
    return StoredEvent(originator_id, version, topic, state)


# The library's shipped tests. Those that only time something run too: they are short, and they write.


class OnOurLog:
    """Gives a shipped test a database of its own, and checks the log it leaves behind."""

    recorder: PartitionRecorder

    @pytest.fixture(autouse=True)
    def _on_our_log(self, database_dsn: str) -> Iterator[None]:
        world = PostgresWorld(database_dsn)
        with open_recorder_pool(database_dsn) as pool:
            self.recorder = PartitionRecorder(pool, PARTITION, TENANT)
            yield
        left, first_broken = world.rows(), broken(world)
        world.admin.close()
        assert left
        assert first_broken is None


class WithNames(OnOurLog):
    def new_originator_id(self) -> UUID | str:
        return f"cart-{uuid4()}"


class TestApplicationRecorder(OnOurLog, shipped.ApplicationRecorderTestCase[PartitionRecorder]):
    def create_recorder(self) -> PartitionRecorder:
        return self.recorder

    def test_insert_subscribe(self) -> None:
        self.optional_test_insert_subscribe()


class TestApplicationRecorderWithNames(WithNames, shipped.ApplicationRecorderTestCase[PartitionRecorder]):
    def create_recorder(self) -> PartitionRecorder:
        return self.recorder

    def test_insert_subscribe(self) -> None:
        self.optional_test_insert_subscribe()

    # The same again would only take time: names make no difference to threads.
    test_concurrent_no_conflicts = test_concurrent_throughput = test_performance = None  # type: ignore[assignment]


class KeepsIdsToItself(persistence.AggregateRecorder):
    """The shipped tests of aggregate recorders insist that inserting returns no notification ids. All else is ours."""

    def __init__(self, recorder: PartitionRecorder) -> None:
        self.inner = recorder

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> None:
        self.inner.insert_events(stored_events, **kwargs)

    def select_events(self, originator_id: UUID | str, **kwargs: Any) -> Sequence[StoredEvent]:
        return self.inner.select_events(originator_id, **kwargs)


class TestAggregateRecorder(OnOurLog, shipped.AggregateRecorderTestCase):
    def create_recorder(self) -> persistence.AggregateRecorder:
        return KeepsIdsToItself(self.recorder)


class TestAggregateRecorderWithNames(WithNames, shipped.AggregateRecorderTestCase):
    def create_recorder(self) -> persistence.AggregateRecorder:
        return KeepsIdsToItself(self.recorder)


class TestNonInterleavingNotificationIds(OnOurLog, shipped.NonInterleavingNotificationIDsBaseCase):
    def create_recorder(self) -> PartitionRecorder:
        return self.recorder


# States and names


@given(st.binary() | st.builds(lambda tail: b'{"$bytes":"' + tail, st.binary()) | st.text().map(str.encode))
def test_every_state_comes_back_byte_for_byte(state: bytes) -> None:
    assert to_state(to_payload(state)) == state


@pytest.mark.parametrize("state", [b'{"a": 1}', b" [1,\n2] ", b'"\xc3\xa9 \\u00e9"', b"null", b"1e5"])
def test_json_is_stored_as_it_is(state: bytes) -> None:
    assert to_payload(state) == state.decode()


@pytest.mark.parametrize(
    "state",
    [b"", b"state1", b"\xff\x00", b"NaN", b"{} {}", b'{"$bytes":"e30="}', b'"\\ud800"', b"\xef\xbb\xbf{}", b"[" * 100_000, b'"\x00"'],
)
def test_anything_else_is_stored_in_an_envelope_that_the_server_takes(recorder: PartitionRecorder, state: bytes) -> None:
    assert to_payload(state).startswith('{"$bytes":"')

    recorder.insert_events([stored("cart-1", 1, state=state)])

    assert recorder.select_events("cart-1")[0].state == state


def test_names_and_uuids_come_back_as_what_they_were() -> None:
    for originator_id in (uuid4(), "till-7", f"cart-{uuid4()}", uuid4().hex, str(uuid4()).upper(), "", "x" * 36):
        assert to_originator(to_stream(originator_id)) == originator_id


def test_a_name_that_would_come_back_as_a_uuid_is_refused(recorder: PartitionRecorder) -> None:
    with pytest.raises(persistence.ProgrammingError, match="read back as a UUID"):
        recorder.insert_events([stored(str(uuid4()), 1)])


# What is refused


@pytest.mark.parametrize("versions", [(2,), (1, 3), (1, 1), (0, 2), (-1,)])
def test_a_stream_begins_at_0_or_1_and_has_no_gaps(recorder: PartitionRecorder, versions: tuple[int, ...]) -> None:
    with pytest.raises(IntegrityError):
        recorder.insert_events([stored("cart-1", version) for version in versions])

    assert recorder.max_notification_id() is None


def test_a_refused_insert_leaves_the_lock_and_the_session_free(recorder: PartitionRecorder) -> None:
    for _ in range(10):
        with pytest.raises(IntegrityError):
            recorder.insert_events([stored("cart-1", 7)])

    assert recorder.insert_events([stored("cart-1", 1)]) == [1]


def test_another_tenants_stream_cannot_be_continued(pool: Pool, recorder: PartitionRecorder) -> None:
    recorder.insert_events([stored("cart-1", 1)])

    with pytest.raises(IntegrityError, match="another tenant"):
        PartitionRecorder(pool, PARTITION, OTHER).insert_events([stored("cart-1", 2)])


def test_tracking_is_refused_rather_than_dropped(recorder: PartitionRecorder) -> None:
    with pytest.raises(persistence.NotSupportedError, match="tracking"):
        recorder.insert_events([stored("cart-1", 1)], tracking=Tracking("upstream", 1))

    assert recorder.insert_events([stored("cart-1", 1)], tracking=None) == [1]


def test_what_the_servers_index_refuses_is_a_conflict_too(recorder: PartitionRecorder, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder.insert_events([stored("cart-1", 1)])
    monkeypatch.setattr(PartitionRecorder, "_check_versions", lambda *_: None)

    with pytest.raises(IntegrityError, match="event_stream"):
        recorder.insert_events([stored("cart-1", 1)])

    assert recorder.insert_events([stored("cart-2", 1)]) == [2]


def test_other_failures_are_the_librarys_errors_too(pool: Pool, recorder: PartitionRecorder, world: PostgresWorld) -> None:
    with pytest.raises(persistence.DataError):
        recorder.insert_events([stored("cart-1", 1, topic="nul \x00")])
    with pytest.raises(persistence.ProgrammingError, match="never initialised"):
        PartitionRecorder(pool, 64, TENANT).insert_events([stored("cart-1", 1)])
    world.admin.execute("alter table event rename to gone")
    with pytest.raises(persistence.ProgrammingError):
        recorder.max_notification_id()
    pool.close()
    with pytest.raises(persistence.OperationalError):
        recorder.max_notification_id()


def test_a_session_that_dies_in_the_insert_is_in_doubt_and_nothing_is_retried(
    recorder: PartitionRecorder, world: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    check, asked = PartitionRecorder._check_versions, 0

    def end_the_session(self: PartitionRecorder, *arguments: Any) -> None:
        nonlocal asked
        asked += 1
        check(self, *arguments)
        victims = "from pg_stat_activity where state = 'idle in transaction' and datname = current_database()"
        assert world.admin.execute(f"select pg_terminate_backend(pid, 60000) {victims}").fetchall() == [(True,)]

    monkeypatch.setattr(PartitionRecorder, "_check_versions", end_the_session)
    with pytest.raises(persistence.OperationalError):
        recorder.insert_events([stored("cart-1", 1)])
    assert asked == 1

    monkeypatch.undo()
    assert recorder.insert_events([stored("cart-1", 1)]) == [1]


def test_a_missing_position_stops_the_reader(recorder: PartitionRecorder, world: PostgresWorld) -> None:
    recorder.insert_events([stored("cart-1", version) for version in (1, 2, 3)])
    world.admin.execute("delete from event where position = 2")

    assert [found.id for found in recorder.select_notifications(1, 1)] == [1]
    for start in (1, 2):
        with pytest.raises(CorruptLog, match="Position 2"):
            recorder.select_notifications(start, 10)


def test_a_server_that_could_lose_answers_is_refused(database_dsn: str) -> None:
    name = psycopg.conninfo.conninfo_to_dict(database_dsn)["dbname"]
    with psycopg.connect(database_dsn, autocommit=True) as admin:
        admin.execute(psycopg.sql.SQL("alter database {} set synchronous_commit = off").format(psycopg.sql.Identifier(str(name))))

    with pytest.raises(UnsafeServer, match="synchronous_commit"):
        open_recorder_pool(database_dsn)


def test_a_clock_that_jumps_back_does_not_turn_time_back(recorder: PartitionRecorder, world: PostgresWorld) -> None:
    recorder.insert_events([stored("cart-1", 1)])
    world.admin.execute("update event set recorded_at = '2999-01-01Z'")

    recorder.insert_events([stored("cart-1", 2)])

    first, second = (row.recorded_at for row in world.rows())
    assert first == second


# Together with the writer


async def test_writer_and_recorder_append_to_one_chain_at_once(world: PostgresWorld, recorder: PartitionRecorder) -> None:
    store, library_events, takes = await world.open(), 40, 200

    def insert_all() -> None:
        cart = uuid4()
        for version in range(1, library_events + 1, 2):
            recorder.insert_events([stored(cart, version, state=b"not json"), stored(cart, version + 1)])

    async def take_all() -> None:
        await store.submit(ask(("till-7", Open(room=takes))))
        for _ in range(10):
            await asyncio.gather(*(store.submit(ask(("till-7", Take(take_id=str(uuid4()))))) for _ in range(takes // 10)))

    await asyncio.gather(take_all(), asyncio.to_thread(insert_all), asyncio.to_thread(insert_all))

    rows = world.rows()
    assert broken(world) is None
    assert [row.position for row in rows] == list(range(1, 2 * library_events + takes + 2))
    assert {row.actor for row in rows} == {None, "library"}
    assert sum(before.actor != after.actor for before, after in pairwise(rows)) > 2  # they did take turns
    assert (await store.state(TILL, TENANT, "till-7")).state.used == takes


async def test_the_writer_goes_on_with_what_a_recorder_wrote_to_its_stream(world: PostgresWorld, recorder: PartitionRecorder) -> None:
    store = await world.open()
    await store.submit(ask(("till-7", Open(room=3))))
    at = world.rows()[0].recorded_at

    recorder.insert_events([MAPPER.to_stored_event(library_side(StreamEvent("till-7", 2, Taken("imported", 2, at))))])

    outcome = await store.submit(ask(("till-7", Take(take_id="asked", amount=2))))
    assert outcome.refused
    assert broken(world) is None


def library_side(stream_event: object) -> Any:
    """The library's protocol asks for an ``__init__`` of any arguments, which no dataclass has."""
    return stream_event


async def three_takes(world: PostgresWorld) -> list[Event]:
    """A till with three takes, the last of which is refused; returns the events of the till."""
    store = await world.open(Options(snapshot_every=0))
    await store.submit(ask(("till-7", Open(room=2))))
    for name in ("a", "b", "c"):
        await store.submit(ask(("till-7", Take(take_id=name))))
    opened, first, second, _ = (row.recorded_at for row in world.rows())
    return [Opened(2, opened), Taken("a", 1, first), Taken("b", 1, second)]


async def test_a_library_event_store_and_notification_log_read_what_the_writer_wrote(
    world: PostgresWorld, recorder: PartitionRecorder
) -> None:
    expected = await three_takes(world)

    found: Any = list(EventStore[str](MAPPER, recorder).get("till-7"))
    assert found == [StreamEvent("till-7", version, event) for version, event in enumerate(expected, 1)]

    section = LocalNotificationLog(recorder)["1,10"]
    assert [item.id for item in section.items] == [1, 2, 3, 4]
    read: Any = [MAPPER.to_domain_event(item) for item in section.items]
    assert [one.event for one in read[:3]] == expected
    assert section.items[3].topic == "command.refused"
    assert read[3].event.code == "till.full"


class Sum(POPOTrackingRecorder):
    """How much was taken, and from where in the log."""

    def __init__(self) -> None:
        super().__init__()
        self.taken = 0
        self.positions: list[int] = []

    def add(self, amount: int, tracking: Tracking) -> None:
        with self._database_lock:
            self._assert_tracking_uniqueness(tracking)
            self._insert_tracking(tracking)
            self.taken += amount
            self.positions.append(tracking.notification_id)


class Takings(Projection[Sum]):
    topics = ("till.taken",)

    def process_event(self, domain_event: Any, tracking: Tracking) -> None:
        self.view.add(domain_event.event.amount, tracking)


def application_on(recorder: PartitionRecorder) -> type[Application[str]]:
    """A library application whose log is ours."""

    class OnTheLog(Application[str]):
        name = "holdbook"

        def construct_recorder(self) -> PartitionRecorder:
            return recorder

        def construct_mapper(self) -> HoldbookMapper:
            return MAPPER

    return OnTheLog


async def test_a_library_projection_follows_the_log(world: PostgresWorld, recorder: PartitionRecorder) -> None:
    await three_takes(world)

    def follow_to(position: int, more: Callable[[], object]) -> Sum:
        application = application_on(recorder)
        with ProjectionRunner(application_class=application, projection_class=Takings, view_class=Sum) as runner:
            runner.wait(3, timeout=60)
            more()
            runner.wait(position, timeout=60)
            return runner.view

    store, loop = await world.open(), asyncio.get_running_loop()

    async def make_room() -> None:
        await store.submit(ask(("till-7", Open(room=9))))
        await store.submit(ask(("till-7", Take(take_id="d", amount=5))))

    view = await asyncio.to_thread(follow_to, 6, lambda: asyncio.run_coroutine_threadsafe(make_room(), loop).result(60))

    assert (view.taken, view.positions) == (7, [2, 3, 6])


def test_a_subscription_passes_over_other_topics_once(recorder: PartitionRecorder, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder.insert_events([stored("cart-1", version, "rare" if version in (2, 9) else "common") for version in range(1, 11)])
    asked: list[tuple[int | None, int | None]] = []
    select = PartitionRecorder.select_notifications

    def watched(self: PartitionRecorder, start: int | None, limit: int, stop: int | None = None, *arguments: Any, **named: Any) -> Any:
        asked.append((start, stop))
        return select(self, start, limit, stop, *arguments, **named)

    monkeypatch.setattr(PartitionRecorder, "select_notifications", watched)
    found: list[Notification] = []
    with recorder.subscribe(topics=["rare"]) as subscription:
        for notification in subscription:
            found.append(notification)
            if len(found) == 2:
                recorder.insert_events([stored("cart-1", 11, "common"), stored("cart-1", 12, "rare")])
            if len(found) == 3:
                break

    assert [one.id for one in found] == [2, 9, 12]
    assert asked == [(0, 10), (10, 12)]


def test_a_subscription_that_reads_in_parts_misses_nothing(recorder: PartitionRecorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eventstore.recorder.PollingSubscription.AT_ONCE", 3)
    recorder.insert_events([stored("cart-1", version, "odd" if version % 2 else "even") for version in range(1, 21)])

    with recorder.subscribe(gt=2) as everything, recorder.subscribe(topics=["odd"]) as odd:
        assert [next(everything).id for _ in range(18)] == list(range(3, 21))
        assert [next(odd).id for _ in range(10)] == list(range(1, 21, 2))


async def test_a_waiting_subscription_can_be_stopped_by_another_thread(recorder: PartitionRecorder) -> None:
    subscription = recorder.subscribe()
    waiting = asyncio.create_task(asyncio.to_thread(list, subscription))
    await asyncio.sleep(0.05)

    subscription.stop()

    assert await asyncio.wait_for(waiting, 60) == []


class Cart(Aggregate):
    @library_event("Begun")
    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.items: list[str] = []

    @library_event("Added")
    def add(self, item: str) -> None:
        self.items.append(item)


class Carts(Application[UUID]):
    recorder_given: PartitionRecorder

    def construct_recorder(self) -> PartitionRecorder:
        return self.recorder_given


def test_library_aggregates_live_in_the_log_as_readable_json(recorder: PartitionRecorder, world: PostgresWorld) -> None:
    Carts.recorder_given = recorder
    with Carts() as app:
        cart = Cart("ann")
        cart.add("tea")
        recordings = app.save(cart)
        again: Any = app.repository.get(cart.id)
        stale: Any = app.repository.get(cart.id)
        again.add("milk")
        app.save(again)
        stale.add("sugar")
        with pytest.raises(IntegrityError):
            app.save(stale)
        found: Any = app.repository.get(cart.id)

    assert [recording.notification.id for recording in recordings] == [1, 2]
    assert found.items == ["tea", "milk"]
    query = "select payload ->> 'item' from event where stream = %s and type like '%%Cart.Added' order by version"
    assert world.admin.execute(query, (str(cart.id),)).fetchall() == [("tea",), ("milk",)]
    assert broken(world) is None


# The mapper


@event("till.taken", 2)
@dataclass(frozen=True, slots=True)
class TakenInUnits(Event):
    take_id: str
    units: int


def test_the_mapper_raises_older_versions() -> None:
    newer: Decider[Any] = Decider(
        category="till", commands=(), events=(TakenInUnits,), initial=None, decide=lambda *_: (), evolve=lambda state, _: state,
        reply=lambda *_: {}, frozen_type=None, freeze=lambda state: state, thaw=lambda state: state,
        upcasts={("till.taken", 1): lambda old: {"take_id": old["take_id"], "units": old["amount"] * 100}},
    )  # fmt: skip
    mapper = HoldbookMapper(Codec([newer]))

    raised: Any = mapper.to_domain_event(stored("till-7", 2, "till.taken", b'{"take_id":"a","amount":3,"at":"2026-01-01T00:00:00Z"}'))

    assert raised == StreamEvent("till-7", 2, TakenInUnits("a", 300))
    again = mapper.to_stored_event(raised)
    assert again == stored("till-7", 2, "till.taken.v2", b'{"take_id":"a","units":300}')
    assert mapper.to_domain_event(again) == raised


def test_what_the_mapper_cannot_read_is_the_librarys_error_with_ours_as_its_cause() -> None:
    with pytest.raises(MapperDeserialisationError, match="version 3 of till-7") as unknown:
        MAPPER.to_domain_event(stored("till-7", 3, "till.of_tomorrow"))
    assert isinstance(unknown.value.__cause__, UnknownEventType)

    for state in (b"{}", b"no json", b"\xff"):
        with pytest.raises(MapperDeserialisationError):
            MAPPER.to_domain_event(stored("till-7", 3, "till.taken", state))


def test_the_mapper_writes_only_what_a_fold_will_read() -> None:
    with pytest.raises(ValueError, match="begin at 1"):
        MAPPER.to_stored_event(library_side(StreamEvent("till-7", 0, Opened(1, datetime(2026, 1, 1, tzinfo=UTC)))))
    with pytest.raises(TypeError, match="StreamEvent"):
        MAPPER.to_stored_event(library_side(Cart("ann").pending_events[0]))

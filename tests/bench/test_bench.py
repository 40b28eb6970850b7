"""The benchmark runs and tells what it should. What it measures is never asserted: figures of a busy machine mean nothing."""

import json

import pytest

from bench import curve, main
from bench.load import Asked, _frame
from bench.rows import Group, Measured, Row, registered
from bench.scale import FULL, QUICK, TINY, Scale
from bench.stage import Stage, prepared
from bench.traffic import round_robin, zipf


@pytest.mark.parametrize("scale", [FULL, QUICK, TINY])
def test_every_row_has_a_name_of_its_own_and_a_target(scale: Scale) -> None:
    rows = [row for group in registered() for row in group.rows]

    assert len({row.name(scale) for row in rows}) == len(rows) >= 10
    assert all(row.target > 0 for row in rows)


def test_the_number_of_events_is_in_the_name() -> None:
    names = [row.name(QUICK) for group in registered() for row in group.rows]

    assert "write rate with 200,000 events in the store" in names


@pytest.mark.timeout(1200)
def test_every_row_is_measured_and_told_as_json(
    postgres_dsn: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(main, "QUICK", TINY)

    main.run(as_json=True, quick=True, dsn=postgres_dsn)

    told = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in told] == [row.name(TINY) for group in registered() for row in group.rows]
    for entry in told:
        assert "broken" not in entry or "arrived" in entry["broken"], entry  # a busy machine may not keep the pace
        assert entry["ratio"] > 0, entry
        assert entry["holds"] is (entry["ratio"] >= entry["target"] and "broken" not in entry)


def test_a_row_that_fails_is_told_and_the_others_go_on(postgres_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(_: Stage) -> list[Measured]:
        raise RuntimeError("no such luck")

    async def works(_: Stage) -> list[Measured]:
        return [Measured(2.0)]

    first, second = registered()[:2]
    monkeypatch.setattr(main, "registered", lambda: [Group(first.rows, fails), Group(second.rows, works)])

    results = main.measure(postgres_dsn, "template1", TINY)

    assert [main.told(row, measured, TINY).get("broken") for row, measured in results] == [
        *["RuntimeError: no such luck"] * len(first.rows),
        None,
    ]


def test_what_went_wrong_outweighs_a_good_ratio() -> None:
    row = Row("what", "against", 1.0)

    assert main.holds(row, Measured(1.0))
    assert not main.holds(row, Measured(0.99))
    assert not main.holds(row, Measured(5.0, broken="an error reached a caller"))


def test_the_curve_has_a_point_for_each_traffic_and_batch(postgres_dsn: str) -> None:
    with prepared(postgres_dsn) as template:
        points = curve.measure(Stage(postgres_dsn, template, TINY, lambda _: None))

    assert [(point.traffic.split()[0], point.batch) for point in points] == [
        (kind, batch) for kind in ("uniform", "Zipf", "one") for batch in curve.BATCHES
    ]
    assert curve.table(points).row_count == 3


def test_zipf_favours_the_first_accounts_and_names_only_those_there_are() -> None:
    pick = zipf(accounts=100, exponent=0.99)
    picked = [pick(0) for _ in range(10_000)]

    assert set(picked) <= set(range(100))
    assert 1_500 < picked.count(0) < 2_500  # 1 / sum(r ** -0.99 for r in 1..100) is 19 %
    assert picked.count(0) > picked.count(1) > picked.count(9) > picked.count(99)


def test_callers_that_go_round_meet_on_no_account() -> None:
    pick = round_robin(accounts=12, callers=4)

    turns = [[pick(caller) for caller in range(4)] for _ in range(3)]

    assert sorted(account for turn in turns for account in turn) == list(range(12))


def test_a_request_says_how_long_its_body_will_be() -> None:
    asked = Asked("/v1/usage/reserve", (("idempotency-key", "{key}"),), '{"subject":"account-{connection}","correlation_id":"{key}"}')

    request = _frame(8080, asked, 7).replace(b"{key}", b"k" * 24)

    head, body = request.split(b"\r\n\r\n")
    assert body == b'{"subject":"account-7","correlation_id":"%b"}' % (b"k" * 24)
    assert f"content-length: {len(body)}".encode() in head.split(b"\r\n")

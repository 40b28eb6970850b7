"""``holdbook replay``: what the log says of every stream, at every place in it."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest

from domain.catalog import DECIDERS
from domain.quota import QUOTA, Limit, Reserve, SetLimits, Window, quota_stream
from domain.quota.view import view
from eventstore.codec import Codec
from eventstore.pruning import prune
from eventstore.rows import Row
from eventstore.store import Store
from tests.cli.test_auditing import made, refused
from tests.support.tenants import ACME, ELSEWHERE, GONE, OTHER, PARTITION, do, opened, record, rows

CODEC = Codec(DECIDERS)
STREAM = quota_stream(ACME, "customer", "tokens")


async def spend(store: Store) -> None:
    """A quota of ACME with three reservations."""
    limits = SetLimits(subject="customer", meter="tokens", zone="UTC", limits=(Limit("month", 100, Window("month")),))
    await do(store, ACME, QUOTA, STREAM, limits)  # type: ignore[arg-type]  # of its own state
    for number in range(3):
        reserve = Reserve(subject="customer", meter="tokens", reservation_id=f"r{number}", amount=10)
        await do(store, ACME, QUOTA, STREAM, reserve)  # type: ignore[arg-type]  # as above


@pytest.fixture
def dsn(database_dsn: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HOLDBOOK_DATABASE_URL", database_dsn)

    async def fill() -> None:
        async with opened(database_dsn) as store:
            await record(store)
            await spend(store)

    asyncio.run(fill())
    return database_dsn


def replayed(tmp_path: Path, *arguments: str) -> list[dict[str, Any]]:
    file = tmp_path / "replayed"
    file.unlink(missing_ok=True)
    made("replay", *arguments, "--export", str(file))
    return [json.loads(line) for line in file.read_bytes().splitlines()]


def folded(log: list[Row]) -> dict[str, tuple[int, int, Any]]:
    """The same by hand: position, version and state of each stream of an aggregate."""
    states: dict[str, tuple[int, int, Any]] = {}
    for row in log:
        decider = CODEC.decider_of(row.stream)
        if decider is not None:
            _, _, before = states.get(row.stream, (0, 0, decider.initial))
            states[row.stream] = row.position, row.version, decider.evolve(before, CODEC.decode(row.type, row.payload))
    return states


def frozen(stream: str, state: Any) -> Any:
    decider = CODEC.decider_of(stream)
    assert decider is not None
    return json.loads(CODEC.freeze(decider, state))


def test_every_state_at_every_position_is_the_fold_up_to_there(dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eventstore.replaying.RANGE", 3)
    log = rows(dsn)
    for position in range(len(log) + 1):
        found = replayed(tmp_path, "--position", f"{PARTITION}:{position}")
        assert {line["stream"]: (line["position"], line["version"], line["state"]) for line in found} == {
            stream: (at, version, frozen(stream, state)) for stream, (at, version, state) in folded(log[:position]).items()
        }
        assert {line["partition"] for line in found} <= {PARTITION}


def test_a_moment_a_tenant_or_everything(dsn: str, tmp_path: Path) -> None:
    log = rows(dsn)
    then = log[5].recorded_at.isoformat()

    assert {line["stream"] for line in replayed(tmp_path, "--at", then)} == set(folded(log[:6]))
    of_acme = replayed(tmp_path, "--tenant", str(ACME))
    assert {line["tenant_id"] for line in of_acme} == {str(ACME)}
    assert {line["stream"] for line in of_acme} == set(folded([row for row in log if row.tenant_id == ACME]))
    assert {line["tenant_id"] for line in replayed(tmp_path)} == {str(tenant) for tenant in (ACME, OTHER, GONE, ELSEWHERE)}


@pytest.mark.parametrize("ranges", [1, 2, 5_000])
def test_one_stream_and_how_a_quota_showed_then(dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranges: int) -> None:
    monkeypatch.setattr("eventstore.replaying.RANGE", ranges)
    quota = ("--tenant", str(ACME), "--meter", "tokens", "--subject", "customer")
    log = [row for row in rows(dsn) if row.stream == STREAM]
    for row in log:
        state = folded([each for each in log if each.position <= row.position])[STREAM][2]
        for arguments in ((*quota, "--position", f"{PARTITION}:{row.position}"), (*quota, "--at", row.recorded_at.isoformat())):
            (line,) = replayed(tmp_path, *arguments)
            assert (line["version"], line["state"]) == (row.version, frozen(STREAM, state))
            assert line["view"] == json.loads(msgspec.json.encode(view(state, row.recorded_at)))
    (now,) = replayed(tmp_path, "--stream", STREAM)
    assert (now["version"], now["view"]["reserved"], now["partition"]) == (4, 30, PARTITION)
    assert datetime.fromisoformat(now["view"]["at"]) <= datetime.now(UTC)
    shown = "".join(made("replay", *quota).split())
    assert '"reserved":30' in shown.replace("│", "")


def test_what_was_pruned_is_left_out_and_its_deletion_stays(dsn: str, tmp_path: Path) -> None:
    prune(dsn, GONE)

    (line,) = replayed(tmp_path, "--tenant", str(GONE))
    assert (line["version"], line["state"]["deleted"], line["state"]["name"]) == (2, True, "")
    assert (line["state"]) == replayed(tmp_path, "--stream", f"tenant-{GONE.hex}")[0]["state"]


def test_mistakes_and_harms_are_told_in_words(dsn: str, tmp_path: Path) -> None:
    for said, *arguments in (
        ("not both", "--position", "1:1", "--at", "2026-01-01"),
        ("PARTITION:POSITION", "--position", "x"),
        ("no moment", "--at", "noon"),
        ("no partition 64", "--position", "64:1"),
        ("not in partition", "--tenant", str(ACME), "--position", f"{PARTITION + 1}:1"),
        ("--tenant, --meter and --subject", "--meter", "tokens"),
        ("--tenant, --meter and --subject", "--meter", "tokens", "--subject", "customer"),
        ("no such stream", "--stream", "quota-00"),
        ("no such stream", "--stream", f"refused-{rows(dsn)[7].command_id.hex}"),
        ("no such stream then", "--tenant", str(ACME), "--stream", STREAM, "--position", f"{PARTITION}:5"),
        ("no such stream then", "--tenant", str(OTHER), "--stream", STREAM),
    ):
        assert said in refused("replay", *arguments)
    (tmp_path / "there").write_text("mine")
    assert "File exists" in refused("replay", "--export", str(tmp_path / "there"))
    with psycopg.connect(dsn, autocommit=True) as conn:
        for change, said in (
            ("type = 'quota.invented'", "quota.invented"),
            ("type = 'quota.reserved', payload = '{}'", "cannot be read"),
            ("type = 'quota.reserved', version = 9", "from version 3 to 9"),
        ):
            conn.execute(f"update event set {change} where partition = %s and position = 14", (PARTITION,))
            assert said in refused("replay", "--stream", STREAM)
            assert f"position 14 of partition {PARTITION}" in refused("replay", "--tenant", str(ACME))
        conn.execute("delete from event where partition = %s and position = 7", (PARTITION,))
    assert f"Position 7 of partition {PARTITION} is missing" in refused("replay")

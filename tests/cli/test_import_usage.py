"""Usage files into the ledger: exact sums, nothing twice, nothing lost."""

import asyncio
import csv
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from typer.testing import CliRunner

from adapters.usage_file import BadRow, Columns, UsageFileError, UsageRow, read_usage
from api.cli.importing import CannotImport, ImportOptions, Summary, app, import_usage
from api.server import following
from domain.catalog import DECIDERS
from domain.identity.tenants import TENANT, CreateTenant, tenant_stream
from domain.kernel.decider import Command, Decider
from domain.quota import QUOTA, Consume, Limit, Overdraft, Quota, SetLimits, Window, quota_stream, reservation_id
from domain.quota.view import view
from eventstore.store import Store
from eventstore.writer import Item, Options, Request
from projections.readers import Readers

ACME = UUID("7e7a7e57-0000-4000-8000-00000000ac3e")
METER, SUBJECT = "tokens", "azure"
REPOSITORY = Path(__file__).parents[2]
SHARED = Path(os.environ.get("HOLDBOOK_SHARED_DATA") or REPOSITORY.parent / "shared" / "data")
REAL = tuple(SHARED / f"AzureLLMInferenceTrace_{name}.csv" for name in ("code", "conv"))
HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
AZURE = Columns(timestamp="TIMESTAMP", before=("ContextTokens",), after=("GeneratedTokens",))


@pytest.fixture
def look_alike(tmp_path: Path) -> Path:
    """Like Azure's files: CRLF, seven digits behind the second, no end of the last line; over the end of a month."""
    rng = random.Random(2023)
    moment, lines = datetime(2023, 11, 30, 23, 30, tzinfo=UTC), [HEADER]
    for _ in range(1_500):
        moment += timedelta(seconds=rng.expovariate(0.5))
        lines.append(
            f"{moment:%Y-%m-%d %H:%M:%S}.{moment.microsecond:06d}{rng.randrange(10)},{rng.randrange(1, 9000)},{rng.randrange(1, 1900)}"
        )
    path = tmp_path / "usage.csv"
    path.write_bytes("\r\n".join(lines).encode())
    return path


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def size_of(path: Path) -> int:
    return path.stat().st_size


def renamed_to(new: Path, path: Path) -> Path:
    return path.rename(new)


def totals_by_month(*paths: Path) -> Counter[str]:
    """The files' own sums, by nothing of ours."""
    sums: Counter[str] = Counter()
    for path in paths:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                sums[row["TIMESTAMP"][:7]] += int(row["ContextTokens"]) + int(row["GeneratedTokens"])
    return sums


@asynccontextmanager
async def opened(dsn: str) -> AsyncIterator[Store]:
    store = await Store.open(dsn, DECIDERS, Options(snapshot_every=500))
    try:
        await submit(store, TENANT, tenant_stream(ACME), CreateTenant(tenant_id=ACME, name="Acme"), key=UUID(int=1))
        yield store
    finally:
        await store.drain()


async def submit(store: Store, decider: Decider[Any], stream: str, command: Command, key: UUID | None = None) -> None:
    outcome = await store.submit(Request(ACME, key or uuid4(), (Item(decider, stream, command),), b"f" * 32))
    assert not outcome.refused, outcome.reply


def options(*files: Path, **more: Any) -> ImportOptions:
    given: dict[str, Any] = {"files": files, "tenant_id": ACME, "meter": METER, "monthly_limit": 10**12}
    return ImportOptions(**given | ({} if "columns" in more and more["columns"].subject else {"subject": SUBJECT}) | more)


async def run(dsn: str, *files: Path, **more: Any) -> Summary:
    async with opened(dsn) as store:
        return await import_usage(store, options(*files, **more))


async def quota(dsn: str, subject: str = SUBJECT) -> Quota:
    async with opened(dsn) as store:
        state = (await store.state(QUOTA, ACME, quota_stream(ACME, subject, METER))).state
    assert isinstance(state, Quota)
    return state


def used_by_month(state: Quota, *months: str) -> dict[str, int]:
    """What the quota view says of the monthly limit in the middle of each month; nothing may be left reserved."""
    views = {month: view(state, datetime.fromisoformat(f"{month}-15").replace(tzinfo=UTC)) for month in months}
    assert all((seen.reserved, seen.open_reservations) == (0, 0) for seen in views.values())
    return {month: seen.limits[0].used for month, seen in views.items() if seen.limits[0].reserved == 0}


def log(dsn: str) -> list[tuple[Any, ...]]:
    """What the log says happened, without what differs from run to run."""
    with psycopg.connect(dsn) as connection:
        return connection.execute(
            "select stream, version, command_id, type, payload::text from event where stream like 'quota-%' and type <> 'quota.limits_set'"
            " order by stream, version"
        ).fetchall()


def rejected_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# Exact sums


async def test_the_quota_holds_exactly_what_the_file_says_each_row_in_its_own_month(database_dsn: str, look_alike: Path) -> None:
    sums = totals_by_month(look_alike)
    assert set(sums) == {"2023-11", "2023-12"}

    seen: list[int] = []
    async with opened(database_dsn) as store:
        summary = await import_usage(store, options(look_alike), lambda so_far: seen.append(so_far.bytes_done))

    assert used_by_month(await quota(database_dsn), *sums) == sums
    assert (summary.rows, summary.imported, summary.rejected, summary.imported_units) == (1_500, 1_500, 0, sums.total())
    assert seen == sorted(seen)
    assert len(seen) > 10
    assert seen[-1] == size_of(look_alike)
    assert not list(look_alike.parent.glob("*rejected*"))


async def test_each_row_reserves_its_context_and_the_cap_and_commits_its_total_at_its_own_time(database_dsn: str, tmp_path: Path) -> None:
    await run(database_dsn, write(tmp_path / "one.csv", HEADER, "2023-11-16 18:17:03.9799609,4808,10"), cap=100)

    reserved, committed = [(type_, json.loads(payload)) for _, _, _, type_, payload in log(database_dsn)]
    assert (reserved[0], reserved[1]["amount"], reserved[1]["at"]) == ("quota.reserved", 4908, "2023-11-16T18:17:03.979960Z")
    assert (committed[0], committed[1]["used"], committed[1]["freed"]) == ("quota.committed", 4818, 90)
    with psycopg.connect(database_dsn) as connection:
        actors = connection.execute("select distinct actor from event where stream like 'quota-%'").fetchall()
    assert actors == [("operator:import",)]


@pytest.mark.skipif(not all(path.exists() for path in REAL), reason="Azure's traces are not part of the repository")
async def test_the_real_traces_are_booked_exactly(database_dsn: str, tmp_path: Path) -> None:
    sums = totals_by_month(*REAL)

    first = await run(database_dsn, *REAL, rejected=tmp_path / "rejected.jsonl")
    again = await run(database_dsn, *REAL, rejected=tmp_path / "rejected.jsonl")

    assert used_by_month(await quota(database_dsn), *sums) == sums
    assert (first.imported, first.rejected, first.imported_units) == (28_185, 0, sums.total())
    assert (again.imported, again.already_there, again.already_there_units) == (0, 28_185, sums.total())


async def test_jsonl_says_the_same_and_may_name_subject_and_cap(database_dsn: str, look_alike: Path, tmp_path: Path) -> None:
    columns = Columns(timestamp="at", before=("prompt", "images"), after=("answer",), subject="who", cap="max")
    with look_alike.open(newline="") as file:
        rows = list(csv.DictReader(file))
    lines = [
        json.dumps({
            "at": row["TIMESTAMP"].replace(" ", "T") + "Z", "prompt": int(row["ContextTokens"]) - 1, "images": "1", "extra": [n],
            "answer": int(row["GeneratedTokens"]), "who": f"user {n % 3}", "max": 1900,
        })
        for n, row in enumerate(rows)
    ]  # fmt: skip

    summary = await run(database_dsn, write(tmp_path / "usage.jsonl", *lines), columns=columns, cap=0)

    quotas = [used_by_month(await quota(database_dsn, f"user {n}"), "2023-11", "2023-12") for n in range(3)]
    assert sum((Counter(used) for used in quotas), Counter()) == totals_by_month(look_alike)
    assert (summary.imported, summary.rejected) == (1_500, 0)


async def test_months_are_those_of_the_tenants_zone_and_bare_times_those_of_the_given_one(database_dsn: str, tmp_path: Path) -> None:
    async with opened(database_dsn) as store:
        moscow = SetLimits(subject=SUBJECT, meter=METER, zone="Europe/Moscow", limits=(Limit("m", 10**9, Window("month")),))
        await submit(store, QUOTA, quota_stream(ACME, SUBJECT, METER), moscow)
    path = write(
        tmp_path / "u.csv", HEADER, "2023-11-30 23:30:00,1,0", "2023-11-30T23:30:00-05:00,10,0", "2023-11-30 20:59:59.9999999Z,100,0"
    )

    await run(database_dsn, path, zone="Asia/Kathmandu")  # 5:45 ahead of UTC, Moscow 3:00

    assert used_by_month(await quota(database_dsn), "2023-11", "2023-12") == {"2023-11": 101, "2023-12": 10}


async def test_the_read_model_says_the_same_and_the_deadlines_worker_expires_nothing(database_dsn: str, look_alike: Path) -> None:
    sums = totals_by_month(look_alike)
    async with opened(database_dsn) as store, following(database_dsn, store):
        await import_usage(store, options(look_alike, in_flight=50))
        readers = await Readers.open(database_dsn)
        position = store.writer(ACME).stats.events
        found = {}
        for month in sums:
            at = datetime.fromisoformat(f"{month}-28").replace(tzinfo=UTC)
            seen = await readers.quotas.get(ACME, SUBJECT, METER, at, min_position=position, timeout_seconds=120)
            assert seen is not None
            assert (seen.reserved, seen.open_reservations, seen.used) == (0, 0, sums.total())
            found[month] = seen.limits[0].used
        await readers.close()

    assert found == sums
    assert Counter(type_ for _, _, _, type_, _ in log(database_dsn)) == {"quota.reserved": 1_500, "quota.committed": 1_500}


# Nothing twice


async def test_run_twice_renamed_or_with_other_line_ends_it_changes_nothing(database_dsn: str, look_alike: Path, tmp_path: Path) -> None:
    await run(database_dsn, look_alike)
    before = log(database_dsn)

    again = await run(database_dsn, look_alike)
    renamed = await run(database_dsn, renamed_to(tmp_path / "other.csv", look_alike), monthly_limit=None, cap=5_000, in_flight=7)
    unix = await run(database_dsn, write(tmp_path / "unix.csv", *(tmp_path / "other.csv").read_text().splitlines()))

    assert log(database_dsn) == before
    for summary in (again, renamed, unix):
        assert (summary.imported, summary.already_there, summary.rejected) == (0, 1_500, 0)


async def test_of_a_file_that_grew_only_the_new_rows_are_added(database_dsn: str, look_alike: Path) -> None:
    await run(database_dsn, look_alike)
    with look_alike.open("ab") as file:
        file.write(b"\r\n2023-12-31 10:00:00,5,6\r\n")

    summary = await run(database_dsn, look_alike)

    assert (summary.imported, summary.imported_units, summary.already_there) == (1, 11, 1_500)
    assert used_by_month(await quota(database_dsn), "2023-11", "2023-12") == totals_by_month(look_alike)


async def test_equal_rows_are_different_uses_and_so_are_equal_beginnings_of_different_sources(database_dsn: str, tmp_path: Path) -> None:
    row = "2023-11-16 10:00:00,5,5"
    path = write(tmp_path / "a.csv", HEADER, row, row, "", row)

    await run(database_dsn, path)
    other = await run(database_dsn, path, source="server 2")
    third = await run(database_dsn, write(tmp_path / "b.csv", HEADER, "2023-11-16 10:00:00,5,6", row))

    assert (other.imported, third.imported) == (3, 2)
    assert used_by_month(await quota(database_dsn), "2023-11") == {"2023-11": 81}


CHILD = """
import asyncio, json, sys, time
from pathlib import Path
from uuid import UUID
from api.cli.importing import ImportOptions, import_usage
from domain.catalog import DECIDERS
from eventstore.store import Store

dsn, file, tenant, stop_at = sys.argv[1:]

def progress(summary):
    if summary.imported >= int(stop_at):
        print("stopped", flush=True)
        time.sleep(600)

async def main():
    store = await Store.open(dsn, DECIDERS)
    given = dict(files=(Path(file),), tenant_id=UUID(tenant), meter="tokens", subject="azure", monthly_limit=10**12)
    options = ImportOptions(**given, in_flight=100)
    print("opened", flush=True)
    sys.stdin.readline()
    print(json.dumps([(s := await import_usage(store, options, progress)).imported, s.already_there, s.rejected]), flush=True)
    await store.drain()

asyncio.run(main())
"""


def child(dsn: str, file: Path, stop_at: int) -> subprocess.Popen[str]:
    """Another process that imports when told to, and freezes in the midst of things after so many rows."""
    command = [sys.executable, "-c", CHILD, dsn, str(file), str(ACME), str(stop_at)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        assert said(process) == "opened"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()


async def test_killed_half_way_and_run_again_it_ends_the_same(database_dsn: str, look_alike: Path) -> None:
    await run(database_dsn, write(look_alike.with_name("none.csv"), HEADER))  # the tenant
    with child(database_dsn, look_alike, 500) as process:
        go(process)
        assert said(process) == "stopped"
        process.kill()
    there = len(log(database_dsn)) // 2
    assert 500 <= there < 1_500
    assert (await quota(database_dsn)).reserved == 0  # a row is there wholly or not at all

    summary = await run(database_dsn, look_alike)

    assert (summary.imported, summary.already_there) == (1_500 - there, there)
    assert used_by_month(await quota(database_dsn), "2023-11", "2023-12") == totals_by_month(look_alike)
    reserved = [json.loads(payload)["at"] for _, _, _, type_, payload in log(database_dsn) if type_ == "quota.reserved"]
    assert reserved == sorted(reserved)
    assert len(reserved) == 1_500


async def test_two_processes_at_once_end_the_same(database_dsn: str, look_alike: Path) -> None:
    await run(database_dsn, write(look_alike.with_name("none.csv"), HEADER))
    never = 10**9
    with child(database_dsn, look_alike, never) as one, child(database_dsn, look_alike, never) as other:
        go(one, other)
        counts = [json.loads(said(process)) for process in (one, other)]

    assert [sum(column) for column in zip(*counts, strict=True)] == [1_500, 1_500, 0]
    assert used_by_month(await quota(database_dsn), "2023-11", "2023-12") == totals_by_month(look_alike)


# Nothing lost

BAD = {
    "2023-11-16 18:17:0x,1,1": "TIMESTAMP is not a date and time",
    "1700158623,1,1": "TIMESTAMP is not a date and time",
    "2023-02-30 10:00:00,1,1": "TIMESTAMP is not a date and time",
    ",1,1": "TIMESTAMP is not a date and time",
    "2999-01-01 00:00:00,1,1": "TIMESTAMP lies in the future",
    "1900-01-01 00:00:00,1,1": "TIMESTAMP is before 1970",
    "0001-01-01 00:00:00+10:00,1,1": "TIMESTAMP is not a date and time",
    "2023-11-16 10:00:00,,1": "ContextTokens is not a whole number",
    "2023-11-16 10:00:00,-1,1": "ContextTokens is not a whole number",
    "2023-11-16 10:00:00,1.5,1": "ContextTokens is not a whole number",
    "2023-11-16 10:00:00,1_000,1": "ContextTokens is not a whole number",
    "2023-11-16 10:00:00,1,1e3": "GeneratedTokens is not a whole number",
    "2023-11-16 10:00:00,1,9223372036854775808": "GeneratedTokens is not a whole number",
    f"2023-11-16 10:00:00,1,{'9' * 5000}": "GeneratedTokens is not a whole number",
    "2023-11-16 10:00:00,9223372036854775807,1": "add up to more than",
    "2023-11-16 10:00:00,1": "2 fields, the header 3",
    "2023-11-16 10:00:00,1,1,1": "4 fields, the header 3",
    '"2023-11-16 10:00:00,1,1': "not CSV",
    "garbage": "1 fields, the header 3",
}


async def test_each_bad_row_is_told_with_its_line_and_reason_and_the_others_are_imported(database_dsn: str, tmp_path: Path) -> None:
    lines = [HEADER]
    for bad in BAD:
        lines += ["2023-11-16 10:00:00,1,1", bad, ""]
    path = write(tmp_path / "bad.csv", *lines, '"2023-11-16T10:00:00Z"," 1 ","1"')

    summary = await run(database_dsn, path)

    (file,) = summary.rejected_files
    rejected = rejected_rows(file)
    assert file.name == "bad.csv.rejected.jsonl"
    assert [(row["line"], row["raw"], row["code"]) for row in rejected] == [(3 + 3 * n, bad, "bad_row") for n, bad in enumerate(BAD)]
    assert [row["reason"] for row in rejected if BAD[row["raw"]] not in row["reason"]] == []
    assert (summary.rows, summary.imported, summary.rejected) == (2 * len(BAD) + 1, len(BAD) + 1, len(BAD))
    assert used_by_month(await quota(database_dsn), "2023-11") == {"2023-11": 2 * len(BAD) + 2}


async def test_bad_rows_of_jsonl(tmp_path: Path) -> None:
    good = {"TIMESTAMP": "2023-11-16T10:00:00Z", "ContextTokens": 1, "GeneratedTokens": 1, "who": "a"}
    bad: list[tuple[str, str]] = [
        ("{", "not JSON"), ("[" * 100_000, "not JSON"), ("[1]", "not a JSON object"), ("{}", "no field 'TIMESTAMP'"),
        (json.dumps(good | {"TIMESTAMP": 1700158623}), "not a date and time"), (json.dumps(good | {"ContextTokens": True}), "whole number"),
        (json.dumps(good | {"ContextTokens": 1.0}), "whole number"), (json.dumps(good | {"ContextTokens": 10**30}), "whole number"),
        (json.dumps(good | {"who": ""}), "printable"), (json.dumps(good | {"who": "a\x00"}), "printable"),
        (json.dumps(good | {"who": None}), "printable"),
    ]  # fmt: skip
    path = write(tmp_path / "u.ndjson", *(text for text, _ in bad), json.dumps(good))

    rows = list(read_usage(path, Columns(timestamp="TIMESTAMP", before=("ContextTokens",), after=("GeneratedTokens",), subject="who")))

    assert [type(row) for row in rows] == [BadRow] * len(bad) + [UsageRow]
    assert [row.line for row in rows] == list(range(1, len(bad) + 2))
    assert [
        (row.reason, reason) for row, (_, reason) in zip(rows, bad, strict=False) if isinstance(row, BadRow) and reason not in row.reason
    ] == []
    assert isinstance(rows[-1], UsageRow)
    assert (rows[-1].subject, rows[-1].total, rows[-1].end) == ("a", 2, path.stat().st_size)


async def test_bytes_that_are_no_text_and_lines_without_end_are_bad_rows_too(tmp_path: Path) -> None:
    path = tmp_path / "u.csv"
    good = b"2023-11-16 10:00:00,1,1\n"
    path.write_bytes(b"\xef\xbb\xbf" + HEADER.encode() + b"\n" + good + b"2023\xff,1,1\n" + b"7" * 3_000_000 + b"\n" + good)

    rows = list(read_usage(path, AZURE))

    assert [(row.line, type(row)) for row in rows] == [(2, UsageRow), (3, BadRow), (4, BadRow), (5, UsageRow)]
    assert rows[1].raw == r"2023\xff,1,1"
    assert rows[-1].end == path.stat().st_size


async def test_rows_the_quota_refuses_are_told_and_hold_nothing(database_dsn: str, tmp_path: Path) -> None:
    path = write(
        tmp_path / "u.csv",
        HEADER,
        "2023-11-16 10:00:00,100,10",
        "2023-11-16 10:00:01,100,11",
        "2023-11-16 10:00:02,1000,1",
        "2023-11-16 10:00:03,0,0",
    )

    summary = await run(database_dsn, path, cap=10, monthly_limit=500, rejected=tmp_path / "no.jsonl")

    rejected = rejected_rows(tmp_path / "no.jsonl")
    assert [(row["line"], row["code"]) for row in rejected] == [(3, "quota.commit_exceeds_reserved"), (4, "quota.exceeded")]
    assert rejected[1]["details"]["remaining"] == 390
    assert rejected[1]["file"] == str(path)
    assert (summary.imported, summary.rejected) == (2, 2)
    assert used_by_month(await quota(database_dsn), "2023-11") == {"2023-11": 110}


async def test_a_refusal_stands_until_another_attempt_is_asked_for(database_dsn: str, tmp_path: Path) -> None:
    path = write(tmp_path / "u.csv", HEADER, "2023-11-16 10:00:00,100,10", "2023-11-16 10:00:01,1000,1")
    await run(database_dsn, path, cap=10, monthly_limit=500)
    async with opened(database_dsn) as store:
        soft = SetLimits(subject=SUBJECT, meter=METER, limits=(Limit("monthly", 500, Window("month")),), overdraft=Overdraft("soft"))
        await submit(store, QUOTA, quota_stream(ACME, SUBJECT, METER), soft)

    same = await run(database_dsn, path, cap=10)
    second = await run(database_dsn, path, cap=10, attempts=2)
    third = await run(database_dsn, path, cap=10, attempts=3)

    assert [(s.imported, s.already_there, s.rejected) for s in (same, second, third)] == [(0, 1, 1), (1, 1, 0), (0, 2, 0)]
    assert used_by_month(await quota(database_dsn), "2023-11") == {"2023-11": 1111}
    assert (tmp_path / "u.csv.rejected.jsonl").read_text() == ""


async def test_the_same_row_read_otherwise_is_told_and_not_booked_again(database_dsn: str, tmp_path: Path) -> None:
    path = write(tmp_path / "u.csv", HEADER, "2023-11-16 10:00:00,100,10")
    await run(database_dsn, path)

    summary = await run(database_dsn, path, columns=Columns(timestamp="TIMESTAMP", before=("ContextTokens",)))

    assert [row["code"] for row in rejected_rows(summary.rejected_files[0])] == ["key_reused"]
    assert used_by_month(await quota(database_dsn), "2023-11") == {"2023-11": 110}


async def test_what_is_reserved_today_survives_an_import_and_the_other_way_round(database_dsn: str, look_alike: Path) -> None:
    stream = quota_stream(ACME, SUBJECT, METER)
    async with opened(database_dsn) as store:
        limits = SetLimits(subject=SUBJECT, meter=METER, limits=(Limit("monthly", 10**9, Window("month")),))
        await submit(store, QUOTA, stream, limits)

        async def live() -> None:
            for n in range(50):
                key = uuid4()
                await submit(
                    store, QUOTA, stream, Consume(subject=SUBJECT, meter=METER, amount=1, reservation_id=reservation_id(stream, key)), key
                )
                await asyncio.sleep(0.001 * (n % 3))

        summary, _ = await asyncio.gather(import_usage(store, options(look_alike)), live())

    assert (summary.imported, summary.rejected) == (1_500, 0)
    state = await quota(database_dsn)
    assert used_by_month(state, "2023-11", "2023-12") == totals_by_month(look_alike)
    assert state.used == totals_by_month(look_alike).total() + 50
    assert not [type_ for _, _, _, type_, _ in log(database_dsn) if type_ == "quota.expired"]


# What makes no sense as a whole


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"subject": None}, "either a subject or the column"),
        ({"subject": ""}, "1 to 200"),
        ({"zone": "Mars/Olympus"}, "no time zone"),
        ({"cap": -1}, "at least"),
        ({"rejected": Path("/nowhere/at/all.jsonl")}, "no folder"),
    ],
)
def test_options_that_make_no_sense_are_told(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(CannotImport, match=message):
        options(write(tmp_path / "u.csv", HEADER), **more)


async def test_a_wrong_header_an_unknown_tenant_or_a_missing_quota_stop_it_before_anything_changed(
    database_dsn: str, look_alike: Path
) -> None:
    wrong = write(look_alike.with_name("wrong.csv"), "a,b,c")
    async with opened(database_dsn) as store:
        with pytest.raises(UsageFileError, match="no column 'TIMESTAMP'; it has 'a', 'b', 'c'"):
            await import_usage(store, options(look_alike, wrong))
        with pytest.raises(CannotImport, match="no tenant"):
            await import_usage(store, options(look_alike, tenant_id=UUID(int=5)))
        with pytest.raises(CannotImport, match="no quota"):
            await import_usage(store, options(look_alike, monthly_limit=None))
    with pytest.raises(CannotImport, match="overwrite"):
        options(look_alike, rejected=look_alike)
    with pytest.raises(UsageFileError, match="twice"):
        Columns(timestamp="a", before=("b",), after=("b",))
    assert log(database_dsn) == []


# The command


def invoke(arguments: Sequence[str | Path]) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["usage", *map(str, arguments)])
    return result.exit_code, result.output


def test_the_command_imports_shows_and_names_what_it_rejected(database_dsn: str, look_alike: Path) -> None:
    asyncio.run(run(database_dsn, write(look_alike.with_name("none.csv"), HEADER)))
    with look_alike.open("ab") as file:
        file.write(b"\r\ngarbage\r\n")
    common: list[str | Path] = [look_alike, "--tenant", str(ACME), "--subject", SUBJECT, "--database-url", database_dsn]

    code, output = invoke([*common, "--monthly-limit", "1000000000000", "--batch", "50"])

    assert code == 0, output
    assert "1,500" in output
    assert f"{totals_by_month_without_garbage(look_alike):,}" in output
    assert "usage.csv.rejected.jsonl" in output
    assert invoke([*common, "--timestamp", "nothing"])[0] == 2
    assert invoke([*common[:1], "--subject", SUBJECT])[0] == 2  # no tenant


def totals_by_month_without_garbage(path: Path) -> int:
    lines = [line.split(",") for line in path.read_text().splitlines()[1:]]
    return sum(int(line[1]) + int(line[2]) for line in lines if len(line) == 3)

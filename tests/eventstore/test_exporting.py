"""Audit exports: what is in them, and that two verifiers, one of them written from the description alone, find every tampering."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
import pytest

from eventstore.auditing import Broken, Checker, Head, signed_text
from eventstore.errors import CorruptLog
from eventstore.exporting import CannotExport, Exporter, Wanted, first_after
from eventstore.pruning import prune
from eventstore.rows import leaf_hash, microseconds
from eventstore.signing import BadKey, SigningKey, make_key, public_key
from tests.support.tenants import ACME, ELSEWHERE, GONE, OTHER, PARTITION, create, issue, opened, record, rows, some_key

INDEPENDENT = Path(__file__).parents[2] / "docs" / "verify_export.py"
NOW = datetime(2026, 4, 1, tzinfo=UTC)
EVERYTHING = Wanted()
Place = tuple[int | None, int | None] | None
"""The first broken place: none when all is well, (None, None) in the header."""


def exported(dsn: str, key: SigningKey, wanted: Wanted = EVERYTHING, partial: Checker | None = None) -> list[bytes]:
    with Exporter.connect(dsn) as conn:
        return b"".join(Exporter(conn, key, wanted, NOW, partial).blocks()).splitlines(keepends=True)


def ours(lines: list[bytes], public: bytes | None) -> Place:
    checker = Checker(public)
    try:
        for line in lines:
            checker.take(line)
        checker.finish()
    except Broken as broken:
        return broken.partition, broken.position
    return None


def independent(lines: list[bytes], public: bytes | None, directory: Path) -> Place:
    (directory / "export.jsonl").write_bytes(b"".join(lines))
    arguments = [str(directory / "export.jsonl")]
    if public is not None:
        (directory / "key").write_text(public.hex() + "\n")
        arguments.append(str(directory / "key"))
    done = subprocess.run([sys.executable, "-I", str(INDEPENDENT), *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    if done.returncode == 0:
        return None
    found = re.search(r"partition (\d+), position (\d+)", done.stderr)
    return (int(found[1]), int(found[2])) if found else (None, None)


class Files(NamedTuple):
    """Exports of one log: of ACME, and of the whole store, where GONE was deleted and pruned."""

    key: SigningKey
    tenant: list[bytes]
    whole: list[bytes]


@pytest.fixture(scope="module")
def files(module_database: str, tmp_path_factory: pytest.TempPathFactory) -> Files:
    async def fill() -> None:
        async with opened(module_database) as store:
            await record(store)

    asyncio.run(fill())
    prune(module_database, GONE)
    key = some_key(tmp_path_factory.mktemp("keys"))
    return Files(key, exported(module_database, key, Wanted(ACME)), exported(module_database, key))


def kinds(lines: list[bytes]) -> list[Any]:
    """What the lines are, in short: positions, and how many of a run."""
    told = []
    for line in map(json.loads, lines):
        count = f"x{len(line['leaves']) // 64}" if line["kind"] in ("leaves", "pruned") else ""
        told.append(f"{line['kind']}{count} {line.get('position', '')}".strip())
    return told


def test_a_tenants_export_has_its_own_events_in_full_and_all_others_as_hashes(files: Files) -> None:
    assert kinds(files.tenant) == [
        "header", "event 1", "leavesx1 2", "event 3", "leavesx4 4", "event 8", "leavesx1 9", "event 10", "head 10",
    ]  # fmt: skip
    text = b"".join(files.tenant).decode()
    assert OTHER.hex not in text
    assert GONE.hex not in text


def test_the_whole_store_has_everything_in_full_but_what_was_pruned(files: Files) -> None:
    of_partition = [
        line for line in files.whole if json.loads(line).get("partition", PARTITION) == PARTITION and b'"header"' not in line[:20]
    ]
    assert kinds(of_partition) == [
        "event 1", "event 2", "event 3", "prunedx2 4", "event 6", "event 7", "event 8", "event 9", "event 10", "head 10",
    ]  # fmt: skip
    assert [json.loads(line)["partition"] for line in files.whole if line.startswith(b'{"kind":"head"')] == list(range(64))
    assert "zebra" not in b"".join(files.whole).decode().lower()


def test_an_event_is_given_as_it_was_hashed(files: Files) -> None:
    event = json.loads(files.tenant[3])
    assert (event["tenant_id"], event["actor"], event["cause"], event["trace"]) == (ACME.hex, "operator:é", UUID(int=9).hex, "00-0-0-0")
    leaf = leaf_hash(
        PARTITION, 3, ACME, event["stream"], event["version"], UUID(event["command_id"]), 0, event["type"], event["recorded_at"],
        UUID(int=9), event["actor"], event["trace"], event["payload"], event["reply"], b"print", bytes.fromhex(event["salt"]),
    )  # fmt: skip
    before = bytes.fromhex(json.loads(files.tenant[2])["hash"])
    assert sha256(before + leaf).hexdigest() == event["hash"]


def test_both_verifiers_accept_what_was_exported(files: Files, tmp_path: Path) -> None:
    for lines in (files.tenant, files.whole):
        for public in (files.key.public, None):
            assert ours(lines, public) is None
            assert independent(lines, public, tmp_path) is None


def test_the_independent_verifier_is_a_page_that_imports_nothing_of_ours() -> None:
    code = INDEPENDENT.read_text()
    assert len([line for line in code.splitlines() if line.strip()]) <= 60
    assert set(re.findall(r"^(?:from|import) (\w+)", code, re.MULTILINE)) == {"json", "sys", "hashlib", "pathlib", "cryptography"}


# Tampering. Lines of the tenant's export by number: 0 header, 1 event 1, 2 leaf 2, 3 event 3, 4 leaves 4 to 7, 5 event 8,
# 6 leaf 9, 7 event 10, 8 head.

Lines = list[bytes]


def changed(number: int, **values: Any) -> Callable[[Lines], Lines]:
    """One line with other values."""

    def tamper(lines: Lines) -> Lines:
        line = {**json.loads(lines[number]), **values}
        return [*lines[:number], json.dumps(line, separators=(",", ":"), ensure_ascii=False).encode() + b"\n", *lines[number + 1 :]]

    return tamper


def replaced(number: int, old: bytes, new: bytes) -> Callable[[Lines], Lines]:
    """One line with other bytes."""

    def tamper(lines: Lines) -> Lines:
        assert old in lines[number]
        return [*lines[:number], lines[number].replace(old, new, 1), *lines[number + 1 :]]

    return tamper


def leaves_of(number: int, alter: Callable[[list[str]], list[str]]) -> Callable[[Lines], Lines]:
    """A run with other leaves."""

    def tamper(lines: Lines) -> Lines:
        text = json.loads(lines[number])["leaves"]
        return changed(number, leaves="".join(alter([text[at : at + 64] for at in range(0, len(text), 64)])))(lines)

    return tamper


def forged(tamper: Callable[[Lines], Lines], key: SigningKey | None = None) -> Callable[[Lines], Lines]:
    """A tampering by somebody who computes every hash and count behind it again, and signs with a key of his own if he has one."""

    def again(lines: Lines) -> Lines:
        header, *section, head = map(json.loads, tamper(lines))
        chain, position, content, counts = bytes(32), 0, sha256(), {"event": 0, "leaves": 0, "pruned": 0}
        if key is not None:
            header["public_key"] = key.public.hex()
        written = [json.dumps(header, separators=(",", ":")).encode() + b"\n"]
        for line in section:
            if line["kind"] == "event":
                line["position"] = position + 1
                leaves = [forged_leaf(line)]
            else:
                leaves = [bytes.fromhex(line["leaves"])[at : at + 32] for at in range(0, len(line["leaves"]) // 2, 32)]
            line["position"] = position + 1
            for leaf in leaves:
                chain = sha256(chain + leaf).digest()
            position, counts[line["kind"]] = position + len(leaves), counts[line["kind"]] + len(leaves)
            line["hash"] = chain.hex()
            written.append(json.dumps(line, separators=(",", ":"), ensure_ascii=False).encode() + b"\n")
            content.update(written[-1])
        made = Head(
            PARTITION, 0, position, chain.hex(), counts["event"], counts["leaves"], counts["pruned"], content.hexdigest(), head["signature"]
        )
        if key is not None:
            made.signature = key.sign(signed_text(sha256(written[0]).digest(), made)).hex()
        names = ("partition", "epoch", "position", "hash", "events", "leaves", "pruned", "content", "signature")
        line = {"kind": "head", **{name: getattr(made, name) for name in names}}
        return [*written, json.dumps(line, separators=(",", ":")).encode() + b"\n"]

    return again


def forged_leaf(line: dict[str, Any]) -> bytes:
    return leaf_hash(
        line["partition"], line["position"], UUID(line["tenant_id"]), line["stream"], line["version"], UUID(line["command_id"]),
        line["ordinal"], line["type"], line["recorded_at"], UUID(line["cause"]) if line["cause"] else None, line["actor"], line["trace"],
        line["payload"], line["reply"], None if line["fingerprint"] is None else bytes.fromhex(line["fingerprint"]),
        bytes.fromhex(line["salt"]),
    )  # fmt: skip  # the columns in their order


def hidden(lines: Lines) -> Lines:
    """An event of the tenant's own, given as a hash: the chain holds over it."""
    event, chain = json.loads(lines[3]), bytes.fromhex(json.loads(lines[2])["hash"])
    assert sha256(chain + forged_leaf(event)).hexdigest() == event["hash"]
    line = {"kind": "leaves", "position": 3, "leaves": forged_leaf(event).hex(), "hash": event["hash"]}
    return [*lines[:3], json.dumps(line, separators=(",", ":")).encode() + b"\n", *lines[4:]]


def recounted(lines: Lines) -> Lines:
    """The same with the head's counts made to fit."""
    return changed(8, events=3, leaves=7)(hidden(lines))


TAMPERINGS: list[tuple[str, Callable[[Lines], Lines], Place]] = [
    ("a payload was changed", replaced(3, b"usage:read", b"usage:writ"), (PARTITION, 3)),
    ("a reply was changed", replaced(1, b'\\"zone\\":\\"UTC\\"}"', b'\\"zone\\":\\"CET\\"}"'), (PARTITION, 1)),
    ("a reply was removed", changed(3, reply=None), (PARTITION, 3)),
    ("an actor was changed", changed(3, actor="operator:e"), (PARTITION, 3)),
    ("an actor was removed", changed(3, actor=None), (PARTITION, 3)),
    ("a trace was moved to the actor", changed(3, actor="operator:é00-0-0-0", trace=""), (PARTITION, 3)),
    ("a cause was changed", changed(3, cause=UUID(int=8).hex), (PARTITION, 3)),
    ("a time was changed", replaced(3, b'"recorded_at":1', b'"recorded_at":2'), (PARTITION, 3)),
    ("a fingerprint was changed", changed(3, fingerprint="00"), (PARTITION, 3)),
    ("a salt was changed", changed(3, salt="00" * 16), (PARTITION, 3)),
    ("a version was changed", changed(3, version=2), (PARTITION, 3)),
    ("a hash was changed", changed(5, hash="00" * 32), (PARTITION, 8)),
    ("an event was given to another tenant", changed(3, tenant_id=OTHER.hex), (PARTITION, 3)),
    ("an event was removed", lambda lines: [*lines[:3], *lines[4:]], (PARTITION, 3)),
    ("the last event was removed", lambda lines: [*lines[:7], *lines[8:]], (PARTITION, 10)),
    ("an event was doubled", lambda lines: [*lines[:4], *lines[3:]], (PARTITION, 4)),
    ("an event was added", lambda lines: [*lines[:8], changed(0, position=11)([lines[7]])[0], *lines[8:]], (PARTITION, 11)),
    ("two events were exchanged", lambda lines: [*lines[:1], lines[3], lines[2], lines[1], *lines[4:]], (PARTITION, 1)),
    ("a hash of another tenant's was changed", leaves_of(4, lambda leaves: [leaves[0], "00" * 32, *leaves[2:]]), (PARTITION, 4)),
    ("two hashes were exchanged", leaves_of(4, lambda leaves: [leaves[1], leaves[0], *leaves[2:]]), (PARTITION, 4)),
    ("a hash was removed", leaves_of(4, lambda leaves: leaves[1:]), (PARTITION, 4)),
    ("a hash was doubled", leaves_of(4, lambda leaves: [leaves[0], *leaves]), (PARTITION, 4)),
    ("a hash was cut short", changed(4, leaves="00" * 31), (PARTITION, 4)),
    ("a run of hashes is empty", changed(4, leaves=""), (PARTITION, 4)),
    ("a run was removed", lambda lines: [*lines[:2], *lines[3:]], (PARTITION, 2)),
    ("an own event is hidden behind its hash", hidden, (PARTITION, 10)),
    ("an own event is hidden, and the counts made to fit", recounted, (PARTITION, 10)),
    ("an own event is hidden, and everything computed again", forged(hidden), (PARTITION, 10)),
    ("a payload was changed, and everything computed again", forged(replaced(3, b"usage:read", b"usage:writ")), (PARTITION, 10)),
    ("the last event was cut off, and everything computed again", forged(lambda lines: [*lines[:7], *lines[8:]]), (PARTITION, 9)),
    ("an event was added, and everything computed again", forged(lambda lines: [*lines[:8], lines[7], *lines[8:]]), (PARTITION, 11)),
    ("the head's epoch was changed", changed(8, epoch=1), (PARTITION, 10)),
    ("the head's position was changed", changed(8, position=11), (PARTITION, 11)),
    ("the head's hash was changed", changed(8, hash="00" * 32), (PARTITION, 10)),
    ("the head's partition was changed", changed(8, partition=PARTITION + 1), (PARTITION, 11)),
    ("the signature was changed", replaced(8, b'"signature":"', b'"signature":"00'), (PARTITION, 10)),
    ("the signature is no signature", changed(8, signature="é"), (PARTITION, 10)),
    ("the head has more to say", changed(8, note="x"), (PARTITION, 10)),
    ("the head was written otherwise", replaced(8, b'"epoch":0', b'"epoch": 0'), (PARTITION, 10)),
    ("an event has more to say", changed(3, note="x"), (PARTITION, 10)),
    ("an event was written otherwise", replaced(3, b'"ordinal":0', b'"ordinal": 0'), (PARTITION, 10)),
    ("the time of the export was changed", changed(0, exported_at=0), (PARTITION, 10)),
    ("an end was claimed", changed(0, as_of={"position": 10}), (PARTITION, 10)),
    ("the header names another partition", changed(0, partitions=[PARTITION + 1]), (PARTITION + 1, 1)),
    ("the header names another tenant", changed(0, tenant_id=OTHER.hex), (PARTITION, 1)),
    ("the header claims the whole store", changed(0, tenant_id=None), (PARTITION, 2)),
    ("the header names no partition", changed(0, partitions=[]), (None, None)),
    ("the header was removed", lambda lines: lines[1:], (None, None)),
    ("the format is a newer one", changed(0, version=2), (None, None)),
    ("the file is torn", lambda lines: [*lines[:-1], lines[-1][:-1]], (PARTITION, 11)),
    ("the file is torn in an event", lambda lines: [*lines[:3], lines[3][:80]], (PARTITION, 3)),
    ("the head is missing", lambda lines: lines[:-1], (PARTITION, 11)),
    ("everything behind the header is missing", lambda lines: lines[:1], (PARTITION, 1)),
    ("the file is empty", lambda _lines: [], (None, None)),
    ("there is something behind the end", lambda lines: [*lines, lines[1]], (PARTITION, 11)),
    ("there is a second header", lambda lines: [*lines[:2], lines[0], *lines[2:]], (PARTITION, 2)),
    ("a line is no JSON", replaced(3, b'"', b"'"), (PARTITION, 3)),
    ("a line is of no known kind", changed(3, kind="note"), (PARTITION, 3)),
    ("an empty line", lambda lines: [*lines[:3], b"\n", *lines[3:]], (PARTITION, 3)),
    ("a payload is no text", changed(3, payload=7), (PARTITION, 3)),
    ("a number is out of range", changed(3, ordinal=2**31), (PARTITION, 3)),
    ("an own event claims to be pruned", changed(3, type="log.pruned"), (PARTITION, 3)),
]


@pytest.mark.parametrize(("tamper", "place"), [case[1:] for case in TAMPERINGS], ids=[case[0].replace(" ", "-") for case in TAMPERINGS])
def test_both_verifiers_find_each_tampering_at_the_same_place(
    files: Files, tmp_path: Path, tamper: Callable[[Lines], Lines], place: Place
) -> None:
    lines = tamper(files.tenant)

    assert ours(lines, files.key.public) == place
    assert independent(lines, files.key.public, tmp_path) == place


def section_of(lines: Lines, partition: int) -> slice:
    """Where a partition's lines are in an export of the whole store."""
    ends = [number for number, line in enumerate(lines) if line.startswith(b'{"kind":"head"')]
    return slice(ends[partition - 1] + 1 if partition else 1, ends[partition] + 1)


def within(partition: int, tamper: Callable[[Lines], Lines]) -> Callable[[Lines], Lines]:
    """Tamper with one section."""

    def whole(lines: Lines) -> Lines:
        place = section_of(lines, partition)
        return [*lines[: place.start], *tamper(lines[place]), *lines[place.stop :]]

    return whole


def event_as_pruned(lines: Lines) -> Lines:
    """An event of a tenant that is there, passed off as one of the deleted tenant's: the chain holds."""
    event = json.loads(lines[4])
    line = {"kind": "pruned", "position": 6, "tenant_id": GONE.hex, "leaves": forged_leaf(event).hex(), "hash": event["hash"]}
    return [*lines[:4], json.dumps(line, separators=(",", ":")).encode() + b"\n", *lines[5:]]


def event_as_leaf(lines: Lines) -> Lines:
    event = json.loads(lines[4])
    line = {"kind": "leaves", "position": 6, "leaves": forged_leaf(event).hex(), "hash": event["hash"]}
    return [*lines[:4], json.dumps(line, separators=(",", ":")).encode() + b"\n", *lines[5:]]


# Lines of the section: 0 to 2 events 1 to 3, 3 pruned 4 and 5, 4 to 8 events 6 to 10, 9 head.
OF_THE_WHOLE: list[tuple[str, Callable[[Lines], Lines], Place]] = [
    ("a partition is missing", lambda lines: [*lines[:1], *lines[2:]], (0, 1)),
    ("the last partition is missing", lambda lines: lines[:-1], (63, 1)),
    ("two empty partitions were exchanged", lambda lines: [*lines[:1], lines[2], lines[1], *lines[3:]], (0, 1)),
    ("a partition's events were taken out", within(PARTITION, lambda lines: lines[-1:]), (PARTITION, 1)),
    ("what was pruned is said to be another's", within(PARTITION, changed(3, tenant_id=OTHER.hex)), (PARTITION, 4)),
    ("an event is passed off as pruned", within(PARTITION, event_as_pruned), (PARTITION, 10)),
    ("an event is given as a hash", within(PARTITION, event_as_leaf), (PARTITION, 6)),
    ("the deletion was changed", within(PARTITION, changed(7, type="tenant.renamed")), (PARTITION, 9)),
    ("a pruned hash was changed", within(PARTITION, leaves_of(3, lambda leaves: [leaves[0], "00" * 32])), (PARTITION, 4)),
]


@pytest.mark.parametrize(("tamper", "place"), [case[1:] for case in OF_THE_WHOLE], ids=[case[0].replace(" ", "-") for case in OF_THE_WHOLE])
def test_both_verifiers_find_what_was_done_to_an_export_of_the_whole_store(
    files: Files, tmp_path: Path, tamper: Callable[[Lines], Lines], place: Place
) -> None:
    lines = tamper(files.whole)

    assert ours(lines, files.key.public) == place
    assert independent(lines, files.key.public, tmp_path) == place


def test_somebody_elses_signature_is_found_by_who_has_the_right_key(files: Files, tmp_path: Path) -> None:
    forger = some_key(tmp_path)
    lines = forged(replaced(3, b"usage:read", b"usage:writ"), forger)(files.tenant)

    assert ours(lines, files.key.public) == (None, None)
    assert independent(lines, files.key.public, tmp_path) == (None, None)
    assert ours(lines, None) is None  # who only asks the file itself learns that it is as its signer left it, and who that is
    assert independent(lines, None, tmp_path) is None


# Ends, resuming, and logs that do not hold


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return some_key(tmp_path)


async def test_an_export_ends_at_a_position_or_a_moment(database_dsn: str, key: SigningKey) -> None:
    async with opened(database_dsn) as store:
        await record(store)
    log = rows(database_dsn)

    at_three = exported(database_dsn, key, Wanted(ACME, position=(PARTITION, 3)))
    assert kinds(at_three) == ["header", "event 1", "leavesx1 2", "event 3", "head 3"]
    assert kinds(exported(database_dsn, key, Wanted(position=(PARTITION, 0)))) == ["header", "head 0"]
    for number, row in enumerate(log, 1):
        assert json.loads(exported(database_dsn, key, Wanted(ACME, moment=row.recorded_at))[-1])["position"] == number
        just_before = Wanted(ACME, moment=row.recorded_at - timedelta(microseconds=1))
        assert json.loads(exported(database_dsn, key, just_before)[-1])["position"] == number - 1
    assert json.loads(exported(database_dsn, key, Wanted(ACME, moment=NOW + timedelta(days=10_000)))[-1])["position"] == 10
    with Exporter.connect(database_dsn) as conn:
        assert first_after(conn, PARTITION, 10, log[-1].recorded_at) == 11
    for wanted, said in (
        (Wanted(ACME, position=(PARTITION + 1, 3)), "lives in partition"),
        (Wanted(position=(64, 1)), "no partition 64"),
        (Wanted(position=(PARTITION, 11)), "ends at position 10"),
    ):
        with pytest.raises(CannotExport, match=said):
            exported(database_dsn, key, wanted)


async def test_an_end_before_a_deletion_moves_to_it_where_rows_were_pruned(database_dsn: str, key: SigningKey) -> None:
    async with opened(database_dsn) as store:
        await record(store)
    prune(database_dsn, GONE)

    assert kinds(exported(database_dsn, key, Wanted(position=(PARTITION, 3))))[-1] == "head 3"
    lines = exported(database_dsn, key, Wanted(position=(PARTITION, 4)))
    assert kinds(lines) == [
        "header", "event 1", "event 2", "event 3", "prunedx1 4", "prunedx1 5", "event 6", "event 7", "event 8", "event 9", "head 9",
    ]  # fmt: skip
    assert ours(lines, key.public) is None


@pytest.mark.parametrize("ranges", [3, 2_000])
async def test_an_export_that_was_torn_anywhere_goes_on_and_becomes_the_same(
    database_dsn: str, key: SigningKey, monkeypatch: pytest.MonkeyPatch, ranges: int
) -> None:
    monkeypatch.setattr("eventstore.exporting.RANGE", ranges)
    async with opened(database_dsn) as store:
        await record(store)
    prune(database_dsn, GONE)
    for wanted in (Wanted(ACME), Wanted(position=(PARTITION, 10)), Wanted()):
        whole = exported(database_dsn, key, wanted)
        for kept in range(1, len(whole) + 1):
            partial = Checker(key.public)
            for line in whole[:kept]:
                partial.take(line)

            assert whole[:kept] + exported(database_dsn, key, wanted, partial) == whole


async def test_going_on_with_another_export_is_refused(database_dsn: str, key: SigningKey, tmp_path: Path) -> None:
    async with opened(database_dsn) as store:
        await record(store)
    lines = exported(database_dsn, key, Wanted(ACME))

    def begun(count: int = 4) -> Checker:
        partial = Checker()
        for line in lines[:count]:
            partial.take(line)
        return partial

    for wanted in (Wanted(), Wanted(OTHER), Wanted(ELSEWHERE), Wanted(ACME, moment=NOW), Wanted(ACME, position=(PARTITION, 10))):
        with pytest.raises(CannotExport, match="another tenant, partition or moment"):
            exported(database_dsn, key, wanted, begun())
    with pytest.raises(CannotExport, match="another key"):
        exported(database_dsn, some_key(tmp_path), Wanted(ACME), begun())
    with psycopg.connect(database_dsn) as conn:
        conn.execute("update event set hash = sha256(hash) where partition = %s and position = 3", (PARTITION,))
    with pytest.raises(CannotExport, match=f"another log: position 3 of partition {PARTITION}"):
        exported(database_dsn, key, Wanted(ACME), begun())


HARMS = [
    ("update event set payload = '{}' where partition = %s and position = 6", "broken at position 6"),
    ("update event set recorded_at = recorded_at + '1us' where partition = %s and position = 6", "broken at position 6"),
    ("update event set salt = '' where partition = %s and position = 6", "Position 6"),
    ("update event set tenant_id = gen_random_uuid() where partition = %s and position = 6", "broken at position 6"),
    ("delete from event where partition = %s and position = 6", "Position 6"),
    ("delete from event where partition = %s and position = 9", "position 4: pruned, although"),
    ("update event set leaf = sha256('') where partition = %s and position = 4", "broken at position 4"),
]


@pytest.mark.parametrize(("harm", "said"), HARMS)
async def test_a_log_that_does_not_hold_is_not_exported(database_dsn: str, key: SigningKey, harm: str, said: str) -> None:
    async with opened(database_dsn) as store:
        await record(store)
    prune(database_dsn, GONE)
    with psycopg.connect(database_dsn) as conn:
        conn.execute(harm, (PARTITION,))
        if "position = 9" in harm:
            conn.execute("delete from event where partition = %s and position = 10", (PARTITION,))

    with pytest.raises(CorruptLog, match=said):
        exported(database_dsn, key)


async def test_pruned_rows_without_a_deletion_are_not_exported(database_dsn: str, key: SigningKey) -> None:
    async with opened(database_dsn) as store:
        await record(store)
    row = rows(database_dsn)[5]
    leaf = leaf_hash(PARTITION, *row[:7], microseconds(row.recorded_at), *row[8:15])
    with psycopg.connect(database_dsn) as conn:
        conn.execute(
            "update event set type = 'log.pruned', leaf = %s, payload = 'null' where partition = %s and position = 6", (leaf, PARTITION)
        )

    with pytest.raises(CorruptLog, match="position 6: pruned, although its tenant was not deleted"):
        exported(database_dsn, key)


async def test_exporting_while_others_write_gives_a_beginning_of_the_log(database_dsn: str, key: SigningKey) -> None:
    async with opened(database_dsn) as store:
        await create(store, ACME)
        await create(store, OTHER)
        stop, written = asyncio.Event(), asyncio.Event()

        async def write() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                await issue(store, (ACME, OTHER)[number % 2], number % 100)
                written.set()

        writing = asyncio.create_task(write())
        before = 0
        try:
            for _ in range(5):
                await asyncio.wait_for(written.wait(), 60)
                written.clear()
                lines = await asyncio.to_thread(exported, database_dsn, key, Wanted(ACME))
                assert ours(lines, key.public) is None
                position = json.loads(lines[-1])["position"]
                assert position >= before
                before = position
        finally:
            stop.set()
            await writing
    assert before > 2


def test_keys(tmp_path: Path) -> None:
    path = tmp_path / "audit.key"
    assert make_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    text = path.read_text()
    assert not make_key(path)
    assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]
    key = SigningKey(text)
    assert public_key(f" {key.public.hex()}\n") == key.public
    assert text.splitlines()[1] not in repr(key) + str(vars(key))
    for bad in ("", "00", "zz" * 32):
        with pytest.raises(BadKey):
            public_key(bad)
    for bad in ("", "-----BEGIN PRIVATE KEY-----", text.replace("PRIVATE", "PUBLIC")):
        with pytest.raises(BadKey):
            SigningKey(bad)

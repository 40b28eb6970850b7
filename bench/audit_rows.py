"""An audit export, and its verification, beside merely reading and decoding the same events."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

from bench.rows import Measured, Row, rows
from bench.stage import Helper, Stage
from bench.store_rows import opened, ratio
from bench.traffic import Traffic, uniform
from domain.quota import QUOTA
from eventstore.auditing import Checker
from eventstore.codec import Codec
from eventstore.exporting import Exporter, Wanted
from eventstore.rows import COLUMNS
from eventstore.signing import SigningKey, make_key
from eventstore.store import partition_of

READ = "reading and decoding them by COPY"
_TYPES = ["int8", "uuid", "text", "int8", "uuid", "int4", "text", "timestamptz", "uuid", *["text"] * 4, *["bytea"] * 3]
_COPY = f"""
copy (select {", ".join(f"{name}::text" if name in ("payload", "reply") else name for name in COLUMNS)}
      from event where partition = %s order by position) to stdout (format binary)"""
_OTHERS = "export of a tenant that has nothing in it: every event as a hash"


@rows(
    Row("audit export of one tenant, events/s", READ, 0.3),
    Row("audit verify of it, events/s", READ, 0.3),
    Row(f"audit {_OTHERS}, events/s", READ, 0.6),
)
async def audit(stage: Stage) -> Sequence[Measured]:
    tenant_id = uuid4()
    with stage.database() as dsn, tempfile.TemporaryDirectory(prefix="holdbook-bench-") as directory, Helper() as helper:
        stage.say("writing events")
        events = await _fill(dsn, tenant_id, stage)
        place = Path(directory)
        make_key(place / "key")
        stranger = next(other for other in iter(uuid4, None) if partition_of(other, 64) == partition_of(tenant_id, 64))

        def side(function: Callable[..., float], *arguments: object) -> Callable[[float], Awaitable[float]]:
            return lambda _seconds: helper.call(function, *arguments)

        found = await stage.in_turns(
            side(export, dsn, tenant_id, place / "own", place / "key"),
            side(verify, place / "own", place / "key"),
            side(export, dsn, stranger, place / "others", place / "key"),
            side(read, dsn, partition_of(tenant_id, 64)),
        )
    *ours, theirs = [[events / seconds for seconds in each] for each in found]
    return [ratio(each, theirs) for each in ours]


async def _fill(dsn: str, tenant_id: UUID, stage: Stage) -> int:
    """A tenth of the long log at most: each turn reads all of it."""
    wanted = min(200_000, stage.scale.filled // 4)
    async with opened(dsn) as store:
        traffic = Traffic(store, tenant_id, stage.scale.callers)
        await traffic.configure()
        events = 0
        while events < wanted:
            await traffic.drive(uniform, callers=stage.scale.callers, seconds=stage.scale.seconds)
            events = (await store.writer(tenant_id).log.head())[0]
    return events


def export(dsn: str, tenant_id: UUID, file: Path, key: Path) -> float:
    """Seconds."""
    began = time.perf_counter()
    with Exporter.connect(dsn) as conn, file.open("wb") as opened_file:
        for block in Exporter(conn, SigningKey(key.read_text()), Wanted(tenant_id), datetime.now(UTC)).blocks():
            opened_file.write(block)
    return time.perf_counter() - began


def verify(file: Path, key: Path) -> float:
    """Seconds."""
    began = time.perf_counter()
    checker = Checker(SigningKey(key.read_text()).public)
    with file.open("rb") as lines:
        for line in lines:
            checker.take(line)
    checker.finish()
    return time.perf_counter() - began


def read(dsn: str, partition: int) -> float:
    """Seconds to read every column and decode every event, and do nothing with them."""
    codec = Codec([QUOTA])
    began = time.perf_counter()
    with Exporter.connect(dsn) as conn, conn.cursor().copy(_COPY, (partition,)) as copy:
        copy.set_types(_TYPES)
        for row in copy.rows():
            codec.decode(row[6], row[11])
    return time.perf_counter() - began

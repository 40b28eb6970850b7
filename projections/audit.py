"""The audit log: of every event of a tenant who did what, where, when and why, found by any of these.

It holds the events' columns without their contents, which stay in the log; ``audit_queries`` puts the two together. The rows go from
the log to the table inside the server, so that the program pays nothing for an event. Nothing is left out: refusals are events, and
an event that this program does not know is shown as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlalchemy import BigInteger, Column, DateTime, Index, Integer, MetaData, Table, Text, Uuid

from eventstore.codec import Codec
from eventstore.rows import PRUNED
from projections.consumer import Connection, Projection, Recorded
from projections.deleted import deleted
from projections.reading import Model

MODEL = Model("audit", shape=2)
VERSION = 2

COLUMNS = ("position", "recorded_at", "actor", "origin", "stream", "type", "command_id", "ordinal", "cause", "trace")
_SPLIT = {"actor": "split_part(e.actor, '@', 1)", "origin": "nullif(split_part(e.actor, '@', 2), '')"}
"""The log has both in one column, see ``eventstore.origins``."""


def define(metadata: MetaData, generation: int) -> None:
    """The table of one generation. Each index finds by one thing and has what it finds in the log's order."""
    name = f"audit_{generation}"
    Table(
        name,
        metadata,
        Column("partition", Integer, primary_key=True),
        Column("tenant_id", Uuid, primary_key=True),
        Column("position", BigInteger, primary_key=True, autoincrement=False),
        Column("recorded_at", DateTime(timezone=True), nullable=False, comment="never goes back as positions go on"),
        Column("actor", Text(collation="C")),
        Column("origin", Text(collation="C"), comment="an id: the address is kept elsewhere, sealed, and not for long"),
        Column("stream", Text(collation="C"), nullable=False),
        Column("type", Text(collation="C"), nullable=False),
        Column("command_id", Uuid, nullable=False),
        Column("ordinal", Integer, nullable=False),
        Column("cause", Uuid),
        Column("trace", Text),
        *(
            Index(f"{name}_by_{by}", "partition", "tenant_id", column, "position")
            for by, column in (("time", "recorded_at"), ("actor", "actor"), ("stream", "stream"), ("type", "type"))
        ),
        info={"readers": True},
    )


class Audit:
    """The consumer."""

    name, version, starts_at_head = MODEL.name, VERSION, False

    def __init__(self, codec: Codec, generation: int = 1) -> None:
        self.generation = generation
        columns = ", ".join(COLUMNS)
        self._copy = f"""
            insert into audit_{generation} (partition, tenant_id, {columns})
            select e.partition, e.tenant_id, {", ".join(_SPLIT.get(name, f"e.{name}") for name in COLUMNS)} from event e
            where e.partition = %s and e.position > %s and e.position <= %s and e.type <> '{PRUNED}' and not exists (
              select from unnest(%b::uuid[], %b::bigint[]) as d(tenant_id, position)
              where d.tenant_id = e.tenant_id and d.position <> e.position)
            order by e.position"""
        self._drop_tenant = f"delete from audit_{generation} where partition = %s and tenant_id = %s and position < %s"

    async def apply(self, conn: Connection, partition: int, rows: Sequence[Recorded]) -> Callable[[], None]:
        """See :class:`projections.consumer.Consumer`."""
        gone = await deleted(conn, partition, rows)
        for tenant_id in gone.ending:
            await conn.execute(self._drop_tenant, (partition, tenant_id, gone.silent[tenant_id]))
        silent = list(gone.silent), list(gone.silent.values())
        await conn.execute(self._copy, (partition, rows[0].position - 1, rows[-1].position, *silent))
        return self.forget

    def forget(self) -> None:
        """Nothing is kept."""


PROJECTION = Projection(MODEL.name, version=VERSION, shape=MODEL.shape, define=define, consumer=Audit)

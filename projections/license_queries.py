"""What is asked of the license read model: everything a person's license is made of, by one statement in one round trip."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

from psycopg.errors import UndefinedTable

from domain.identity.devices import Devices
from domain.identity.licenses import LicenseState, NoLicense
from domain.quota import Quota
from eventstore.together import Together
from projections.consumer import ProjectionBehind
from projections.license_tables import MODEL, category_of, table_of, thawed
from projections.reading import Reading

REMEMBERED = 1_000
"""People whose states are kept thawed. What their rows are is read each time."""


@dataclass(frozen=True, slots=True)
class LicenseRow:
    """What is known of a person; the quotas by meter. Nothing in it is as of a moment: whoever shows it looks at the clock.

    Two with the same rows may be one object, so nobody may change what is in it.
    """

    license: LicenseState
    devices: Devices
    quotas: tuple[Quota, ...]


class _Rows(NamedTuple):
    """The generation that answers, None where there is none yet; and a person's rows, None where another generation was read."""

    generation: int | None
    rows: list[Any] | None


class LicenseReader:
    """Asks for those together who are asked for at the same time."""

    def __init__(self, reading: Reading) -> None:
        self._reading, self._generation = reading, 0
        self._together = Together[UUID, UUID, _Rows](self._read)
        self._known: OrderedDict[tuple[UUID, UUID], tuple[list[Any], LicenseRow]] = OrderedDict()

    async def get(self, tenant_id: UUID, user_id: UUID, min_position: int | None = None, timeout_seconds: float = 5) -> LicenseRow:
        """How a person stands; somebody nobody heard of has neither license nor devices nor quotas.

        With ``min_position`` only after the read model has applied that position of the tenant's partition; raises
        `ProjectionBehind` when it has not in time.
        """
        await self._reading.reach(MODEL, tenant_id, min_position, timeout_seconds)
        for _ in range(3):  # the generation may change under one who asks, twice when it was not known
            try:
                generation, rows = await self._together.get(tenant_id, user_id)
            except UndefinedTable:
                self._generation = 0
                continue
            if generation is None:  # new in this release, and not built yet
                raise ProjectionBehind(0, 0)
            if rows is not None:
                return self._thawed((tenant_id, user_id), rows)
        raise ProjectionBehind(0, 0)

    def _thawed(self, place: tuple[UUID, UUID], rows: list[Any]) -> LicenseRow:
        """The states of the rows; the same object as before while the rows are the same."""
        known = self._known.get(place)
        if known is None or known[0] != rows:
            known = self._known[place] = rows, _row(rows)
        self._known.move_to_end(place)
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return known[1]

    async def _read(self, tenant_id: UUID, people: Sequence[UUID]) -> dict[UUID, _Rows]:
        """For each of the people the generation that answers at present, and the rows, if it is the one that was read.

        All statements go as one text, which is one round trip and a third of the work of sending them one by one; and registry and rows are
        read by one statement, which sees one moment of both. The UUIDs in it need no quoting.
        """
        known, tenant = self._generation, UUID(int=tenant_id.int)
        columns, joined = "g.generation, null, null, null", ""
        if known:
            columns = "g.generation, l.user_id::text, l.stream, l.state::text"
            place = f"l.partition = {self._reading.partition_of(tenant_id)} and l.tenant_id = '{tenant}'"
            theirs = ",".join(f"'{UUID(int=user_id.int)}'" for user_id in people)
            joined = f"left join {table_of(known)} l on {place} and l.user_id in ({theirs})"
        query = f"select {columns} from projection g {joined} where g.name = '{MODEL.name}' and g.shape = {MODEL.shape}"
        async with self._reading.connection() as conn:
            cursor = await conn.execute(f"begin read only;set local app.tenant_id = '{tenant}';{query};commit")
            cursor.nextset()
            cursor.nextset()
            rows = await cursor.fetchall()
        self._generation = rows[0][0] if rows else 0
        if not rows:
            return dict.fromkeys(people, _Rows(None, None))
        if self._generation != known:
            return dict.fromkeys(people, _Rows(self._generation, None))
        by_person: dict[str, list[Any]] = {str(user_id): [] for user_id in people}
        for _, user, *row in rows:
            if user is not None:
                by_person[user].append(row)
        return {user_id: _Rows(known, by_person[str(user_id)]) for user_id in people}


def _row(rows: list[Any]) -> LicenseRow:
    license_: LicenseState = NoLicense()
    devices, quotas = Devices(), []
    for stream, text in rows:
        state = thawed(stream, text)
        match category_of(stream):
            case "license":
                license_ = state
            case "devices":
                devices = state
            case _:
                if isinstance(state, Quota):
                    quotas.append(state)
    quotas.sort(key=lambda quota: quota.terms.meter)
    return LicenseRow(license_, devices, tuple(quotas))

"""The smallest consumer: it counts what it was given."""

from collections.abc import Callable, Sequence

from projections.consumer import SKIPPED, Connection, Recorded


class Counting:
    """Notes the place of each event that was applied, and cannot bear some events."""

    def __init__(
        self,
        name: str = "counting",
        hates: Callable[[Recorded], bool] = lambda row: False,
        *,
        generation: int = 1,
        version: int = 0,
        starts_at_head: bool = False,
    ) -> None:
        self.name, self.hates, self.generation, self.version, self.starts_at_head = name, hates, generation, version, starts_at_head
        self.seen = list[tuple[int, int]]()
        self.skipped = list[int]()

    async def apply(self, conn: Connection, partition: int, rows: Sequence[Recorded]) -> Callable[[], None]:
        """See :class:`projections.consumer.Consumer`."""
        for row in rows:
            if row.type != SKIPPED and self.hates(row):
                raise ValueError(f"no taste for {row.position}")

        def after() -> None:
            self.seen.extend((partition, row.position) for row in rows)
            self.skipped.extend(row.position for row in rows if row.type == SKIPPED)

        return after

    def forget(self) -> None:
        """Nothing is kept."""

    def positions(self, partition: int) -> list[int]:
        """What was applied of a partition, in that order."""
        return [position for each, position in self.seen if each == partition]

"""Everything that can be asked of the read models, over one pool of connections."""

from __future__ import annotations

from projections.audit_queries import AuditReader
from projections.footprints import FootprintReader
from projections.keys import KeyReader
from projections.license_queries import LicenseReader
from projections.people import PeopleReader
from projections.quota_queries import QuotaReader
from projections.reading import READER, Reading
from projections.sender_queries import SenderReader
from projections.sessions import SessionReader
from projections.telemetry import TelemetryReader
from projections.usage_queries import UsageReader
from projections.webhook_deliveries import DeliveryReader


class Readers:
    """All readers of a process."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self.quotas, self.usage, self.audit = QuotaReader(reading), UsageReader(reading), AuditReader(reading)
        self.webhooks = DeliveryReader(reading)
        self.people = PeopleReader(reading)
        self.licenses = LicenseReader(reading)
        self.senders, self.keys = SenderReader(reading), KeyReader(reading)
        self.telemetry = TelemetryReader(reading)
        self.sessions = SessionReader(reading)
        self.footprints = FootprintReader(reading)

    @classmethod
    async def open(cls, dsn: str, connections: int = 4) -> Readers:
        """Connect, as a role that row-level security shows one tenant at a time."""
        return cls(await Reading.open(dsn, READER, connections))

    async def close(self) -> None:
        """Close the connections."""
        await self._reading.close()

"""Telemetry, and what retention needs to know."""

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Nothing yet."""
    op.execute("select 1")

"""From where commands came."""

from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Nothing yet."""
    op.execute("select 1")

"""What came to the door: when keys were last used, what was refused there."""

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Nothing yet."""
    op.execute("select 1")

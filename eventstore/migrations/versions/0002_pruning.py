"""Events of deleted tenants are pruned to their leaves."""

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Nothing yet."""

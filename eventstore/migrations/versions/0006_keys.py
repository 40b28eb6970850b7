"""Keys of tenants and people, wrapped by a master key, and the keys that tokens are signed with."""

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Nothing yet."""
    op.execute("select 1")

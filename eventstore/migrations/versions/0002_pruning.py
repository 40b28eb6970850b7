"""Events of deleted tenants are pruned to their leaves."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    # Neither reads the table: a null column is added to the catalogue alone, and the check holds for rows written from now on,
    # before which there was none that it could refuse. The writer's role may insert events, and must not pass a leaf off as one.
    op.execute("""
    alter table event add column leaf bytea;
    alter table event add constraint event_leaf check ((leaf is not null) = (type = 'log.pruned')) not valid;
    """)


def downgrade() -> None:
    raise RuntimeError("the log is never taken down by a migration")

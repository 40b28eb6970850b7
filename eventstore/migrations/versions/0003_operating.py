"""What followers and operators keep: which events consumers skip, who feeds a partition at present, and what was applied last."""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.execute("""
    alter table checkpoint add column hash bytea;
    create table skipped_event (
      partition int not null, consumer text not null, version int not null, position bigint not null,
      primary key (partition, consumer, version, position));
    create table follower_lease (
      partition int not null, follower text not null, holder uuid not null, until timestamptz not null,
      primary key (partition, follower));
    grant select, insert on skipped_event to holdbook_follower;
    grant select, insert, update, delete on follower_lease to holdbook_follower;
    """)


def downgrade() -> None:
    raise RuntimeError("which events were skipped is part of what the read models are")

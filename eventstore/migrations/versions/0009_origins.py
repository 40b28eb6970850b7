"""From where commands came."""

from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Apart from the log, because what stands here is removed after a while."""
    op.execute("""
    create table origin (
      partition int not null, tenant_id uuid not null, origin_id text collate "C" not null, person_id uuid not null, sealed text not null,
      first_at timestamptz not null, last_at timestamptz not null, primary key (partition, tenant_id, origin_id));
    create index origin_person on origin (partition, tenant_id, person_id);
    create index origin_last on origin (partition, tenant_id, last_at);
    alter table origin enable row level security;
    alter table origin force row level security;
    create policy writer on origin to holdbook_writer using (true) with check (true);
    create policy follower on origin to holdbook_follower using (true) with check (true);
    grant select, insert, update, delete on origin to holdbook_writer;
    grant select, delete on origin to holdbook_follower;
    """)

"""What came to the door: when keys were last used, what was refused there."""

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Numbers and samples, not facts: nothing of it is folded from the log, and retention removes it."""
    op.execute("""
    create table door_refusal (
      partition int not null, tenant_id uuid not null, hour timestamptz not null, kind text collate "C" not null, count bigint not null,
      samples jsonb not null, primary key (partition, tenant_id, hour, kind));
    alter table door_refusal enable row level security;
    alter table door_refusal force row level security;
    create policy writer on door_refusal to holdbook_writer using (true) with check (true);
    create policy follower on door_refusal to holdbook_follower using (true) with check (true);
    grant select, insert, update, delete on door_refusal to holdbook_writer;
    grant select, delete on door_refusal to holdbook_follower;
    create table key_use (
      partition int not null, tenant_id uuid not null, account_id uuid not null, key_id text collate "C" not null,
      last_used_at timestamptz not null, primary key (partition, tenant_id, account_id, key_id));
    alter table key_use enable row level security;
    alter table key_use force row level security;
    create policy writer on key_use to holdbook_writer using (true) with check (true);
    create policy follower on key_use to holdbook_follower using (true) with check (true);
    create policy reader on key_use for select to holdbook_reader
      using (tenant_id = nullif(current_setting('app.tenant_id', true), '')::uuid);
    grant select, insert, update, delete on key_use to holdbook_writer;
    grant select on key_use to holdbook_follower;
    grant select on key_use to holdbook_reader;
    """)

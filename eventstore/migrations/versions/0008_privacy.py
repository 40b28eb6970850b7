"""Telemetry, and what retention needs to know."""

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Apart from the log, because what stands here is removed after a while, and is about nobody."""
    op.execute("""
    create table telemetry (
      partition int not null, tenant_id uuid not null, event_id uuid not null, at timestamptz not null, installation uuid not null,
      name text collate "C" not null, properties json not null, primary key (partition, tenant_id, event_id));
    create index telemetry_at on telemetry (partition, tenant_id, at);
    alter table telemetry enable row level security;
    alter table telemetry force row level security;
    create policy writer on telemetry for insert to holdbook_writer with check (true);
    create policy follower on telemetry to holdbook_follower using (true) with check (true);
    create policy reader on telemetry for select to holdbook_reader
      using (tenant_id = nullif(current_setting('app.tenant_id', true), '')::uuid);
    grant insert on telemetry to holdbook_writer;
    grant select, delete on telemetry to holdbook_follower;
    grant select on telemetry to holdbook_reader;
    """)

"""Which endpoints are told what, and every message to them."""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Kept like read models, but not built anew: what was sent cannot be unsent."""
    op.execute("""
    create table webhook_endpoint (
      partition int not null, endpoint_id uuid not null, tenant_id uuid not null, types text[] not null, enabled boolean not null,
      position bigint not null, primary key (partition, endpoint_id));
    create table webhook_delivery (
      partition int not null, endpoint_id uuid not null, number bigint not null, tenant_id uuid not null,
      message_id text collate "C" not null, position bigint not null, type text not null, state text not null, attempts int not null,
      last_status int, last_error text, last_at timestamptz, next_at timestamptz, done_at timestamptz, revision int,
      created_at timestamptz not null, primary key (partition, endpoint_id, number));
    create index webhook_delivery_message on webhook_delivery (partition, endpoint_id, message_id);
    create index webhook_delivery_done on webhook_delivery (partition, done_at) where done_at is not null;
    """)
    for table in ("webhook_endpoint", "webhook_delivery"):
        op.execute(f"""
        alter table {table} enable row level security;
        alter table {table} force row level security;
        create policy follower on {table} to holdbook_follower using (true) with check (true);
        grant select, insert, update, delete on {table} to holdbook_follower;
        """)
    op.execute("""
    create policy reader on webhook_delivery for select to holdbook_reader
      using (tenant_id = nullif(current_setting('app.tenant_id', true), '')::uuid);
    grant select on webhook_delivery to holdbook_reader;
    """)

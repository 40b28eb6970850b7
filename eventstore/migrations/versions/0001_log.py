"""The log, its lock rows, snapshots, checkpoints, tenant keys, and the roles that may touch them."""

from alembic import op

revision = "0001"
down_revision = None

ROLES = {
    "holdbook_writer": "select, insert on event; select, update on log_partition; select, insert, update on snapshot; "
    "select on store; select, insert on tenant_key",
    "holdbook_follower": "select on event; select on log_partition; select, insert, update, delete on checkpoint; select on store",
    "holdbook_reader": "select on checkpoint; select on store",
}
"""A role owns nothing and can do nothing but what stands here. Only operators' own logins may change or delete an event."""


def upgrade() -> None:
    op.execute("""
    create table store (partitions int not null check (partitions between 1 and 4096), created_at timestamptz not null);
    create table log_partition (partition int primary key, epoch int not null);
    create table event (
      partition int not null, position bigint not null, tenant_id uuid not null, stream text not null, version bigint not null,
      command_id uuid not null, ordinal int not null, type text not null, recorded_at timestamptz not null, cause uuid, actor text,
      trace text, payload json not null, reply json, fingerprint bytea, salt bytea not null, hash bytea not null,
      primary key (partition, position));
    create unique index event_stream on event (partition, stream, version);
    create unique index event_command on event (partition, command_id) where ordinal = 0;
    create table snapshot (
      partition int not null, stream text not null, version bigint not null, state_schema int not null, hash bytea not null,
      state json not null, primary key (partition, stream));
    create table checkpoint (
      partition int not null, consumer text not null, generation int not null, position bigint not null, epoch int not null,
      stopped text, primary key (partition, consumer, generation));
    create table tenant_key (
      partition int not null, tenant_id uuid not null, key bytea not null, primary key (partition, tenant_id));
    """)
    for role, grants in ROLES.items():
        # Roles belong to the whole server: another database, or another process a moment ago, may have made them.
        op.execute(f"""
        do $$ begin create role {role} nologin; exception when duplicate_object or unique_violation then null; end $$;
        grant {role} to current_user;
        """)
        for grant in grants.split(";"):
            op.execute(f"grant {grant.strip()} to {role}")


def downgrade() -> None:
    raise RuntimeError("the log is never taken down by a migration")

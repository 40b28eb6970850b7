"""Tasks of processes and effects.

A task is work that an event asks for and that awaits something: a command, a provider, a receiver. A lane is a line of tasks
that are done one after the other; its row says when it may go on, who is at work on it and until when, and why it stands still.
"""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Two tables for the followers' role alone: payloads are of all tenants."""
    op.execute("""
    create table task_lane (
      partition int not null, consumer text collate "C" not null, lane text collate "C" not null, tenant_id uuid not null,
      due_at timestamptz not null, claimed_by uuid, leased_until timestamptz, stopped text,
      primary key (partition, consumer, lane));
    create index task_lane_due on task_lane (partition, due_at) where stopped is null;
    create table task (
      partition int not null, consumer text collate "C" not null, lane text collate "C" not null, number bigint not null,
      tenant_id uuid not null, payload json not null, trace text, due_at timestamptz not null, attempts int not null,
      reason text, created_at timestamptz not null, primary key (partition, consumer, lane, number));
    grant select, insert, update, delete on task_lane, task to holdbook_follower;
    """)

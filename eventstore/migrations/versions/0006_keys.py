"""Keys of tenants and people, wrapped by a master key, and the keys that tokens are signed with."""

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """For the writers' role alone: no read model, and nobody who reads one, has to do with keys.

    A bare key of a tenant stays until a process that has a master key reads it. A person's row without a key is the tombstone of one
    who was erased. ``master_key`` holds a known text under each master key, so that another key under the same id is found out.
    """
    op.execute("""
    alter table tenant_key alter column key drop not null;
    alter table tenant_key add column wrapped bytea;
    alter table tenant_key add column master_id text collate "C";
    create table subject_key (
      partition int not null, tenant_id uuid not null, person_id uuid not null, wrapped bytea, master_id text collate "C",
      made_at timestamptz not null, shredded_at timestamptz, primary key (partition, tenant_id, person_id));
    create table master_key (master_id text collate "C" primary key, canary bytea not null);
    create table signing_key (
      kid text collate "C" primary key, public json not null, wrapped bytea, master_id text collate "C", made_at timestamptz not null,
      signs_from timestamptz not null, signs_until timestamptz, verifies_until timestamptz);
    grant update on tenant_key to holdbook_writer;
    grant select, insert, update on subject_key to holdbook_writer;
    grant select, insert on master_key to holdbook_writer;
    grant select, insert, update, delete on signing_key to holdbook_writer;
    """)

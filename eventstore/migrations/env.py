"""Runs the steps on the connection that `eventstore.schema` hands over."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], version_table="holdbook_schema")
with context.begin_transaction():
    context.run_migrations()

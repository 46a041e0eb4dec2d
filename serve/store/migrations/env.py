"""What Alembic runs: always on a connection that somebody else has opened and will commit."""

from alembic import context

from serve.store.tables import Table

context.configure(
    connection=context.config.attributes["connection"], target_metadata=Table.metadata
)
context.run_migrations()

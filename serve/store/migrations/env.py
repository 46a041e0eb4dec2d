"""What Alembic runs: always on a connection that somebody else has opened and will commit."""

from alembic import context

from serve.store.batch_tables import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA)
context.run_migrations()

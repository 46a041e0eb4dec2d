"""What Alembic runs: always on a connection that somebody else has opened and will commit."""

from alembic import context

from serve.store.metadata import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA)
context.run_migrations()

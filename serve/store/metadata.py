"""All tables: whoever compares a database with this code, or changes one, starts here."""

from serve.store import batch_tables, experiment_tables, rollout_tables
from serve.store.tables import Table

DECLARED = (batch_tables, experiment_tables, rollout_tables)
"""The modules that declare tables beside `tables.py`: with their import all are known."""
METADATA = Table.metadata

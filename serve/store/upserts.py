"""INSERT that meets a row which is there already: the same words on both databases."""

from typing import Any

from sqlalchemy.dialects import postgresql, sqlite

from serve.store.engine import Session
from serve.store.tables import Table

# Both understand ON CONFLICT and RETURNING, and each has a class of its own for it.
Upsert = postgresql.Insert | sqlite.Insert


def is_postgres(session: Session) -> bool:
    return session.get_bind().dialect.name == "postgresql"


def insert_into(session: Session, table: type[Table]) -> Any:
    """`Upsert` of the session's database; the two classes share their methods, not a base."""
    return insert_on(session.get_bind().dialect.name, table)


def insert_on(dialect: str, table: type[Table]) -> Any:
    """As `insert_into`, by the name of the database."""
    return postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)

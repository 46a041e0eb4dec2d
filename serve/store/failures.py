"""What the database driver raises, as this system's own errors."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import exc

from serve.errors import Conflict, InvalidRequest, Sm4llError, StoreUnavailable

RETRY_AFTER_S = 2.0
# Locked, unreadable, full or unopenable: the statement was right. Source: sqlite.org/rescode.html
SQLITE_PASSING = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
}
# Connection lost, refused login, no resources, shutting down; a deadlock or serialisation loser.
# 25006: a standby after a failover. Source: postgresql.org/docs/15/errcodes-appendix.html
POSTGRES_PASSING = ("08", "28", "53", "57", "58", "40", "55P03", "25006", "3D000")
# U+0000, which PostgreSQL keeps in no text (22021) and in no JSON (22P05).
POSTGRES_CHARACTER = ("22021", "22P05")


@contextmanager
def map_database_errors() -> Iterator[None]:
    """Inside, nothing of SQLAlchemy or a driver gets out.

    Raises:
        StoreUnavailable: the same may succeed later; a commit may even have succeeded unseen.
        Conflict: a row that must be unique or must exist is not.
        InvalidRequest: a text holds a character that no database keeps.
        Sm4llError: anything else, which is our mistake.
    """
    try:
        yield
    except exc.IntegrityError as error:
        raise Conflict("This contradicts what is already stored.") from error
    except exc.TimeoutError as error:
        raise _unavailable("All connections to the database are busy.") from error
    except exc.DBAPIError as error:
        if is_passing(error):
            raise _unavailable("The database does not answer.") from error
        if getattr(error.orig, "sqlstate", None) in POSTGRES_CHARACTER:
            raise InvalidRequest(
                "a text holds the character U+0000, which cannot be kept", remedy="leave it out"
            ) from error
        raise Sm4llError("The database refused a statement.") from error
    except exc.SQLAlchemyError as error:
        raise Sm4llError("The database layer was used wrongly.") from error
    except (ConnectionError, TimeoutError, sqlite3.Error) as error:
        raise _unavailable("The database does not answer.") from error


@contextmanager
def map_connect_errors() -> Iterator[None]:
    """As above, where a connection is opened: there an unknown host is an `OSError` too."""
    try:
        with map_database_errors():
            yield
    except OSError as error:
        raise _unavailable("The database cannot be reached.") from error


def is_passing(error: exc.DBAPIError) -> bool:
    """Whether the same statement may succeed later."""
    if error.connection_invalidated:
        return True
    code = getattr(error.orig, "sqlite_errorcode", None)
    if code is not None:
        return code & 0xFF in SQLITE_PASSING
    state = getattr(error.orig, "sqlstate", None)
    if state is None:  # the driver itself, about a connection it no longer has
        return isinstance(error, exc.InterfaceError | exc.OperationalError)
    return str(state).startswith(POSTGRES_PASSING)


def _unavailable(detail: str) -> StoreUnavailable:
    return StoreUnavailable(
        detail,
        remedy="Try again shortly; `sm4ll store check` says what is wrong.",
        retry_after_s=RETRY_AFTER_S,
    )

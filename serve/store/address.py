"""Which database a URL means, and how its driver has to be told."""

from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from serve.errors import ConfigError

DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
}
EXAMPLES = "sqlite:////var/lib/sm4ll/sm4ll.db or postgresql://user:password@host/sm4ll"


def parse_address(text: str) -> URL:
    """The URL with the driver this system brings, however the caller spelled it.

    Raises:
        ConfigError: not a URL, another kind of database, or SQLite without a file.
    """
    try:
        url = make_url(text)
    except ArgumentError as exc:
        # Not `text` itself: it may hold a password.
        raise ConfigError(f"The database URL cannot be read. Write {EXAMPLES}.") from exc
    driver = DRIVERS.get(url.get_backend_name())
    if driver is None:
        known = f"The database must be SQLite or PostgreSQL, not {url.get_backend_name()}."
        raise ConfigError(f"{known} Write {EXAMPLES}.")
    url = url.set(drivername=driver)
    return _with_file(url) if is_sqlite(url) else _with_ssl(url)


def is_sqlite(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


def _with_file(url: URL) -> URL:
    if not url.database or url.database.startswith((":memory:", "file:")):
        raise ConfigError(f"SQLite needs a file that every process can open. Write {EXAMPLES}.")
    return url.set(database=str(Path(url.database).expanduser().absolute()))


def _with_ssl(url: URL) -> URL:
    """Managed databases hand out libpq's `sslmode`; asyncpg calls the same thing `ssl`."""
    mode = url.query.get("sslmode")
    if mode is None:
        return url
    return url.difference_update_query(["sslmode"]).update_query_dict({"ssl": mode})

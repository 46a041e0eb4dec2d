"""The file of an embedded database: who may read it, and the mode that stays with it."""

import sqlite3
from pathlib import Path

from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random

from serve.errors import ConfigError
from serve.store.failures import map_database_errors

SWITCH_TIMEOUT_S = 10.0


def create_file(file: Path) -> None:
    """For its owner only, as what SQLite puts beside it will be: the rows say who tried on what,
    and hold what signs webhooks.

    Raises:
        ConfigError: there can be no such file.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file.touch(mode=0o600)
    except OSError as exc:
        raise ConfigError(f"{file} cannot be the database: {exc.strerror}.") from exc


def switch_to_log(file: Path) -> None:
    """Give the file a write-ahead log, so that readers and the writer do not wait for each other.

    All the waiting is ours: with a timeout of its own SQLite still says "locked" at once now and
    then, when several processes start on a new file (1 start of 350 with six under load).

    Raises:
        StoreUnavailable: the file cannot be opened, is none of SQLite's, or stays locked.
    """
    with map_database_errors():
        for attempt in Retrying(
            retry=retry_if_exception(_is_busy),
            wait=wait_random(0.005, 0.05),
            stop=stop_after_delay(SWITCH_TIMEOUT_S),
            reraise=True,
        ):
            with attempt:
                _switch(file)


def _switch(file: Path) -> None:
    connection = sqlite3.connect(file, timeout=0)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
    finally:
        connection.close()


def _is_busy(error: BaseException) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF == sqlite3.SQLITE_BUSY

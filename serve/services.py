"""What one process keeps open between requests: rows, blobs and what stands on them."""

from dataclasses import dataclass

from serve.settings import Settings
from serve.store.blobs import Blobs
from serve.store.engine import Database
from serve.store.opening import open_blobs, open_database


@dataclass(frozen=True, kw_only=True)
class Services:
    """Built once per process, used from its one event loop."""

    database: Database
    blobs: Blobs

    async def close(self) -> None:
        await self.database.close()


def open_services(settings: Settings) -> Services:
    """Opens nothing before its first use.

    Raises:
        ConfigError: a URL of the settings means no store this system speaks to.
    """
    return Services(database=open_database(settings), blobs=open_blobs(settings))

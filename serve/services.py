"""What one process keeps open between requests: rows, blobs and what stands on them."""

from dataclasses import dataclass

from serve.settings import Settings
from serve.store.blobs import Blobs
from serve.store.engine import Database
from serve.store.opening import open_blobs, open_database
from serve.tenancy.assets import AssetStore
from serve.tenancy.key_ring import KeyRing
from serve.tenancy.ledger import UsageLedger
from serve.tenancy.limits import TenantLimits, open_limits


@dataclass(frozen=True, kw_only=True)
class Services:
    """Built once per process, used from its one event loop."""

    database: Database
    blobs: Blobs
    keys: KeyRing
    assets: AssetStore
    ledger: UsageLedger
    limits: TenantLimits

    async def close(self) -> None:
        await self.keys.flush()
        await self.ledger.shut_down()
        await self.limits.close()
        await self.database.close()


def open_services(settings: Settings) -> Services:
    """Opens nothing before its first use.

    Raises:
        ConfigError: a URL of the settings means no store this system speaks to.
    """
    database = open_database(settings)
    blobs = open_blobs(settings)
    redis_url = None if settings.redis_url is None else settings.redis_url.get_secret_value()
    return Services(
        database=database,
        blobs=blobs,
        keys=KeyRing(database),
        assets=AssetStore(database, blobs),
        ledger=UsageLedger(database),
        limits=open_limits(redis_url),
    )

"""What one process keeps open between requests: rows, blobs and what stands on them."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from serve import __version__
from serve.config import RouterConfig
from serve.errors import ConfigError
from serve.evidence.witness import Recorder
from serve.evidence.writer import ExposureWriter
from serve.experiments.book import RoutingBook
from serve.experiments.pins import PinBook
from serve.observing.meter import NO_METER, Meter
from serve.observing.requests import Requests
from serve.observing.sampling import Sampler
from serve.observing.tenants import TenantLabels
from serve.observing.tryons import TryOns
from serve.settings import Settings
from serve.store.blobs import Blobs
from serve.store.engine import Database
from serve.store.opening import open_blobs, open_database
from serve.tenancy.assets import AssetStore
from serve.tenancy.idempotency import FirstAnswers
from serve.tenancy.key_ring import KeyRing
from serve.tenancy.ledger import UsageLedger
from serve.tenancy.limits import TenantLimits, open_limits
from serve.tenancy.registry import Registry
from serve.tenancy.retention import Sweeper

if TYPE_CHECKING:
    from serve.store.schema import SchemaStatus


@dataclass(frozen=True, kw_only=True)
class Services:
    """Built once per process, used from its one event loop."""

    database: Database
    blobs: Blobs
    keys: KeyRing
    registry: Registry
    assets: AssetStore
    first_answers: FirstAnswers
    sweeper: Sweeper
    ledger: UsageLedger
    limits: TenantLimits
    routing: RoutingBook
    pins: PinBook
    recorder: Recorder
    meter: Meter
    requests: Requests
    tryons: TryOns
    sampler: Sampler
    """Whoever has an event loop starts it."""
    users: list[Callable[[], Awaitable[None]]] = field(default_factory=list)
    """Ends of what runs beside requests and needs all of these."""

    async def close(self) -> None:
        # One that fails takes nothing from the others: what is not written here was used for free.
        async with AsyncExitStack() as stack:
            for end in (
                self.database.close,
                self.limits.close,
                self.ledger.shut_down,
                self.recorder.shut_down,
                self.keys.flush,
                self.routing.flush,
                *self.users,
                self.sampler.stop,
            ):
                stack.push_async_callback(end)


def open_services(
    settings: Settings, config: RouterConfig | None = None, meter: Meter = NO_METER
) -> Services:
    """Opens nothing before its first use.

    Args:
        config: the defaults where absent.

    Raises:
        ConfigError: a URL of the settings means no store this system speaks to.
    """
    database = open_database(settings, meter=meter)
    blobs = open_blobs(settings)
    redis_url = None if settings.redis_url is None else settings.redis_url.get_secret_value()
    assets = AssetStore(database, blobs)
    first_answers = FirstAnswers(database, blobs)
    config = config or RouterConfig()
    tenants = TenantLabels(config.max_named_tenants)
    return Services(
        database=database,
        blobs=blobs,
        keys=KeyRing(database),
        registry=Registry(database),
        assets=assets,
        first_answers=first_answers,
        sweeper=Sweeper(database, blobs, assets, first_answers),
        ledger=UsageLedger(database, meter=meter),
        limits=open_limits(redis_url),
        routing=RoutingBook(database),
        pins=PinBook(database),
        recorder=Recorder(
            ExposureWriter(database, config.evidence_retention_s, meter=meter), meter=meter
        ),
        meter=meter,
        requests=Requests(meter, tenants),
        tryons=TryOns(meter, tenants),
        sampler=Sampler(meter, __version__),
    )


def require_current_schema(settings: Settings) -> None:
    """Also where an event loop runs already: one look with connections of its own.

    Raises:
        ConfigError: the tables are not those of this version.
        StoreUnavailable: the database does not answer.
    """
    with ThreadPoolExecutor(1) as thread:
        status = thread.submit(asyncio.run, _read_schema(settings)).result()
    if not status.is_current:
        raise ConfigError(
            f"The database is at revision {status.current or 'none'} and this version wants "
            f"{status.wanted}. What helps: `sm4ll store upgrade`."
        )


async def _read_schema(settings: Settings) -> "SchemaStatus":
    # Alembic is imported by who asks: most processes that use the store never do.
    from serve.store.schema import read_schema

    database = open_database(settings)
    try:
        return await read_schema(database)
    finally:
        await database.close()

"""The database and the blobs, as the person who runs them sees them."""

import asyncio
from typing import TYPE_CHECKING

import typer
from rich.markup import escape

from serve.commands.console import err, out
from serve.errors import ConfigError, Sm4llError
from serve.settings import Settings

# SQLAlchemy takes 0.3 s to import: the other commands do not wait for it.
if TYPE_CHECKING:
    from serve.store.blobs import Blobs
    from serve.store.schema import SchemaStatus
    from serve.tenancy.retention import SweepReport

TAKEN = "Prepared. The key of SM4LL_API_KEY is the first administrator's."
NOT_TAKEN = "Prepared. An administrator's key works already; SM4LL_API_KEY was not looked at."
PROBE_TENANT = "sm4ll-check"
PROBE = b"sm4ll store check"


def upgrade() -> None:
    """Create or change the tables of the database that SM4LL_DATABASE_URL names.

    Without that variable it is the SQLite file below SM4LL_DATA_DIR. Run it before the first
    start against a new PostgreSQL and after every update; it changes everything or nothing, does
    nothing when nothing is to be done, and waits when somebody else is at it.

    For example: SM4LL_DATABASE_URL=postgresql://sm4ll@db/sm4ll sm4ll store upgrade
    """
    from serve.store.opening import database_url
    from serve.store.schema import upgrade as upgrade_schema

    try:
        revision = asyncio.run(upgrade_schema(database_url(Settings())))
    except (ConfigError, Sm4llError) as exc:
        _refuse("The database was not changed", exc)
    out.print(f"The database is at revision {revision}.")


def prepare() -> None:
    """As `upgrade`, and make what SM4LL_TENANTS and SM4LL_EXPERIMENTS name, and a first admin key.

    What `sm4ll up` does by itself; run it once before `serve run` or `serve deploy`. The key is
    kept in SM4LL_DATA_DIR/local.key (mode 0600), where the commands find it; again it is the same.
    With SM4LL_API_KEY that key becomes the first administrator's, unless one works already, and
    nothing secret is printed or written: so it is done in a Job.

    For example: SM4LL_DATABASE_URL=postgresql://sm4ll@db/sm4ll sm4ll store prepare
    """
    from serve.settings import local_key_file
    from serve.tenancy.embedded import prepare_store, prepare_with_key

    settings = Settings()
    try:
        if settings.api_key is not None:
            given = settings.api_key.get_secret_value()
            is_taken = asyncio.run(prepare_with_key(settings, given))
            out.print(TAKEN if is_taken else NOT_TAKEN, markup=False, highlight=False)
            return
        token = asyncio.run(prepare_store(settings))
    except (ConfigError, Sm4llError) as exc:
        _refuse("The store was not prepared", exc)
    out.print(f"Key: {token}   (in {local_key_file(settings)})", markup=False, highlight=False)


def key() -> None:
    """Make a key for SM4LL_API_KEY of `sm4ll store prepare`, and print it; nobody keeps it here.

    For example:

    kubectl -n sm4ll create secret generic sm4ll-admin --from-literal=token="$(sm4ll store key)"
    """
    from serve.tenancy.keys import mint_key

    typer.echo(mint_key().token)


def check() -> None:
    """Say whether database and blobs answer, and whether the tables are those of this version.

    Writes one small blob, reads it back and deletes it; touches no row. Exits 1 and says what to
    do when something is wrong, so it serves as an init container or a first look at an outage.

    For example: SM4LL_BLOBS_URL='s3://looks/prod?region=eu-central-1' sm4ll store check
    """
    from serve.store.opening import open_blobs, open_database

    settings = Settings()
    try:
        database = open_database(settings)
        out.print(escape(repr(database)))
        status = asyncio.run(_read_status(settings))
    except (ConfigError, Sm4llError) as exc:
        _refuse("Rows: no", exc)
    _judge(status)
    try:
        asyncio.run(_probe(open_blobs(settings)))
    except (ConfigError, Sm4llError) as exc:
        _refuse("Blobs: no", exc)
    out.print("Blobs: written, read and deleted.")


def sweep() -> None:
    """Delete what has outlived its time: pictures, jobs, kept answers, reservations, messages.

    A running cluster does this by itself. For a CronJob where none runs, or to have it now; safe
    beside a cluster and beside itself.

    For example: SM4LL_DATABASE_URL=postgresql://sm4ll@db/sm4ll sm4ll store sweep
    """
    try:
        report = asyncio.run(_sweep(Settings()))
    except (ConfigError, Sm4llError) as exc:
        _refuse("Nothing was swept", exc)
    out.print(
        f"Deleted {report.num_assets} assets, {report.num_jobs} jobs, {report.num_answers} kept "
        f"answers, {report.num_deliveries} webhook messages and {report.num_orphans} orphaned "
        f"blobs; released {report.num_reservations} reservations."
    )
    if report.num_failures:
        err.print(f"{report.num_failures} tenants could not be swept; the log says why.")
        raise typer.Exit(1)


async def _sweep(settings: Settings) -> "SweepReport":
    from serve.services import open_services

    services = open_services(settings)
    try:
        return await services.sweeper.run_once()
    finally:
        await services.close()


async def _read_status(settings: Settings) -> "SchemaStatus":
    from serve.store.opening import open_database
    from serve.store.schema import read_schema

    database = open_database(settings)
    try:
        await database.ping()
        return await read_schema(database)
    finally:
        await database.close()


async def _probe(blobs: "Blobs") -> None:
    key = await blobs.put(PROBE_TENANT, "check", PROBE)
    await blobs.get(key)
    await blobs.delete(key)


def _judge(status: "SchemaStatus") -> None:
    if status.is_current:
        out.print(f"Rows: revision {status.current}, as this version wants it.")
        return
    err.print(f"Rows: revision {status.current or 'none'}, {status.wanted} is wanted.")
    for difference in status.differences:
        err.print(f"  {difference}", markup=False)
    err.print("What helps: `sm4ll store upgrade`.", markup=False)
    raise typer.Exit(1)


def _refuse(what: str, exc: ConfigError | Sm4llError) -> None:
    err.print(f"{what}: {exc}", markup=False)
    cause = exc.__cause__
    if cause is not None:
        err.print(f"  {type(cause).__name__}: {str(cause).splitlines()[0]}", markup=False)
    raise typer.Exit(1) from exc

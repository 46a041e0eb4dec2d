"""Database and blobs as the settings say: embedded below one directory, or somewhere else."""

from datetime import timedelta
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, urlsplit
from urllib.request import url2pathname

from obstore.store import LocalStore, S3Store

from serve.errors import ConfigError
from serve.observing.meter import NO_METER, Meter
from serve.settings import Settings
from serve.store.blobs import Blobs
from serve.store.engine import Database, PoolOptions

DATABASE_FILE = "sm4ll.db"
BLOBS_DIR = "blobs"
S3_OPTIONS = ("region", "endpoint")
# Two tries within a request's patience; the library's own default is ten over three minutes.
RETRIES = 2
RETRY_TIMEOUT = timedelta(seconds=15)


def database_url(settings: Settings) -> str:
    """Where the rows are; it may hold a password."""
    if settings.database_url is not None:
        return settings.database_url.get_secret_value()
    return f"sqlite:///{_data_dir(settings) / DATABASE_FILE}"


def open_database(
    settings: Settings, options: PoolOptions | None = None, meter: Meter = NO_METER
) -> Database:
    """
    Raises:
        ConfigError: the URL means no database this system speaks to.
    """
    return Database(database_url(settings), options, meter)


def open_blobs(settings: Settings) -> Blobs:
    """Blobs as `SM4LL_BLOBS_URL` says: a directory, `file:///dir`, or
    `s3://bucket/prefix?region=...&endpoint=...` with credentials where S3's own tools find them.

    Raises:
        ConfigError: the URL means no object store this system speaks to.
    """
    if settings.blobs_url is None:
        return _open_directory(_data_dir(settings) / BLOBS_DIR)
    url = urlsplit(settings.blobs_url.get_secret_value())
    if url.scheme == "s3":
        return _open_bucket(url)
    if url.scheme == "file" and url.netloc in ("", "localhost"):
        return _open_directory(Path(url2pathname(url.path)))
    if not url.scheme:
        return _open_directory(Path(url.path).expanduser())
    raise ConfigError(
        f"Blobs are kept in a directory or in S3, not in {url.scheme}. "
        "Write SM4LL_BLOBS_URL=s3://bucket/prefix?region=eu-central-1 or a directory."
    )


def _data_dir(settings: Settings) -> Path:
    return settings.data_dir.expanduser().absolute()


def _open_directory(directory: Path) -> Blobs:
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as exc:
        raise ConfigError(f"{directory} cannot be used for blobs: {exc.strerror}.") from exc
    return Blobs(LocalStore(directory))


def _open_bucket(url: SplitResult) -> Blobs:
    options = dict(parse_qsl(url.query))
    unknown = sorted(set(options) - set(S3_OPTIONS))
    if unknown or not url.hostname or url.username:
        raise ConfigError(
            f"s3://bucket/prefix takes {' and '.join(S3_OPTIONS)}"
            f"{', not ' + ', '.join(unknown) if unknown else ''}; "
            "credentials come from the AWS_* variables or the machine's role."
        )
    endpoint = options.get("endpoint")
    store = S3Store(
        url.hostname,
        prefix=url.path.strip("/") or None,
        region=options.get("region"),
        endpoint=endpoint,
        client_options={
            "timeout": timedelta(seconds=30),
            "connect_timeout": timedelta(seconds=5),
            # Only where the operator wrote http: themselves.
            "allow_http": bool(endpoint and endpoint.startswith("http://")),
        },
        retry_config={"max_retries": RETRIES, "retry_timeout": RETRY_TIMEOUT},
    )
    return Blobs(store)

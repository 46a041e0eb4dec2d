"""What differs per process: the only reader (and writer) of the environment."""

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from pydantic import AliasChoices, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from serve import __version__
from serve.ray_flags import flags_for

_HOME = Path(__file__).resolve().parents[1]
# A wheel has them beside the packages, under a name of their own; see pyproject.toml.
_PACKED = _HOME / "sm4ll_serve_configs"
CONFIGS_DIR = _PACKED if _PACKED.is_dir() else _HOME / "configs"
TRACING_FLAGS: Mapping[str, str] = {
    "RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH": "serve.observing.exporting:span_processors",
    "OTEL_SERVICE_NAME": "sm4ll-serve",
    "OTEL_RESOURCE_ATTRIBUTES": f"service.version={__version__}",
    # A replica that dies takes with it what it has not sent; OpenTelemetry's default is 5 s.
    "OTEL_BSP_SCHEDULE_DELAY": "500",
    # Seconds, here (opentelemetry-exporter-otlp 1.45): so long a replica's end may wait for a
    # collector that does not answer.
    "OTEL_EXPORTER_OTLP_TIMEOUT": "2",
}


class Settings(BaseSettings):
    """Settings of one process, from `SM4LL_*` variables."""

    model_config = SettingsConfigDict(env_prefix="SM4LL_", frozen=True, extra="ignore")

    family: Path = CONFIGS_DIR / "family.yaml"
    """What is deployed."""
    url: str = "http://127.0.0.1:8000"
    """Where the command line looks for the API."""
    state_dir: Path = Field(default_factory=lambda: Path.home() / ".local/share/sm4ll")
    """Where `sm4ll up --detach` keeps its log and process id."""
    data_dir: Path = Field(default_factory=lambda: Path.home() / ".local/share/sm4ll")
    """Where the embedded database and blobs are kept, when the two below say nothing."""
    tenants: Path = CONFIGS_DIR / "tenants.yaml"
    """Tenants that are made at the start where they are missing."""
    experiments: Path = CONFIGS_DIR / "experiments.yaml"
    """Experiments that are made at the start where they are missing."""
    api_key: SecretStr | None = None
    """What the command line calls the API with; the local key below `data_dir` when absent and the
    API is on this machine."""
    database_url: SecretStr | None = None
    """`postgresql://...` for a cluster; SQLite in `data_dir` when absent."""
    blobs_url: SecretStr | None = None
    """`s3://bucket/prefix` for a cluster; a directory in `data_dir` when absent."""
    redis_url: SecretStr | None = None
    """`redis://...` for a cluster: rate limits and concurrency over all routers; each router counts
    for itself when absent."""
    fashn_api_key: SecretStr | None = None
    """For versions that FASHN paints."""
    openai_api_key: SecretStr | None = None
    """For versions that OpenAI paints."""
    visible_gpus: str | None = Field(default=None, validation_alias="CUDA_VISIBLE_DEVICES")
    """GPUs of this process as Ray gave them, by index or UUID; all of them when absent."""
    otlp_endpoint: str | None = Field(
        default=None,
        validation_alias=AliasChoices(
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"
        ),
    )
    """Where spans go, by OTLP over HTTP (`OTEL_EXPORTER_OTLP_ENDPOINT`, and OpenTelemetry's other
    variables); nothing is traced when absent."""
    trace_ratio: float = Field(default=1.0, ge=0, le=1)
    """Share of the requests whose caller traces nothing that are traced; those of a caller who does
    follow the caller. That is whoever sends a `traceparent`, with a key or without: where strangers
    come and the ratio is below 1, take that header off in front of the cluster."""
    kubeconfig: str | None = Field(
        default=None, validation_alias=AliasChoices("SM4LL_KUBECONFIG", "KUBECONFIG")
    )
    """How `sm4ll k8s` reaches a cluster (SM4LL_KUBECONFIG, or KUBECONFIG as kubectl reads it);
    `~/.kube/config` when absent, or the pod's own account where it runs in the cluster."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Of this system's own loggers."""
    log_requests: bool = True
    """Whether the routers write one line for every request that they answer."""
    log_pipe: Path | None = None
    """Where replicas write their lines as well: `/proc/1/fd/2` in a container whose first process
    runs as the same user, so that its log (`kubectl logs`) has what Ray puts in files only."""


LOCAL_KEY_FILE = "local.key"
METRICS_FILE = "local.metrics"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def local_key_file(settings: Settings) -> Path:
    """Where the token of the embedded default's key lies."""
    return settings.data_dir.expanduser().absolute() / LOCAL_KEY_FILE


def metrics_file(settings: Settings) -> Path:
    """Says where the metrics of the local cluster are, while one runs on that data."""
    return settings.data_dir.expanduser().absolute() / METRICS_FILE


def forget_metrics(settings: Settings, url: str) -> None:
    """Take that address back, where no other cluster has written its own since."""
    file = metrics_file(settings)
    if file.is_file() and file.read_text().strip() == url:
        file.unlink()


def find_api_key(settings: Settings, url: str) -> str | None:
    """What to call the API at the URL with. The local key never leaves this machine."""
    if settings.api_key is not None:
        return settings.api_key.get_secret_value()
    if urlsplit(url).hostname not in LOOPBACK:
        return None
    try:
        return local_key_file(settings).read_text().strip() or None
    except OSError:
        return None


def known_secrets(settings: Settings) -> tuple[str, ...]:
    """What of the settings nobody may read: keys, and the passwords of URLs as they are written and
    as they are meant."""
    secrets: list[str] = []
    for _, value in settings:
        if isinstance(value, SecretStr):
            text = value.get_secret_value()
            password = urlsplit(text).password if "://" in text else text
            secrets += [password, unquote(password)] if password else []
    return tuple(dict.fromkeys(secrets))


def export_data_dir(data_dir: Path) -> None:
    """For this process and those it starts: Ray's inherit the environment, and work elsewhere."""
    os.environ["SM4LL_DATA_DIR"] = str(data_dir.expanduser().absolute())


# Ports that Serve fixes by default: two local clusters on one machine would collide.
RAY_PORT_FLAGS = (
    "RAY_SERVE_HAPROXY_METRICS_PORT",
    "RAY_SERVE_HAPROXY_STATS_PORT",
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
    "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT",
)


def export_ray_flags() -> None:
    """Set Ray's flags for one local cluster, where the caller has not set them.

    Comes before Ray is imported, which is when Ray reads them; its processes inherit them.
    """
    for name, value in flags_for("laptop").items():
        os.environ.setdefault(name, value)
    for name in RAY_PORT_FLAGS:
        os.environ.setdefault(name, str(free_port()))
    socket_path = f"/tmp/haproxy-serve/metrics-{os.getpid()}.sock"
    os.environ.setdefault("RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH", socket_path)
    export_tracing(Settings())


def export_tracing(settings: Settings) -> None:
    """Have Serve's processes trace, where the settings say where spans go."""
    if not settings.otlp_endpoint:  # empty is absent, for OpenTelemetry as well
        return
    for name, value in TRACING_FLAGS.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("RAY_SERVE_TRACING_SAMPLING_RATIO", str(settings.trace_ratio))


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port

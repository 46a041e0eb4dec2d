"""One connection to a Kubernetes API server: who we are there, and how long we are patient.

The only module that knows the `kubernetes` package: its kubeconfig, TLS, proxies and tokens.
"""

import itertools
import json
import time
from collections.abc import Callable
from typing import Any, Self

from kubernetes.client import ApiClient, Configuration
from kubernetes.client.exceptions import ApiException
from kubernetes.config import (
    list_kube_config_contexts,
    load_incluster_config,
    load_kube_config,
)
from kubernetes.config.config_exception import ConfigException
from urllib3.exceptions import HTTPError, ReadTimeoutError

from k8s.control.refusals import from_status, unreachable
from serve.errors import ConfigError
from serve.settings import Settings

Manifest = dict[str, Any]
Query = tuple[tuple[str, str], ...]

NUM_TRIES = 6
# Of waits for an answer that does not come: each is READ_S long, and nobody sees anything of it.
NUM_SILENT_TRIES = 2
MAX_PAUSE_S = 30.0
CONNECT_S = 5.0
READ_S = 60.0
# 409 is for the caller: it says that the object has changed, not that the server is busy.
RETRIED = frozenset({429, 500, 502, 503, 504})


def connect(settings: Settings, context: str | None = None) -> ApiClient:
    """A client by SM4LL_KUBECONFIG, KUBECONFIG, ~/.kube/config, or from within the cluster.

    Raises:
        ConfigError: none of them leads anywhere, or there is no such context.
    """
    configuration = Configuration()
    configuration.retries = False  # ours are below, and count together
    try:
        load_kube_config(settings.kubeconfig, context, configuration)
    except ConfigException as exc:
        if settings.kubeconfig is not None or context is not None:
            raise ConfigError(_misconfigured(settings, context)) from exc
        try:
            load_incluster_config(configuration)
        except ConfigException:
            raise ConfigError(
                "No Kubernetes cluster is configured: there is no ~/.kube/config, and this is not "
                "a pod. Set SM4LL_KUBECONFIG (or KUBECONFIG) to a kubeconfig file."
            ) from exc
    return ApiClient(configuration)


def _misconfigured(settings: Settings, context: str | None) -> str:
    """Why a kubeconfig leads nowhere."""
    where = settings.kubeconfig or "~/.kube/config"
    try:
        contexts, _ = list_kube_config_contexts(settings.kubeconfig)
    except (ConfigException, OSError):
        return (
            f"{where}: there is no kubeconfig file, or not a readable one. SM4LL_KUBECONFIG and "
            "KUBECONFIG name it."
        )
    known = ", ".join(one["name"] for one in contexts)
    if context is not None and context not in [one["name"] for one in contexts]:
        return f"{where} has no context {context}; it has {known}"
    return f"{where}: it names no cluster to talk to (its contexts: {known}); choose by --context"


class Connection:
    """Exchanges JSON; a passing failure is waited out, any other is typed."""

    def __init__(self, open_client: Callable[[], Any], sleep: Callable[[float], None] = time.sleep):
        """
        Args:
            open_client: Makes a client from what is configured now; called again when the token
                was refused, because a file or a plugin may have a newer one.
        """
        self._open_client = open_client
        self._client = open_client()
        self.sleep = sleep

    @classmethod
    def configured(cls, settings: Settings, context: str | None = None) -> Self:
        return cls(lambda: connect(settings, context))

    def another(self) -> Self:
        """To the same, for another thread that reads for long."""
        return type(self)(self._open_client, self.sleep)

    @property
    def host(self) -> str:
        return str(self._client.configuration.host)

    def request(
        self,
        method: str,
        path: str,
        query: Query = (),
        body: Manifest | None = None,
        content_type: str = "application/json",
    ) -> Manifest:
        """One exchange of JSON."""
        answer = self.open(method, path, query, body, content_type)
        try:
            parsed: Manifest = json.loads(answer.data)
        except (HTTPError, ValueError) as exc:
            raise unreachable(self.host, f"its answer broke off ({exc})") from exc
        return parsed

    def open(
        self,
        method: str,
        path: str,
        query: Query = (),
        body: Manifest | None = None,
        content_type: str = "application/json",
        read_s: float | None = READ_S,
    ) -> Any:
        """An answer that has begun; asked again while the server is busy or gone for a moment."""
        renewed = False
        for num_tries in itertools.count(1):
            try:
                return self._send(method, path, query, body, content_type, read_s)
            except ApiException as exc:
                if exc.status == 401 and not renewed:
                    renewed = True
                    self._client = self._open_client()
                    continue
                if exc.status not in RETRIED or num_tries >= NUM_TRIES:
                    raise from_status(exc.status, exc.body or "", f"{method} {path}") from exc
                pause_s = _retry_after_s(exc.headers) or _pause_s(num_tries)
            except HTTPError as exc:
                is_silent = isinstance(exc, ReadTimeoutError)
                if num_tries >= (NUM_SILENT_TRIES if is_silent else NUM_TRIES):
                    raise unreachable(self.host, str(exc)) from exc
                pause_s = _pause_s(num_tries)
            self.sleep(min(pause_s, MAX_PAUSE_S))
        raise AssertionError("counts for ever")

    def _send(
        self,
        method: str,
        path: str,
        query: Query,
        body: Manifest | None,
        content_type: str,
        read_s: float | None,
    ) -> Any:
        return self._client.call_api(
            path,
            method,
            query_params=list(query),
            header_params={"Accept": "application/json", "Content-Type": content_type},
            body=body,
            auth_settings=["BearerToken"],
            _preload_content=False,
            _request_timeout=(CONNECT_S, read_s),
        )


def _pause_s(num_tries: int) -> float:
    return float(0.25 * 2 ** (num_tries - 1))


def _retry_after_s(headers: Any) -> float | None:
    value = (headers or {}).get("Retry-After", "")
    return float(value) if str(value).isdigit() else None

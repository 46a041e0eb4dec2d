"""The family as the application of a local cluster: handed to Serve, looked at, taken down.

Apart from serve/local.py because Serve's library takes half a second to import, which passes while
Ray starts.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import serve as rayserve
from ray.serve._private.api import _create_controller_and_proxy_refs
from ray.serve._private.client import ServeControllerClient
from ray.serve.config import ControllerOptions, HTTPOptions
from ray.serve.context import _set_global_client
from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

from serve.observing.logs import LOGGING_CONFIG
from serve.scaling import POLICY
from serve.served import FAILED, RUNNING, UNHEALTHY, shorten_traceback

APP_NAME = "sm4ll"
PROXY_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the application is."""

    is_running: bool
    deployments: Mapping[str, str]
    """The status of each by its name; none while the graph is built."""
    failure: str | None
    """Why it will not run, in words."""


class LocalApp:
    """The application on the Ray that this process is connected to."""

    def __init__(self) -> None:
        logging.getLogger("ray.serve").setLevel(logging.ERROR)  # Serve sets it when imported

    def deploy(self, family: Path, host: str, port: int) -> None:
        """Start Serve, hand it the application, and return when its proxies listen.

        What `rayserve.start` does, but for the order: it waits two seconds for proxies before it
        returns, in which the application can be imported and built.
        """
        controller, proxies = _create_controller_and_proxy_refs(
            HTTPOptions(host=host, port=port, request_timeout_s=120.0),
            grpc_options=None,
            global_logging_config=LOGGING_CONFIG,
            global_tracing_config=None,
            controller_options=ControllerOptions(),
        )
        client = ServeControllerClient(controller)
        _set_global_client(client)
        client.deploy_apps(_describe(family))
        ray.get(proxies, timeout=PROXY_TIMEOUT_S)

    def look(self) -> Progress:
        """Ask the controller."""
        status = rayserve.status().applications[APP_NAME]
        has_failed = status.status in (FAILED, UNHEALTHY)
        return Progress(
            is_running=status.status == RUNNING,
            deployments={name: str(d.status.value) for name, d in status.deployments.items()},
            failure=_reasons(status.message, status.deployments) if has_failed else None,
        )

    def stop(self) -> None:
        """Take it down, and Serve with it."""
        rayserve.shutdown()


def _describe(family: Path) -> ServeDeploySchema:
    """A config, the only way in which Serve takes the application's policy.

    The public ways to hand one over are the dashboard's REST API and the command that calls it:
    half a gigabyte and seconds more for one call. `deploy_apps` is what that API itself calls.
    """
    app = ServeApplicationSchema(
        name=APP_NAME,
        route_prefix="/",
        import_path="serve.app:build_app",
        args={"family": str(family)},
        autoscaling_policy={"policy_function": POLICY},
    )
    return ServeDeploySchema(applications=[app], logging_config=LOGGING_CONFIG)


def _reasons(message: str, deployments: Mapping[str, Any]) -> str:
    failed = [
        f"{name}: {shorten_traceback(text)}"
        for name, d in deployments.items()
        if (text := str(getattr(d, "message", "")))
    ]
    return "\n".join(failed or [shorten_traceback(message)])

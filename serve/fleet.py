"""How many replicas run, as Serve's controller says; asked by the routers, for their permits."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from ray import serve as rayserve
from ray.exceptions import RayError
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException

from serve.permits import Fleet
from serve.served import is_added

INTERVAL_S = 2.0
TIMEOUT_S = 2.0


class FleetWatch:
    """Asks at most once in an interval, and never fails: what is not known now is known later."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic):
        self._clock_s = clock_s
        self._next_s = 0.0

    async def read(self) -> Fleet | None:
        """From inside a router's replica; None when it was asked just now, or nobody answered."""
        if self._clock_s() < self._next_s:
            return None
        self._next_s = self._clock_s() + INTERVAL_S
        context = rayserve.get_replica_context()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                details = await asyncio.to_thread(read_details)
        except (RayError, RayServeException, TimeoutError):
            return None
        apps = details.get("applications", {})
        app = apps.get(context.app_name)
        if app is None:
            return None
        added = [told for name, told in apps.items() if is_added(context.app_name, name)]
        running = {
            name: _count_running(deployment)
            for told in (*added, app)
            for name, deployment in told["deployments"].items()
        }
        return Fleet(running.get(context.deployment, 1), running)


def read_details() -> dict[str, Any]:
    """What `rayserve.status` reads, as it comes: making its objects pickles every deployment's
    request router anew, 0.4 s in which the replica's requests get half of the interpreter."""
    client = _get_global_client(raise_if_no_controller_running=False)
    return {} if client is None else client.get_serve_details()


def _count_running(deployment: dict[str, Any]) -> int:
    return sum(replica["state"] == "RUNNING" for replica in deployment["replicas"])
